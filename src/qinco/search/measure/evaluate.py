"""Error and recall of a codec, of another decoder of its codes, and of an index on vectors that it has not seen.

Shape suffixes: N vectors, n vectors of a block, Q queries, D dimension, M codes of a vector, K codewords, R results.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.evaluate import Evaluation
from qinco.codec.given import CodecLike, as_codec
from qinco.config import PRECISIONS, EncodeOptions, require_choice, require_int
from qinco.errors import ConfigError, DataError
from qinco.machine import num_threads
from qinco.maths.clustering import quantize_residually, residual_kmeans
from qinco.maths.metrics import RANKS, recall
from qinco.progress import Progress, ProgressOption, reporting
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.measure.truth import open_queries_among
from qinco.search.metric import Metric, choose_metric
from qinco.search.parts import Fitted
from qinco.search.sample import assign_decoded, codes_of_codec, sample_rows
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource, as_source, check_not_empty, stratified_rows

_MAX_QUERIES = 1000
_RQ_ROWS = 50_000  # vectors that the residual quantizer is fitted to


def evaluate_decoder(
    codec: CodecLike, vectors, decoder, options: EncodeOptions | None = None, *, progress: ProgressOption = None
) -> Evaluation:
    """Encode vectors and measure what another decoder makes of their codes, as an Evaluation of whole codes.

    Args:
        codec: a Codec, or the path of one, which encodes.
        vectors: (N, D) array, tensor, path or VectorSource.
        decoder: LookupDecoder or PairwiseDecoder of such codes.
        options: of encoding; the codec's own if None.
        progress: see `qinco.progress`.

    Example:
        >>> evaluate_decoder(codec, "base.fvecs", fit_lookup_decoder("train.fvecs", codec=codec).decoder).mse
    """
    codec, source, begun, error = as_codec(codec), check_not_empty(as_source(vectors)), time.monotonic(), 0.0
    codec.check_dim(source)
    with reporting(progress) as report:
        for first, decoded_nD in _decoded(codec, source, decoder, options, None, "float32", report):
            x_nD = source[first : first + len(decoded_nD)]
            error += np.square(decoded_nD - x_nD, dtype=np.float64).sum()
    return Evaluation([error / len(source)], len(source), time.monotonic() - begun)


def exhaustive_recall(
    codec: CodecLike, vectors, queries, ground_truth, *, decoder=None, options: EncodeOptions | None = None,
    num_steps: int | None = None, precision: str = "float32", device=None, metric: str | None = None,
    progress: ProgressOption = None,
) -> dict[int, float]:  # fmt: skip
    """Recall at 1, 10 and 100 of exact search among what the codes of a database decode to, in bounded memory.

    Args:
        codec: a Codec, or the path of one, which encodes the database.
        vectors: (N, D) database.
        queries, ground_truth: as for `sweep`; row numbers of the database.
        decoder: LookupDecoder or PairwiseDecoder; the codec's network if None.
        options: of encoding; the codec's own if None.
        num_steps: use so many codes only.
        precision: of the network.
        device: where distances are computed; the codec's if None.
        metric: "l2", "inner_product" or "cosine"; if None what the files state (ann-benchmarks' HDF5), else "cosine"
            for vectors of length 1 and "l2" for others.
        progress: see `qinco.progress`.

    Example:
        >>> exhaustive_recall(codec, "base.fvecs", "query.fvecs", "groundtruth.ivecs")[10]
    """
    codec, source = as_codec(codec), as_source(vectors)
    codec.check_dim(source)
    metric = choose_metric(metric, source, queries, ground_truth, compared=source)
    queries_QD, nearest_Q = open_queries_among(source, queries, ground_truth, metric)
    with reporting(progress) as report:
        blocks = _decoded(codec, source, decoder, options, num_steps, precision, report)
        _, ids_QR = nearest_in_blocks(queries_QD, blocks, max(RANKS), device or codec.device, Metric(metric))
    return recall(ids_QR, nearest_Q)


def _decoded(
    codec: Codec, source: VectorSource, decoder, options, num_steps, precision: str, report: Progress
) -> Iterator[tuple[int, np.ndarray]]:
    """Encode and decode blocks of a source: (first row, float32 (n, D))."""
    require_choice("precision", precision, PRECISIONS)
    if decoder is not None and not hasattr(decoder, "num_codes"):
        raise ConfigError(f"decoder must be a LookupDecoder or a PairwiseDecoder, not {decoder!r:.80}")
    if decoder is not None and (decoder.num_codes, decoder.dim) != (codec.num_codes, codec.dim):
        raise DataError("the decoder is for other codes: give one that is fitted to those of this codec")
    for first, codes in codec.encode_blocks(source, options, num_steps):
        if decoder is not None and decoder.num_lists and not codes.has_lists:  # an index has lists, its codec none
            codes = codes.with_lists(assign_decoded(codec, codes, decoder.centroids_VD))
        own = decoder is None
        yield first, codec.decode(codes, precision=precision) if own else decoder.decode(codes.codes, codes.lists)
        report("encoding and decoding", first + len(codes), len(source))


def evaluate_index(
    index, vectors, num_queries: int | None = None, progress: ProgressOption = None, max_vectors: int = 200_000
) -> dict:
    """Estimate recall over vectors that an index has not seen; no ground truth is needed.

    `num_queries` of all parts of the vectors are queries; the others are encoded into an index of their own with this
    one's codec, tables and options. Recall falls with the number of vectors; and the options of a large index find less
    in a small one, whose lists hold few vectors.

    Args:
        index: Index with a codec.
        vectors: (N, D), a few thousand or more that were neither trained on nor added.
        num_queries: a tenth of the vectors, at most 1,000, if None.
        progress: see `qinco.progress`.
        max_vectors: use so many at most.

    Returns:
        dict of "num_vectors", "num_queries", "recall" of the search, "recall_exhaustive" over all reconstructions and
        "recall_rq" over those of a residual quantizer of as many bytes, in the same lists if the codec has lists
        ({1: share, 10: share, 100: share} each), "mse" and "mse_rq". The residual quantizer has not seen these vectors
        either: it is fitted to reconstructions of this index, with errors added that were drawn from those here.
    """
    codec, source = index.codec, as_source(vectors)
    if codec is None:
        raise ConfigError("the index has no codec to encode with: load it with codec=")
    if not len(index):
        raise ConfigError("the index is empty: the residual quantizer is fitted to its vectors")
    codec.check_dim(source)
    source = source.take(stratified_rows(len(source), max_vectors)) if len(source) > max_vectors else source
    count = min(_MAX_QUERIES, -(-len(source) // 10)) if num_queries is None else num_queries
    require_int("num_queries", count, 0 if num_queries is None else 1)
    if count >= len(source):
        raise DataError(f"{source.name} must hold more than {len(source)} vectors to take {count} queries from")
    x_ND = next(block for _, block in source.blocks(len(source)))
    rows_Q = stratified_rows(len(x_ND), count)
    x_ND, queries_QD = np.delete(x_ND, rows_Q, 0), x_ND[rows_Q]
    choose_metric(None, source, own=index.metric)
    metric, unseen, threads = index.tables.metric, index.emptied(), num_threads()
    unseen.parts = replace(unseen.parts, fitted=Fitted())  # the tables and lists of this index are judged
    with reporting(progress) as report:
        unseen.add(x_ND, progress=report)
    _, found_QR = unseen.search(queries_QD, max(RANKS))
    x_ND, queries_QD = metric.prepare(x_ND), metric.prepare(queries_QD)

    def nearest(among_ND: np.ndarray, k: int = max(RANKS)) -> np.ndarray:
        return nearest_in_blocks(queries_QD, [(0, among_ND)], k, codec.device, metric)[1]

    def mse(decoded_ND: np.ndarray) -> float:
        return float(np.square(x_ND - decoded_ND).sum(1, dtype=np.float64).mean())

    nearest_Q = nearest(x_ND, 1)[:, 0]
    decoded_ND = unseen.reconstruct(np.arange(len(x_ND)))
    base_ND = codec.coarse_centroids[codec.assign_lists(x_ND)] if codec.is_ivf else np.zeros_like(x_ND)
    sample_nD = _similar_vectors(index, x_ND - decoded_ND)
    books_MKD = residual_kmeans(sample_nD, codec.num_codes, codec.config.codebook_size, threads=threads)
    plain_ND = base_ND + quantize_residually(x_ND - base_ND, books_MKD, threads)
    ids_QR = {"recall": found_QR, "recall_exhaustive": nearest(decoded_ND), "recall_rq": nearest(plain_ND)}
    recalls = {name: recall(ids, nearest_Q) for name, ids in ids_QR.items()}
    sizes = {"num_vectors": len(x_ND), "num_queries": count}
    return {**sizes, **recalls, "mse": mse(decoded_ND), "mse_rq": mse(plain_ND)}


def _similar_vectors(index, errors_ND: np.ndarray) -> np.ndarray:
    """Vectors like those of an index, less the centroids of their lists if its codec has lists: float32 (n, D)."""
    codec, lists, generator = index.codec, max(index.parts.segments, key=len), np.random.default_rng(0)
    rows = sample_rows(len(lists), _RQ_ROWS, 0)
    codes = Codes(lists.rows(rows)[0], lists.lists_of(rows))
    x_nD = codec.decode(codes_of_codec(codec, codes), precision="auto")
    if codec.is_ivf:
        x_nD -= codec.coarse_centroids[codes.lists]
    return x_nD + errors_ND[generator.integers(0, len(errors_ND), len(x_nD))]
