"""The pictures of a report: recall against bytes and time, bytes for a target, and how costs grow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qinco.comparison.formatting import column, measured, number, share, words
from qinco.comparison.reading import (
    TARGETS,
    Group,
    best,
    crossings,
    family,
    ours,
    points,
    ranked,
    recall,
    result_of,
    rows_of,
)
from qinco.comparison.svg import COLOURS, draw
from qinco.comparison.tables import timed

_SIZE = (5.0, 4.3)
_LABEL = 19  # characters of a name at the left
_NAMES = 14  # of lines that fit beside them
_TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_TOP = 0.9995
Line = tuple[str, str, list[tuple[float, float]]]  # a name, the name of its colour, and its points


def stretched(value: float) -> float:
    """A recall on an axis where .90, .95 and .99 lie apart: the logarithm of what is missed."""
    return -math.log10(1 - min(max(value, 0.0), _TOP))


def recall_by_bytes(name: str, report: Mapping, group: Group) -> str | None:
    """R@10 against bytes, a line for each family and a thin one for the prefixes of each codec; None without any."""
    if not (found := points(report, group)):
        return None
    roles = _roles(report, group)
    lines: list[Line] = [
        (label, roles.get(label, "other"), front([(x, y) for x, y, is_prefix in of if not is_prefix] or [of[0][:2]]))
        for label, of in found.items()
    ]
    prefixes = prefix_lines(report, group)
    alt = "R@10 against bytes a vector. " + " ".join(_told(label, of, "bytes") for label, _, of in lines)
    alt += "".join(f" Prefixes of {label}: {_listed(of, 'bytes')}." for label, _, of in prefixes)

    def paint(figure) -> None:
        axes = _axes(figure, "bytes a vector", [x for of in found.values() for x, _, _ in of])
        _recall_axis(axes, [y for of in found.values() for _, y, _ in of])
        for label, of in found.items():
            axes.plot([x for x, _, _ in of], [stretched(y) for _, y, _ in of], linestyle="", marker=".", markersize=4,
                      markeredgewidth=0, color=_colour(roles, label), alpha=0.4)  # fmt: skip
        for _, role, of in prefixes:
            axes.plot([x for x, _ in of], [stretched(y) for _, y in of], color=COLOURS[role], linewidth=1,
                      linestyle=(0, (2, 2)), marker="o", markersize=3.5, markerfacecolor=COLOURS["card"])  # fmt: skip
        named = _named(report, group)
        _lines(axes, [(label if label in named else "", role, of) for label, role, of in lines])

    return draw(name, alt, _SIZE, paint)


def _named(report: Mapping, group: Group) -> set[str]:
    """Ours and the best rivals, as many as have room."""
    names, mine = ranked(crossings(report, group)), ours(report)
    return {*mine, *[name for name in names if name not in mine][: max(_NAMES - len(mine), 1)]}


def prefix_lines(report: Mapping, group: Group) -> list[Line]:
    """The recalls of each codec's prefixes and of the whole code."""
    cells = {str(cell.get("id")): cell for cell in rows_of(report, "cells")}
    found: dict[str, list] = {}
    for cell in cells.values():
        if (of := cell.get("prefix_of")) is not None:
            found.setdefault(str(of), []).append(cell)
    roles, lines = _roles(report, group), []
    for whole, parts in found.items():
        chosen = [*parts, cells[whole]] if whole in cells else parts
        reached = [(measured(c.get("bytes")), measured(recall(result_of(c, group)))) for c in chosen]
        kept = sorted((x, y) for x, y in reached if x and y is not None)
        if kept:
            lines.append((words(whole), roles.get(family(parts[0]), "other"), kept))
    return lines


def bytes_for_targets(name: str, report: Mapping, group: Group) -> str | None:
    """The bytes of each family for each target, as marks on a line; None if nothing was reached."""
    found = [one for one in crossings(report, group) if one.is_reached]
    if not found:
        return None
    names = sorted({one.family for one in found}, key=lambda of: [_needed(found, of, t) for t in (0.95, 0.9, 0.99)])
    roles = _roles(report, group)
    alt = "Bytes a vector for a recall. " + " ".join(
        f"{of}: " + ", ".join(f"{one} for {share(one.target)[:3]}" for one in found if one.family == of) + "."
        for of in names
    )

    def paint(figure) -> None:
        axes = _axes(figure, "bytes a vector", [one.bytes for one in found], left=0.31, right=0.97)
        axes.spines["left"].set_visible(False)
        axes.set(
            ylim=(len(names) - 0.5, -1.0), yticks=range(len(names)), yticklabels=[words(of, _LABEL) for of in names]
        )
        axes.tick_params("y", length=0)
        for label, of in zip(axes.get_yticklabels(), names, strict=True):
            label.set(color=COLOURS["text"] if _colour(roles, of) == COLOURS["other"] else _colour(roles, of))
            label.set_fontweight("bold" if roles.get(of, "").startswith("ours") else "normal")
        for row, of in enumerate(names):
            of_family = [one for one in found if one.family == of]
            sizes = [one.bytes for one in of_family]
            axes.plot([min(sizes), max(sizes)], [row, row], color=_colour(roles, of), linewidth=2, alpha=0.5)
            for one in of_family:
                colour, marker = _colour(roles, of), {0.9: "o", 0.95: "s", 0.99: "D"}[one.target]
                axes.plot([one.bytes], [row], marker=marker, markersize=6.5, color=colour,
                          markerfacecolor=COLOURS["card"] if one.kind == "at most" else colour)  # fmt: skip
        first = sorted((one for one in found if one.family == names[0]), key=lambda one: one.bytes)
        near = 0.08 * math.log(axes.get_xlim()[1] / axes.get_xlim()[0])
        while first:
            at = [one for one in first if math.log(one.bytes / first[0].bytes) < near]
            text = " ".join(share(one.target)[:3] for one in at)
            axes.annotate(text, (at[0].bytes, 0), (0, 9), textcoords="offset points", ha="center",
                          color=COLOURS["quiet"], fontsize=9)  # fmt: skip
            first = first[len(at) :]

    return draw(name, alt, (5.0, max(1.3 + 0.27 * len(names), 2.2)), paint)


def _needed(found: Sequence, name: str, target: float) -> float:
    return min((one.bytes for one in found if one.family == name and one.target == target), default=math.inf)


def recall_by_time(name: str, report: Mapping, metric: str) -> str | None:
    """R@10 against µs a query: indexes, HNSW and an exact scan; None if nothing was timed."""
    roles, lines = _roles(report, None), []
    for one in timed(report, metric):
        role = roles.get(one.name, "ours") if one.ours else "rival" if one.name.startswith("HNSW") else "other"
        lines.append((one.label, "text" if one.name == "exact scan" else role, front(one.points)))
    lines = [line for line in lines if line[2]]
    if all(role == "text" for _, role, _ in lines):
        return None
    alt = "R@10 against time a query. " + " ".join(_told(label, of, "µs") for label, _, of in lines)

    def paint(figure) -> None:
        axes = _axes(figure, "µs a query, one thread", [x for _, _, of in lines for x, _ in of], right=0.62)
        _recall_axis(axes, [y for _, _, of in lines for _, y in of])
        _lines(axes, lines)

    return draw(name, alt, _SIZE, paint)


def growth(name: str, rows: Sequence[Mapping], x_key: str, x_label: str) -> str | None:
    """Times against a size, both as logarithms; None if there are fewer than two sizes."""
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if str(key).endswith(("_us", "_seconds"))]
    kinds = list(dict.fromkeys(words(row.get("method") or row.get("family") or "") for row in rows))
    lines: list[Line] = []
    for kind in kinds:
        for key in keys:
            of = [row for row in rows if words(row.get("method") or row.get("family") or "") == kind]
            found = sorted(
                (x, y)
                for row in of
                if (x := measured(row.get(x_key))) and (y := measured(row.get(key))) and x > 0 and y > 0
            )
            label = " ".join(filter(None, column(key)))
            lines.append(
                (label if len(kinds) == 1 else f"{kind}: {label}", ("ours", "rival", "other")[len(lines) % 3], found)
            )
    lines = [line for line in lines if len(line[2]) > 1][:9]
    if not lines:
        return None
    alt = f"Times against {x_label}. " + " ".join(f"{label}: {_listed_plain(of)}." for label, _, of in lines)

    def paint(figure) -> None:
        axes = _axes(figure, x_label, [x for _, _, of in lines for x, _ in of])
        low, high = min(y for _, _, of in lines for _, y in of), max(y for _, _, of in lines for _, y in of)
        axes.set(yscale="log", ylim=(low / 1.3, high * 1.3))
        ticks = _ticks(low / 1.3, high * 1.3, False)
        axes.set_yticks(ticks, [_short(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.grid(True, axis="y", color=COLOURS["line"], linewidth=0.7)
        _lines(axes, lines, float)

    return draw(name, alt, (5.0, 3.4), paint)


def front(found: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats with as few or fewer of x, in order."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(found, key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _roles(report: Mapping, group: Group | None) -> dict[str, str]:
    """Ours in two blues and the best rival in orange; all others are grey."""
    mine = ours(report)
    names = [name for name in dict.fromkeys(map(family, rows_of(report, "cells"))) if name in mine]
    roles = {name: "ours2" if i else "ours" for i, name in enumerate(names)}
    found = [] if group is None else crossings(report, group)
    rival = next((one for target in (0.95, 0.9, 0.99) if (one := best(found, target, False))), None)
    return roles | ({rival.family: "rival"} if rival else {})


def _colour(roles: Mapping[str, str], name: str) -> str:
    return COLOURS[roles.get(name, "other")]


def _axes(figure, x_label: str, values: Sequence, left=0.115, right=0.7) -> Any:
    """Axes with logarithms of x, room for their labels below, and for names at the right."""
    height = figure.get_size_inches()[1]
    axes = figure.add_axes((left, 0.5 / height, right - left, 1 - 0.68 / height), xscale="log")
    low, high = min(values), max(values)
    pad = 1.03 * (high / low) ** 0.04
    axes.set_xlim(low / pad, high * pad)
    ticks = _ticks(low / pad, high * pad, "µs" not in x_label)
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(x_label)
    axes.grid(True, axis="x", color=COLOURS["line"], linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def _ticks(low: float, high: float, is_binary: bool) -> list[float]:
    """At most seven round numbers: powers of two, or 1, 2, 5, 10 and so on."""
    steps, tens = (1.0, 2.0, 5.0), range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    twos = [2.0**i for i in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    decades, fine = [10.0**i for i in tens], [step * 10.0**i for i in tens for step in steps]
    for ticks in (twos if is_binary else fine, decades, decades[::2]):
        if 1 <= len(kept := [tick for tick in ticks if low <= tick <= high]) <= 7:
            return kept
    return [low]


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * (10 if unit == "k" else 1):
            return number(value / limit) + unit
    return number(value)


def _recall_axis(axes, values: Sequence[float]) -> None:
    low, high = stretched(min(values)), stretched(max(values))
    pad = max((high - low) * 0.05, 0.04)
    axes.set_ylim(max(low - pad, 0), high + pad)
    ticks = [tick for tick in _TICKS if low - pad <= stretched(tick) <= high + pad]
    axes.set_yticks([stretched(tick) for tick in ticks], [f"{tick:g}".removeprefix("0") for tick in ticks])
    for tick in ticks:
        is_target = tick in TARGETS
        axes.axhline(
            stretched(tick),
            color=COLOURS["quiet" if is_target else "line"],
            linewidth=0.8 if is_target else 0.5,
            alpha=0.7,
            zorder=0.5,
        )
    axes.set_title("R@10", loc="left", x=-0.18, fontsize=10, color=COLOURS["quiet"], pad=3)


def _lines(axes, lines: Sequence[Line], of_y=stretched) -> None:
    """The lines, ours above the others, and their names in the margin at the right, none over another."""
    order = {"other": 0, "text": 1, "rival": 2, "ours2": 3, "ours": 4}
    ends = []
    for label, role, of in sorted(lines, key=lambda line: order[line[1]]):
        is_main = role in ("ours", "ours2", "rival")
        axes.plot([x for x, _ in of], [of_y(y) for _, y in of], color=COLOURS[role], linewidth=2.4 if is_main else 1.1,
                  marker="o", markersize=4.5 if is_main else 3, zorder=2 + order[role] / 10)  # fmt: skip
        end = axes.transAxes.inverted().transform(axes.transData.transform((of[-1][0], of_y(of[-1][1]))))
        if label:  # the table names the others
            ends.append((end, label, role))
    room = int((1 - axes.get_position().x1) * axes.figure.get_size_inches()[0] * 72 / 5.6)  # in characters
    step = 13.5 / (axes.get_position().height * axes.figure.get_size_inches()[1] * 72)
    places = spread([float(end[1]) for end, _, _ in ends], step)
    for (end, label, role), place in zip(ends, places, strict=True):
        axes.plot([end[0] + 0.012, 1.045], [end[1], place], transform=axes.transAxes, clip_on=False, linewidth=0.5,
                  color=COLOURS["quiet"], alpha=0.6)  # fmt: skip
        weight, colour = "bold" if role.startswith("ours") else "normal", "quiet" if role == "other" else role
        axes.text(1.055, place, words(label, room), transform=axes.transAxes, va="center", fontsize=9.5,
                  color=COLOURS[colour], fontweight=weight)  # fmt: skip


def spread(wanted: Sequence[float], step: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """The heights nearest to those wanted, in their order, that are `step` apart and within the limits."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[float]] = []  # of neighbours that touch: the height of their lowest, and how many they are
    for place, i in enumerate(order):
        groups.append([wanted[i] - place * step, 1])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            height, count = groups.pop()
            groups[-1] = [
                (groups[-1][0] * groups[-1][1] + height * count) / (groups[-1][1] + count),
                groups[-1][1] + count,
            ]
    lowest = [height for height, count in groups for _ in range(int(count))]
    top, places = max(high - (len(wanted) - 1) * step, low), [0.0] * len(wanted)
    for place, (i, height) in enumerate(zip(order, lowest, strict=True)):
        places[i] = min(max(height, low), top) + place * step
    return places


def _told(label: str, of: Sequence[tuple[float, float]], unit: str) -> str:
    return f"{label}: {_listed(of, unit)}."


def _listed(of: Sequence[tuple[float, float]], unit: str) -> str:
    return ", ".join(f"{share(y)} at {number(x)} {unit}" for x, y in of)


def _listed_plain(of: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{number(y)} at {number(x)}" for x, y in of)
