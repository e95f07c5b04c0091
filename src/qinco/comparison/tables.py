"""The tables of a report: of cells, of bytes for a target, of time, cost and scaling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qinco.comparison.formatting import (
    NOT_MEASURED,
    column,
    count,
    measured,
    memory,
    money,
    number,
    seconds,
    share,
    with_error,
    words,
)
from qinco.comparison.reading import (
    TARGETS,
    Crossing,
    Group,
    best,
    crossings,
    family,
    part,
    ranked,
    recall,
    result_of,
    rows_of,
)

# Parts of report["scaling"], the key that grows, and what it counts.
SCALING = (("dimension", "dim", "dimensions"), ("size", "rows", "vectors"), ("steps", "steps", "steps M"))
_USED = ("target", "lists", "nprobe", "num_short", "ef_search", "threads")
PRICES = (1.0, 3.0, 10.0)  # shown where no price is given
_COSTED = 4  # rivals in the table of costs


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        head: the names of its columns.
        rows: a text for each column; the first names the row.
        strong: numbers of rows that stand out.
        texts: names of columns that hold words; the others, but for the first, hold numbers.
        note: what holds for all rows.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()
    texts: frozenset[str] = frozenset()
    note: str = ""

    def is_number(self, index: int) -> bool:
        return index > 0 and self.head[index] not in self.texts


def cell_table(report: Mapping, group: Group) -> Table:
    """Every cell that has results in a group, by bytes and then by recall."""
    found = [(cell, result) for cell in rows_of(report, "cells") if (result := result_of(cell, group))]
    found.sort(
        key=lambda pair: (measured(pair[0].get("bytes")) or 0, -(measured(recall(pair[1])) or 0), method(pair[0]))
    )
    head = ["method", "bytes", "R@1", "R@10", "R@100", "top ten shared", "MSE", "training s", "fitted on", "encode µs",
            "decode µs", "model", "peak memory"]  # fmt: skip
    rows = [
        [method(cell), _size(cell), *(share(recall(result, k)) for k in (1, 10, 100)), share(result.get("overlap_10")),
         with_error(result.get("mse"), result.get("mse_se")), seconds(cell.get("train_seconds")),
         count(cell.get("trained_on")), number(cell.get("encode_us")), number(cell.get("decode_us")),
         memory(cell.get("model_bytes")), memory(cell.get("peak_memory_bytes"))]
        for cell, result in found
    ]  # fmt: skip
    strong = frozenset(i for i, (cell, _) in enumerate(found) if cell.get("ours") is True)
    return Table(f"All codecs: {group}", head, rows, strong)


def _size(cell: Mapping) -> str:
    """Bytes, and how many of them are scalars where some are."""
    scalars = measured(cell.get("scalar_bytes"))
    parts = f" ({number(cell.get('code_bytes'))} + {number(scalars)})" if scalars else ""
    return number(cell.get("bytes")) + parts


def method(cell: Mapping) -> str:
    """The name of a cell, and what became of it if it was not done."""
    name = words(cell.get("method") or cell.get("family") or cell.get("id"))
    return name + (f" ({words(status)})" if (status := cell.get("status")) not in (None, "done") else "")


def crossing_table(report: Mapping, group: Group) -> Table:
    """The bytes with which each family reaches each target, the families in the order of what they need."""
    found = crossings(report, group)
    by_family: dict[str, list[Crossing]] = {}
    for one in found:
        by_family.setdefault(one.family, []).append(one)
    names = ranked(found)
    rows = [[name, *map(str, by_family[name])] for name in names]
    strong = frozenset(i for i, name in enumerate(names) if by_family[name][0].ours)
    return Table(
        f"Bytes a vector for a recall: {group}", ["family", *(f"R@10 of {_target(t)}" for t in TARGETS)], rows, strong
    )


def headline_table(report: Mapping, group: Group) -> Table:
    """For each target the fewest bytes of ours and of the rivals."""
    found, rows = crossings(report, group), []
    for target in TARGETS:
        mine, rival = best(found, target, True), best(found, target, False)
        row = [f"R@10 of {_target(target)}", _needs(mine, found, target, True), _needs(rival, found, target, False)]
        if mine and rival and mine.kind == rival.kind == "reached":
            row.append(number(mine.bytes / rival.bytes, 2))
        rows.append([*row, NOT_MEASURED][:4])
    return Table(f"Bytes a vector: {group}", ["target", "ours", "best rival", "ours / rival"], rows)


def _needs(one: Crossing | None, found: Sequence[Crossing], target: float, is_ours: bool) -> str:
    if one is not None:
        return f"{one} ({one.family})"
    tried = [o.bytes for o in found if o.target == target and o.ours == is_ours and o.kind != "unknown"]
    return f"over {number(max(tried))}" if tried else "not measured"


@dataclass(frozen=True)
class Timed:
    """What was timed of an index, of HNSW or of an exact scan: a row for each target or setting."""

    name: str
    ours: bool
    code_bytes: float | None
    rows: Sequence[Mapping]

    @property
    def label(self) -> str:
        return self.name if self.code_bytes is None else f"{self.name} {number(self.code_bytes)} B"

    @property
    def points(self) -> list[tuple[float, float]]:
        """(µs a query, R@10) of the rows that have both."""
        found = [(measured(row.get("query_us")), measured(row.get("recall_10"))) for row in self.rows]
        return [(us, value) for us, value in found if us is not None and us > 0 and value is not None]


def timed(report: Mapping, metric: str) -> list[Timed]:
    """Everything that was timed, ours first."""
    found = []
    for cell in rows_of(report, "cells"):
        rows = [row for row in rows_of(cell, "index") if words(row.get("metric") or metric) == metric]
        found.append(Timed(family(cell), cell.get("ours") is True, measured(cell.get("bytes")), rows))
    found.sort(key=lambda one: not one.ours)
    graphs = [(words(row.get("library")), row) for row in rows_of(report, "hnsw")]
    for library in dict.fromkeys(name for name, _ in graphs):
        rows = [row for name, row in graphs if name == library]
        name = "HNSW over floats" + (f" ({library})" if library != NOT_MEASURED else "")
        found.append(Timed(name, False, None, rows))
    if exact := part(report, "exact"):
        found.append(Timed("exact scan", False, None, [{"recall_10": 1.0, **exact}]))
    return [one for one in found if one.rows]


def speed_table(report: Mapping, metric: str) -> Table:
    """Time a query of what was chosen for each target, else the least of the settings that reach it."""
    found = timed(report, metric)
    rows = [[of.label, _least_bytes(of), *map(partial(_speed, of), TARGETS)] for of in found]
    head = ["index", "bytes in memory", *(f"µs for {_target(target)}" for target in TARGETS)]
    strong = frozenset(i for i, of in enumerate(found) if of.ours)
    return Table("Time a query for a recall (R@10)", head, rows, strong)


def _least_bytes(of: Timed) -> str:
    """Bytes a vector in memory: they hardly differ from row to row."""
    return number(min((size for row in of.rows if (size := measured(row.get("bytes"))) is not None), default=None))


def _speed(of: Timed, target: float) -> str:
    chosen = [row for row in of.rows if measured(row.get("target")) == target]
    if chosen:
        us, value = measured(chosen[0].get("query_us")), chosen[0].get("recall_10")
        if us is None:
            return words(chosen[0].get("status"))
        return number(us) + (f" ({_target(found, 3)})" if (found := measured(value)) is not None else "")
    least = min((us for us, value in of.points if value >= target), default=None)
    return "not reached" if least is None else number(least)


def time_table(report: Mapping, metric: str) -> Table:
    """R@10 and time a query of every row: of indexes, of HNSW over floats, and of an exact scan."""
    rows, strong = [], set()
    for of in timed(report, metric):
        for row in of.rows:
            strong |= {len(rows)} if of.ours else set()
            used = part(row, "settings") | {key: row[key] for key in _USED if row.get(key) is not None}
            is_done = row.get("status") in (None, "done")
            state = "done" if is_done and not row.get("reason") else words(row.get("reason") or row.get("status"))
            figures = [number(row.get(key)) for key in ("query_us", "batch_us", "bytes")]
            rows.append([of.label, settings(used) if used else "", share(row.get("recall_10")), *figures, state])
    head = ["method", "settings", "R@10", "µs a query", "µs in a batch", "bytes in memory", "state"]
    title = "Everything that was timed, on one thread"
    return Table(title, head, rows, frozenset(strong), frozenset({"settings", "state"}))


def settings(value: Any) -> str:
    """Settings as on the command line."""
    if isinstance(value, Mapping):
        return words(" ".join(f"{key}={words(one)}" for key, one in value.items()))
    return words(value)


def prices(report: Mapping) -> tuple[float, ...]:
    """Money a GB and month: the one that was given, or some to choose from."""
    given = measured(report.get("price"))
    return PRICES if given is None or given < 0 else (given,)


def cost_tables(report: Mapping, group: Group, target: float = 0.95) -> list[Table]:
    """Memory and money of codes that reach a target and of float32, for a million and a billion vectors."""
    found = [one for one in crossings(report, group) if one.target == target and one.is_reached]
    found.sort(key=lambda one: (one.bytes, one.family))
    rivals = [one.family for one in found if not one.ours][:_COSTED]
    rows = [(one.family, one.bytes, one.ours) for one in found if one.ours or one.family in rivals]
    if (dim := measured(part(report, "data", "db").get("dim"))) is not None:
        rows.append(("float32, no codec", 4 * dim, False))
    chosen = prices(report)
    head = ["codec", "bytes", "memory", *(f"at {number(price)}" for price in chosen)]
    strong = frozenset(i for i, row in enumerate(rows) if row[2])
    tables = []
    for label, num in (("A million", 1e6), ("A billion", 1e9)):
        texts = [
            [name, number(size), memory(size * num), *(money(size * num / 1e9 * price) for price in chosen)]
            for name, size, _ in rows
        ]
        tables.append(Table(f"{label} vectors: memory, and money a month", head, texts, strong))
    return tables


def stopped_table(report: Mapping) -> Table:
    """The cells that did not end by themselves, with the reason."""
    found = [cell for cell in rows_of(report, "cells") if cell.get("status") not in ("done", None)]
    rows = [
        [words(cell.get("id")), words(cell.get("status")), words(cell.get("reason")), number(cell.get("limit_seconds"))]
        for cell in found
    ]
    return Table(
        "Cells that were not finished",
        ["cell", "status", "reason", "limit s"],
        rows,
        texts=frozenset({"status", "reason"}),
    )


def plain_table(title: str, rows: Sequence[Mapping]) -> Table:
    """Rows of flat dictionaries; what is the same in all of them is in the note."""
    keys = list(dict.fromkeys(str(key) for row in rows for key in row))
    shown = [key for key in keys if any(row.get(key) != rows[0].get(key) for row in rows)] or keys
    fixed = [(key, rows[0].get(key)) for key in keys if key not in shown and rows[0].get(key) is not None]
    said = "; ".join(f"{_heading(key)} {_plain(key, value)}" for key, value in fixed if key != "status")
    texts = {_heading(key) for key in shown if any(isinstance(row.get(key), str | bool) for row in rows)}
    cells = [
        ["" if key == "reason" and not row.get(key) else _plain(key, row.get(key)) for key in shown] for row in rows
    ]
    return Table(
        f"{title} ({said})" if said else title, [_heading(key) for key in shown], cells, texts=frozenset(texts)
    )


def _heading(key: str) -> str:
    name, unit = column(key)
    return f"{name} {unit}" if unit in ("s", "µs") else name


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes"):
        return memory(value)
    if isinstance(value, list | tuple) and len(value) == 2:
        return share(value)
    if isinstance(value, Mapping):
        return settings(value)
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return words(value) if isinstance(value, str) else count(value) if is_whole else number(value)


def _target(target: float, places: int = 2) -> str:
    return f"{target:.{places}f}".removeprefix("0")


def scaling_tables(report: Mapping) -> list[Table]:
    """Cost against dimension, number of vectors and number of steps, as far as it was measured."""
    found = [(label, rows_of(report, "scaling", name)) for name, _, label in SCALING]
    return [plain_table(f"Cost against {label}", rows) for label, rows in found if rows]
