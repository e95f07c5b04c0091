"""How many of the nearest records a collection finds, beside an exact search over their original vectors, and how fast.

Shape suffixes: Q queries, R results, N records, n vectors of a block, D dimension.
"""

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from qinco.collection.records import Id
from qinco.collection.row_source import RowSource, Vectors
from qinco.collection.schema import set_value, value_of
from qinco.config import require_int
from qinco.errors import DataError
from qinco.machine import num_threads, processor_name
from qinco.progress import Progress
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.metric import Metric
from qinco.search.options import MAX_SHORTLIST
from qinco.vectors.rows import as_source, check_dim

_PLACES = 20  # of a source where sampled queries begin: each is read by itself
_BLOCK_ROWS = 1 << 14
_TIMED_QUERIES, _TIMED_BATCHES, _TIMED_SECONDS = 50, 3, 2.0  # at most; of what was timed the median is reported
_KEPT = "recall"  # in the table `meta`


def evaluate(
    collection, rows: RowSource, queries: Any, num_queries: int, k: int, options: dict, report: Progress
) -> dict:  # fmt: skip
    """What `Collection.evaluate` returns; `options` are those of its `search`."""
    require_int("k", k, 1, MAX_SHORTLIST - 1)
    require_int("num_queries", num_queries)
    if queries is None:
        own_Q, queries_QD = _sample(rows, num_queries)
        count = k + 1  # with the record that the query is of
    else:
        source = as_source(queries, "queries")
        check_dim(source, rows.dim, rows.name)
        queries_QD = np.concatenate([np.empty((0, rows.dim), np.float32),
                                     *(block for _, block in source.blocks(_BLOCK_ROWS))])  # fmt: skip
        own_Q, count = [None] * len(queries_QD), k
    exact, number = _exact_ids(rows, queries_QD, count, Metric(collection.metric), report)
    found = collection.search(queries_QD, count, with_payload=False, **options)
    wanted = met = num_queries = 0
    for own, ids, hits in zip(own_Q, exact, found, strict=True):
        near = set([id for id in ids if id != own][:k])
        hits = set([one.id for one in hits if one.id != own][:k])
        wanted, met, num_queries = wanted + len(near), met + len(near & hits), num_queries + bool(near)
    if not wanted:
        raise DataError(f"{rows.name} must hold more than one vector, and there must be a query, to measure recall")
    latency = _latency(lambda x_QD: collection.search(x_QD, k, with_payload=False, **options), queries_QD)
    return {"recall": met / wanted, "k": k, "num_queries": num_queries, "num_vectors": number, "latency": latency}


def _latency(search: Callable, queries_QD: np.ndarray) -> dict:
    """Times of a search that has just run, with what they depend on."""
    batch_QD = queries_QD[:_BLOCK_ROWS]
    ones = _times(search, [query_D[None] for query_D in queries_QD[:_TIMED_QUERIES]])
    batches = _times(search, [batch_QD] * _TIMED_BATCHES)
    return {
        "microseconds": 1e6 * float(np.median(ones)), "batch": len(batch_QD),
        "batch_microseconds": 1e6 * float(np.median(batches)) / len(batch_QD),
        "threads": num_threads(), "machine": processor_name(),
    }  # fmt: skip


def _times(search: Callable, inputs: list[np.ndarray]) -> list[float]:
    """Seconds of a search of each input, or of the first ones."""
    seconds: list[float] = []
    for x_QD in inputs:
        begun = time.perf_counter()
        search(x_QD)
        seconds.append(time.perf_counter() - begun)
        if sum(seconds) >= _TIMED_SECONDS:
            break
    return seconds


def keep_recall(connection: sqlite3.Connection, found: dict, state: list) -> None:
    """Write down what `evaluate` has measured just now, when `state_of` was `state`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    set_value(connection, _KEPT, found | {"measured_at": now, "state": state})


def kept_recall(connection: sqlite3.Connection) -> dict | None:
    """What was written down last, and whether vectors are still those that were searched."""
    found = value_of(connection, _KEPT)
    return None if found is None else found | {"is_current": found.pop("state", None) == state_of(connection)}


def state_of(connection: sqlite3.Connection) -> list:
    """What changes whenever vectors do."""
    ends = "SELECT name, seq FROM sqlite_sequence WHERE name <> 'points' ORDER BY name"
    return [*map(list, connection.execute(ends)), *connection.execute("SELECT count(*) FROM fresh").fetchone()]


def _sample(rows: RowSource, count: int) -> tuple[list[Id], np.ndarray]:
    """Ids and vectors of some records of all parts of a source, or of its first ones if their number is not known."""
    places = min(_PLACES, count)
    total, each = rows.num_rows or 0, -(-count // places)
    starts = np.unique(np.linspace(0, max(0, total - each), places if total else 1).astype(int))
    ids_Q, vectors, end = [], [], 0
    for start in starts.tolist():
        place = max(start, end)
        end = place + (each if total else count)
        for ids, some, _ in rows.blocks(place, end - place):  # the first ones may be small
            ids_n, x_nD = with_vectors(ids[: end - place], some[: end - place], rows.dim)
            ids_Q += ids_n.tolist()
            vectors.append(x_nD)
            place += len(ids)
            if place >= end:
                break
    return ids_Q[:count], np.concatenate([np.empty((0, rows.dim), np.float32), *vectors])[:count]


def with_vectors(ids, vectors: Vectors, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, as objects, and vectors of the records that have one."""
    ids_n = np.empty(len(ids), object)
    ids_n[:] = ids.tolist() if isinstance(ids, np.ndarray) else ids
    if isinstance(vectors, np.ndarray):
        return ids_n, vectors
    places = [place for place, x_D in enumerate(vectors) if x_D is not None]
    return ids_n[places], np.array([vectors[place] for place in places], np.float32).reshape(-1, dim)


def _exact_ids(
    rows: RowSource, queries_QD: np.ndarray, count: int, metric: Metric, report: Progress
) -> tuple[list[list[Id]], int]:  # fmt: skip
    """The ids of the `count` nearest records of each query, nearest first, and the number of vectors."""
    number, done = 0, 0
    scores_QR, ids_QR = np.empty((len(queries_QD), 0), np.float32), np.empty((len(queries_QD), 0), object)
    for ids, vectors, _ in rows.blocks():
        ids_n, x_nD = with_vectors(ids, vectors, rows.dim)
        if len(x_nD):
            new_QR, rows_QR = nearest_in_blocks(queries_QD, [(0, x_nD)], min(count, len(x_nD)), metric=metric)
            scores_QR, ids_QR = np.concatenate([scores_QR, new_QR], 1), np.concatenate([ids_QR, ids_n[rows_QR]], 1)
            order_QR = np.argsort(scores_QR if metric.name == "l2" else -scores_QR, 1, kind="stable")[:, :count]
            scores_QR, ids_QR = (np.take_along_axis(each, order_QR, 1) for each in (scores_QR, ids_QR))
        number, done = number + len(x_nD), done + len(ids)
        report("searching exactly", done, rows.num_rows or done, "record")
    return ids_QR.tolist(), number
