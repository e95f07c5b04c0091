"""Fitting of look-up and pairwise decoders to codes and the vectors that they stand for.

Shape suffixes: N vectors, n vectors of a block, D dimension, M codes of a vector, V lists.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from qinco.atomic import check_output, user_path
from qinco.codec.given import CodecLike, as_codec
from qinco.config import accepts_keys, require_number
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import LIST_STREAMS, PairwiseDecoder, check_codebook_size, check_memory
from qinco.errors import ConfigError, DataError
from qinco.machine import num_threads
from qinco.native.tables import sum_by_row
from qinco.progress import Progress, ProgressOption, counted, reporting, silent
from qinco.search.code_file import open_codes
from qinco.search.sample import FitSample, codes_of_codec, draw_sample, sample_rows
from qinco.store.codes import Codes
from qinco.store.decoder import SUFFIXES, load_pairwise, save_pairwise
from qinco.vectors.formats import input_files
from qinco.vectors.rows import as_source

log = logging.getLogger(__name__)
Decoder = TypeVar("Decoder", LookupDecoder, PairwiseDecoder)
_HALF_WEIGHT_ROWS = np.float32(30)  # a list of so many vectors moves its centroid half of the way to their mean
_MAX_MOVED = 0.25  # refitted centroids stay within this fraction of the centroids' variance
_ENCODED_ROWS = 100_000


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
    vectors, codes=None, *, codec: CodecLike | None = None, centroids=None, num_codes: int | None = None,
    codebook_size: int | None = None, num_training: int | None = None, seed: int = 0, progress: ProgressOption = None,
) -> FittedDecoder[LookupDecoder]:  # fmt: skip
    """Fit additive look-up tables: one row for each codeword of each step (QINCo2 paper, section 4).

    Args:
        vectors: (N, D) array, tensor, path or VectorSource.
        codes: their Codes, or the path of them; encoded by the codec if None.
        codec: the Codec of the codes, or its path; codes with lists need it or `centroids`.
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
    codec = None if codec is None else as_codec(codec)
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
    vectors, codes, *, codec: CodecLike | None = None, centroids=None, pairs_per_code: float = 2.0,
    dtype: str = "float32", num_codes: int | None = None, codebook_size: int | None = None,
    num_training: int | None = None, seed: int = 0, output: str | os.PathLike | None = None, overwrite: bool = False,
    inputs: Iterable = (), progress: ProgressOption = None,
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
        read = [*inputs, *input_files(vectors, codes, centroids), codec]
        output = check_output(output, suffixes=SUFFIXES, overwrite=overwrite, inputs=read)
    require_number("pairs_per_code", pairs_per_code, above=0)
    codec = None if codec is None else as_codec(codec)
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
