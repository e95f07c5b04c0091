"""What a codec costs and loses on vectors, measured in one pass over them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import EncodeOptions
from qinco.errors import DataError
from qinco.maths.devices import to_device
from qinco.vectors.rows import VectorSource

_TIMED_VECTORS = 10_000
_REPEATS = 3


@dataclass(frozen=True)
class Evaluation:
    """mse_per_step: mean squared error, summed over dimensions, of each prefix of the code; the last is the whole's."""

    mse_per_step: list[float]
    num_vectors: int
    seconds: float

    @property
    def mse(self) -> float:
        return self.mse_per_step[-1]


def evaluate(
    codec: Codec,
    source: VectorSource,
    options: EncodeOptions | None = None,
    num_steps: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Encode and decode all vectors of a source in bounded memory; `on_progress` hears how many are done.

    num_steps: encode so many steps only, the best code of that length
    """
    if len(source) == 0:
        raise DataError(f"{source.name} holds no vectors to evaluate on")
    begun = time.monotonic()
    steps = num_steps or codec.config.num_steps
    errors_M = torch.zeros(steps, dtype=torch.float64, device=codec.device)
    for first, codes, lists in codec.encode_blocks(source, options, num_steps):
        x_ND = to_device(source[first : first + len(codes)], codec.device)
        for m, decoded_ND in enumerate(codec.decode_prefixes(codes, lists)):
            errors_M[m] += (decoded_ND - x_ND).double().square().sum()
        on_progress(first + len(codes))
    return Evaluation((errors_M.cpu() / len(source)).tolist(), len(source), time.monotonic() - begun)


def measure_time(
    codec: Codec, source: VectorSource, options: EncodeOptions | None = None, precision: str = "float32"
) -> tuple[float, float]:
    """Microseconds a vector for encoding and for decoding: the median of three passes after a short one."""
    if len(source) == 0:
        raise DataError(f"{source.name} holds no vectors to time")
    some = VectorSource(source.limit(_TIMED_VECTORS)[:], source.name)
    options = options or codec.encode_options

    def encode(vectors: VectorSource):
        blocks = list(codec.encode_blocks(vectors, options))
        lists = None if blocks[0][2] is None else np.concatenate([block[2] for block in blocks])
        return np.concatenate([block[1] for block in blocks]), lists

    encode(some.limit(256))
    codes, lists = encode(some)
    codec.decode(codes[:256], None if lists is None else lists[:256], precision=precision)
    encode_us = median_us(lambda: encode(some), len(some))
    decode_us = median_us(lambda: codec.decode(codes, lists, precision=precision), len(some))
    return encode_us, decode_us


def median_us(work: Callable, num_vectors: int) -> float:
    seconds = []
    for _ in range(_REPEATS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) / num_vectors * 1e6
