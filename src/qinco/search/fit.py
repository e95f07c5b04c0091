"""Fitting of look-up and pairwise decoders to codes and the vectors that they stand for.

Shape suffixes: N vectors, n vectors of a block, T vectors of a sample, D dimension, M codes of a vector, V lists.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from qinco.atomic import check_output, user_path
from qinco.codec.codec import Codec
from qinco.codec.plan import check_values
from qinco.config import accepts_keys, require_int, require_number
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import LIST_STREAMS, PairwiseDecoder, check_codebook_size, check_memory
from qinco.errors import ConfigError, DataError
from qinco.machine import num_threads
from qinco.maths.clustering import nearest
from qinco.maths.devices import CPU, to_device
from qinco.native.tables import sum_by_row
from qinco.progress import Progress, ProgressOption, counted, reporting, silent
from qinco.search.code_file import BLOCK_ROWS, CodeFile, list_centroids, open_codes, training_vectors
from qinco.store.codes import Codes
from qinco.store.decoder import SUFFIXES, load_pairwise, save_pairwise
from qinco.vectors.formats import input_files
from qinco.vectors.rows import VectorSource, as_source

log = logging.getLogger(__name__)
Decoder = TypeVar("Decoder", LookupDecoder, PairwiseDecoder)
_HALF_WEIGHT_ROWS = np.float32(30)  # a list of so many vectors moves its centroid half of the way to their mean
_HELD_OUT = 20  # one in so many training vectors is held out for validation
_MIN_HELD_OUT = 50
_MAX_MOVED = 0.25  # refitted centroids stay within this fraction of the centroids' variance
_ENCODED_ROWS = 100_000
_MANY, _ANY_CODES, _FEW = 50, 2, 5  # vectors for each row of the tables


@dataclass(frozen=True)
class FitSample:
    """Codes in memory, and `read`, which gives the vectors, float32 (n, D), of n positions in them.

    If it `holds_out`, nothing is fitted to one vector in 20, unless the rest would be too few. Messages call the
    vectors `name`. The last `num_added` codes are no vectors' (see `with_any_codes`).
    """

    codes: Codes
    read: Callable[[np.ndarray], np.ndarray]
    name: str
    dim: int
    holds_out: bool = True
    num_added: int = 0

    @cached_property
    def is_held_T(self) -> np.ndarray:
        """Which vectors are held out, bool (T,)."""
        numbers, count = np.arange(len(self.codes)), len(self.codes) - self.num_added
        holds_out = self.holds_out and count >= _MIN_HELD_OUT * _HELD_OUT
        return (numbers % _HELD_OUT == 0) & (numbers < count) & holds_out

    @classmethod
    def of_vectors(cls, codes: Codes, source: VectorSource, rows_T: np.ndarray, holds_out: bool = True) -> "FitSample":
        """Codes of the vectors `rows_T` of a source."""

        def read(positions_n: np.ndarray) -> np.ndarray:
            x_nD = source[rows_T[positions_n]]
            if not np.isfinite(x_nD).all():
                check_values(source)  # names the row
            return x_nD

        return cls(codes, read, source.name, source.dim, holds_out)

    @classmethod
    def decoded(cls, codec: Codec, codes: Codes, name: str, holds_out: bool = False) -> "FitSample":
        """Codes with their reconstructions: nothing is fitted to what the codec has lost, which codes cannot tell."""
        own = codes_of_codec(codec, codes)
        return cls(codes, lambda part: codec.decode(own[part], precision="auto"), name, codec.dim, holds_out)

    def with_any_codes(self, codec: Codec, centroids_VD: np.ndarray | None, seed: int) -> "FitSample":
        """With decoded random codes, where vectors are too few to show all that codes can be: tables suit others, too.

        Their lists are random in an IVF codec, else those of the nearest centroids (the first list if None).
        """
        size, steps = codec.config.codebook_size, codec.num_codes
        if (count := len(self.codes)) >= _MANY * size * steps:
            return self
        generator, more = np.random.default_rng(seed), _ANY_CODES * size * steps
        added = Codes(generator.integers(0, size, (more, steps)).astype(self.codes.dtype))
        if self.codes.has_lists:
            lists = np.zeros(more, np.int32)
            if codec.is_ivf:
                lists = generator.integers(0, codec.config.num_lists, more).astype(np.int32)
            elif centroids_VD is not None:
                lists = assign_decoded(codec, added, centroids_VD)
            added = added.with_lists(lists)

        def read(positions_n: np.ndarray) -> np.ndarray:
            is_own = positions_n < count
            x_nD = np.empty((len(positions_n), self.dim), np.float32)
            x_nD[is_own] = self.read(positions_n[is_own])
            some = codes_of_codec(codec, added[positions_n[~is_own] - count])
            x_nD[~is_own] = codec.decode(some, precision="auto")
            return x_nD

        return replace(self, codes=Codes.concatenate([self.codes, added]), read=read, num_added=more)

    def warn_of_few(self, codebook_size: int) -> None:
        count, rows = len(self.codes), self.codes.shape[1] * codebook_size
        if count < _FEW * rows:
            log.warning("%s: tables of %d rows are fitted to %d vectors, and suit few others: %d or more are better",
                        self.name, rows, count, _FEW * rows)  # fmt: skip

    def blocks(self, report: Progress = silent, held: bool | None = False) -> Iterator[tuple]:
        """Codes (n, M), lists (n,) or None, and vectors float32 (n, D): to fit to, held out, or all (None)."""
        positions = np.arange(len(self.codes)) if held is None else np.flatnonzero(self.is_held_T == held)
        for start in range(0, len(positions), BLOCK_ROWS):
            part = positions[start : start + BLOCK_ROWS]
            block = self.codes[part]
            yield block.codes, block.lists, self.read(part)
            report("fitting look-up tables", start + len(part), len(positions))

    def mse(self, decode: Callable) -> tuple[float, float]:
        """Mean squared error of a decoder, and that of the mean, on the held-out vectors; on all if there are none."""
        error, sum_D, squares, count = 0.0, 0.0, 0.0, 0
        for codes, lists, x_nD in self.blocks(held=bool(self.is_held_T.any())):
            error += np.square(decode(codes, lists) - x_nD, dtype=np.float64).sum()
            sum_D = sum_D + x_nD.sum(0, dtype=np.float64)
            squares += np.square(x_nD, dtype=np.float64).sum()
            count += len(x_nD)
        return error / count, (squares - (np.square(sum_D) / count).sum()) / count

    def validated_mse(self, lookup: LookupDecoder) -> float:
        """The error of look-up tables; warns where they explain nothing."""
        mse, variance = self.mse(lookup.decode)
        if mse >= variance > 0:
            hint = "are the codes of these vectors, in this order?"
            log.warning("the look-up tables explain nothing of %s (error %.4g): %s", self.name, mse, hint)
        return mse

    def mean(self) -> np.ndarray:
        """Mean of all vectors, float32 (1, D): the centroid of a single list."""
        sums = [x_nD.sum(0, dtype=np.float64) for *_, x_nD in self.blocks(held=None)]
        return (np.asarray(sum(sums)) / len(self.codes)).astype(np.float32)[None]


@dataclass(frozen=True)
class FittedDecoder(Generic[Decoder]):
    """A decoder fitted to `num_vectors`, its mean squared error on others, and its tables' and the codec's.

    All of them are lower than on other vectors if the codec was trained on these.
    """

    decoder: Decoder
    mse: float
    mse_lookup: float
    num_vectors: int
    mse_neural: float | None = None


@accepts_keys(M="num_codes", K="codebook_size")
def fit_lookup_decoder(
    vectors, codes=None, *, codec: Codec | None = None, centroids=None, num_codes: int | None = None,
    codebook_size: int | None = None, num_training: int | None = None, seed: int = 0, progress: ProgressOption = None,
) -> FittedDecoder[LookupDecoder]:  # fmt: skip
    """Fit additive look-up tables: one row for each codeword of each step (QINCo2 paper, section 4).

    Args:
        vectors: (N, D) array, tensor, path or VectorSource.
        codes: their Codes, or the path of them; encoded by the codec if None.
        codec: the Codec of the codes; codes with lists need it or `centroids`.
        centroids: (V, D) coarse centroids of the codes' lists, or a path.
        num_codes, codebook_size: M and K, for arrays and files that do not say them.
        num_training: vectors drawn at random to fit to; a million if None (100,000 where they must be encoded).
        seed: of the drawing.
        progress: see `qinco.progress`.

    Returns:
        FittedDecoder; its `decoder.decode(codes, lists)` gives float32 (N, D).

    Example:
        >>> fitted = fit_lookup_decoder("train.fvecs", "train_codes", codec=codec)
        >>> fitted.decoder.decode(codes.codes, codes.lists)
    """
    with reporting(progress) as report:
        if codes is None:
            if codec is None:
                raise ConfigError("codes=None needs a codec to encode the vectors with")
            vectors = as_source(vectors)
            vectors = vectors.take(
                sample_rows(len(vectors), _ENCODED_ROWS if num_training is None else num_training, seed)
            )
            codes = codec.encode(vectors, progress=report)
        file = open_codes(codes, codec, num_codes, codebook_size)
        sample, centroids_VD = draw_sample(file, vectors, codec, centroids, num_training, seed, report)
        sample.warn_of_few(file.codebook_size)
        lookup = fit_lookup(sample, file.codebook_size, centroids_VD, report=report)
        mse = sample.validated_mse(lookup)
        return FittedDecoder(lookup, mse, mse, int((~sample.is_held_T).sum()))


@accepts_keys(M="num_codes", K="codebook_size")
def fit_pairwise_decoder(
    vectors, codes, *, codec: Codec | None = None, centroids=None, pairs_per_code: float = 2.0, dtype: str = "float32",
    num_codes: int | None = None, codebook_size: int | None = None, num_training: int | None = None, seed: int = 0,
    output: str | os.PathLike | None = None, overwrite: bool = False, inputs: Iterable = (),
    progress: ProgressOption = None,
) -> FittedDecoder[PairwiseDecoder]:  # fmt: skip
    """Fit tables of pairs of codes to what look-up tables leave of the vectors (QINCo2 paper, section 4.2).

    With a codec the tables are fitted to its reconstructions, if that decodes held-out vectors better.

    Args:
        vectors, codes, codec, centroids, num_codes, codebook_size, num_training, seed, progress: as in
            `fit_lookup_decoder`, but `codes` must be given.
        pairs_per_code: pairs of codes at most, in multiples of M.
        dtype: of the pairs' tables, "float32" or "float16".
        output: .safetensors file to write, or .pt, the authors' form, for which the lists' centroids stay as they are.
        overwrite, inputs: replace `output`; more files that are read, which it must not replace.

    Returns:
        FittedDecoder; `qinco.evaluate_decoder` measures its `decoder` on vectors that the codec was not trained on.

    Example:
        >>> fitted = fit_pairwise_decoder("train.fvecs", "train_codes", codec=codec, dtype="float16")
        >>> fitted.mse <= fitted.mse_lookup
        True
    """
    if output is not None:
        read = [*inputs, *input_files(vectors, codes, centroids)]
        output = check_output(output, suffixes=SUFFIXES, overwrite=overwrite, inputs=read)
    require_number("pairs_per_code", pairs_per_code, above=0)
    file = open_codes(codes, codec, num_codes, codebook_size)
    check_codebook_size(file.codebook_size)
    with reporting(progress) as report:
        sample, centroids_VD = draw_sample(file, vectors, codec, centroids, num_training, seed, report)
        sample.warn_of_few(file.codebook_size)
        streams = file.num_codes + (0 if centroids_VD is None else LIST_STREAMS)
        num_pairs = min(max(1, round(pairs_per_code * file.num_codes)), streams * (streams - 1) // 2)
        count, number = int((~sample.is_held_T).sum()), np.dtype(dtype).type
        size = check_memory(count, num_pairs, file.codebook_size, sample.dim, number)
        some = f"at most {counted(num_pairs, 'pair')} of codes to {counted(count, 'vector')}"
        log.info("fitting %s: %s", some, size)
        moves_centroids = output is None or output.suffix.lower() == SUFFIXES[0]
        fit = {"codebook_size": file.codebook_size, "centroids_VD": centroids_VD, "moves_centroids": moves_centroids}
        target, lookup = sample, fit_lookup(sample, **fit, report=report)
        mse_lookup, mse_neural = sample.validated_mse(lookup), None
        if codec is not None:
            mse_neural, _ = sample.mse(lambda *of: codec.decode(codes_of_codec(codec, Codes(*of)), precision="auto"))
            decoded = FitSample.decoded(codec, sample.codes, sample.name, holds_out=True)
            other = fit_lookup(decoded, **fit, report=report)
            if sample.mse(other.decode)[0] <= mse_lookup:
                lookup, target = other, decoded
                log.info("the pairs are fitted to the codec's reconstructions")
        codes, lists, x = zip(*target.blocks(), strict=True)
        lists = None if lists[0] is None else np.concatenate(lists)
        data = np.concatenate(codes), lists, np.concatenate(x), lookup
        decoder = PairwiseDecoder.fit(*data, num_pairs=num_pairs, dtype=number, seed=seed, progress=report)
        if output is not None:
            save_pairwise(output, decoder)
        return FittedDecoder(decoder, sample.mse(decoder.decode)[0], mse_lookup, count, mse_neural)


def draw_sample(
    file: CodeFile, vectors, codec: Codec | None, centroids, num_training: int | None, seed: int, report: Progress
) -> tuple[FitSample, np.ndarray | None]:
    """A sample of codes, in lists where there are centroids, with vectors (None: reconstructions); and centroids."""
    rows_T = sample_rows(len(file), 1_000_000 if num_training is None else num_training, seed)
    target = codec if vectors is None else training_vectors(file, vectors)
    if target is None:
        raise ConfigError("without training vectors a codec is needed, to whose reconstructions tables are fitted")
    centroids_VD = list_centroids(file, codec, centroids, target.dim)
    codes = file.rows(rows_T, 0 if centroids_VD is None else len(centroids_VD))
    if not codes.has_lists and centroids_VD is not None:
        codes = codes.with_lists(assign_decoded(codec, codes, centroids_VD, report))
    if isinstance(target, Codec):
        return FitSample.decoded(target, codes, file.name, holds_out=True), centroids_VD
    return FitSample.of_vectors(codes, target, rows_T), centroids_VD


def fit_lookup(
    sample: FitSample, codebook_size: int, centroids_VD, *, moves_centroids: bool = True, report: Progress = silent
) -> LookupDecoder:
    """Look-up tables, added to centroids, float32 (V, D), where there are some; these are refitted, too, by default."""
    if not (~sample.is_held_T).any():
        raise DataError(f"{sample.name} must not be empty: look-up tables are fitted to vectors")
    sizes = sample.codes.shape[1], codebook_size
    lookup = LookupDecoder.fit(sample.blocks(report), *sizes, centroids_VD)
    if centroids_VD is not None and moves_centroids:
        lookup = LookupDecoder.fit(sample.blocks(report), *sizes, _moved_centroids(lookup, sample))
        lookup = replace(lookup, centroids_VD=_moved_centroids(lookup, sample))
    return lookup


def _moved_centroids(lookup: LookupDecoder, sample: FitSample) -> np.ndarray:
    """Centroids (V, D) moved by the mean of what tables leave of their lists' vectors, less where these are few."""
    assert lookup.centroids_VD is not None
    sums_VD, counts_V = np.zeros(lookup.centroids_VD.shape, np.float32), np.zeros(lookup.num_lists, np.float32)
    for codes_NM, lists_N, x_ND in sample.blocks():
        left_ND = x_ND - lookup.decode(codes_NM, lists_N)
        lists_N1 = np.ascontiguousarray(lists_N[:, None], np.int32)
        sum_by_row(left_ND, lists_N1, lookup.num_lists, sums_VD, threads=num_threads())
        counts_V += np.bincount(lists_N, minlength=len(counts_V))
    return lookup.centroids_VD + sums_VD / (counts_V + _HALF_WEIGHT_ROWS)[:, None]


def open_pairwise(
    pairwise, num_codes: int, codebook_size: int, dim: int, centroids_VD: np.ndarray | None
) -> PairwiseDecoder | None:
    """A pairwise decoder, or the file of one, for codes in lists of these centroids; None for None."""
    if pairwise is None:
        return None
    decoder, name = pairwise, "the pairwise decoder"
    if not isinstance(decoder, PairwiseDecoder):
        name = user_path(pairwise)
        decoder = load_pairwise(name, num_codes)
    sizes = {"M": (decoder.num_codes, num_codes), "K": (decoder.codebook_size, codebook_size), "D": (decoder.dim, dim)}
    if decoder.num_lists:
        sizes["number of lists"] = decoder.num_lists, 0 if centroids_VD is None else len(centroids_VD)
    remedy = "give the decoder fitted to this codec's codes"
    for what, (found, wanted) in sizes.items():
        if found != wanted:
            raise DataError(f"{name} is for other codes: its {what} is {found}, not {wanted}; {remedy}")
    if decoder.centroids_VD is None or centroids_VD is None:
        return replace(decoder, centroids_VD=centroids_VD) if decoder.num_lists else decoder
    if np.square(decoder.centroids_VD - centroids_VD).mean() > _MAX_MOVED * centroids_VD.var(0).mean():
        raise DataError(f"{name} is for lists with other centroids; {remedy}")
    return decoder


def codes_of_codec(codec: Codec, codes: Codes) -> Codes:
    """Codes as their codec decodes them: without the lists of a partition that the codec does not know."""
    return codes if codec.is_ivf else codes.with_lists(None)


def assign_decoded(codec: Codec | None, codes: Codes, centroids_VD, report: Progress = silent) -> np.ndarray:
    """The nearest centroid of each code's reconstruction, int32 (N,); a single one needs no codec."""
    lists_N = np.zeros(len(codes), np.int32)
    if len(centroids_VD) == 1:
        return lists_N
    assert codec is not None
    is_cpu = codec.device == CPU
    near_VD = centroids_VD if is_cpu else to_device(centroids_VD, codec.device)
    for first, block in codec.decode_blocks(codes, "auto"):
        found_N: Any = nearest(block if is_cpu else to_device(block, codec.device), near_VD, num_threads())
        lists_N[first : first + len(block)] = found_N if is_cpu else found_N.cpu()
        report("assigning vectors to lists", first + len(block), len(codes))
    return lists_N


def sample_rows(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of `count` row numbers, drawn at random, in ascending order."""
    require_int("num_training (search.aq_training_samples)", most)
    require_int("seed", seed, 0)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
