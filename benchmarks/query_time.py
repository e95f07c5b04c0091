"""Measure the processor time of a query on one thread, also beside another checkout's: a Markdown report on stdout.

    [QINCO_NATIVE_LEVEL=avx2] python benchmarks/query_time.py model=PATH db=PATH queries=PATH lists=N nprobe=N nshort=N
        [metric=l2] [rounds=2] [before=CHECKOUT [before_model=PATH]]

All queries in a call (2,000 of them), one query a call, and an exhaustive search of the index. Each side encodes and
indexes the database once, in a process of its own, and is then measured in turns with the other, so that both see the
same machine; of the rounds the least figure counts. `before` is the folder of another checkout, also an older one, with
its kernels built (`python setup.py build_ext --inplace`).
"""

import inspect
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

K = 10
BATCH, BATCH_TURNS = 2000, 4
SINGLE, SINGLE_TURNS = 150, 15
EXHAUSTIVE_TURNS = 3
ROOT = Path(__file__).parents[1]


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    sides = {"ours": (ROOT, given["model"])}
    if "before" in given:
        sides = {"before": (Path(given["before"]), given.get("before_model", given["model"])), **sides}
    started = {name: start(folder, given | {"model": model}) for name, (folder, model) in sides.items()}
    about = {name: json.loads(process.stdout.readline() or exit_with(process)) for name, process in started.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in started}
    for _ in range(int(given.get("rounds", 2))):
        for name, process in started.items():
            process.stdin.write("\n")
            process.stdin.flush()
            for row, value in json.loads(process.stdout.readline() or exit_with(process)).items():
                found[name][row] = min(value, found[name].get(row, np.inf))
    for process in started.values():
        process.communicate()
    report(given, about, found)


def start(folder: Path, given: dict[str, str]) -> subprocess.Popen:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "QINCO_NUM_THREADS"), "1")
    environment = os.environ | threads | {"PYTHONPATH": str(folder.resolve() / "src")}
    words = [sys.executable, __file__, "measured", json.dumps(given)]
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def exit_with(process: subprocess.Popen) -> str:
    sys.exit(process.wait() or 1)  # it has said why


def report(given: dict[str, str], about: dict, found: dict[str, dict[str, float]]) -> None:
    from report import commit, without_folders

    from qinco.machine import processor_name

    machine = f"{processor_name()}, level {about['ours']['level']}, one thread"
    print(f"{machine}, load {os.getloadavg()[0]:.2f} at the end")
    print(f"Commit {commit()}: `python benchmarks/query_time.py {shlex.join(without_folders(sys.argv[1:]))}`")
    sizes = about["ours"]
    print(f"\n{sizes['vectors']:,} vectors, {sizes['queries']:,} queries, {given['lists']} lists, "
          f"nprobe {given['nprobe']}, k = {K}; µs of processor time a query\n")  # fmt: skip
    print("| search | " + " | ".join(found) + " |" + (" ratio |" if len(found) > 1 else ""))
    print("|---|" + "---:|" * (len(found) + (len(found) > 1)))
    for row, ours in found["ours"].items():
        before = found.get("before", {}).get(row)
        cells = [*([f"{before:,.1f}" if before else "not measured"] if "before" in found else []), f"{ours:,.1f}"]
        ratio = [f"{ours / before:.2f}" if before else ""] if "before" in found else []
        print("| " + " | ".join([row, *cells, *ratio]) + " |")


def measured(given: dict[str, str]) -> None:
    """Index the database and tell so; then, for each line that comes, measure once and tell the figures.

    Another checkout runs this, too: only names that all have are used.
    """
    import qinco
    from qinco.native.library import level

    index, queries_QD = build(qinco, given)
    print(json.dumps({"level": str(level()), "vectors": len(index), "queries": len(queries_QD)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(figures(qinco, index, queries_QD, int(given["nprobe"]), int(given["nshort"]))), flush=True)


def build(qinco, given: dict[str, str]) -> tuple:
    codec = qinco.Codec.load(given["model"])
    base, queries = qinco.open_vectors(given["db"]), qinco.open_vectors(given["queries"])
    index = qinco.Index.build(codec, base, int(given["lists"]), metric=given.get("metric", "l2"))
    return index, queries[: min(len(queries), BATCH)]


def figures(qinco, index, queries_QD: np.ndarray, nprobe: int, num_short: int) -> dict[str, float]:
    """Microseconds of processor time a query, of each way to search."""
    found = {}
    for length in (num_short, 0):
        batch = least(lambda: index.search(queries_QD, K, nprobe, length), BATCH_TURNS)  # noqa: B023
        found[f"nshort {length}, all queries in a call"] = batch / len(queries_QD)
        each = [
            least(lambda: index.search(query_D, K, nprobe, length), SINGLE_TURNS)  # noqa: B023
            for query_D in queries_QD[:SINGLE]
        ]
        found[f"nshort {length}, one query a call"] = float(np.mean(each))
    exhaustive = getattr(qinco, "exhaustive_search", None)
    if exhaustive and "ranking" in inspect.signature(exhaustive).parameters:
        for ranking in ("calibrated", "decoded"):
            seconds = least(lambda: exhaustive(queries_QD, index, K, ranking=ranking), EXHAUSTIVE_TURNS)  # noqa: B023
            found[f"exhaustive, {ranking}"] = seconds / len(queries_QD)
    return found


def least(search: Callable[[], object], turns: int) -> float:
    """Microseconds of processor time of the fastest turn, after one that warms up."""
    times = []
    for _ in range(turns + 1):
        begun = time.process_time()
        search()
        times.append(time.process_time() - begun)
    return min(times[1:]) * 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["measured"]:
        measured(json.loads(sys.argv[2]))
    else:
        main()
