"""Estimate an index's recall on held-out vectors, compared with a residual quantizer of the same size.

Shape suffixes: N vectors, Q queries, D dimension, M codes of a vector, K codewords, R results.
"""

import numpy as np
import torch

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.maths.clustering import quantize_residually, residual_kmeans
from qinco.maths.metrics import RANKS, recall
from qinco.progress import ProgressOption, reporting
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.fit import codes_of_codec, sample_rows
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source

_MAX_QUERIES = 1000
_RQ_ROWS = 50_000  # vectors that the residual quantizer is fitted to


def evaluate_index(
    index, vectors, num_queries: int | None = None, progress: ProgressOption = None, max_vectors: int = 200_000
) -> dict:
    """Estimate recall over vectors that an index has not seen; no ground truth is needed.

    The last `num_queries` vectors are queries; the others are encoded into an index of their own with this one's codec,
    tables and options. A query's nearest neighbour is found by comparing the vectors themselves. Recall falls with the
    number of vectors; and the options of a large index find less in a small one, whose lists hold few vectors.

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

    Raises:
        ConfigError: the index is empty or has no codec.
        DataError: too few vectors.
    """
    codec = index.codec
    if codec is None:
        raise ConfigError("the index has no codec to encode with: load it with codec=")
    if not len(index):
        raise ConfigError("the index is empty: the residual quantizer is fitted to its vectors")
    source = as_source(vectors)
    codec.check_dim(source)
    source = source.limit(max_vectors)
    count = min(_MAX_QUERIES, -(-len(source) // 10)) if num_queries is None else num_queries
    require_int("num_queries", count, 0 if num_queries is None else 1)
    if count >= len(source):
        raise DataError(f"{source.name}: {len(source)} vectors are too few to take {count} queries from")
    x_ND = next(block for _, block in source.blocks(len(source)))
    x_ND, queries_QD = x_ND[:-count], x_ND[-count:]
    metric, unseen, threads = index.tables.metric, index.emptied(), torch.get_num_threads()
    with reporting(progress) as report:
        unseen.add(x_ND, progress=report)
    _, found_QR = unseen.search(queries_QD, max(RANKS))
    x_ND, queries_QD = metric.prepare(x_ND), metric.prepare(queries_QD)

    def nearest(among_ND: np.ndarray, k: int) -> np.ndarray:
        return nearest_in_blocks(queries_QD, [(0, among_ND)], k, codec.device, metric)[1]

    nearest_Q = nearest(x_ND, 1)[:, 0]
    decoded_ND = unseen.reconstruct(np.arange(len(x_ND)))
    base_ND = codec.coarse_centroids[codec.assign_lists(x_ND)] if codec.is_ivf else np.zeros_like(x_ND)
    sample_ND = _similar_vectors(index, x_ND - decoded_ND)
    books_MKD = residual_kmeans(sample_ND, codec.num_codes, codec.config.codebook_size, threads=threads)
    plain_ND = base_ND + quantize_residually(x_ND - base_ND, books_MKD, threads)
    return {
        "num_vectors": len(x_ND),
        "num_queries": count,
        "recall": recall(found_QR, nearest_Q),
        "recall_exhaustive": recall(nearest(decoded_ND, max(RANKS)), nearest_Q),
        "recall_rq": recall(nearest(plain_ND, max(RANKS)), nearest_Q),
        "mse": _mse(x_ND, decoded_ND),
        "mse_rq": _mse(x_ND, plain_ND),
    }


def _similar_vectors(index, errors_ND: np.ndarray) -> np.ndarray:
    """Vectors like those of an index, less the centroids of their lists if its codec has lists: float32 (n, D)."""
    codec, generator = index.codec, np.random.default_rng(0)
    lists = max(index.parts.segments, key=len)
    rows = sample_rows(len(lists), _RQ_ROWS, 0)
    codes = Codes(lists.rows(rows)[0], lists.lists_of(rows))
    x_ND = codec.decode(codes_of_codec(codec, codes), precision="auto")
    if codec.is_ivf:
        x_ND -= codec.coarse_centroids[codes.lists]
    return x_ND + errors_ND[generator.integers(0, len(errors_ND), len(x_ND))]


def _mse(x_ND: np.ndarray, decoded_ND: np.ndarray) -> float:
    """Mean squared error, summed over dimensions."""
    return float(np.square(x_ND - decoded_ND).sum(1, dtype=np.float64).mean())
