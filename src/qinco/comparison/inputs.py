"""The vectors of a comparison: what is trained on, what is searched, and what asks."""

from dataclasses import dataclass

import numpy as np

from qinco.errors import DataError
from qinco.search.exhaustive import exhaustive_search
from qinco.search.metric import Metric
from qinco.vectors.rows import VectorSource, as_source, check_dim, check_not_empty, stratified_rows

HELD_OUT, GIVEN, OTHER = "held out", "given", "other"
NEIGHBOURS = 10  # true ones of each query that results are compared with
LEAST_ROWS = 256  # of each set that is trained on or searched: a codebook's
_HELD_OUT_QUERIES, _HELD_OUT_SHARE = 2000, 20


@dataclass(frozen=True)
class Sources:
    """The sets of vectors, none of them read yet; `queries` by their names, `HELD_OUT` or `GIVEN`, and `OTHER`."""

    train: VectorSource
    db: VectorSource
    queries: dict[str, VectorSource]

    @classmethod
    def open(cls, trainset, db, queries=None, other_queries=None) -> "Sources":
        """Open and check them; without queries some vectors of all parts of `db` are taken out of it to be queries."""
        train, base = as_source(trainset, "training vectors"), as_source(db, "database")
        for source in (train, base):
            if len(check_not_empty(source)) < LEAST_ROWS:
                raise DataError(
                    f"{source.name} holds {len(source)} vectors: give at least {LEAST_ROWS} to train on and to search"
                )
        check_dim(base, train.dim, "the training vectors")
        if queries is None:
            rows_S = stratified_rows(len(base), min(_HELD_OUT_QUERIES, max(1, len(base) // _HELD_OUT_SHARE)))
            asked, base = {HELD_OUT: base.take(rows_S)}, base.without(rows_S)
        else:
            asked = {GIVEN: as_source(queries, "queries")}
        if other_queries is not None:
            asked[OTHER] = as_source(other_queries, "other queries")
        for source in asked.values():
            check_dim(check_not_empty(source), train.dim, "the training vectors")
        return cls(train, base, asked)

    def describe(self) -> dict:
        """What `report.json` says of them."""
        asked = {name: _described(source) for name, source in self.queries.items()}
        first = HELD_OUT if HELD_OUT in asked else GIVEN
        return {
            "train": _described(self.train), "db": _described(self.db),
            "queries": asked[first] | {"held_out": first == HELD_OUT}
            | ({"path": None} if first == HELD_OUT else {}),
            "other_queries": asked.get(OTHER),
        }  # fmt: skip


def _described(source: VectorSource) -> dict:
    return {"path": source.name, "rows": len(source), "dim": source.dim, "dtype": str(source.dtype)}


@dataclass(frozen=True)
class Truth:
    """Queries of one set, and their nearest vectors by one metric.

    Attributes:
        metric: "l2", "inner_product" or "cosine".
        queries: the name of the set.
        queries_QD: float32.
        nearest_QR: int64, the numbers of the nearest vectors, the nearest first.
    """

    metric: str
    queries: str
    queries_QD: np.ndarray
    nearest_QR: np.ndarray


def find_truths(sources: Sources, metrics: tuple[str, ...], report) -> list[Truth]:
    """The true neighbours of all sets of queries by all metrics; reads, and so checks, all vectors but the training's.

    Those that two metrics find alike are searched once for each all the same.
    """
    truths, count = [], min(NEIGHBOURS, len(sources.db))
    for metric in metrics:
        for name, source in sources.queries.items():
            queries_QD = np.concatenate([block for _, block in source.blocks(1 << 16)])
            _, nearest_QR = exhaustive_search(queries_QD, sources.db, count, metric=metric, progress=report)
            truths.append(Truth(metric, name, queries_QD, nearest_QR))
    return truths


def scaled_like(metric: str, length: float) -> Metric:
    """The metric that prepares vectors as they are encoded: for "cosine" all have the length that is usual in training.

    A codec is then trained once for all metrics, ours and rivals alike.
    """
    return Metric(metric, length if metric == "cosine" else 1.0)


def usual_length(x_ND: np.ndarray) -> float:
    """The root of the mean square of vectors' lengths."""
    return float(np.sqrt(np.square(x_ND, dtype=np.float64).sum(1).mean())) or 1.0
