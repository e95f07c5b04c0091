"""Training vectors in shuffled batches, streamed from a source that need not fit in memory."""

from collections.abc import Iterator

import numpy as np

from qinco.vectors.source import VectorSource

_RUN_ROWS = 1024
_BUFFER_BYTES = 1 << 27


def _shuffled(source: VectorSource, seed: int, first_row: int) -> Iterator[np.ndarray]:
    """All rows of a source in an order that depends on `seed` alone, from the `first_row`-th of that order on.

    Runs of consecutive rows are drawn in random order into a buffer, which is shuffled: reads stay sequential, and
    memory is bounded. Buffers before the first row wanted are not read.
    """
    generator = np.random.default_rng(seed)
    num_runs = -(-len(source) // _RUN_ROWS)
    runs = generator.permutation(num_runs)
    runs_per_buffer = max(1, _BUFFER_BYTES // (4 * source.dim * _RUN_ROWS))
    for begin in range(0, num_runs, runs_per_buffer):
        starts = runs[begin : begin + runs_per_buffer] * _RUN_ROWS
        rows = sum(min(_RUN_ROWS, len(source) - start) for start in starts)
        order = generator.permutation(rows)
        if first_row >= rows:
            first_row -= rows
            continue
        parts = [source[int(start) : int(start) + _RUN_ROWS] for start in starts]
        yield np.concatenate(parts)[order[first_row:]]
        first_row = 0


def batches(source: VectorSource, epoch: int, bounds: np.ndarray, first_step: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of one epoch: batch i holds rows bounds[i] to bounds[i + 1] of it, float32 (N, D), from `first_step` on.

    Epochs continue in one endless sequence of passes over the source, each pass in an order of its own, so that
    epochs shorter than the source reach all of it.
    """
    position = epoch * int(bounds[-1]) + int(bounds[first_step])
    number, offset = divmod(position, len(source))
    sizes = iter(np.diff(bounds)[first_step:])
    size = next(sizes)
    held = np.empty((0, source.dim), np.float32)
    while True:
        for block in _shuffled(source, (seed, number), offset):
            held = np.concatenate([held, block])
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
                size = next(sizes, None)
                if size is None:
                    return
        number, offset = number + 1, 0
