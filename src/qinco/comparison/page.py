"""A report as files for people: one HTML page without scripts, Markdown, and CSV."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qinco.atomic import write_atomically
from qinco.comparison import plots, tables
from qinco.comparison.answer import answer, break_even, provenance
from qinco.comparison.export import csv_text, markdown
from qinco.comparison.formatting import number, words
from qinco.comparison.reading import Group, groups, part, rows_of
from qinco.errors import needs_extra

MAX_BYTES = 1_000_000  # of the page
# In this order, until the page is small enough.
_LEFT_OUT = ("the link to the CSV", "the pictures of other metrics and queries", "the CSV",
             "the tables of other metrics and queries", "the table of all settings that were timed",
             "the table of all codecs", "the cells that were not finished")  # fmt: skip
_ASSETS = Path(__file__).parent / "assets"


def write(report: Mapping[str, Any], folder) -> None:
    """Write `report.html`, `report.md` and `report.csv`, each whole or not at all; files that are there are replaced.

    The page needs no network, runs no script and is smaller than 1 MB. What the report does not have is "not measured".

    Args:
        report: what `report.json` holds.
        folder: a folder that exists.

    Raises:
        ConfigError: Jinja2 or matplotlib is not installed.
        ResourceError: a file cannot be written.

    Example:
        >>> qinco.comparison.page.write(json.loads(Path("report/report.json").read_text("utf-8")), "report")
    """
    texts = {"report.csv": csv_text(report), "report.md": markdown(report), "report.html": html(report)}
    for name, text in texts.items():
        with write_atomically(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")


def check_page() -> None:
    """Raise ConfigError where what draws the page is not installed."""
    with needs_extra("the report", "jinja2", "compare"):
        import jinja2  # noqa: F401
    with needs_extra("the report", "matplotlib", "compare"):
        import matplotlib  # noqa: F401


def html(report: Mapping[str, Any]) -> str:
    """The page as text. Of a very large report it lacks some parts, and says which."""
    check_page()
    import jinja2

    loader = jinja2.FileSystemLoader(_ASSETS)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = _unbroken
    template, parts = environment.get_template("report.html"), _parts(report)
    for count in range(len(_LEFT_OUT) + 1):
        text = template.render(**parts, left_out=_LEFT_OUT[:count])
        if len(text.encode()) < MAX_BYTES:
            break
    return text


def _unbroken(text: str) -> str:
    """HTML of a text whose lines are not broken behind a hyphen in a short name."""
    from markupsafe import Markup

    shown = (
        Markup('<span class="whole">{}</span>').format(word) if "-" in word and len(word) <= 20 else Markup.escape(word)
        for word in text.split(" ")
    )
    return Markup(" ").join(shown)


def _parts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    found, csv, prices = groups(report), csv_text(report), tables.prices(report)
    cells = rows_of(report, "cells")
    return {
        "style": (_ASSETS / "report.css").read_text(encoding="utf-8"),
        "name": Path(words(part(report, "data", "db").get("path"))).name,
        "answer": answer(report),
        "command": words(report.get("command")),
        "groups": [_group(report, group, i) for i, group in enumerate(found)],
        "costs": tables.cost_tables(report, found[0]) if found else [],
        "price": number(prices[0]) if len(prices) == 1 else None,
        "time": _time(report, found),
        "break_even": break_even(report),
        "scaling": _scaling(report),
        "stopped": tables.stopped_table(report),
        "num_done": sum(cell.get("status") == "done" for cell in cells),
        "num_cells": len(cells),
        "provenance": provenance(report),
        "csv": csv,
        "link": base64.b64encode(csv.encode()).decode(),
    }


def _group(report: Mapping, group: Group, i: int) -> dict[str, Any]:
    return {
        "name": str(group),
        "headline": tables.headline_table(report, group),
        "crossings": tables.crossing_table(report, group),
        "cells": tables.cell_table(report, group),
        "by_bytes": plots.recall_by_bytes(f"bytes{i}", report, group),
        "targets": plots.bytes_for_targets(f"targets{i}", report, group),
    }


def _time(report: Mapping, found: list[Group]) -> dict[str, Any]:
    metric = found[0].metric if found else "l2"
    names = {"speed": tables.speed_table(report, metric), "table": tables.time_table(report, metric)}
    return names | {"picture": plots.recall_by_time("time", report, metric)}


def _scaling(report: Mapping) -> list[dict[str, Any]]:
    found = [(key, label, rows_of(report, "scaling", name)) for name, key, label in tables.SCALING]
    drawn = [plots.growth(f"scaling{i}", rows, key, label) for i, (key, label, rows) in enumerate(found) if rows]
    return [{"table": table, "picture": svg} for table, svg in zip(tables.scaling_tables(report), drawn, strict=True)]
