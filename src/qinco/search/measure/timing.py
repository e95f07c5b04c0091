"""Recall and time of a search with some options, and the fastest options that reach a recall."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from numbers import Real

import numpy as np

from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.maths.metrics import RANKS, recall
from qinco.progress import ProgressOption, reporting
from qinco.search.measure.explore import Measurement, combinations, explore, pareto_front
from qinco.search.measure.truth import open_queries_of
from qinco.search.metric import choose_metric
from qinco.search.options import SearchOptions
from qinco.search.pipeline import Pipeline

log = logging.getLogger(__name__)
# Of the timed runs the one of median total is reported.
MIN_REPEATS, MAX_REPEATS, MIN_SECONDS = 3, 100, 1.0
TIMING = f"median of at least {MIN_REPEATS} runs and {MIN_SECONDS:g} s ({MAX_REPEATS} runs at most) after one warm-up"
TUNED_LENGTHS = (5, 10, 20, 50, 100, 200, 500, 1000)
_RELIABLE_QUERIES = 100
_BATCH_SHORTLISTED = 1 << 21  # vectors in the shortlists of a batch: about 100 MB


def measure(
    index, prepared_QD: np.ndarray, nearest_Q: np.ndarray, options: SearchOptions, batch_size: int = 4096, *,
    rank: int | None = None, precision: str = "auto", decoder: str = "neural", ranking: str = "calibrated",
) -> Measurement:  # fmt: skip
    """Recall and time of queries, float32 as the index's metric prepares them, with one setting.

    Args:
        batch_size: queries searched at a time at most; fewer where shortlists are long.
        rank: measure recall@rank among so many results. Without it, recall at 1, 10 and 100 among as many results as
            the network decodes, at most 100.
    """
    k = _num_results(options) if rank is None else rank
    ranks = RANKS if rank is None else (rank,)
    stages = {"precision": precision, "decoder": decoder, "ranking": ranking}
    pipeline = index.pipeline(options, k, fills=rank is not None, **stages)
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def run() -> dict[str, float]:
        found.clear()
        pipeline.seconds.update(dict.fromkeys(pipeline.seconds, 0.0))
        begun = time.perf_counter()
        found.extend(_results(pipeline, prepared_QD, options, k, batch_size))
        return {**pipeline.seconds, "total": time.perf_counter() - begun}

    seconds = measure_stages(run)
    final, first = (recall(np.concatenate(ids), nearest_Q, ranks) for ids in zip(*found, strict=True))
    return Measurement(final, first, seconds, len(prepared_QD))


def measure_recall(index, prepared_QD: np.ndarray, nearest_Q: np.ndarray, options: SearchOptions, **stages) -> dict:
    """Recall at 1, 10 and 100 as of `measure`, without its times."""
    k = _num_results(options)
    pipeline = index.pipeline(options, k, fills=False, **stages)
    found = [ids for ids, _ in _results(pipeline, prepared_QD, options, k, len(prepared_QD))]
    return recall(np.concatenate(found), nearest_Q, RANKS)


def _num_results(options: SearchOptions) -> int:
    return min(options.num_short or max(RANKS), max(RANKS))


def _results(
    pipeline: Pipeline, prepared_QD: np.ndarray, options: SearchOptions, k: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of the results and of the first shortlist, batch by batch."""
    batch_size = max(1, min(batch_size, _BATCH_SHORTLISTED // max(k, options.num_short, options.num_mid or 0)))
    for start in range(0, len(prepared_QD), batch_size):
        best, first = pipeline.run(prepared_QD[start : start + batch_size], k)
        yield best.ids, first.ids


def measure_stages(run: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Seconds by stage, as TIMING says, of `run`, which does all the work once and returns its seconds by stage."""
    run()
    runs = [run() for _ in range(MIN_REPEATS)]
    while sum(stages["total"] for stages in runs) < MIN_SECONDS and len(runs) < MAX_REPEATS:
        runs.append(run())
    return dict(sorted(runs, key=lambda stages: stages["total"])[(len(runs) - 1) // 2])


def tune(
    index, queries, ground_truth, target_recall: float = 0.9, k: int = 10, progress: ProgressOption = None,
    measure_options=None, metric: str | None = None,
) -> SearchOptions:  # fmt: skip
    """See `Index.tune`. `measure_options` gives the Measurement of SearchOptions; it searches the queries if None."""
    if not isinstance(target_recall, Real) or not 0 < target_recall <= 1:
        raise ConfigError(f"target_recall must be above 0 and at most 1, not {target_recall!r}")
    require_int("k", k, 1, 1 << 20)
    choose_metric(metric, queries, ground_truth, own=index.metric)
    prepared_QD, nearest_Q = open_queries_of(index, queries, ground_truth)
    count = len(index)
    if len(nearest_Q) < _RELIABLE_QUERIES:
        error = 1 / len(nearest_Q) ** 0.5
        log.warning("%d queries tell recall to within about %.2f: a thousand are better", len(nearest_Q), error)
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
