"""A problem of search: vectors, queries whose true neighbours are known, and others to choose settings with.

Shape suffixes: N vectors, Q queries, T queries that settings are chosen with, D dimension, R results.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np

from qinco.config import METRICS, require_choice, require_int
from qinco.errors import DataError
from qinco.maths.metrics import recall
from qinco.progress import ProgressOption
from qinco.search.exhaustive import exhaustive_search
from qinco.search.metric import Metric
from qinco.vectors.rows import as_source, check_dim, check_not_empty, read_rows, sample, stratified_rows

RANK = 10
TARGETS = (0.9, 0.95, 0.99)
_PASSES, _FEWEST = 3, 3


@dataclass(frozen=True, eq=False)
class Problem:
    """What a search is timed with. Settings are chosen with the `tuning` queries, which are training vectors, and
    recall and times are reported of the `queries`.

    Attributes:
        vectors_ND, queries_QD, tuning_TD: float32; of length 1 if the metric is "cosine".
        nearest_Q, tuning_nearest_T: rows of the vectors that are nearest to them, int64.
        rows_N: rows of the database that the vectors are, int64.
        metric: "l2", "inner_product" or "cosine".
    """

    vectors_ND: np.ndarray
    queries_QD: np.ndarray
    nearest_Q: np.ndarray
    tuning_TD: np.ndarray
    tuning_nearest_T: np.ndarray
    rows_N: np.ndarray
    metric: str

    @classmethod
    def of(
        cls, train, db, queries, metric: str = "l2", *, max_vectors: int = 200_000, max_queries: int = 1000,
        max_tuning: int = 500, progress: ProgressOption = None,
    ) -> "Problem":  # fmt: skip
        """Read vectors into memory and find the true neighbours of queries.

        Args:
            train: (n, D) training vectors, as array, path or VectorSource: those of all parts are the tuning queries.
            db: (N, D) vectors that are searched.
            queries: (Q, D) queries.
            metric: "l2", "inner_product" or "cosine".
            max_vectors, max_queries, max_tuning: so many at most, of all parts of each source.
            progress: see `qinco.progress`.

        Raises:
            ConfigError: another metric, or a number that is not an integer of 1 or more.
            DataError: no vectors, or other dimensions than those of the database.

        Example:
            >>> problem = Problem.of("train.fvecs", "base.fvecs", "query.fvecs", "cosine")
        """
        require_choice("metric", metric, METRICS)
        for name, limit in (("max_vectors", max_vectors), ("max_queries", max_queries), ("max_tuning", max_tuning)):
            require_int(name, limit)
        db = check_not_empty(as_source(db, "the database"))
        others = [check_not_empty(as_source(x, name)) for x, name in ((queries, "queries"), (train, "training"))]
        for source in others:
            check_dim(source, db.dim, "the database")
        if len(db) <= 2 * RANK:
            raise DataError(f"a search is timed among more than {2 * RANK} vectors: the database has {len(db)}")
        rows_N, unit = stratified_rows(len(db), max_vectors), Metric(metric)
        vectors_ND = unit.prepare(read_rows(db, rows_N))
        queries_QD, tuning_TD = (
            unit.prepare(sample(source, limit, 0))
            for source, limit in zip(others, (max_queries, max_tuning), strict=True)
        )
        empty = np.empty(0, np.int64)
        one = cls(vectors_ND, queries_QD, empty, tuning_TD, empty, rows_N, metric)
        return one._with_neighbours(progress)

    def __len__(self) -> int:
        return len(self.vectors_ND)

    dim = property(lambda self: self.vectors_ND.shape[1], doc="Dimension of the vectors.")

    def limited(self, count: int) -> "Problem":
        """The same queries among so many of the vectors, of all parts."""
        return self._of_rows(stratified_rows(len(self), count))

    def limited_to_first(self, count: int) -> "Problem":
        """The same queries among the first `count` vectors."""
        return self._of_rows(np.arange(min(count, len(self))))

    def _of_rows(self, rows_n: np.ndarray) -> "Problem":
        if len(rows_n) == len(self):
            return self
        return replace(self, vectors_ND=self.vectors_ND[rows_n], rows_N=self.rows_N[rows_n])._with_neighbours(None)

    def _with_neighbours(self, progress: ProgressOption) -> "Problem":
        given = {"metric": self.metric, "progress": progress}
        _, ids_Q1 = exhaustive_search(self.queries_QD, self.vectors_ND, 1, **given)
        _, ids_T2 = exhaustive_search(self.tuning_TD, self.vectors_ND, 2, **given)
        # A training vector that is in the database, too, finds itself with any setting.
        is_itself_T = (self.vectors_ND[ids_T2[:, 0]] == self.tuning_TD).all(1)
        return replace(self, nearest_Q=ids_Q1[:, 0], tuning_nearest_T=np.where(is_itself_T, *ids_T2.T[::-1]))


class Timed(NamedTuple):
    """What the queries of a problem found in what time: R@10, its standard error, and microseconds a query."""

    recall: float
    error: float
    query_us: float  # one query at a time
    batch_us: float  # all of them in one call

    def record(self) -> dict:
        """As JSON values of a report."""
        return {"recall_10": [self.recall, self.error], "query_us": self.query_us, "batch_us": self.batch_us}


def standard_error(share: float, count: int) -> float:
    """Of a share of so many queries."""
    return math.sqrt(share * (1 - share) / count)


def time_search(search: Callable[[np.ndarray], np.ndarray], problem: Problem, *, seconds: float = 1.0) -> Timed:
    """Recall and time of a search on the threads that it uses.

    Args:
        search: gives the ids int64 (Q, R) of queries float32 (Q, D).
        problem: whose queries are searched.
        seconds: about so long is measured in each way, or as long as three passes of three queries take.

    Example:
        >>> timed = time_search(lambda queries: index.search(queries, 10)[1], problem)
        >>> timed.recall, timed.query_us
    """
    queries_QD, begun = problem.queries_QD, time.perf_counter()
    ids_QR = search(queries_QD)
    batch = [time.perf_counter() - begun]
    while len(batch) < 1 + _PASSES and (len(batch) < 2 or sum(batch) < seconds):
        begun = time.perf_counter()
        search(queries_QD)
        batch.append(time.perf_counter() - begun)
    found = recall(ids_QR, problem.nearest_Q, (RANK,))[RANK]
    batch_us = median(batch[1:]) / len(queries_QD) * 1e6  # the first run may have started threads
    return Timed(found, standard_error(found, len(queries_QD)), _one_at_a_time(search, queries_QD, seconds), batch_us)


def _one_at_a_time(search: Callable, queries_QD: np.ndarray, seconds: float) -> float:
    search(queries_QD[:1])
    begun = time.perf_counter()
    search(queries_QD[-1:])
    count = int(seconds / _PASSES / (time.perf_counter() - begun))
    count = max(min(_FEWEST, len(queries_QD)), min(len(queries_QD), count))
    passes = []
    for _ in range(_PASSES):
        begun = time.perf_counter()
        for i in range(count):
            search(queries_QD[i : i + 1])
        passes.append(time.perf_counter() - begun)
    return median(passes) / count * 1e6
