"""When not to use it: where our index breaks even with an exact scan and with HNSW over floats.

All of it follows from times and sizes that were measured; what lies beyond the measured numbers of vectors is on the
straight line through them, and the sentences say so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qinco.config import require_int, require_number
from qinco.machine import total_memory

GIGABYTES_PER_CORE = 8.0
_MODES = {"query_us": "one query at a time", "batch_us": "in large batches"}
_NAMES = {"exact": "an exact scan of floats", "hnsw": "HNSW over floats"}
_GB, _DIGITS, _ENOUGH = 1e9, 2, 0.95
Row = Mapping[str, Any]


class _Line(NamedTuple):
    """Microseconds of a query as a line over the number of vectors, and the numbers that were measured."""

    fixed: float
    each: float
    least: int
    most: int

    def at(self, count: float) -> float:
        return self.fixed + self.each * count


def break_even(
    index: Mapping[str, Sequence[Row]], exact: Row | None, hnsw: Sequence[Row] = (), *,
    names: Mapping[str, str] | None = None, memory_bytes: int | None = None,
    gigabytes_per_core: float = GIGABYTES_PER_CORE,
) -> dict:  # fmt: skip
    """Where indexes break even with an exact scan and with HNSW, as data and one plain sentence each.

    Args:
        index: by the name of a codec what `time_index` gave, for one or two numbers of vectors.
        exact: what `time_exact` gave, or None.
        hnsw: what `time_hnsw` gave, of all libraries.
        names: what sentences call the codecs, by their names in `index`, which they are called by if it is None.
        memory_bytes: of a machine; that of this one if None.
        gigabytes_per_core: a core costs as much as so many gigabytes of memory.

    Returns:
        JSON values: "assumptions", and lists "vectors" (the number from which the index is faster than an exact scan),
        "memory" (the number from which it takes less, and how many fit into memory) and "queries_per_second" (at which
        both cost the same; "index_is_cheaper" is "below", "above", "always" or "never"), of dicts of "codec", "target",
        "against", "value" (None: there is none), "extrapolated" and "sentence", among others. "exact" and "hnsw" have
        the main sentence ("text") of the smallest codec that reaches .95, or else the highest target, and "sentences"
        what else is said of it.

    Raises:
        ConfigError: numbers that are not above 0.

    Example:
        >>> found = break_even({"qinco2-S-8": time_index(codec, problem)}, time_exact(problem), time_hnsw(problem))
        >>> for one in found["vectors"]:
        ...     print(one["sentence"])
    """
    require_number("gigabytes_per_core", gigabytes_per_core, above=0)
    memory_bytes = memory_bytes or total_memory() or 1 << 34
    require_int("memory_bytes", memory_bytes)
    found: dict[str, Any] = {
        "assumptions": {"gigabytes_per_core": gigabytes_per_core, "memory_bytes": memory_bytes, "threads": 1,
                        "extrapolation": "straight lines through the measured numbers of vectors"},
        "vectors": [], "memory": [], "queries_per_second": [],
    }  # fmt: skip
    for codec, rows in index.items():
        if rows:
            name = (names or {}).get(codec, codec)
            for kind, ones in _of_codec(name, rows, exact, hnsw, memory_bytes, gigabytes_per_core).items():
                found[kind] += [one | {"codec": codec} for one in ones]
    return found | _headline(found, index, exact)


def _of_codec(
    codec: str, rows: Sequence[Row], exact: Row | None, hnsw: Sequence[Row], memory_bytes: int, per_core: float
) -> dict[str, list[dict]]:
    """What is said of one codec, in sentences that call it `codec`."""
    largest = max(rows, key=lambda row: row["rows"])
    found = {"vectors": [], "memory": _memory(codec, largest, exact, hnsw, memory_bytes), "queries_per_second": []}
    for target in sorted({row["target"] for row in rows}):
        own = [row for row in rows if row["target"] == target and row["query_us"] is not None]
        top = max((row for row in rows if row["target"] == target), key=lambda row: row["rows"])
        if top["query_us"] is None:  # what fewer vectors take says nothing about more of them
            found["vectors"].append(_out_of_reach(codec, target, top))
            continue
        if exact is not None:
            found["vectors"] += [_vectors(codec, target, own, exact, mode) for mode in _MODES]
            found["queries_per_second"].append(_queries(codec, target, own, exact, "exact", per_core))
        graphs = [row for row in hnsw if row["target"] == target and row["query_us"] is not None]
        if graphs:
            graph = min(graphs, key=lambda row: row["query_us"])
            found["queries_per_second"].append(_queries(codec, target, own, graph, "hnsw", per_core))
    return found


def _headline(found: Mapping[str, list[dict]], index: Mapping[str, Sequence[Row]], exact: Row | None) -> dict:
    """What is said of one codec and target: of those up to R@10 of .95 the highest that is reached, in fewest bytes."""
    largest = {codec: max((row["rows"] for row in rows), default=0) for codec, rows in index.items()}
    reached = [(min(row["target"], _ENOUGH), -row["bytes"], row["target"] <= _ENOUGH, codec, row["target"])
               for codec, rows in index.items() for row in rows
               if row["query_us"] is not None and row["rows"] == largest[codec]]  # fmt: skip
    if not reached:
        return {"exact": None, "hnsw": None, "sentences": []}
    *_, codec, target = max(reached)

    def said(name: str, against: str) -> list[dict]:
        return [one for one in found[name] if one["codec"] == codec and one["against"] == against
                and one["target"] in (target, None)]  # fmt: skip

    parts: dict[str, Any] = {}
    for against, first in (("exact", "vectors"), ("hnsw", "memory")):
        others = [one for name in ("vectors", "memory", "queries_per_second") for one in said(name, against)]
        load = said("queries_per_second", against)
        main = next(iter(said(first, against)), None)
        parts[against] = None if main is None else {
            "codec": codec, "target": target, "vectors": main["value"], "memory_bytes": _bytes_of(main, exact),
            "queries_a_second": load[0]["value"] if load else None, "text": main["sentence"],
        }  # fmt: skip
        parts.setdefault("sentences", []).extend(one["sentence"] for one in others if one is not main)
    return parts


def _bytes_of(one: Row, exact: Row | None) -> float | None:
    """Of floats where both break even."""
    size = one.get("bytes") or (None if exact is None else exact["bytes"])
    return None if size is None or one["value"] is None else one["value"] * size


def _line(points: Sequence[tuple[int, float]]) -> _Line:
    """Through the smallest and the largest of (vectors, microseconds); level where there is one, or it would fall."""
    (few, few_us), (many, many_us) = min(points), max(points)
    each = max(0.0, (many_us - few_us) / (many - few)) if many > few else 0.0
    return _Line(many_us - each * many, each, few, many)


def _exact_points(exact: Row, mode: str) -> list[tuple[int, float]]:
    smaller = exact.get("smaller")
    points = [(exact["rows"], exact[mode])]
    return points + ([(smaller["rows"], smaller[mode])] if smaller else [(0, 0.0)])


def _vectors(codec: str, target: float, own: Sequence[Row], exact: Row, mode: str) -> dict:
    line, scan = _line([(row["rows"], row[mode]) for row in own]), _line(_exact_points(exact, mode))
    value: float | None = None
    if line.fixed <= scan.fixed and line.each <= scan.each:
        value = 0.0
    elif scan.each > line.each:
        value = max(0.0, (line.fixed - scan.fixed) / (scan.each - line.each))
    extrapolated = value is not None and not line.least <= value <= line.most
    us, scan_us = line.at(line.most), scan.at(line.most)
    times = f"{_time(us)} against {_time(scan_us)} with {_number(line.most)} vectors"
    what = f"a search of {codec} with R@10 of {target:g}, {_MODES[mode]},"
    span = f"{_number(line.least)} and {_number(line.most)}" if line.least < line.most else _number(line.most)
    if value:
        how = "on straight lines through the times of" if extrapolated else "between measurements of"
        text = (f"With fewer than about {_number(value)} vectors use an exact scan: {what} is faster only from there "
                f"on ({how} {span} vectors: {times}).")  # fmt: skip
    elif value is None:
        text = (f"With up to {_number(line.most)} vectors, as many as were measured, use an exact scan: {what} is "
                f"slower ({times}), and its time grows as fast with their number.")  # fmt: skip
    else:
        text = f"{what[0].upper()}{what[1:]} is faster than an exact scan of {span} vectors ({times})."
    return {
        "codec": codec, "target": target, "against": "exact", "mode": _MODES[mode], "value": value,
        "extrapolated": extrapolated, "measured": [line.least, line.most], "index_us": us, "exact_us": scan_us,
        "sentence": text,
    }  # fmt: skip


def _out_of_reach(codec: str, target: float, row: Row) -> dict:
    text = f"{codec} does not reach R@10 of {target:g} among {_number(row['rows'])} vectors ({row['reason']})."
    return {"codec": codec, "target": target, "against": "exact", "mode": None, "value": None, "extrapolated": False,
            "measured": [row["rows"], row["rows"]], "index_us": None, "exact_us": None, "sentence": text}  # fmt: skip


def _memory(codec: str, row: Row, exact: Row | None, hnsw: Sequence[Row], memory_bytes: int) -> list[dict]:
    rivals = [] if exact is None else [("exact", exact["bytes"])]
    rivals += [("hnsw", min(graph["bytes"] for graph in hnsw))] if hnsw else []
    found = []
    for against, num_bytes in rivals:
        saved, name = num_bytes - row["bytes"], _NAMES[against]
        value = row["fixed_bytes"] / saved if saved > 0 else None
        fits, own_fits = memory_bytes / num_bytes, max(0.0, memory_bytes - row["fixed_bytes"]) / row["bytes"]
        sizes = f"{row['bytes']:.3g} against {num_bytes:.4g} bytes a vector"
        if value is None:
            text = f"{codec} takes no less memory than {name} ({sizes})."
        else:
            text = (f"With fewer than about {_number(value)} vectors {codec} and its tables weigh more than they save "
                    f"over {name}; {memory_bytes / _GB:.3g} GB of memory hold {_number(fits)} vectors for {name} and "
                    f"{_number(own_fits)} for {codec} ({sizes}).")  # fmt: skip
        found.append({
            "codec": codec, "target": None, "against": against, "value": value, "extrapolated": True,
            "bytes": num_bytes, "index_bytes": row["bytes"], "fixed_bytes": row["fixed_bytes"],
            "memory_bytes": memory_bytes, "fits": fits, "index_fits": own_fits, "sentence": text,
        })  # fmt: skip
    return found


def _queries(codec: str, target: float, own: Sequence[Row], rival: Row, against: str, per_core: float) -> dict:
    """Queries a second at which both cost the same, with the largest number of vectors that was measured."""
    row, name = max(own, key=lambda one: one["rows"]), _NAMES[against]
    count, own_us = row["rows"], row["query_us"]
    rival_us = _line(_exact_points(rival, "query_us")).at(count) if against == "exact" else rival["query_us"]
    saved = (rival["bytes"] - row["bytes"]) * count - row["fixed_bytes"]
    slower = own_us - rival_us
    where = f"with {_number(count)} vectors and R@10 of {target:g}"
    times = f"{_time(own_us)} against {_time(rival_us)} a query"
    value, cheaper = None, "always"
    if saved >= 0 >= slower or saved <= 0 <= slower:
        cheaper = "always" if saved >= 0 >= slower else "never"
        first, other = (codec, name) if cheaper == "always" else (name, codec)
        text = f"{first} costs less than {other} at any load {where}: it is no slower and no larger ({times})."
        text = text if first == codec else text[0].upper() + text[1:]  # a codec's name stays as it is
    else:
        value, cheaper = abs(saved) / _GB / (per_core * abs(slower) / 1e6), "below" if saved > 0 else "above"
        first, other = (name, codec) if saved > 0 else (codec, name)
        sizes = f"{codec} takes {abs(saved) / _GB:.3g} GB {'less' if saved > 0 else 'more'}"
        each = f"{_number(value * 1e6 / count)} for each million vectors if times stayed the same"
        text = (f"Above about {_number(value)} queries a second {first} costs less than {other} {where} ({times}; "
                f"{sizes}; a core at the price of {per_core:g} GB of memory; {each}).")  # fmt: skip
    return {
        "codec": codec, "target": target, "against": against, "value": value, "index_is_cheaper": cheaper,
        "extrapolated": False, "rows": count, "index_us": own_us, "rival_us": rival_us, "saved_bytes": saved,
        "sentence": text,
    }  # fmt: skip


def _number(value: float) -> str:
    """A number of two significant digits, with a word for millions and billions."""
    if value < 10:
        return f"{value:.2g}"
    digits = _DIGITS - 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if rounded >= size:
            return f"{rounded / size:.3g} {word}"
    return f"{rounded:,.0f}"


def _time(us: float) -> str:
    return f"{us / 1000:.2g} ms" if us >= 1000 else f"{us:.3g} µs"
