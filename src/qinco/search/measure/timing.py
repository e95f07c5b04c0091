"""Recall and time of a search with some options, and the fastest options that reach a recall."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real

import numpy as np

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.maths.metrics import RANKS, recall
from qinco.progress import ProgressOption, reporting
from qinco.search.ids import as_ids
from qinco.search.measure.explore import Measurement, combinations, explore, pareto_front
from qinco.search.options import SearchOptions
from qinco.vectors.arrays import as_rows
from qinco.vectors.formats import read_integers
from qinco.vectors.rows import as_source

# Of the timed runs the one of median total is reported.
MIN_REPEATS, MAX_REPEATS, MIN_SECONDS = 3, 100, 1.0
TIMING = f"median of at least {MIN_REPEATS} runs and {MIN_SECONDS:g} s ({MAX_REPEATS} runs at most) after one warm-up"
TUNED_LENGTHS = (5, 10, 20, 50, 100, 200, 500, 1000)
_BATCH_SHORTLISTED = 1 << 21  # vectors in the shortlists of a batch: about 100 MB


def measure(
    index, prepared_QD: np.ndarray, nearest_Q: np.ndarray, options: SearchOptions, batch_size: int = 4096, *,
    rank: int | None = None, precision: str = "auto", decoder: str = "neural",
) -> Measurement:  # fmt: skip
    """Recall and time of queries, float32 as the index's metric prepares them, with one setting.

    Args:
        batch_size: queries searched at a time at most; fewer where shortlists are long.
        rank: measure recall@rank among so many results. Without it, recall at 1, 10 and 100 among as many results as
            the network decodes, at most 100.
    """
    k = min(options.num_short or max(RANKS), max(RANKS)) if rank is None else rank
    ranks = RANKS if rank is None else (rank,)
    batch_size = min(batch_size, max(1, _BATCH_SHORTLISTED // max(k, options.num_short, options.num_mid or 0)))
    pipeline = index.pipeline(options, k, precision=precision, decoder=decoder)
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def run() -> dict[str, float]:
        found.clear()
        pipeline.seconds.update(dict.fromkeys(pipeline.seconds, 0.0))
        begun = time.perf_counter()
        for start in range(0, len(prepared_QD), batch_size):
            best, first = pipeline.run(prepared_QD[start : start + batch_size], k)
            found.append((best.ids, first.ids))
        return {**pipeline.seconds, "total": time.perf_counter() - begun}

    seconds = measure_stages(run)
    final, first = (recall(np.concatenate(ids), nearest_Q, ranks) for ids in zip(*found, strict=True))
    return Measurement(final, first, seconds, len(prepared_QD))


def measure_stages(run: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Seconds by stage, as TIMING says, of `run`, which does all the work once and returns its seconds by stage."""
    run()
    runs = [run() for _ in range(MIN_REPEATS)]
    while sum(stages["total"] for stages in runs) < MIN_SECONDS and len(runs) < MAX_REPEATS:
        runs.append(run())
    return dict(sorted(runs, key=lambda stages: stages["total"])[(len(runs) - 1) // 2])


def open_queries(queries, ground_truth, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries, float32 (Q, D), and the ids of their nearest neighbours, int64 (Q,), from what `sweep` takes."""
    source = as_source(queries, "queries")
    if source.dim != dim:
        raise DataError(f"{source.name} have {source.dim} dimensions, the vectors to search {dim}")
    truth = ground_truth.cpu() if hasattr(ground_truth, "cpu") else ground_truth
    truth = read_integers(truth) if isinstance(truth, str | os.PathLike) else as_rows(truth, "the ground truth")[:]
    nearest_Q = as_ids(truth[:, 0] if truth.ndim == 2 and truth.shape[1] else truth, None)
    if len(nearest_Q) != len(source):
        raise DataError(f"the ground truth has {len(nearest_Q)} rows, and there are {len(source)} queries")
    if not len(source):
        raise DataError("there are no queries to measure with")
    return next(block for _, block in source.blocks(len(source))), nearest_Q


def check_truth(missing_ids: np.ndarray) -> None:
    """Raise DataError if the ground truth names vectors that the database has not."""
    if len(missing_ids):
        raise DataError(f"the ground truth names vector {missing_ids[0]}, which the database has not: one of them is "
                        "of other vectors, or the database leaves vectors out")  # fmt: skip


def tune(
    index, queries, ground_truth, target_recall: float = 0.9, k: int = 10, progress: ProgressOption = None,
    measure_options=None,
) -> SearchOptions:  # fmt: skip
    """See `Index.tune`. `measure_options` gives the Measurement of SearchOptions; it searches the queries if None."""
    if not isinstance(target_recall, Real) or not 0 < target_recall <= 1:
        raise ConfigError(f"target_recall must be above 0 and at most 1, not {target_recall!r}")
    require_int("k", k, 1, 1 << 20)
    queries_QD, nearest_Q = open_queries(queries, ground_truth, index.dim)
    prepared_QD, count = index.tables.metric.prepare(queries_QD), max(1, len(index))
    values = {
        "nprobe": [min(1 << power, index.num_lists) for power in range(12)],
        "quantizer_efSearch": [16, 64, 256] if index.has_graph else [16],
        "nshort": [min(max(length, k), count) for length in TUNED_LENGTHS],
        "nmid_short": [1] if index.pairwise is None else [1, 4, 16],
    }
    settings = combinations(values)
    search = measure_options or (lambda options: measure(index, prepared_QD, nearest_Q, options, rank=k))
    with reporting(progress) as report:

        def tell(measured, skipped) -> None:
            report("measuring settings", len(measured) + len(skipped), len(settings), "setting")

        found = list(explore(settings, search, tell, rank=k).items())
    for i in pareto_front([(one.microseconds, one.recall[k]) for _, one in found]):  # from the fastest on
        setting, best = found[i][0], found[i][1].recall[k]
        if best >= target_recall:
            return setting.options if index.has_graph else replace(setting.options, ef_search=None)
    raise ConfigError(f"target_recall={target_recall} is out of reach: recall@{k} is {best:.4f} at most; give a lower "
                      "target, a larger k, or longer codes")  # fmt: skip
