"""What a query of faiss's inverted lists of the rivals' codes takes at equal recall, on one thread.

The number of lists is that of ours, and of the lists that are scanned the least that reaches a target on the tuning
queries of a problem. Shape suffixes: Q queries, D dimension.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qinco.comparison.index_time import check_targets
from qinco.comparison.installed import TimeOver, ended_after, is_installed, using_faiss
from qinco.comparison.problem import RANK, TARGETS, Problem, time_search
from qinco.config import require_choice, require_int, require_number
from qinco.machine import num_threads
from qinco.maths.metrics import recall
from qinco.progress import Progress, ProgressOption, reporting
from qinco.search.build import MIN_ROWS_EACH, choose_num_lists, prepared
from qinco.search.metric import Metric
from qinco.vectors.rows import VectorSource, as_source, check_dim, sample

FAMILIES = ("PQ", "OPQ", "RQ", "RaBitQ", "SQ", "PCA+PQ", "PCA+OPQ", "PCA+RaBitQ")
_RABITQ_SCALARS, _ID_BYTES = 8, 8
_ITERATIONS, _RQ_ROWS, _ROWS_OF_A_LIST = 10, 20_000, 64  # of k-means; rows that faiss is trained on
_BLOCK_ROWS, _LAST_CHARACTERS = 10_000, 200  # added at a time; of faiss's message


@dataclass(frozen=True)
class Rival:
    """An index of faiss: its factory's name, bytes of a code with its scalars, and rows to train it on at most."""

    factory: str
    code_bytes: float
    rows: int


def rival_of(family: str, num_bytes: int, dim: int, num_lists: int) -> Rival | None:
    """faiss's index of inverted lists for a family of codes of so many bytes; None where there is none.

    Example:
        >>> rival_of("PQ", 16, 128, 1024).factory
        'IVF1024,PQ16x8'
    """
    rows, base = max(num_lists * _ROWS_OF_A_LIST, 1 << 16), family.removeprefix("PCA+")
    lists, is_cut, kept = f"IVF{num_lists}", base != family, dim
    if is_cut:
        kept = 8 * (num_bytes - _RABITQ_SCALARS) if base == "RaBitQ" else dim // 2
    if not 0 < kept <= dim:
        return None
    first = f"PCAR{kept}," if is_cut else f"RR{dim}," if base == "RaBitQ" else ""
    if base in ("PQ", "OPQ") and kept % num_bytes == 0:
        rotation = f"OPQ{num_bytes}," if base == "OPQ" else ""
        return Rival(f"{first}{rotation}{lists},PQ{num_bytes}x8", num_bytes, rows)
    if base == "RQ" and num_bytes > 1:  # one byte of it is the norm
        return Rival(f"{lists},RQ{num_bytes - 1}x8_Nqint8", num_bytes, min(rows, _RQ_ROWS))
    if base == "RaBitQ" and num_bytes == -(-kept // 8) + _RABITQ_SCALARS:
        return Rival(f"{first}{lists},RaBitQ", num_bytes, rows)
    bits = {dim: 8, dim / 2: 4}.get(num_bytes) if base == "SQ" else None
    return None if bits is None else Rival(f"{lists},SQ{bits}", num_bytes, rows)


def time_rival(
    family: str, num_bytes: int, train, problem: Problem, *, targets: Sequence[float] = TARGETS,
    num_lists: int | None = None, limit_seconds: float = 300.0, seconds: float = 1.0, progress: ProgressOption = None,
) -> list[dict]:  # fmt: skip
    """Build faiss's inverted lists of a rival's codes and time them at the fewest lists that reach each target.

    Args:
        family: one of FAMILIES.
        num_bytes: of a code, its scalars included.
        train: (n, D) training vectors: array, path or VectorSource.
        problem: vectors and queries.
        targets: shares of R@10 that are to be reached.
        num_lists: as for `Index.build`, but never more than one for 39 training vectors.
        limit_seconds: for training and adding vectors; nothing is timed if these are not in it by then.
        seconds: about so long each measurement takes.
        progress: see `qinco.progress`.

    Returns:
        As of `time_index`, with "num_short" None and faiss's name of the index as "method"; an empty list where faiss
        is not installed, or has no such index of codes of this length.

    Raises:
        ConfigError: another family, or wrong numbers.
        DataError: training vectors of another dimension.

    Example:
        >>> rows = time_rival("PQ", 16, "train.fvecs", Problem.of("train.fvecs", "base.fvecs", "query.fvecs"))
    """
    check_targets(targets)
    require_choice("family", family, FAMILIES)
    require_int("num_bytes", num_bytes)
    require_number("limit_seconds", limit_seconds, above=0)
    source = prepared(as_source(train, "training vectors"), Metric(problem.metric))
    check_dim(source, problem.dim, "the database")
    lists = max(1, min(choose_num_lists(num_lists, len(problem)), len(source) // MIN_ROWS_EACH))
    rival = rival_of(family, num_bytes, problem.dim, lists)
    if rival is None or not is_installed("faiss"):
        return []
    common = {
        "method": rival.factory, "metric": problem.metric, "rows": len(problem), "lists": lists,
        "bytes": rival.code_bytes + _ID_BYTES, "code_bytes": rival.code_bytes, "fixed_bytes": 4 * lists * problem.dim,
        "trained_on": min(rival.rows, len(source)), "threads": 1, "num_short": None,
    }  # fmt: skip
    common |= dict.fromkeys(("nprobe", "recall_10", "query_us", "batch_us"))
    begun = time.monotonic()
    with reporting(progress) as report, using_faiss(num_threads()) as faiss:
        try:
            with ended_after(limit_seconds):
                index = _built(faiss, rival, source, problem, report)
        except (TimeOver, RuntimeError) as error:
            is_late = isinstance(error, TimeOver)
            reason = f"not built in {limit_seconds:g} s" if is_late else str(error).strip()[-_LAST_CHARACTERS:]
            common |= {"status": "time limit" if is_late else "failed", "reason": reason, "build_seconds": None}
            return [{**common, "target": target} for target in targets]
        common["build_seconds"] = time.monotonic() - begun
        with using_faiss(1):
            return [{**common, "target": target, **_at_target(index, faiss, problem, target, seconds)}
                    for target in targets]  # fmt: skip


def _built(faiss, rival: Rival, source: VectorSource, problem: Problem, report: Progress) -> Any:
    """The index with all vectors."""
    kind = faiss.METRIC_L2 if problem.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(problem.dim, rival.factory, kind)
    faiss.extract_index_ivf(index).cp.niter = _ITERATIONS
    report(f"training {rival.factory}", 0, 1, "index")
    index.train(sample(source, rival.rows, 0))
    for first in range(0, len(problem), _BLOCK_ROWS):
        index.add(problem.vectors_ND[first : first + _BLOCK_ROWS])
        report(f"filling {rival.factory}", index.ntotal, len(problem))
    return index


def _at_target(index, faiss, problem: Problem, target: float, seconds: float) -> dict:
    lists, best = faiss.extract_index_ivf(index), 0.0
    powers = [1 << power for power in range(lists.nlist.bit_length())]
    for nprobe in sorted({min(lists.nlist, n) for power in powers for n in (power, power * 3 // 2)}):
        lists.nprobe = nprobe
        found = recall(_ids(index, problem.tuning_TD), problem.tuning_nearest_T, (RANK,))[RANK]
        best = max(best, found)
        if found >= target:
            timed = time_search(lambda queries_QD: _ids(index, queries_QD), problem, seconds=seconds)
            return {"status": "done", "reason": None, "nprobe": nprobe, **timed.record()}
    return {"status": "out of reach", "reason": f"R@10 is {best:.3f} at most on the tuning queries"}


def _ids(index, queries_QD: np.ndarray) -> np.ndarray:
    return index.search(queries_QD, RANK)[1]
