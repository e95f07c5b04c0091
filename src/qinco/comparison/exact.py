"""Exact search among float vectors: what an index has to beat.

Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

from collections.abc import Callable

import numpy as np

from qinco.comparison.installed import is_installed, using_faiss
from qinco.comparison.problem import RANK, Problem, time_search
from qinco.machine import using_threads
from qinco.progress import ProgressOption, reporting
from qinco.search.exhaustive import exhaustive_search

_SMALLER = 8  # an eighth of the vectors tells what a scan takes whatever their number


def time_exact(problem: Problem, *, seconds: float = 1.0, progress: ProgressOption = None) -> dict:
    """Time exact scans of all vectors on one thread, by faiss where it is installed and by `exhaustive_search`.

    Args:
        problem: vectors and queries.
        seconds: about so long each measurement takes.
        progress: see `qinco.progress`.

    Returns:
        JSON values: of the library that is fastest one query at a time "library", "query_us" and "batch_us"
        (microseconds a query, one at a time and all in one call), "recall_10", "rows", "bytes" a vector and "threads";
        "libraries" has them all, and "line" the "fixed_us" and "us_a_vector" of the fastest: a line through its times
        at all vectors and at an eighth of them.

    Example:
        >>> exact = time_exact(Problem.of("train.fvecs", "base.fvecs", "query.fvecs"))
        >>> exact["library"], exact["query_us"]
    """
    smaller, found = problem.limited(max(2 * RANK, len(problem) // _SMALLER)), []
    timers = {"faiss": _by_faiss, "qinco": _by_qinco} if is_installed("faiss") else {"qinco": _by_qinco}
    with reporting(progress) as report, using_threads(1):
        for name, timer in timers.items():
            large, small = timer(problem, seconds), timer(smaller, seconds)
            line = _line(len(smaller), small["query_us"], len(problem), large["query_us"])
            found.append({"library": name, "rows": len(problem), "threads": 1, "bytes": 4 * problem.dim, **large,
                          "smaller": {"rows": len(smaller), **small}, "line": line})  # fmt: skip
            report("exact scan", len(found), len(timers), "library")
    best = min(found, key=lambda one: one["query_us"])
    return best | {"libraries": found}


def _line(few: int, few_us: float, many: int, many_us: float) -> dict:
    """Microseconds of a scan as a line over the number of vectors; through zero where there is no other one."""
    each = (many_us - few_us) / (many - few) if many > few else 0.0
    fixed = many_us - each * many
    if each <= 0 or fixed < 0:
        each, fixed = many_us / many, 0.0
    return {"fixed_us": fixed, "us_a_vector": each}


def _by_faiss(problem: Problem, seconds: float) -> dict:
    with using_faiss(1) as faiss:
        index = (faiss.IndexFlatL2 if problem.metric == "l2" else faiss.IndexFlatIP)(problem.dim)
        index.add(problem.vectors_ND)
        return time_search(_ids_of(index), problem, seconds=seconds).record()


def _ids_of(index) -> Callable[[np.ndarray], np.ndarray]:
    return lambda queries_QD: index.search(queries_QD, RANK)[1]


def _by_qinco(problem: Problem, seconds: float) -> dict:
    metric, vectors_ND = problem.metric, problem.vectors_ND

    def search(queries_QD: np.ndarray) -> np.ndarray:
        return exhaustive_search(queries_QD, vectors_ND, RANK, metric=metric, progress=False)[1]

    return time_search(search, problem, seconds=seconds).record()
