"""Records of several vectors each, and searches for those nearest to several queries at once (late interaction).

A record's score is MaxSim: for each query vector the similarity of the record's vector that is nearest to it, summed.
First each query vector finds its nearest vectors. Records are ranked by the sum of what was found of them, to which a
query vector that did not find a record adds the similarity of the farthest that it did find. The best are compared in
full.

Shape suffixes: T query vectors, R results of each, P records, n vectors of records, D dimension.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from qinco.collection import searching
from qinco.collection.finding import Allowed, vectors_at
from qinco.collection.moments import Moment
from qinco.collection.spans import expanded
from qinco.vectors.rows import VectorSource

_COMPARED_ROWS = 1 << 14  # vectors that are decoded at once
_SUM_ROWS = 1 << 22  # products that are kept at once


def nearest_records(
    moment: Moment, queries: list[np.ndarray], search: searching.Search, candidates: int, allowed: Allowed | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query, float32 (T, D), the scores float32 (P,) and keys int64 (P,) of the k nearest records.

    `candidates` are the vectors that each query vector finds, and the records that are compared.
    """
    spans = moment.spans
    assert spans is not None
    num_vectors = len(moment.keys) if allowed is None else len(allowed.vector_keys(moment))
    if not num_vectors or not queries:
        return [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
    if search.exact or num_vectors <= candidates:
        keys = moment.keys if allowed is None else np.intersect1d(allowed.vector_keys(moment), moment.keys)
        chosen = [np.unique(spans.owners(keys))] * len(queries)
    else:
        chosen = _candidates(moment, queries, search, min(candidates, num_vectors), allowed, num_vectors)
    found = []
    for query_TD, keys_P in zip(queries, chosen, strict=True):
        scores_P = _scores(moment, moment.metric.prepare(query_TD), keys_P)
        order = np.argsort(scores_P if moment.metric.name == "l2" else -scores_P, kind="stable")[: search.k]
        found.append((scores_P[order], keys_P[order]))
    return found


def _candidates(
    moment: Moment,
    queries: list[np.ndarray],
    search: searching.Search,
    count: int,
    allowed: Allowed | None,
    num_vectors: int,
) -> list[np.ndarray]:
    """The keys of records that may be the nearest ones of each query, ascending."""
    width, starts = count, np.cumsum([0, *map(len, queries)])
    source = VectorSource(np.concatenate(queries), "queries")
    while True:
        scores_TR, keys_TR = searching.nearest(moment, source, replace(search, k=width), allowed)
        pairs = [slice(*pair) for pair in pairwise(starts)]
        found = [_best(moment, scores_TR[rows], keys_TR[rows], count) for rows in pairs]
        # A few records may hold all the vectors that are nearest
        if min(map(len, found)) >= search.k or width == num_vectors:
            return found
        width = min(4 * width, num_vectors)


def _best(moment: Moment, scores_TR: np.ndarray, keys_TR: np.ndarray, count: int) -> np.ndarray:
    """The keys of the `count` records whose vectors were found nearest, ascending."""
    assert moment.spans is not None
    is_found_TR = keys_TR >= 0
    gains_TR = np.where(is_found_TR, -scores_TR if moment.metric.name == "l2" else scores_TR, np.inf)
    gains_TR = gains_TR - gains_TR.min(1, keepdims=True)  # more than the farthest that was found
    owners, places = np.unique(moment.spans.owners(keys_TR[is_found_TR]), return_inverse=True)
    tokens = np.broadcast_to(np.arange(len(keys_TR))[:, None], keys_TR.shape)[is_found_TR]
    _, first = np.unique(tokens * len(owners) + places, return_index=True)  # results come nearest first
    sums_P = np.bincount(places[first], gains_TR[is_found_TR][first], len(owners))
    return np.sort(owners[np.argsort(-sums_P, kind="stable")[:count]])


def _scores(moment: Moment, query_TD: np.ndarray, keys_P: np.ndarray) -> np.ndarray:
    """MaxSim of records, float32 (P,), or with metric "l2" the sum of the smallest distances."""
    assert moment.spans is not None
    counts_P = moment.spans.counts_of(keys_P)
    is_l2, scores_P = moment.metric.name == "l2", np.empty(len(keys_P), np.float32)
    rows = max(1, min(_COMPARED_ROWS, _SUM_ROWS // len(query_TD)))
    begin, ends = 0, np.cumsum(counts_P)
    while begin < len(keys_P):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + rows, "right")))
        x_nD = vectors_at(moment, expanded(keys_P[begin:end], counts_P[begin:end]))
        values_Tn = query_TD @ x_nD.T
        if is_l2:
            squares_T, squares_n = (np.einsum("nd,nd->n", x_ND, x_ND) for x_ND in (query_TD, x_nD))
            values_Tn = np.maximum(squares_T[:, None] - 2 * values_Tn + squares_n, 0)
        best = np.minimum if is_l2 else np.maximum
        scores_P[begin:end] = best.reduceat(values_Tn, ends[begin:end] - counts_P[begin:end] - done, 1).sum(0)
        begin = end
    return scores_P
