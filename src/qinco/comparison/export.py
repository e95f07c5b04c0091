"""A report as Markdown, for a repository, and as CSV."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from qinco.comparison import tables
from qinco.comparison.answer import answer, break_even, provenance
from qinco.comparison.formatting import words
from qinco.comparison.reading import groups, part, recall, rows_of
from qinco.comparison.tables import Table

_FACTS = ("id", "family", "ours", "method", "bytes", "code_bytes", "scalar_bytes", "prefix_of", "status", "reason",
          "limit_seconds", "trained_on", "settings", "train_seconds", "encode_us", "decode_us", "model_bytes",
          "peak_memory_bytes")  # fmt: skip
_MEASURES = ("metric", "queries", "num_queries", "mse", "mse_se")
_SHARES = ("recall_1", "recall_10", "recall_100", "overlap_10")
_INDEX = ("target", "lists", "nprobe", "num_short", "query_us", "batch_us")
CSV_COLUMNS = ("kind", *_FACTS, *_MEASURES, *(n for name in _SHARES for n in (name, f"{name}_se")), *_INDEX)
NOTES = (
    "± is one standard error, over the queries or the vectors. R@k: the share of queries whose nearest vector is among "
    "the first k found; top ten shared: how many of the true ten nearest are among the ten found.",
    "Bytes between measured sizes are interpolated. “At most”: the smallest size that was tried reaches the recall; "
    "“over”: the largest does not. Bytes are those of a code and its scalars, without ids and without the codec.",
)


def markdown(report: Mapping[str, Any]) -> str:
    """The answer, the bytes for each target, all cells, and how they were measured, in GitHub's Markdown."""
    found, escape = groups(report), escaped
    lines = ["# Which codec, how many bytes", "", *(f"{escape(sentence)}\n" for sentence in answer(report))]
    shown = [make(report, group) for group in found
             for make in (tables.headline_table, tables.crossing_table, tables.cell_table)]  # fmt: skip
    metric = found[0].metric if found else "l2"
    shown += [tables.speed_table(report, metric), tables.time_table(report, metric)]
    shown += tables.cost_tables(report, found[0]) if found else []
    shown += tables.scaling_tables(report)
    for table in [*shown, tables.stopped_table(report)]:
        if table.rows:
            lines += [
                f"## {escape(table.title)}",
                "",
                markdown_table(table),
                *([escape(table.note), ""] if table.note else []),
            ]
    lines += ["## When not to use it", ""]
    for subject, first, rest in break_even(report):
        lines += [f"- {escape(f'{subject}: {text}')}" for text in [*first, *rest] or ["not measured"]]
    lines += ["", "## How it was measured", ""]
    lines += [f"- {escape(name)}: {escape(value)}" for name, value in provenance(report)]
    lines += [f"- Command: {escape(words(report.get('command')))}"]
    return "\n".join([*lines, "", *NOTES, ""])


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown; rows that stand out are bold."""
    lines = ["| " + " | ".join(map(escaped, table.head)) + " |"]
    lines.append("|" + "|".join("---:" if table.is_number(i) else "---" for i in range(len(table.head))) + "|")
    for i, row in enumerate(table.rows):
        name = f"**{escaped(row[0])}**" if i in table.strong else escaped(row[0])
        lines.append("| " + " | ".join([name, *map(escaped, row[1:])]) + " |")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~&#$!])", r"\\\1", " ".join(text.split()))


def csv_text(report: Mapping) -> str:
    """The report's figures as CSV: a row for each cell and group ("codes"), for each setting of an index, and of HNSW.

    Values are those of the JSON; what is null there is empty here, and settings are JSON.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for cell in rows_of(report, "cells"):
        facts = {name: _field(cell.get(name)) for name in _FACTS}
        for result in rows_of(cell, "results") or [{}]:
            values = {name: _field(result.get(name)) for name in _MEASURES}
            for name in _SHARES:
                value = result.get(name) if name == "overlap_10" else recall(result, int(name.removeprefix("recall_")))
                values |= _pair(name, value)
            writer.writerow({"kind": "codes", **facts, **values})
        for row in rows_of(cell, "index"):
            values = {name: _field(row.get(name)) for name in ("metric", *_INDEX)} | _pair(
                "recall_10", row.get("recall_10")
            )
            writer.writerow({"kind": "index", **facts, **values})
    for row in rows_of(report, "hnsw"):
        facts = {name: _field(row.get(name)) for name in ("settings", "bytes", "target", "query_us", "batch_us")}
        writer.writerow(
            {
                "kind": "hnsw",
                **facts,
                "train_seconds": _field(row.get("build_seconds")),
                **_pair("recall_10", row.get("recall_10")),
            }
        )
    if exact := part(report, "exact"):
        writer.writerow(
            {"kind": "exact", **{name: _field(exact.get(name)) for name in ("bytes", "query_us", "batch_us")}}
        )
    return out.getvalue()


def _pair(name: str, value: Any) -> dict[str, Any]:
    value = value if isinstance(value, list | tuple) else [value]
    return {key: _field(one) for key, one in zip((name, f"{name}_se"), [*value, None][:2], strict=True)}


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | Mapping | list | tuple) else value
