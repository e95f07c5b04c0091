"""HNSW graphs over float vectors: fast searches that keep the vectors and their links in memory.

Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qinco.comparison.installed import is_installed, using_faiss
from qinco.comparison.problem import RANK, TARGETS, Problem, time_search
from qinco.config import require_int, require_number
from qinco.errors import ConfigError
from qinco.machine import num_threads
from qinco.maths.metrics import recall
from qinco.progress import Progress, ProgressOption, reporting

EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
LIBRARIES = ("faiss", "usearch")
_BLOCK_ROWS = 2000  # between two looks at the clock


@dataclass(frozen=True)
class _Graph:
    """A graph of the first `count` vectors: `search(queries, effort)` gives ids."""

    search: Callable[[np.ndarray, int], np.ndarray]
    count: int
    num_bytes: float  # of a vector, its floats included
    seconds: float


def time_hnsw(
    problem: Problem, *, library: str = "faiss", targets: Sequence[float] = TARGETS, links: int = 16,
    build_effort: int = 100, limit_seconds: float = 300.0, seconds: float = 1.0, progress: ProgressOption = None,
) -> list[dict]:  # fmt: skip
    """Build a graph and time its searches on one thread, at the least effort that reaches each target.

    Efforts are chosen with the tuning queries of the problem, and times and recall are those of its other queries. The
    graph is built with `qinco.machine.num_threads` threads.

    Args:
        problem: vectors and queries.
        library: "faiss" or "usearch".
        targets: shares of R@10 that are to be reached.
        links: links of a vector on a level; twice as many on the lowest.
        build_effort: candidates while it is built (efConstruction).
        limit_seconds: for building: a graph that is not complete by then is of the vectors that are in it.
        seconds: about so long each measurement takes.
        progress: see `qinco.progress`.

    Returns:
        JSON values for each target: "library", "settings", "target", "rows", "bytes" a vector with its floats,
        "build_seconds", "build_threads", "status" ("done", "time limit" where vectors are missing, or "out of reach"),
        and "ef_search", "recall_10", "query_us" and "batch_us", which are None where the target is out of reach.

    Raises:
        ConfigError: a library that is unknown or not installed, or wrong numbers.

    Example:
        >>> for row in time_hnsw(Problem.of("train.fvecs", "base.fvecs", "query.fvecs")):
        ...     print(row["target"], row["ef_search"], row["query_us"])
    """
    builders = {"faiss": _by_faiss, "usearch": _by_usearch}
    if library not in builders:
        raise ConfigError(f"library must be one of {', '.join(LIBRARIES)}, not {library!r}")
    if library not in installed():
        raise ConfigError(f"{library} is not installed: pip install {'faiss-cpu' if library == 'faiss' else library}")
    require_int("links", links, 2, 512)
    require_int("build_effort", build_effort)
    require_number("limit_seconds", limit_seconds, above=0)
    for target in targets:
        require_number("each target", target, above=0, maximum=1)
    with reporting(progress) as report:
        graph = builders[library](problem, links, build_effort, time.monotonic() + limit_seconds, report)
        some, is_whole = problem.limited_to_first(graph.count), graph.count == len(problem)
        common = {
            "library": library, "settings": {"M": links, "efConstruction": build_effort}, "rows": graph.count,
            "bytes": graph.num_bytes, "build_seconds": graph.seconds, "build_threads": num_threads(),
        }  # fmt: skip
        common |= {"status": "done" if is_whole else "time limit", "reason": None, "recall_10": None, "query_us": None,
                   "batch_us": None}  # fmt: skip
        rows = []
        for target in targets:
            effort, best = _least_effort(graph.search, some, target)
            rows.append({**common, "target": target, "ef_search": effort})
            if effort is None:
                rows[-1] |= {"status": "out of reach", "reason": f"R@10 is {best:.3f} at most on the tuning queries"}
            else:
                rows[-1] |= time_search(lambda x_QD, ef=effort: graph.search(x_QD, ef), some, seconds=seconds).record()
            report("searching a graph", len(rows), len(targets), "target")
    return rows


def installed() -> tuple[str, ...]:
    """Those of LIBRARIES that are installed."""
    return tuple(name for name in LIBRARIES if is_installed(name))


def _least_effort(search: Callable, problem: Problem, target: float) -> tuple[int | None, float]:
    """The least of EFFORTS that reaches a target on the tuning queries, or None, and the most that is reached."""
    best = 0.0
    for effort in EFFORTS:
        found = recall(search(problem.tuning_TD, effort), problem.tuning_nearest_T, (RANK,))[RANK]
        if found >= target:
            return effort, found
        best = max(best, found)
    return None, best


def _by_faiss(problem: Problem, links: int, build_effort: int, deadline: float, report: Progress) -> _Graph:
    count, begun = 0, time.monotonic()
    with using_faiss(num_threads()) as faiss:
        metric = faiss.METRIC_L2 if problem.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexHNSWFlat(problem.dim, links, metric)
        index.hnsw.efConstruction = build_effort
        while count < len(problem) and (not count or time.monotonic() < deadline):
            index.add(problem.vectors_ND[count : count + _BLOCK_ROWS])
            count = index.ntotal
            report("building a graph", count, len(problem))
    taken, graph = time.monotonic() - begun, index.hnsw
    links_bytes = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()

    def search(queries_QD: np.ndarray, effort: int) -> np.ndarray:
        graph.efSearch = effort
        with using_faiss(1):
            return index.search(queries_QD, RANK)[1]

    return _Graph(search, count, 4 * problem.dim + links_bytes / count, taken)


def _by_usearch(problem: Problem, links: int, build_effort: int, deadline: float, report: Progress) -> _Graph:
    usearch: Any = importlib.import_module("usearch.index")
    metric = "l2sq" if problem.metric == "l2" else "ip"
    index = usearch.Index(ndim=problem.dim, metric=metric, dtype="f32", connectivity=links, expansion_add=build_effort)
    count, begun, threads = 0, time.monotonic(), num_threads()
    while count < len(problem) and (not count or time.monotonic() < deadline):
        stop = min(len(problem), count + _BLOCK_ROWS)
        index.add(np.arange(count, stop), problem.vectors_ND[count:stop], threads=threads)
        count = stop
        report("building a graph", count, len(problem))
    taken = time.monotonic() - begun

    def search(queries_QD: np.ndarray, effort: int) -> np.ndarray:
        index.expansion_search = effort
        found = index.search(queries_QD, RANK, threads=1).keys
        return np.asarray(found).astype(np.int64).reshape(len(queries_QD), -1)

    return _Graph(search, count, index.memory_usage / count, taken)
