"""Measure what filters cost on one thread: a Markdown report on stdout.

    python benchmarks/filtered_search.py model=PATH db=PATH queries=PATH [lists=N] [index=FOLDER] [C=N B=N]

The database is encoded (with C and B, if given) and indexed in N lists (as `Index.build` chooses) unless the folder
holds its index, which is kept there. Times are of the processor, of one run: each setting is measured right beside the
unfiltered search that its ratio is to. A filter is a Selection that is used again, or ids that each call is given anew.
"""

import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from report import commit, without_folders
from report import microseconds as measured

from qinco.codec import Codec
from qinco.machine import processor_name, set_num_threads
from qinco.native.library import level
from qinco.search.index import Index
from qinco.vectors.rows import open_vectors

SINGLE, BATCH = 100, 500  # queries that are searched one at a time, and in one call
FEW = 10
microseconds = partial(measured, clock=time.process_time)


def opened_index(given: dict[str, str]) -> Index:
    folder = given.get("index")
    if folder and Path(folder).exists():
        return Index.load(folder)
    codec = Codec.load(given["model"])
    if "C" in given:
        codec = codec.with_options(num_pairs=int(given["C"]), beam_width=int(given["B"]))
    index = Index.build(codec, given["db"], int(given["lists"]) if "lists" in given else None, metric="l2")
    if folder:
        index.save(folder)
    return index


def settings(index: Index) -> dict[str, tuple[str, np.ndarray]]:
    """Names, and what a search is given: "filter" or "exclude", and ids in ascending order."""
    random, ids = np.random.default_rng(0), index.ids

    def some(count: int) -> np.ndarray:
        return np.sort(random.choice(ids, count, replace=False))

    shares = {f"filter, {100 * share:g} %": ("filter", some(int(share * len(ids)))) for share in (0.5, 0.1, 0.03, 0.01)}
    few = {"filter, 1,000 ids": ("filter", some(1000)), "filter, 10 ids": ("filter", some(FEW))}
    return shares | few | {"exclude, 5 %": ("exclude", some(len(ids) // 20))}


def seconds_of(index: Index, queries_QD: np.ndarray, **options) -> tuple[float, float]:
    """Microseconds of a query, one at a time and in one call."""
    single = microseconds(lambda: [index.search(q_D, 10, **options) for q_D in queries_QD[:SINGLE]], SINGLE)
    return single, microseconds(lambda: index.search(queries_QD, 10, **options), len(queries_QD))


def report(index: Index, queries_QD: np.ndarray, num_short: int) -> None:
    print(f"\nnum_short={num_short}, us a query (times the unfiltered search beside it):\n")
    print("| setting | one at a time | ids anew | batch | ids anew |\n|---|---|---|---|---|")
    options = {"num_short": num_short}
    for name, (word, ids) in settings(index).items():
        plain = seconds_of(index, queries_QD, **options)
        again = seconds_of(index, queries_QD, **options, **{word: index.select(ids)})
        anew = seconds_of(index, queries_QD, **options, **{word: ids})
        cells = (f"{us:.0f} ({us / base:.2f})" for i, base in enumerate(plain) for us in (again[i], anew[i]))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"| unfiltered | {plain[0]:.0f} | | {plain[1]:.0f} | |", flush=True)


def report_selections(index: Index, queries_QD: np.ndarray) -> None:
    print("\n| setting | select, us | search_among, one query, us |\n|---|---|---|")
    for name, (_, ids) in settings(index).items():
        made = microseconds(lambda: index.select(ids), 1)  # noqa: B023
        among = "–"
        if len(ids) <= 1000:
            selection = index.select(ids)
            us = microseconds(lambda: [index.search_among(q_D, selection) for q_D in queries_QD[:10]], 10)  # noqa: B023
            among = f"{us:.0f}"
        print(f"| {name} | {made:.0f} | {among} |", flush=True)


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    set_num_threads(1)
    print("# Filtered search\n")
    print(f"- {processor_name()}, level {level()}, one thread, processor time")
    print(f"- commit {commit()}, load {os.getloadavg()[0]:.2f} at the start")
    print(f"- `python benchmarks/filtered_search.py {shlex.join(without_folders(words))}`", flush=True)
    index, queries_QD = opened_index(given), open_vectors(given["queries"])[:BATCH]
    print(f"- {index!r}; {len(queries_QD)} queries, {SINGLE} of them one at a time; nprobe {index.options.nprobe}")
    report_selections(index, queries_QD)
    for num_short in (0, index.options.num_short):
        report(index, queries_QD, num_short)


if __name__ == "__main__":
    main(sys.argv[1:])
