"""Measure a codec's reconstruction error and speed."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from qinco.codec.given import CodecLike, as_codec
from qinco.config import DEFAULT_ENCODE_OPTIONS, PAPER_ENCODE_OPTIONS, EncodeOptions, require_int
from qinco.engines.engine import candidate_precision
from qinco.machine import num_threads, using_threads
from qinco.progress import ProgressOption, reporting
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source, check_not_empty

_COMMON_OPTIONS = (PAPER_ENCODE_OPTIONS, DEFAULT_ENCODE_OPTIONS, EncodeOptions(num_pairs=16, beam_width=4))


@dataclass(frozen=True)
class Evaluation:
    """Mean squared error, summed over dimensions, of each prefix of the codes of N vectors, and the time it took."""

    mse_per_step: list[float]
    num_vectors: int
    seconds: float

    @property
    def mse(self) -> float:
        return self.mse_per_step[-1]


@dataclass(frozen=True)
class Speed:
    """Microseconds a vector with some options, precision of candidates and threads, as `benchmark` measured them."""

    options: EncodeOptions
    precision: str
    threads: int
    encode_us: float
    decode_us: float


def evaluate(
    codec: CodecLike, x, options: EncodeOptions | None = None, num_steps: int | None = None, *,
    progress: ProgressOption = None,
) -> Evaluation:  # fmt: skip
    """Encode and decode vectors, and measure the error, in bounded memory.

    Args:
        codec: a Codec, or the path of one.
        x: (N, D) vectors, as for `Codec.encode`.
        options: for encoding; the codec's own if None.
        num_steps: encode so many steps only, the best code of that length.
        progress: see `qinco.progress`.

    Example:
        >>> evaluate(codec, "base.fvecs").mse
    """
    codec, source, begun = as_codec(codec), check_not_empty(as_source(x)), time.monotonic()
    errors_M = np.zeros(codec.check_steps(num_steps))
    with reporting(progress) as report:
        for first, codes in codec.encode_blocks(source, options, num_steps):
            x_ND = source[first : first + len(codes)]
            for m, decoded_ND in enumerate(codec.decode_prefixes(codes)):
                errors_M[m] += np.square(decoded_ND - x_ND, dtype=np.float64).sum()
            report("evaluating", first + len(codes), len(source))
    return Evaluation((errors_M / len(source)).tolist(), len(source), time.monotonic() - begun)


def measure_time(
    codec: CodecLike, x, options: EncodeOptions | None = None, precision: str = "float32"
) -> tuple[float, float]:
    """Microseconds a vector for encoding, and for decoding: the median of three passes after a short one.

    Args:
        codec: a Codec, or the path of one.
        x: (N, D) vectors, of which 10,000 at most are used.
        options: for encoding; the codec's own if None.
        precision: of decoding: "auto", "float32" or "bf16".

    Example:
        >>> encode_us, decode_us = measure_time(codec, "base.fvecs")
    """
    codec, some = as_codec(codec), as_source(check_not_empty(as_source(x)).limit(10_000)[:])
    coder = codec if options is None else codec.with_options(options)
    coder.encode(some.limit(256))
    codes = coder.encode(some)
    codec.decode(codes[:256], precision=precision)
    encode_us = median_us(lambda count: coder.encode(some), len(some))
    return encode_us, median_us(lambda count: codec.decode(codes, precision=precision), len(some))


def benchmark(
    codec: CodecLike, *, threads: Sequence[int] | None = None, precisions: Sequence[str] | None = None,
    options: Sequence[EncodeOptions] | None = None, engine: str = "auto", pass_us: float = 400_000,
    max_vectors: int = 32_768, progress: ProgressOption = None,
) -> list[Speed]:  # fmt: skip
    """Measure the speed of a codec on random vectors, for about two seconds each combination.

    Args:
        codec: a Codec, or the path of one; that of `qinco.model.qinco.random_model` takes the same time as a trained
            one.
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
    codec, random = as_codec(codec), np.random.default_rng(0)
    config = codec.config
    is_bf16 = candidate_precision("auto", codec.device, config) == "bf16"
    own = codec.encode_options.override(precision="auto", engine="auto")
    tried = options or dict.fromkeys((*(_COMMON_OPTIONS if config.has_preselector else [EncodeOptions()]), own))
    threads = threads or sorted({1, num_threads()} if codec.device == "cpu" else {num_threads()})
    for number in threads:
        require_int("threads", number)
    kinds = precisions or (["float32", "auto"] if is_bf16 else ["float32"])
    cases = [(*case, case[-1].override(precision=case[1], engine=engine)) for case in product(threads, kinds, tried)]
    most = max(1, min(max_vectors, (1 << 24) // codec.dim))
    vectors = as_source(random.standard_normal((most, codec.dim), np.float32))
    codes_NM = random.integers(config.codebook_size, size=(most, codec.num_codes))
    codes = Codes(codes_NM, random.integers(config.num_lists, size=most) if codec.is_ivf else None)
    rows, decode_us = [], {}

    def encode(options: EncodeOptions, count: int) -> None:
        list(codec.encode_blocks(vectors.limit(count), options))

    def decode(precision: str, count: int) -> None:
        codec.decode(codes[:count], precision=precision)

    with reporting(progress) as report:
        for number, precision, case, chosen in cases:
            with using_threads(number):
                decoded = "bf16" if precision == "bf16" else "float32"
                if (number, decoded) not in decode_us:
                    decode_us[number, decoded] = median_us(partial(decode, decoded), most, pass_us)
                encode_us = median_us(partial(encode, chosen), most, pass_us)
                rows.append(Speed(case, precision, number, encode_us, decode_us[number, decoded]))
                report("measuring", len(rows), len(cases), "measurement")
    return rows


def median_us(work: Callable[[int], object], most: int, pass_us: float | None = None) -> float:
    """Microseconds a vector of `work(n)`: the median of three passes.

    n is `most`, or with `pass_us` only so large that a pass takes half that long at least.
    """
    count = most if pass_us is None else 1
    while True:
        seconds = []
        for _ in range(3):
            torch: Any = sys.modules.get("torch")
            if hasattr(torch, "cuda") and torch.cuda.is_available():
                torch.cuda.synchronize()
            begun = time.perf_counter()
            work(count)
            seconds.append(time.perf_counter() - begun)
        taken = statistics.median(seconds) / count * 1e6
        if pass_us is None or count == most or count * taken >= pass_us / 2:
            return taken
        count = min(most, max(2 * count, round(pass_us / taken)))
