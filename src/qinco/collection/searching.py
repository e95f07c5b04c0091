"""Searches of a collection: exactly among fresh vectors, compressed in segments, merged by their scores.

Shape suffixes: Q queries, R results, N vectors, D dimension.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from qinco.collection.finding import Allowed, ids_of, records_of, vectors_at
from qinco.collection.moments import Moment, View
from qinco.collection.records import Hit
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.metric import Metric
from qinco.vectors.rows import VectorSource

_QUERY_ROWS = 1 << 14
_ARRAY = "queries"  # what `as_queries` calls an array


@dataclass(frozen=True)
class Search:
    """Options of a search for the `k` nearest of each query."""

    k: int
    exact: bool = False
    nprobe: int | None = None
    num_short: int | None = None
    precision: str = "auto"


def nearest(
    moment: Moment, queries: VectorSource, search: Search, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 (Q, R) and keys int64 (Q, R) of the nearest vectors, nearest first; -1 where there are fewer.

    `allowed` are those that may be found, or None for all.
    """
    found = [_in_segments(moment, queries, search, allowed), _among_fresh(moment, queries, search, allowed)]
    if not found[1][1].shape[1]:  # those in segments are in order already
        return found[0]
    scores_QR, keys_QR = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    order_QR = scores_QR if moment.metric.name == "l2" else -scores_QR
    first_QR = np.argsort(order_QR, 1, kind="stable")[:, : search.k]
    return np.take_along_axis(scores_QR, first_QR, 1), np.take_along_axis(keys_QR, first_QR, 1)


def diverse(
    moment: Moment, scores_QR: np.ndarray, keys_QR: np.ndarray, k: int, diversity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and keys, (Q, k), of those results that maximal marginal relevance chooses, in its order."""
    is_l2 = moment.metric.name == "l2"
    keys = np.unique(keys_QR[keys_QR >= 0])
    chosen_Qk = np.full((len(keys_QR), min(k, keys_QR.shape[1])), -1)
    vectors_nD = vectors_at(moment, keys) if len(keys) else np.empty((0, 1), np.float32)
    for row, (scores_R, keys_R) in enumerate(zip(scores_QR, keys_QR, strict=True)):
        count = int(np.count_nonzero(keys_R >= 0))  # those that were found come first
        x_RD = vectors_nD[np.searchsorted(keys, keys_R[:count])]
        relevance_R = (1 - diversity) * (-scores_R[:count] if is_l2 else scores_R[:count])
        nearest_R = np.zeros(count, np.float32)  # similarity to the nearest result that is chosen
        for step in range(min(k, count)):
            values_R = relevance_R - diversity * nearest_R
            values_R[chosen_Qk[row, :step]] = -np.inf
            best = int(values_R.argmax())
            chosen_Qk[row, step] = best
            similarity_R = -np.square(x_RD - x_RD[best]).sum(1) if is_l2 else x_RD @ x_RD[best]
            nearest_R = similarity_R if step == 0 else np.maximum(nearest_R, similarity_R)
    keys_Qk = np.where(chosen_Qk >= 0, np.take_along_axis(keys_QR, chosen_Qk, 1), -1)
    return np.take_along_axis(scores_QR, chosen_Qk, 1), keys_Qk


def hits_of(
    view: View, metric: Metric, scores_QR: np.ndarray, keys_QR: np.ndarray, *, with_payload: bool,
    with_vectors: bool | Collection[str], limit: float | None,
) -> list[list[Hit]]:  # fmt: skip
    """The hits of each query; with a `limit` those whose score is no worse."""
    is_hit_QR = keys_QR >= 0
    if limit is not None:
        is_hit_QR &= scores_QR <= limit if metric.name == "l2" else scores_QR >= limit
    keys = np.unique(keys_QR[is_hit_QR]).tolist()
    if with_payload or with_vectors:
        records = records_of(view, keys, with_payload=with_payload, with_vectors=with_vectors)
        kept = {key: (one.payload, one.vector) for key, one in records.items()}
        ids = {key: one.id for key, one in records.items()}
    else:
        ids, kept = ids_of(view, keys), None
    found = []
    for scores, keys, is_hit in zip(scores_QR.tolist(), keys_QR.tolist(), is_hit_QR.tolist(), strict=True):
        rows = [(key, score) for score, key, ok in zip(scores, keys, is_hit, strict=True) if ok]
        if kept is None:
            found.append([Hit(ids[key], score) for key, score in rows])
        else:
            found.append([Hit(ids[key], score, *kept[key]) for key, score in rows])
    return found


def _nothing(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((count, 0), np.float32), np.empty((count, 0), np.int64)


def _among_fresh(
    moment: Moment, queries: VectorSource, search: Search, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    keys_N, compared = moment.fresh.keys, moment.compared
    if allowed is not None:
        places = np.flatnonzero(np.isin(keys_N, allowed.vector_keys(moment)))
        keys_N, compared = keys_N[places], moment.fresh.vectors_ND[places]
    if not len(keys_N):
        return _nothing(len(queries))
    measure = Metric("inner_product") if moment.metric.name == "cosine" else moment.metric  # of what is prepared
    scores, keys = [], []
    for _, queries_QD in queries.blocks(_QUERY_ROWS):
        queries_QD = moment.metric.prepare(queries_QD)
        scores_QR, rows_QR = nearest_in_blocks(queries_QD, [(0, compared)], min(search.k, len(keys_N)), metric=measure)
        scores.append(scores_QR)
        keys.append(keys_N[rows_QR])
    return (np.concatenate(scores), np.concatenate(keys)) if scores else _nothing(0)


def _in_segments(
    moment: Moment, queries: VectorSource, search: Search, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of few that are allowed all are decoded and compared, wherever they lie; else lists are scanned."""
    index = moment.index
    if index is None:
        return _nothing(len(queries))
    # Of an array nobody asks which file it is of
    given = queries[:] if queries.name == _ARRAY and len(queries) <= _QUERY_ROWS else queries
    options = {"nprobe": search.nprobe, "num_short": search.num_short, "precision": search.precision}
    if allowed is None and not search.exact:
        return index.search(given, min(search.k, moment.num_stored), exclude=moment.dead, **options)
    selection = index.select(exclude=moment.dead) if allowed is None else allowed.selection(moment)
    if not selection.count:
        return _nothing(len(queries))
    k = min(search.k, selection.count)
    if selection.is_small or search.exact:
        return index.search_among(given, selection, k, precision=search.precision)
    return index.search(given, k, filter=selection, **options)
