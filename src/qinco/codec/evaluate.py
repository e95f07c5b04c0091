"""Measure a codec's reconstruction error and speed.

Shape suffixes: N vectors, D dimension, M steps.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import DEFAULT_SEARCH, PAPER_SEARCH, EncodeOptions
from qinco.engines.engine import candidate_dtype
from qinco.errors import DataError
from qinco.maths.devices import to_device
from qinco.progress import ProgressOption, reporting
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource, as_source

PASS_US = 400_000  # three passes of this length are a second or so, and noise of a millisecond does not show
MAX_VECTORS = 32_768
_MAX_BYTES = 1 << 26
_TIMED_VECTORS = 10_000
_COMMON_OPTIONS = (PAPER_SEARCH, DEFAULT_SEARCH, EncodeOptions(num_pairs=16, beam_width=4))


@dataclass(frozen=True)
class Evaluation:
    """A codec's error on vectors.

    Attributes:
        mse_per_step: mean squared error, summed over dimensions, of each prefix of the code; the last is the whole's.
        num_vectors: N.
        seconds: that encoding and decoding took.
    """

    mse_per_step: list[float]
    num_vectors: int
    seconds: float

    @property
    def mse(self) -> float:
        return self.mse_per_step[-1]


@dataclass(frozen=True)
class Speed:
    """Speed of a codec with some options, as `benchmark` measured it.

    Attributes:
        options: that vectors were encoded with.
        precision: of the candidates: "auto", "float32" or "bf16".
        threads: of torch and the compiled kernels.
        encode_us, decode_us: microseconds a vector.
    """

    options: EncodeOptions
    precision: str
    threads: int
    encode_us: float
    decode_us: float


def evaluate(
    codec: Codec, x, options: EncodeOptions | None = None, num_steps: int | None = None, *,
    progress: ProgressOption = None,
) -> Evaluation:  # fmt: skip
    """Encode and decode vectors, and measure the error, in bounded memory.

    Args:
        codec: a Codec.
        x: (N, D) vectors, as for `Codec.encode`.
        options: for encoding; the codec's own if None.
        num_steps: encode so many steps only, the best code of that length.
        progress: see `qinco.progress`.

    Example:
        >>> evaluate(codec, "base.fvecs").mse
    """
    source, begun = _some_vectors(x), time.monotonic()
    errors_M = torch.zeros(num_steps or codec.config.num_steps, dtype=torch.float64, device=codec.device)
    with reporting(progress) as report:
        for first, codes in codec.encode_blocks(source, options, num_steps):
            x_ND = to_device(source[first : first + len(codes)], codec.device)
            for m, decoded_ND in enumerate(codec.decode_prefixes(codes)):
                errors_M[m] += (decoded_ND - x_ND).double().square().sum()
            report("evaluating", first + len(codes), len(source))
    return Evaluation((errors_M.cpu() / len(source)).tolist(), len(source), time.monotonic() - begun)


def _some_vectors(x) -> VectorSource:
    source = as_source(x)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no vectors")
    return source


def measure_time(
    codec: Codec, x, options: EncodeOptions | None = None, precision: str = "float32"
) -> tuple[float, float]:
    """Time encoding and decoding of vectors: the median of three passes after a short one.

    Args:
        codec: a Codec.
        x: (N, D) vectors, of which 10,000 at most are used.
        options: for encoding; the codec's own if None.
        precision: of decoding: "auto", "float32" or "bf16".

    Returns:
        Microseconds a vector for encoding, and for decoding.

    Example:
        >>> encode_us, decode_us = measure_time(codec, "base.fvecs")
    """
    source = _some_vectors(x)
    some = VectorSource(source.limit(_TIMED_VECTORS)[:], source.name)

    def encode(count: int) -> Codes:
        return Codes.concatenate([codes for _, codes in codec.encode_blocks(some.limit(count), options)])

    encode(256)
    codes = encode(len(some))
    codec.decode(codes[:256], precision=precision)
    encode_us = median_us(encode, len(some))
    return encode_us, median_us(lambda count: codec.decode(codes, precision=precision), len(some))


def benchmark(
    codec: Codec, *, threads: Sequence[int] | None = None, precisions: Sequence[str] | None = None,
    options: Sequence[EncodeOptions] | None = None, engine: str = "auto", pass_us: float = PASS_US,
    max_vectors: int = MAX_VECTORS, progress: ProgressOption = None,
) -> list[Speed]:  # fmt: skip
    """Measure the speed of a codec on random vectors, for about two seconds each combination.

    `qinco.model.random.random_model` makes a model without training, which takes the same time as a trained one.

    Args:
        codec: a Codec.
        threads: numbers of threads; one and all of them if None (on a GPU all).
        precisions: "float32", "bf16" or "auto"; if None float32, and what "auto" is unless it is float32.
        options: for encoding; those of the papers, cheaper ones and the codec's own if None.
        engine: "auto" or the name of an engine.
        pass_us: microseconds that a timed pass lasts at least half of, unless `max_vectors` take less.
        max_vectors: vectors of a pass at most.
        progress: see `qinco.progress`.

    Returns:
        A `Speed` for each number of threads, precision and options.

    Example:
        >>> for row in benchmark(codec):
        ...     print(row.options, row.precision, row.threads, row.encode_us, row.decode_us)
    """
    threads_before, config, random = torch.get_num_threads(), codec.config, np.random.default_rng(0)
    is_bf16 = candidate_dtype("auto", codec.device, config) is torch.bfloat16
    own = codec.encode_options.override(precision="auto", engine="auto")
    options = options or dict.fromkeys((*(_COMMON_OPTIONS if config.has_preselector else [EncodeOptions()]), own))
    threads = threads or sorted({1, threads_before} if codec.device.type == "cpu" else {threads_before})
    cases = list(product(threads, precisions or (["float32", "auto"] if is_bf16 else ["float32"]), options))
    most = max(1, min(max_vectors, _MAX_BYTES // (4 * codec.dim)))
    vectors = as_source(random.standard_normal((most, codec.dim), np.float32))
    codes_NM = random.integers(config.codebook_size, size=(most, codec.num_codes))
    codes = Codes(codes_NM, random.integers(config.num_lists, size=most) if codec.is_ivf else None)
    rows, decode_us = [], {}
    try:
        with reporting(progress) as report:
            for number, precision, case in cases:
                torch.set_num_threads(number)
                decoded = "bf16" if precision == "bf16" else "float32"
                if (number, decoded) not in decode_us:
                    decode = partial(_decode, codec, codes, decoded)
                    decode_us[number, decoded] = growing_median_us(decode, most, pass_us)
                encode = partial(_encode, codec, vectors, case.override(precision=precision, engine=engine))
                encode_us = growing_median_us(encode, most, pass_us)
                rows.append(Speed(case, precision, number, encode_us, decode_us[number, decoded]))
                report("measuring", len(rows), len(cases), "measurement")
    finally:
        torch.set_num_threads(threads_before)
    return rows


def _encode(codec: Codec, vectors: VectorSource, options: EncodeOptions, count: int) -> None:
    deque(codec.encode_blocks(vectors.limit(count), options), maxlen=0)


def _decode(codec: Codec, codes: Codes, precision: str, count: int) -> None:
    codec.decode(codes[:count], precision=precision)


def growing_median_us(work: Callable[[int], object], max_vectors: int, pass_us: float) -> float:
    """`median_us` of so many vectors that a pass takes a while."""
    count = 1
    while True:
        taken = median_us(work, count)
        if count == max_vectors or count * taken >= pass_us / 2:
            return taken
        count = min(max_vectors, max(2 * count, round(pass_us / taken)))


def median_us(work: Callable[[int], object], num_vectors: int) -> float:
    """Microseconds a vector: the median of three passes of `work(num_vectors)`."""
    seconds = []
    for _ in range(3):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work(num_vectors)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) / num_vectors * 1e6
