"""What a report says about one metric and one set of queries: cells with results, and bytes that reach a target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qinco.comparison.formatting import measured, number, words

TARGETS = (0.9, 0.95, 0.99)
METRICS = {"l2": "L2", "inner_product": "inner product", "cosine": "cosine"}
QUERIES = {
    "given": "the queries given",
    "held out": "vectors held out of the database as queries",
    "other": "queries of another distribution",
}


@dataclass(frozen=True)
class Group:
    """A metric and a set of queries."""

    metric: str
    queries: str

    def __str__(self) -> str:
        metric, queries = METRICS.get(self.metric, words(self.metric)), QUERIES.get(self.queries, words(self.queries))
        return f"{metric}, {queries}"


@dataclass(frozen=True)
class Crossing:
    """The bytes at which a family reaches a recall.

    Attributes:
        kind: "reached"; "at most", the smallest size that was tried already does; "over", the largest does not;
            "unknown", and `bytes` is infinite.
    """

    family: str
    ours: bool
    target: float
    kind: str
    bytes: float = math.inf

    def __str__(self) -> str:
        return number(self.bytes) if self.kind in ("reached", "unknown") else f"{self.kind} {number(self.bytes)}"

    @property
    def is_reached(self) -> bool:
        return self.kind in ("reached", "at most")


def rows_of(report: Mapping, *keys: str) -> list[dict]:
    """The dictionaries in a list of a report, whatever else is there."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []  # type: ignore


def part(report: Mapping, *keys: str) -> dict:
    """A dictionary in a report, empty where there is none."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def groups(report: Mapping) -> list[Group]:
    """The groups that have results, the report's first metric with its own queries first."""
    found = {
        (words(r.get("metric")), words(r.get("queries")))
        for c in rows_of(report, "cells")
        for r in rows_of(c, "results")
    }
    given = report.get("metrics")
    metrics = [words(metric) for metric in given] if isinstance(given, list | tuple) else []
    orders = [*metrics, *METRICS], ["given", "held out", "other"]

    def place(pair: tuple[str, str]) -> tuple:
        return [*(order.index(name) if name in order else 99 for name, order in zip(pair, orders, strict=True)), pair]  # type: ignore

    return [Group(*pair) for pair in sorted(found, key=place)]


def result_of(cell: Mapping, group: Group) -> dict | None:
    """The measures of a cell in a group."""
    for result in rows_of(cell, "results"):
        if (words(result.get("metric")), words(result.get("queries"))) == (group.metric, group.queries):
            return dict(result)
    return None


def recall(result: Mapping | None, k: int = 10) -> Any:
    """[value, standard error] of the recall among the first k, or None."""
    return part(result or {}, "recall").get(str(k))


def family(cell: Mapping) -> str:
    return words(cell.get("family") or cell.get("method") or cell.get("id"))


def points(report: Mapping, group: Group) -> dict[str, list[tuple[float, float, bool]]]:
    """(bytes, R@10, whether it is a prefix of a longer code) of the cells of each family, in order of bytes."""
    found: dict[str, list] = {}
    for cell in rows_of(report, "cells"):
        num_bytes, value = measured(cell.get("bytes")), measured(recall(result_of(cell, group)))
        if num_bytes is not None and num_bytes > 0 and value is not None:
            found.setdefault(family(cell), []).append((num_bytes, value, cell.get("prefix_of") is not None))
    return {name: sorted(of) for name, of in found.items()}


def ours(report: Mapping) -> set[str]:
    """The families that are ours."""
    return {family(row) for key in ("cells", "targets") for row in rows_of(report, key) if row.get("ours") is True}


def crossings(report: Mapping, group: Group) -> list[Crossing]:
    """A crossing for each family and target: as the report has it, else what its cells say."""
    known, mine = {}, ours(report)
    for row in rows_of(report, "targets"):
        if (words(row.get("metric")), words(row.get("queries"))) == (group.metric, group.queries):
            known[family(row), measured(row.get("target"))] = row
    measured_points = points(report, group)
    names = [*measured_points, *(name for name, _ in known if name not in measured_points)]
    return [
        _crossing(name, name in mine, target, known.get((name, target), {}), measured_points.get(name, []))
        for name in dict.fromkeys(names)
        for target in TARGETS
    ]


def _crossing(name: str, is_ours: bool, target: float, row: Mapping, of: Sequence) -> Crossing:
    sizes = [size for size, value, _ in of if value >= target]
    if sizes and min(sizes) == of[0][0]:
        return Crossing(name, is_ours, target, "at most", of[0][0])
    if (found := measured(row.get("bytes"))) is not None:
        return Crossing(name, is_ours, target, "reached" if row.get("between") else "at most", found)
    if sizes:
        return Crossing(name, is_ours, target, "at most", min(sizes))
    return Crossing(name, is_ours, target, "over", of[-1][0]) if of else Crossing(name, is_ours, target, "unknown")


def ranked(found: Sequence[Crossing]) -> list[str]:
    """The families, those first that need the fewest bytes; those that reach nothing last."""
    places: dict[str, list] = {}
    for one in found:
        places.setdefault(one.family, []).append((not one.is_reached, one.bytes if one.is_reached else -one.bytes))
    return sorted(places, key=lambda name: places[name])


def best(found: Sequence[Crossing], target: float, is_ours: bool) -> Crossing | None:
    """The crossing with the fewest bytes of those that reach a target."""
    reached = [one for one in found if one.target == target and one.ours == is_ours and one.is_reached]
    return min(reached, key=lambda one: (one.bytes, one.family), default=None)
