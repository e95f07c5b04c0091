"""Queries and their true neighbours: reading a ground truth, and noticing one of other vectors or another metric.

Shape suffixes: Q queries, q some of them, R neighbours of each, N other vectors, D dimension.
"""

import logging
import os
from collections.abc import Callable

import numpy as np

from qinco.errors import DataError
from qinco.search.ids import MISSING, as_ids
from qinco.search.lists import InvertedLists
from qinco.search.metric import METRICS
from qinco.vectors.arrays import as_rows
from qinco.vectors.binary import open_distances
from qinco.vectors.formats import FORMATS, open_array, read_integers, split_part
from qinco.vectors.rows import VectorSource, as_source, check_dim, check_not_empty, spread_rows

log = logging.getLogger(__name__)
_MAX_QUERIES, _MAX_LISTED = 64, 10  # that are looked at
# Share of queries whose first neighbour is not the nearest: of the originals. Decoded, it is among the nearest fifth.
_MAX_WRONG, _MAX_WRONG_DECODED = (0.1, 0.1), (0.2, 0.5)  # by one metric, by any metric
_NEAR_DECODED = 0.2
_MAX_ERROR = 0.01  # of stated distances, relative
# What files hold of the values that `_values` gives; ann-benchmarks has square roots, and 1 - similarity.
_FORMS = {
    "l2": (np.positive, np.sqrt),
    "inner_product": (np.positive, np.negative, lambda values: 1 + values),
    "cosine": (np.positive, np.negative, lambda values: 1 + values, lambda values: np.arccos(np.clip(-values, -1, 1))),
}


def open_queries(queries, ground_truth, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Queries, float32 (Q, D), ids of their neighbours, int64 (Q, R), and the stated distances (Q, R) or None.

    The ground truth is ids (Q,) or (Q, R), the path of a file of them, or a pair of distances and ids.
    """
    source = check_not_empty(as_source(queries, "queries"))
    check_dim(source, dim, "the vectors that are searched")
    truth, distances = _read_truth(ground_truth)
    if truth.ndim == 2 and truth.shape[1]:
        as_ids(truth[:, 0], None)  # others than the first may be missing (-1)
    else:
        truth = as_ids(truth, None)[:, None]
    if len(truth) != len(source):
        raise DataError(f"the ground truth must have a row for each query, {len(source)}, not {len(truth)}")
    distances_QR = None if distances is None else np.asarray(distances, np.float64).reshape(len(distances), -1)
    if distances_QR is not None and distances_QR.shape != truth.shape:
        raise DataError(f"the ground truth has distances of shape {distances_QR.shape}, and ids of {truth.shape}")
    return next(block for _, block in source.blocks(len(source))), truth.astype(np.int64), distances_QR


def _read_truth(ground_truth) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(ground_truth, str | os.PathLike):
        return read_integers(ground_truth), _stored_distances(ground_truth)
    if isinstance(ground_truth, tuple) and len(ground_truth) == 2 and np.ndim(ground_truth[0]):
        pair = [np.asarray(as_rows(part, "the ground truth")[:]) for part in ground_truth]
        if sorted(part.dtype.kind in "iu" for part in pair) == [False, True]:
            distances, ids = sorted(pair, key=lambda part: part.dtype.kind in "iu")
            return ids, distances
    on_processor = getattr(ground_truth, "cpu", lambda: ground_truth)()
    return np.asarray(as_rows(on_processor, "the ground truth")[:]), None


def _stored_distances(path) -> np.ndarray | None:
    """The distances beside the neighbours of an ann-benchmarks or big-ann file."""
    file, part = split_part(path)
    if file.suffix.lower() not in FORMATS or not FORMATS[file.suffix.lower()].has_parts:
        return open_distances(file)
    try:
        return open_array(f"{file}:{(part or 'neighbors').replace('neighbors', 'distances')}")[:].astype(np.float64)
    except DataError:
        return None


def check_truth(missing_ids: np.ndarray, place: str) -> None:
    """Raise DataError if the ground truth names vectors that the index or the database (`place`) has not."""
    if len(missing_ids):
        raise DataError(f"the ground truth names vector {missing_ids[0]}, which is not in the {place}: one of them is "
                        "of other vectors, or the database leaves vectors out")  # fmt: skip


def open_queries_among(source: VectorSource, queries, ground_truth, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Queries, float32 (Q, D), and the rows of a database that are nearest to them, int64 (Q,)."""
    queries_QD, truth_QR, stated_QR = open_queries(queries, ground_truth, source.dim)
    nearest_Q = np.ascontiguousarray(truth_QR[:, 0])
    check_truth(nearest_Q[(nearest_Q < 0) | (nearest_Q >= len(source))], "database")
    truth_QR = np.where(truth_QR < len(source), truth_QR, MISSING)
    others_ND = source[spread_rows(len(source))]
    check_neighbours(metric, queries_QD, truth_QR, stated_QR, source.__getitem__, others_ND)
    return queries_QD, nearest_Q


def open_queries_of(index, queries, ground_truth) -> tuple[np.ndarray, np.ndarray]:
    """Queries as an index compares them, float32 (Q, D), and the ids of their nearest neighbours, int64 (Q,)."""
    if not len(index):
        raise DataError("the index holds no vectors")
    queries_QD, truth_QR, stated_QR = open_queries(queries, ground_truth, index.dim)
    nearest_Q = np.ascontiguousarray(truth_QR[:, 0])
    check_truth(index.missing_ids(np.unique(nearest_Q)), "index")
    largest = max(index.segments, key=len)
    if isinstance(largest, InvertedLists):  # those of faiss give no codes
        others_ND = index.reconstruct(largest.ids[spread_rows(len(largest))])
        known = index.reconstruct, others_ND
        check_neighbours(index.metric, queries_QD, truth_QR, stated_QR, *known, are_decoded=True)
    return index.tables.metric.prepare(queries_QD), nearest_Q


@np.errstate(invalid="ignore")
def check_neighbours(
    metric: str, queries_QD: np.ndarray, truth_QR: np.ndarray, distances_QR: np.ndarray | None,
    rows_of: Callable[[np.ndarray], np.ndarray], others_ND: np.ndarray, *, are_decoded: bool = False,
) -> None:  # fmt: skip
    """Warn of a ground truth that some of its queries show to be of another metric, or of other vectors.

    `rows_of` gives vectors, float32 (n, D), of ids (n,); these and some others of the database may be decoded ones.
    """
    ids_qR = truth_QR[:, : 1 if are_decoded else _MAX_LISTED]
    rows_q = np.flatnonzero((ids_qR != MISSING).all(1))
    rows_q = rows_q[:: -(-len(rows_q) // _MAX_QUERIES) or 1]
    ids_qR = ids_qR[rows_q]
    if not len(rows_q):
        return
    q_qD, x_qRD = queries_QD[rows_q], rows_of(ids_qR.ravel()).reshape(*ids_qR.shape, -1)
    if not (np.isfinite(x_qRD).all() and np.isfinite(others_ND).all()):
        return  # whoever reads them all says which row it is
    listed, others = _values(q_qD, x_qRD), _values(q_qD, others_ND[None])
    lengths_qR = np.linalg.norm(x_qRD.astype(np.float64), axis=2)
    is_same = lengths_qR.min() > 0.999 * lengths_qR.max()  # by any metric
    wrong, errors = {}, {}
    for name in METRICS:
        rivals_qN = np.concatenate([listed[name][:, 1:], others[name]], 1)
        rivals_q = np.quantile(rivals_qN, _NEAR_DECODED if are_decoded else 0, axis=1)
        margin_q = 1e-4 * np.abs(others[name]).mean(1)
        wrong[name] = float((rivals_q < listed[name][:, 0] - margin_q).mean())
        if distances_QR is not None:
            stated_qR = distances_QR[rows_q, : ids_qR.shape[1]]
            spread = np.median(np.abs(stated_qR)) + np.finfo(np.float64).tiny
            forms = [np.median(np.abs(form(listed[name]) - stated_qR)) / spread for form in _FORMS[name]]
            errors[name] = float(min(forms))
    judged = [("nearest vectors", wrong, *(_MAX_WRONG_DECODED if are_decoded else _MAX_WRONG))]
    if errors:
        judged.insert(0, ("distances", errors, _MAX_ERROR, np.inf if are_decoded else _MAX_ERROR))
    for what, scores, limit, limit_of_best in judged:
        best = min(METRICS, key=lambda name: scores[name])
        own = scores[best if is_same else metric]
        if own > limit and scores[best] < own / 4:
            log.warning("the %s of the ground truth are those of metric=%s, and metric=%s is used", what, best, metric)
        elif scores[best] > limit_of_best:
            log.warning("the %s of the ground truth are those of these vectors by no metric: "
                        "it is of other vectors, or of other queries", what)  # fmt: skip
        else:
            continue
        return


def _values(q_qD: np.ndarray, x_qND: np.ndarray) -> dict[str, np.ndarray]:
    """Values of which the smallest are nearest, float64 (q, N), by metric; x may be (1, N, D)."""
    q_qD, x_qND = q_qD.astype(np.float64), x_qND.astype(np.float64)
    products_qN = np.matmul(x_qND, q_qD[:, :, None])[..., 0]
    squares_q1, squares_qN = np.square(q_qD).sum(1)[:, None], np.square(x_qND).sum(2)
    lengths_qN = np.sqrt(squares_q1 * squares_qN)
    similarities_qN = products_qN / np.where(lengths_qN > 0, lengths_qN, np.inf)
    distances_qN = np.maximum(squares_q1 + squares_qN - 2 * products_qN, 0)
    return {"l2": distances_qN, "inner_product": -products_qN, "cosine": -similarities_qN}
