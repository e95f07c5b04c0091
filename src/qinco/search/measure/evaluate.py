"""What an index finds again among vectors that it has not seen, beside a residual quantizer of its size.

Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

import numpy as np
import torch

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.maths.clustering import quantize_residually, residual_kmeans
from qinco.maths.metrics import RANKS, recall
from qinco.search import build as building
from qinco.search import exhaustive
from qinco.search.index import Index
from qinco.search.metric import Metric
from qinco.vectors.rows import as_source

_MOST_QUERIES = 1000
_MOST_VECTORS = 200_000
_RQ_ROWS = 50_000  # that the residual quantizer is fitted to


def evaluate(index: Index, vectors, num_queries: int | None = None) -> dict:
    """Recall of an index like this one over vectors that it has not seen; no ground truth is needed.

    vectors:     (N, D), a few thousand or more (200,000 at most are used) that were neither trained on nor added. The
                 last `num_queries` are queries (a tenth of all and 1,000 at most without it); the others are encoded
                 into an index of their own with this one's codec, tables and options. What is nearest to a query is
                 found by comparing the originals.

    Returns a dict of "num_vectors", "num_queries", and of "recall" of the search with the index's options, of
    "recall_exhaustive" over all decoded vectors, and of "recall_rq" over those of a residual quantizer of as many
    bytes, in the same lists where the codec has lists: {1: share, 10: share, 100: share} each; and "mse" and "mse_rq"
    of the reconstructions. The residual quantizer has not seen these vectors either: it is fitted to the decoded
    vectors of this index, to which errors of reconstruction are added that were drawn from all.

    Recall falls where there are more vectors to find; and where there are few, a list holds few of them, so that the
    options of a large index find less than "recall_exhaustive" here.
    """
    codec = index.codec
    if codec is None:
        raise ConfigError("the index has no codec to encode with: load it with codec=")
    if not len(index):
        raise ConfigError("the index is empty: what is compared with it is fitted to its vectors")
    source = as_source(vectors)
    codec.check_dim(source)
    source = source.limit(_MOST_VECTORS)
    count = min(_MOST_QUERIES, -(-len(source) // 10)) if num_queries is None else num_queries
    require_int("num_queries", count, 0 if num_queries is None else 1)
    if count >= len(source):
        raise DataError(f"{source.name}: {len(source)} vectors are too few to take {count} queries from")
    x_ND = next(block for _, block in source.blocks(len(source)))
    x_ND, queries_QD = x_ND[:-count], x_ND[-count:]
    metric = index.tables.metric
    unseen = Index(codec, index.tables, [], pairwise=index.pairwise, options=index.options)
    unseen.add(x_ND)
    _, found_QR = unseen.search(queries_QD, max(RANKS))
    x_ND, queries_QD = metric.prepare(x_ND), metric.prepare(queries_QD)
    nearest_Q = _nearest(queries_QD, x_ND, 1, metric, codec.device)[:, 0]
    decoded_ND = unseen.reconstruct(np.arange(len(x_ND)))
    base_ND = codec.coarse_centroids[codec.assign_lists(x_ND)] if codec.is_ivf else np.zeros_like(x_ND)
    steps, size = codec.num_codes, codec.config.codebook_size
    books_MKD = residual_kmeans(_alike(index, x_ND - decoded_ND), steps, size, threads=torch.get_num_threads())
    plain_ND = base_ND + quantize_residually(x_ND - base_ND, books_MKD, torch.get_num_threads())
    return {
        "num_vectors": len(x_ND),
        "num_queries": count,
        "recall": recall(found_QR, nearest_Q),
        "recall_exhaustive": recall(_nearest(queries_QD, decoded_ND, max(RANKS), metric, codec.device), nearest_Q),
        "recall_rq": recall(_nearest(queries_QD, plain_ND, max(RANKS), metric, codec.device), nearest_Q),
        "mse": _mse(x_ND, decoded_ND),
        "mse_rq": _mse(x_ND, plain_ND),
    }


def _alike(index: Index, errors_ND: np.ndarray) -> np.ndarray:
    """Vectors like those of an index, less their lists' centroids where its codec has lists: float32 (n, D)."""
    generator = np.random.default_rng(0)
    lists = max(index.segments, key=len)
    rows = building.sample_rows(len(lists), _RQ_ROWS, 0)
    codes_NM, lists_N = lists.rows(rows)[0], lists.lists_of(rows)
    x_ND = building.decoded_source(index.codec, codes_NM, lists_N, "vectors")[:]
    if index.codec.is_ivf:
        x_ND -= index.codec.coarse_centroids[lists_N]
    return x_ND + errors_ND[generator.integers(0, len(errors_ND), len(x_ND))]


def _nearest(queries_QD: np.ndarray, x_ND: np.ndarray, k: int, metric: Metric, device: torch.device) -> np.ndarray:
    """The numbers of the k vectors nearest to each query, int64 (Q, k), all compared on a device."""
    if metric.name == "cosine":
        x_ND = Metric("cosine").prepare(x_ND)  # on the unit sphere, where the order is that of distances
        queries_QD = Metric("cosine").prepare(queries_QD)
    if metric.name == "inner_product":  # one more dimension makes it the order of distances
        squares_N = np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64)
        lift_N = np.sqrt(squares_N.max() - squares_N).astype(np.float32)
        x_ND = np.column_stack([x_ND, lift_N])
        queries_QD = np.column_stack([queries_QD, np.zeros(len(queries_QD), np.float32)])
    return exhaustive.search(queries_QD, [(0, x_ND)], k, device)[1]


def _mse(x_ND: np.ndarray, decoded_ND: np.ndarray) -> float:
    """Mean squared error, summed over dimensions."""
    return float(np.square(x_ND - decoded_ND).sum(1, dtype=np.float64).mean())
