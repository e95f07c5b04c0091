"""Training vectors in shuffled batches, streamed from a source that need not fit in memory."""

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np

from qinco.vectors.prefetch import read_ahead
from qinco.vectors.rows import VectorSource

BUFFER_BYTES = 1 << 27
_RUN_ROWS, _RUNS_PER_BUFFER = 1024, 1024


def batches(
    source: VectorSource, epoch: int, bounds: np.ndarray, first_step: int, seed: int, buffer_bytes: int = BUFFER_BYTES,
    rows_shuffled: bool = True,
) -> Generator[np.ndarray, None, None]:  # fmt: skip
    """Yield the shuffled batches of one epoch, float32 (N, D), from the `first_step`-th on.

    Batch i holds rows bounds[i] to bounds[i + 1] of the epoch. Epochs are cut from one endless sequence of passes over
    the source, so that short ones reach all of it. While a buffer of rows is used, the next one is read. Unless the
    rows are known to be shuffled, every buffer holds some of a thousand places of the source.
    """
    buffer_rows = max(1, buffer_bytes // (4 * source.dim))
    is_mixed = rows_shuffled or len(source) <= buffer_rows
    run_rows = _RUN_ROWS if is_mixed else min(max(1, buffer_rows // _RUNS_PER_BUFFER), _RUN_ROWS)
    position = epoch * int(bounds[-1]) + int(bounds[first_step])
    count = int(bounds[-1] - bounds[first_step])
    rest = np.empty((0, source.dim), np.float32)
    with closing(read_ahead(_passes(source, seed, position, count, buffer_bytes, run_rows))) as blocks:
        for size in np.diff(bounds)[first_step:]:
            batch, rest = rest[:size], rest[size:]
            while len(batch) < size:
                block = next(blocks)
                missing = size - len(batch)
                batch, rest = np.concatenate([batch, block[:missing]]), block[missing:]
            yield batch


def _passes(
    source: VectorSource, seed: int, position: int, count: int, buffer_bytes: int, run_rows: int
) -> Iterator[np.ndarray]:
    """Yield blocks of an endless sequence of passes, from row `position` on, until they hold `count` rows."""
    number, offset = divmod(position, len(source))
    while True:
        for block in _shuffled(source, (seed, number), offset, buffer_bytes, run_rows):
            yield block
            count -= len(block)
            if count <= 0:  # nobody needs the next block
                return
        number, offset = number + 1, 0


def _shuffled(source: VectorSource, seed, first_row: int, buffer_bytes: int, run_rows: int) -> Iterator[np.ndarray]:
    """Yield all rows in an order that depends on `seed` alone, from the `first_row`-th of that order on.

    Runs of consecutive rows are drawn in random order and shuffled in a buffer: reads are sequential, memory bounded.
    """
    generator = np.random.default_rng(seed)
    runs = generator.permutation(-(-len(source) // run_rows))
    runs_per_buffer = max(1, buffer_bytes // (4 * source.dim * run_rows))
    for begin in range(0, len(runs), runs_per_buffer):
        starts = runs[begin : begin + runs_per_buffer] * run_rows
        if run_rows < _RUN_ROWS:
            starts.sort()  # many short runs are faster to read in the order of the file
        rows = int(np.minimum(run_rows, len(source) - starts).sum())
        order = generator.permutation(rows)
        if first_row < rows:
            yield _gather(source, starts, run_rows, order)[first_row:]
        first_row = max(0, first_row - rows)


def _gather(source: VectorSource, starts: np.ndarray, run_rows: int, order: np.ndarray) -> np.ndarray:
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    buffer, done = np.empty((len(order), source.dim), np.float32), 0
    for start in starts:
        run = source[int(start) : int(start) + run_rows]
        buffer[positions[done : done + len(run)]] = run
        done += len(run)
    return buffer
