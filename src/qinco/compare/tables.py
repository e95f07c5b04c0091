"""The tables of a report: of cells, of bytes for a target, of time, cost and scaling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qinco.compare.formatting import (
    NOT_MEASURED,
    column,
    count,
    measured,
    memory,
    money,
    number,
    share,
    with_error,
    words,
)
from qinco.compare.reading import (
    TARGETS,
    Crossing,
    Group,
    best,
    crossings,
    family,
    part,
    recall,
    result_of,
    rows_of,
)

# Parts of report["scaling"], the key that grows, and what it counts.
SCALING = (("dimension", "dim", "dimensions"), ("size", "rows", "vectors"), ("steps", "steps", "steps M"))
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
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()
    texts: frozenset[str] = field(default_factory=frozenset)

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
         with_error(result.get("mse"), result.get("mse_se")), number(cell.get("train_seconds")),
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
    """The name of a cell: its method, its family where that says more, and what it is a prefix of."""
    name, kind = words(cell.get("method") or cell.get("family") or cell.get("id")), words(cell.get("family"))
    name = name if cell.get("family") is None or kind.split("+")[-1] in name else f"{kind}: {name}"
    name += f", prefix of {words(of)}" if (of := cell.get("prefix_of")) is not None else ""
    return name + (f" ({words(status)})" if (status := cell.get("status")) not in (None, "done") else "")


def crossing_table(report: Mapping, group: Group) -> Table:
    """The bytes with which each family reaches each target, the families in the order of what they need."""
    found = crossings(report, group)
    by_family: dict[str, list[Crossing]] = {}
    for one in found:
        by_family.setdefault(one.family, []).append(one)
    names = sorted(by_family, key=lambda name: [_place(one) for one in by_family[name]])
    rows = [[name, *map(str, by_family[name])] for name in names]
    strong = frozenset(i for i, name in enumerate(names) if by_family[name][0].ours)
    return Table(
        f"Bytes a vector for a recall: {group}", ["family", *(f"R@10 of {_target(t)}" for t in TARGETS)], rows, strong
    )


def _place(one: Crossing) -> tuple:
    return (not one.is_reached, one.bytes if one.is_reached else -one.bytes)


def headline_table(report: Mapping, group: Group) -> Table:
    """For each target the fewest bytes of ours and of the rivals."""
    found, rows = crossings(report, group), []
    for target in TARGETS:
        mine, rival = best(found, target, True), best(found, target, False)
        row = [f"R@10 of {_target(target)}", _needs(mine, found, target, True), _needs(rival, found, target, False)]
        if mine and rival and mine.kind == rival.kind == "reached":
            row.append(number(mine.bytes / rival.bytes, 2))
        rows.append([*row, NOT_MEASURED][:4])
    return Table(f"Bytes a vector: {group}", ["", "ours", "best rival", "ours / rival"], rows)


def _needs(one: Crossing | None, found: Sequence[Crossing], target: float, is_ours: bool) -> str:
    if one is not None:
        return f"{one} ({one.family})"
    tried = [o.bytes for o in found if o.target == target and o.ours == is_ours and o.kind != "unknown"]
    return f"over {number(max(tried))}" if tried else "not measured"


def speed_table(report: Mapping, metric: str) -> Table:
    """The least time a query of the settings that were measured, for each target."""
    rows = []
    for name, is_ours, size, of in timed(report, metric):
        least = [min((us for us, value in of if value >= target), default=None) for target in TARGETS]
        rows.append((is_ours, [name, number(size), *("not reached" if us is None else number(us) for us in least)]))
    head = ["index", "bytes", *(f"µs for {_target(target)}" for target in TARGETS)]
    strong = frozenset(i for i, (is_ours, _) in enumerate(rows) if is_ours)
    return Table("Time a query for a recall (R@10)", head, [row for _, row in rows], strong)


def timed(report: Mapping, metric: str) -> list[tuple[str, bool, Any, list[tuple[float, float]]]]:
    """Name, whether it is ours, bytes a vector, and (µs a query, R@10) of everything that was timed."""
    found = []
    for cell in rows_of(report, "cells"):
        rows = [row for row in rows_of(cell, "index") if words(row.get("metric")) == metric]
        found.append((family(cell), cell.get("ours") is True, cell.get("bytes"), rows))
    for library in dict.fromkeys(row.get("library") for row in rows_of(report, "hnsw")):
        rows = [row for row in rows_of(report, "hnsw") if row.get("library") == library]
        name = "HNSW over floats" + (f" ({words(library)})" if library else "")
        found.append((name, False, rows[0].get("bytes"), rows))
    exact = part(report, "exact")
    found.append(("exact scan", False, exact.get("bytes"), [exact | {"recall_10": 1.0}]))
    kept = [
        (name, is_ours, size, [(us, value) for row in rows if (us := measured(row.get("query_us"))) is not None
                               and us > 0 and (value := measured(row.get("recall_10"))) is not None])
        for name, is_ours, size, rows in found
    ]  # fmt: skip
    return [one for one in kept if one[3]]


def time_table(report: Mapping, metric: str) -> Table:
    """R@10 and time a query of every setting: of indexes, of HNSW over floats, and of an exact scan."""
    rows = []
    for cell in rows_of(report, "cells"):
        for row in rows_of(cell, "index"):
            if words(row.get("metric")) == metric:
                used = {key: row[key] for key in ("lists", "nprobe", "num_short") if row.get(key) is not None}
                rows.append((cell.get("ours") is True, family(cell), used, cell.get("bytes"), row))
    for row in rows_of(report, "hnsw"):
        used = part(row, "settings") | ({"ef_search": row["ef_search"]} if row.get("ef_search") is not None else {})
        name = "HNSW over floats" + (f" ({words(row['library'])})" if row.get("library") else "")
        rows.append((False, name, used, row.get("bytes"), row))
    if exact := part(report, "exact"):
        rows.append((False, "exact scan", {"threads": exact.get("threads")}, exact.get("bytes"), exact))
    texts = [
        [name, settings(used), number(size), share(1.0 if name == "exact scan" else row.get("recall_10")),
         number(row.get("query_us"))]
        for _, name, used, size, row in rows
    ]  # fmt: skip
    head = ["method", "settings", "bytes a vector", "R@10", "µs a query"]
    strong = frozenset(i for i, row in enumerate(rows) if row[0])
    return Table("Every setting that was timed, one thread", head, texts, strong, frozenset({"settings"}))


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
    """Rows of flat dictionaries, with the first one's keys and then any others as columns."""
    keys = list(dict.fromkeys(str(key) for row in rows for key in row))
    heads = [" ".join(filter(None, column(key))) if column(key)[1] != "bytes" else column(key)[0] for key in keys]
    texts = {
        head for key, head in zip(keys, heads, strict=True) if any(isinstance(row.get(key), str | bool) for row in rows)
    }
    return Table(title, heads, [[_plain(key, row.get(key)) for key in keys] for row in rows], texts=frozenset(texts))


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


def _target(target: float) -> str:
    return f"{target:.2f}".removeprefix("0")


def scaling_tables(report: Mapping) -> list[Table]:
    """Cost against dimension, number of vectors and number of steps, as far as it was measured."""
    found = [(label, rows_of(report, "scaling", name)) for name, _, label in SCALING]
    return [plain_table(f"Cost against {label}", rows) for label, rows in found if rows]
