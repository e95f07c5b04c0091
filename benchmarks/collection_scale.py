"""Times and memory of a collection of a million records: a Markdown report on stdout.

    python benchmarks/collection_scale.py db=PATH [count=1000000 minutes=5 folder=/var/tmp threads=2]

Vectors are rows of `db`, each repeated with noise of its own until there are enough; payloads are synthetic: a year, a
category of 50, a score and a title. Queries are rows with noise that are not stored. Memory is the peak resident set.
"""

import resource
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from report import commit, without_folders

import qinco
from qinco.machine import num_threads, processor_name, set_num_threads

BATCH, CHANGED, QUERIES, NOISE = 10_000, 10_000, 200, 0.02
FILTERS = {
    "none": None,
    "year >= 2010 (50 %)": {"year": {"gte": 2010}},
    "category = 7 (2 %)": {"category": 7},
    "category = 7 and score > .95 (.1 %)": {"category": 7, "score": {"gt": 0.95}},
}


def vectors_of(source, begin: int, end: int) -> np.ndarray:
    """Vectors numbered from `begin` on, float32 (N, D): the same for every number, and different for all."""
    x_ND = np.asarray(source[:][np.arange(begin, end) % len(source)], np.float32)
    noise_ND = np.random.default_rng(begin).standard_normal(x_ND.shape, np.float32)
    return x_ND + NOISE * x_ND.std() * noise_ND


def payloads_of(begin: int, end: int) -> list[dict]:
    generator = np.random.default_rng(begin)
    years, scores = generator.integers(1990, 2030, end - begin), generator.random(end - begin)
    return [
        {"year": int(year), "category": n % 50, "score": round(float(score), 4), "title": f"A record, number {n}"}
        for n, year, score in zip(range(begin, end), years, scores, strict=True)
    ]


def batches(source, count: int) -> Iterator[dict]:
    for begin in range(0, count, BATCH):
        end = min(begin + BATCH, count)
        payloads = payloads_of(begin, end)
        columns = {name: [payload[name] for payload in payloads] for name in payloads[0]}
        yield {"id": np.arange(begin, end), "vector": vectors_of(source, begin, end)} | columns


def timed(name: str, work: Callable[[], object], note: str = ""):
    begun = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {name} | {time.perf_counter() - begun:.3g} s | {peak:.2f} | {note} |", flush=True)
    return result


def report_searches(docs, queries_QD: np.ndarray) -> None:
    print("\n| filter | records | ms a query, median | 95 % |\n|---|---:|---:|---:|")
    for name, where in FILTERS.items():
        docs.search(queries_QD[0], k=10, where=where)
        times = []
        for query_D in queries_QD:
            begun = time.perf_counter()
            docs.search(query_D, k=10, where=where)
            times.append(1e3 * (time.perf_counter() - begun))
        found = docs.count(where)
        print(f"| {name} | {found:,} | {statistics.median(times):.2f} | {np.quantile(times, 0.95):.2f} |", flush=True)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    count, minutes = int(given.get("count", 1_000_000)), float(given.get("minutes", 5))
    set_num_threads(int(given.get("threads", 2)))
    source = qinco.open_vectors(given["db"])
    parent = Path(tempfile.mkdtemp(dir=given.get("folder", "/var/tmp")))
    try:
        report(parent / "docs.qinco", source, count, minutes)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def report(folder: Path, source, count: int, minutes: float) -> None:
    words = shlex.join(without_folders(sys.argv[1:]))
    print(f"{processor_name()}, {num_threads()} threads, commit {commit()}, `{words}`\n")
    print("| call | time | peak GiB | |\n|---|---:|---:|---|")
    fields = {"year": "integer", "category": "integer", "score": "float"}
    docs = timed(f"create, {count:,} records", lambda: qinco.Collection.create(folder, metric="l2", fields=fields))
    timed("upsert_from", lambda: docs.upsert_from(batches(source, count), ids="id", vector="vector"))
    done = timed("optimize", lambda: docs.optimize(minutes=minutes), f"{minutes} minutes of training")
    assert done["trained"] and done["encoded"] == count
    docs.close()
    docs = timed("open", lambda: qinco.Collection.open(folder))
    queries_QD = vectors_of(source, count + CHANGED, count + CHANGED + QUERIES)
    timed("first search", lambda: docs.search(queries_QD[0], k=10))
    new_ND, payloads = vectors_of(source, count, count + CHANGED), payloads_of(count, count + CHANGED)
    timed(f"upsert {CHANGED:,}, one call", lambda: docs.upsert(range(count, count + CHANGED), new_ND, payloads))
    timed(f"delete {CHANGED:,} by ids", lambda: docs.delete(range(0, count, max(1, count // CHANGED))))
    timed("optimize", lambda: docs.optimize(), "of those")
    report_searches(docs, queries_QD)
    stats = docs.stats()
    print("\n`stats()`:", stats)
    assert not timed("verify", docs.verify)
    docs.close()


if __name__ == "__main__":
    main()
