"""`qinco compare`: a benchmark of codecs on one's own vectors."""

import shlex
from dataclasses import replace

import qinco
from qinco.cli.keys import SHARED, Key, task
from qinco.cli.open import files_read, open_database, open_trainset
from qinco.comparison.options import FAMILIES, LEAST_BYTES, LIMIT_MINUTES, MINUTES, PARTS, SIZES
from qinco.config import METRICS, PRESETS
from qinco.datasets.catalogue import DATASETS

_TARGETS = ("metric", "queries", "family", "target", "bytes", "between")


@task(
    "compare",
    "which codec, how many bytes, and is it worth it: a benchmark on your own vectors, as a page",
    keys=[
        "trainset db ds.trainset ds.db queries",
        Key("other_queries", "path", None, "queries of another distribution than the database's, reported apart"),
        Key("output", "path", None, "folder to write report.html, report.md, report.csv and report.json to"),
        Key("bytes", "integers", SIZES, "sizes of a vector's code, scalars included", minimum=LEAST_BYTES),
        replace(SHARED["minutes"], help=f"of each of our trainings; null: {MINUTES:g}, unless epochs are given"),
        replace(SHARED["epochs"], help="of each of our trainings, instead of minutes"),
        Key("metrics", "names", None, "l2, inner_product, cosine; null: all that tell the vectors apart",
            choices=METRICS),
        Key("presets", "names", None, "our architectures; null: all that fit the time", choices=tuple(PRESETS)),
        Key("rivals", "names", None, "families of rivals; null: all", choices=FAMILIES),
        Key("parts", "names", None, "what is measured besides codecs; null: all", choices=PARTS),
        Key("limit_minutes", "positive", LIMIT_MINUTES, "after which a training and its measurements are ended"),
        Key("price", "number", None, "of a GB of memory and month, for what vectors cost; null: at some prices"),
        "resume overwrite seed threads",
    ],
    required=("trainset|db", "db", "output"),
    imports=("qinco.comparison.compare",),
)  # fmt: skip
def compare(settings, console) -> None:
    from qinco.cli.grammar import to_text  # which reads the tasks

    given = [key for key in compare.keys if settings.given(key.name)]
    words = [f"{key.name}={to_text(key, settings[key.name])}" for key in given]
    dataset = DATASETS.get(settings["db"])
    queries = settings["queries"] or (dataset and dataset.queries)
    report = qinco.compare(
        open_trainset(settings, is_shuffled=False), open_database(settings), queries, output=settings["output"],
        other_queries=settings["other_queries"], inputs=files_read(settings), progress=console.progress,
        command=shlex.join(["qinco", "compare", *words]),
        epochs=settings["epochs"] if settings.given("epochs") else None,
        **{name: settings[name] for name in ("bytes", "minutes", "metrics", "presets", "rivals", "parts",
                                             "limit_minutes", "price", "seed", "resume", "overwrite")},
    )  # fmt: skip
    console.info(f"the report is in {settings['output']}")
    found = {"output": settings["output"], "cells": len(report["cells"]), "targets": report["targets"]}
    if settings["json"]:
        return console.print_result(found, True)
    console.print_table([[row[name] for name in _TARGETS] for row in report["targets"]], _TARGETS)
