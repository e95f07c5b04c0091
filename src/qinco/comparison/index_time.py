"""What a query of our index takes at equal recall; `qinco.comparison.rival_index` times those of others.

Settings are chosen with the tuning queries of a problem; recall and times are those of its other queries, on one
thread. Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

import time
from collections.abc import Sequence

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.comparison.problem import RANK, TARGETS, Problem, time_search
from qinco.config import require_number
from qinco.errors import ConfigError
from qinco.machine import num_threads, using_threads
from qinco.progress import ProgressOption, reporting
from qinco.search.index import Index
from qinco.search.measure.explore import combinations, explore, pareto_front
from qinco.search.measure.timing import measure

_SHORT = (0, 10, 20, 50, 100, 200, 500)  # vectors that the network decodes
_TIMED_ROWS, _LEAST_ROWS = 128, 1000  # vectors that tell how long encoding takes, and that are encoded in any case


class _TimeLimit(Exception):
    """The time for choosing settings is over."""


def check_targets(targets: Sequence[float]) -> None:
    """Raise ConfigError unless these are shares of R@10 above 0."""
    if not len(targets):
        raise ConfigError("targets is empty: give at least one share of R@10, such as 0.9")
    for target in targets:
        require_number("each target", target, above=0, maximum=1)


def time_index(
    codec: CodecLike, problem: Problem, *, targets: Sequence[float] = TARGETS, codes=None,
    num_lists: int | None = None, limit_seconds: float = 300.0, seconds: float = 1.0, progress: ProgressOption = None,
) -> list[dict]:  # fmt: skip
    """Build an index of a problem's vectors and time it at the fastest settings that reach each target.

    Args:
        codec: a Codec, or the path of one.
        problem: vectors and queries.
        targets: shares of R@10 that are to be reached.
        codes: those of the first vectors, which are not encoded again.
        num_lists: as for `Index.build`.
        limit_seconds: for choosing settings, of which the best that are measured by then are taken, and for encoding:
            of fewer vectors, from all parts, where all take longer.
        seconds: about so long each measurement takes.
        progress: see `qinco.progress`.

    Returns:
        JSON values for each target: "metric", "rows", "lists", "bytes" a vector (codes, norms, ids and lists),
        "fixed_bytes" of codec, centroids and tables, "build_seconds", "target", "status" ("done", "out of reach" or
        "time limit"), "reason", and "nprobe", "num_short", "recall_10", "query_us" and "batch_us", which are None
        where the target is not reached.

    Example:
        >>> for row in time_index("codec.safetensors", Problem.of("train.fvecs", "base.fvecs", "query.fvecs")):
        ...     print(row["target"], row["nprobe"], row["num_short"], row["query_us"])
    """
    check_targets(targets)
    require_number("limit_seconds", limit_seconds, above=0)
    codec = as_codec(codec)
    with reporting(progress) as report:
        problem, reason = (problem, None) if codes is not None else _encoded_in(codec, problem, limit_seconds)
        begun, threads = time.monotonic(), num_threads()
        index = Index.build(codec, problem.vectors_ND, num_lists, metric=problem.metric, codes=codes, progress=report)
        common = {
            "method": "qinco", "metric": problem.metric, "rows": len(problem), "lists": index.num_lists,
            "bytes": index.bytes_per_vector, "code_bytes": codec.bytes_per_vector, "fixed_bytes": _fixed_bytes(index),
            "build_seconds": time.monotonic() - begun, "build_threads": threads, "threads": 1, "reason": reason,
        }  # fmt: skip
        with using_threads(1):
            measured, is_cut = _settings(index, problem, limit_seconds, report)
            return [_at_target(index, problem, common, target, measured, is_cut, seconds) for target in targets]


def _encoded_in(codec: Codec, problem: Problem, seconds: float) -> tuple[Problem, str | None]:
    """A problem of as many vectors as can be encoded in the time, and why these are not all."""
    some_ND = problem.vectors_ND[:_TIMED_ROWS]
    codec.encode(some_ND[:1])
    begun = time.monotonic()
    codec.encode(some_ND)
    each = (time.monotonic() - begun) / len(some_ND)
    count = max(_LEAST_ROWS, int(seconds / max(each, 1e-9)))
    if count >= len(problem):
        return problem, None
    return problem.limited(count), f"encoding all {len(problem):,} vectors takes about {each * len(problem):,.0f} s"


def _settings(index: Index, problem: Problem, limit_seconds: float, report) -> tuple[list, bool]:
    """Pareto-optimal settings as (options, recall), from the fastest on, and whether the time was too short."""
    prepared_TD = index.tables.metric.prepare(problem.tuning_TD)
    deadline, seen = time.monotonic() + limit_seconds, {}
    values = {
        "nprobe": sorted({min(1 << power, index.num_lists) for power in range(12)}),
        "quantizer_efSearch": [64] if index.has_graph else [16],
        "nshort": sorted({min(length, len(index)) for length in _SHORT}),
        "nmid_short": [1],
    }
    settings = combinations(values)

    def search(options):
        if seen and time.monotonic() > deadline:
            raise _TimeLimit
        return measure(index, prepared_TD, problem.tuning_nearest_T, options, rank=RANK)

    def tell(measured, skipped) -> None:
        seen.update(measured)
        report("choosing settings", len(measured) + len(skipped), len(settings), "setting")

    try:
        explore(settings, search, tell, rank=RANK)
        is_cut = False
    except _TimeLimit:
        is_cut = True
    found = list(seen.items())
    front = pareto_front([(one.microseconds, one.recall[RANK]) for _, one in found])
    return [(found[i][0].options, found[i][1].recall[RANK]) for i in front], is_cut


def _at_target(
    index: Index, problem: Problem, common: dict, target: float, measured: list, is_cut: bool, seconds: float
) -> dict:
    row = {**common, "target": target, "status": "done", "nprobe": None, "num_short": None,
           "recall_10": None, "query_us": None, "batch_us": None}  # fmt: skip
    options = next((options for options, found in measured if found >= target), None)
    if options is None:
        best = max(found for _, found in measured)
        reason = f"R@10 is {best:.3f} at most on the tuning queries"
        return row | {"status": "time limit" if is_cut else "out of reach", "reason": reason}
    given = {"nprobe": options.nprobe, "num_short": options.num_short}

    def search(queries_QD: np.ndarray) -> np.ndarray:
        return index.search(queries_QD, RANK, **given)[1]

    row |= given | time_search(search, problem, seconds=seconds).record()
    return row | ({"reason": row["reason"] or "not all settings were tried in the time"} if is_cut else {})


def _fixed_bytes(index: Index) -> int:
    tables, codec = index.tables, index.codec
    assert codec is not None
    return len(codec.to_bytes()) + tables.centroids_VD.nbytes + tables.lookup.tables_MKD.nbytes
