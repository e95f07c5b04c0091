"""Measure what exact refinement finds and costs on one thread: a Markdown report on stdout.

    python benchmarks/refinement.py model=PATH db=PATH queries=PATH queries_gt=PATH [lists=N] [index=FOLDER] [C=N B=N]

The database is encoded (with C and B, if given) and indexed in N lists (1,024) unless the folder holds its index, which
is kept there. "cold" is a search of all queries after the database was dropped from the page cache.

Shape suffixes: Q queries, D dimension, R results.
"""

import os
import shlex
import sys
import time
from pathlib import Path

from report import commit, microseconds, without_folders

from qinco.codec import Codec
from qinco.machine import processor_name, set_num_threads
from qinco.maths.metrics import recall
from qinco.native.library import level
from qinco.search.index import Index
from qinco.vectors.formats import input_files, read_integers
from qinco.vectors.rows import open_vectors

NPROBES = (16, 32, 64)
SETTINGS = (  # names, and options of a search
    ("look-up tables", {"num_short": 0}),
    ("network, nshort 100", {"num_short": 100}),
    ("refine, nshort 100", {"num_short": 100, "num_refine": 100}),
    ("refine 200, nshort 100", {"num_short": 100, "num_refine": 200}),
)
SINGLE = 200  # queries that are searched one at a time


def drop_pages(path: str) -> None:
    """Let the system forget what it has read of files."""
    for file in input_files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def report_machine(words: list[str]) -> None:
    print("# Exact refinement\n")
    print(f"- {processor_name()}, level {level()}, one thread")
    print(f"- commit {commit()}, load {os.getloadavg()[0]:.2f} at the start")
    print(f"- `python benchmarks/refinement.py {shlex.join(without_folders(words))}`", flush=True)


def opened_index(given: dict[str, str]) -> Index:
    folder = given.get("index")
    if folder and Path(folder).exists():
        return Index.load(folder)
    codec = Codec.load(given["model"])
    if "C" in given:
        codec = codec.with_options(num_pairs=int(given["C"]), beam_width=int(given["B"]))
    index = Index.build(codec, given["db"], int(given.get("lists", 1024)), metric="l2")
    if folder:
        index.save(folder)
    return index


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    set_num_threads(1)
    report_machine(words)
    index = opened_index(given)
    queries_QD, nearest_Q = open_vectors(given["queries"])[:], read_integers(given["queries_gt"])[:, 0]
    base = open_vectors(given["db"])
    print(f"- {index!r}; {len(queries_QD):,} queries; originals: {base.dtype} of {base.dim} dimensions\n")
    print("| nprobe | search | R@1 | R@10 | us a query | one at a time us | cold us |\n|---|---|---|---|---|---|---|")
    for nprobe in NPROBES:
        for name, options in SETTINGS:
            index.refine = base if "num_refine" in options else None
            options = {"k": 10, "nprobe": nprobe, **options}
            found = recall(index.search(queries_QD, **options)[1], nearest_Q, (1, 10))
            us = microseconds(lambda: index.search(queries_QD, **options), len(queries_QD))  # noqa: B023
            single = microseconds(lambda: [index.search(q_D, **options) for q_D in queries_QD[:SINGLE]], SINGLE)  # noqa: B023
            drop_pages(given["db"])
            begun = time.perf_counter()
            index.search(queries_QD, **options)
            cold = (time.perf_counter() - begun) / len(queries_QD) * 1e6
            shares = f"{found[1]:.4f} | {found[10]:.4f}"
            print(f"| {nprobe} | {name} | {shares} | {us:.1f} | {single:.0f} | {cold:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
