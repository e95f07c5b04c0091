"""Measure a codec's reconstruction error and speed.

Shape suffixes: N vectors, D dimension, M steps.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import DEFAULT_ENCODE_OPTIONS, PAPER_ENCODE_OPTIONS, EncodeOptions
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
_REPEATS = 3
_COMMON_OPTIONS = (PAPER_ENCODE_OPTIONS, DEFAULT_ENCODE_OPTIONS, EncodeOptions(num_pairs=16, beam_width=4))


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
        encode_us: microseconds a vector.
        decode_us: microseconds a vector.
    """

    options: EncodeOptions
    precision: str
    threads: int
    encode_us: float
    decode_us: float


def evaluate(
    codec: Codec,
    x,
    options: EncodeOptions | None = None,
    num_steps: int | None = None,
    *,
    progress: ProgressOption = None,
) -> Evaluation:
    """Encode and decode vectors, and measure the error, in bounded memory.

    Args:
        codec: a Codec.
        x: (N, D) vectors, as for `Codec.encode`.
        options: for encoding; the codec's own if None.
        num_steps: encode so many steps only, the best code of that length.
        progress: see `qinco.progress`.

    Raises:
        DataError: there are no vectors, or they are not of the codec's dimension.

    Example:
        >>> evaluate(codec, "base.fvecs").mse
    """
    source = as_source(x)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no vectors to evaluate on")
    begun = time.monotonic()
    steps = num_steps or codec.config.num_steps
    errors_M = torch.zeros(steps, dtype=torch.float64, device=codec.device)
    with reporting(progress) as report:
        for first, codes in codec.encode_blocks(source, options, num_steps):
            x_ND = to_device(source[first : first + len(codes)], codec.device)
            for m, decoded_ND in enumerate(codec.decode_prefixes(codes)):
                errors_M[m] += (decoded_ND - x_ND).double().square().sum()
            report("evaluating", first + len(codes), len(source))
    return Evaluation((errors_M.cpu() / len(source)).tolist(), len(source), time.monotonic() - begun)


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

    Raises:
        DataError: there are no vectors, or they are not of the codec's dimension.

    Example:
        >>> encode_us, decode_us = measure_time(codec, "base.fvecs")
    """
    source = as_source(x)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no vectors to time")
    some = VectorSource(source.limit(_TIMED_VECTORS)[:], source.name)

    def encode(vectors: VectorSource) -> Codes:
        return Codes.concatenate([codes for _, codes in codec.encode_blocks(vectors, options)])

    encode(some.limit(256))
    codes = encode(some)
    codec.decode(codes[:256], precision=precision)
    encode_us = median_us(lambda: encode(some), len(some))
    return encode_us, median_us(lambda: codec.decode(codes, precision=precision), len(some))


def benchmark(
    codec: Codec,
    *,
    threads: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
    options: Sequence[EncodeOptions] | None = None,
    engine: str = "auto",
    pass_us: float = PASS_US,
    max_vectors: int = MAX_VECTORS,
    progress: ProgressOption = None,
) -> list[Speed]:
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
    threads = threads or default_threads(codec)
    precisions, options = precisions or default_precisions(codec), options or default_options(codec)
    count = max(1, min(max_vectors, _MAX_BYTES // (4 * codec.dim)))
    encode, decode = _workloads(codec, count)
    rows, decode_us, threads_before = [], {}, torch.get_num_threads()
    cases = list(product(threads, precisions, options))
    try:
        with reporting(progress) as report:
            for number, precision, case in cases:
                torch.set_num_threads(number)
                decoder = number, "bf16" if precision == "bf16" else "float32"
                if decoder not in decode_us:
                    decode_us[decoder] = growing_median_us(partial(decode, decoder[1]), count, pass_us)
                chosen = case.override(precision=precision, engine=engine)
                encode_us = growing_median_us(partial(encode, chosen), count, pass_us)
                rows.append(Speed(case, precision, number, encode_us, decode_us[decoder]))
                report("measuring", len(rows), len(cases), "measurement")
    finally:
        torch.set_num_threads(threads_before)
    return rows


def default_threads(codec: Codec) -> list[int]:
    """One thread and all of them; on a GPU all."""
    every = torch.get_num_threads()
    return sorted({1, every}) if codec.device.type == "cpu" else [every]


def default_precisions(codec: Codec) -> list[str]:
    """float32, and "auto" unless it is float32."""
    is_bf16 = candidate_dtype("auto", codec.device, codec.config) is torch.bfloat16
    return ["float32", "auto"] if is_bf16 else ["float32"]


def default_options(codec: Codec) -> list[EncodeOptions]:
    """The common options that the codec's models can serve, and its own."""
    own = codec.encode_options.override(precision="auto", engine="auto")
    return list(dict.fromkeys((*_COMMON_OPTIONS, own) if codec.config.has_preselector else (EncodeOptions(), own)))


def _workloads(codec: Codec, count: int) -> tuple[Callable, Callable]:
    """`encode(options, n)` and `decode(precision, n)`: work on the first n of the same random vectors and codes."""
    random = np.random.default_rng(0)
    vectors = as_source(random.standard_normal((count, codec.dim), np.float32))
    codes_NM = random.integers(codec.config.codebook_size, size=(count, codec.num_codes))
    codes = Codes(codes_NM, random.integers(codec.config.num_lists, size=count) if codec.is_ivf else None)

    def encode(options: EncodeOptions, n: int) -> None:
        for _ in codec.encode_blocks(vectors.limit(n), options):
            pass

    return encode, lambda precision, n: codec.decode(codes[:n], precision=precision)


def growing_median_us(work: Callable[[int], object], max_vectors: int, pass_us: float) -> float:
    """Microseconds a vector of `work(n)`: the median of three passes over so many vectors that one takes a while."""
    count = 1
    while True:
        taken = median_us(partial(work, count), count)
        if count == max_vectors or count * taken >= pass_us / 2:
            return taken
        count = min(max_vectors, max(2 * count, round(pass_us / taken)))


def median_us(work: Callable[[], object], num_vectors: int) -> float:
    """Microseconds a vector: the median of three passes of `work`."""
    seconds = []
    for _ in range(_REPEATS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) / num_vectors * 1e6
