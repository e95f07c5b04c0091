"""Recall and time of a search with some settings, and the settings that reach a recall.

Shape suffixes: Q queries, D dimension, R results.
"""

import time
from dataclasses import replace
from numbers import Real

import numpy as np
import torch

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.maths.metrics import RANKS, recall
from qinco.search.build import Progress, silent
from qinco.search.ids import as_ids
from qinco.search.index import Index
from qinco.search.measure.sweep import Conditions, Measurement, combinations, measure_stages, sweep
from qinco.search.options import SearchOptions
from qinco.search.pipeline import Stages
from qinco.vectors.rows import as_source

_TUNED_LENGTHS = (5, 10, 20, 50, 100, 200, 500, 1000)
_BATCH_ROWS = 4096
_BATCH_PLACES = 1 << 21  # of the shortlists of a batch: about 100 MB


def measure(stages: Stages, queries_QD: np.ndarray, nearest_Q, options: SearchOptions, batch_size: int) -> Measurement:
    """Recall and time of prepared queries with one setting.

    batch_size: queries at a time, at most: fewer where shortlists are long

    As many results are counted as the network decodes, 100 at most: recall at a higher rank is that of all of them.
    """
    k = min(options.num_short or max(RANKS), max(RANKS))
    batch_size = min(batch_size, max(1, _BATCH_PLACES // max(k, options.num_short, options.num_mid or 0)))
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def run() -> dict[str, float]:
        found.clear()
        stages.seconds.update(dict.fromkeys(stages.seconds, 0.0))
        begun = time.perf_counter()
        for start in range(0, len(queries_QD), batch_size):
            best, first = stages.run(queries_QD[start : start + batch_size], k, options)
            found.append((best.ids, first.ids))
        return {**stages.seconds, "total": time.perf_counter() - begun}

    seconds = measure_stages(run)
    final_QR, first_QR = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Measurement(recall(final_QR, nearest_Q), recall(first_QR, nearest_Q), seconds, len(queries_QD))


def tune(
    index: Index,
    queries,
    ground_truth,
    target_recall: float = 0.9,
    k: int = 10,
    on_progress: Progress = silent,
) -> SearchOptions:
    """The fastest options with which a query's true nearest neighbour is among the first k results often enough.

    queries:       (Q, D), as `search` takes them; a thousand give a sound figure
    ground_truth:  (Q,) or (Q, any): ids of the true neighbours, the nearest first
    target_recall: the share of queries, above 0 and at most 1
    on_progress:   hears (stage, done, total): how many settings are measured or need not be

    The index keeps them as its `options`, which `save` saves; they are returned, too. Raises ConfigError where no
    options reach the target: it says how far they come, and leaves the index as it was.
    """
    if not isinstance(target_recall, Real) or not 0 < target_recall <= 1:
        raise ConfigError(f"target_recall must be above 0 and at most 1, not {target_recall!r}")
    require_int("k", k, 1, 1 << 20)
    source = as_source(queries, "queries")
    truth = np.asarray(ground_truth.cpu() if hasattr(ground_truth, "cpu") else ground_truth)
    nearest_Q = as_ids(truth[:, 0] if truth.ndim == 2 and truth.shape[1] else truth, len(source), unique=False)
    if source.dim != index.dim:
        raise DataError(f"{source.name} have {source.dim} dimensions, the index holds vectors of {index.dim}")
    if not len(source):
        raise DataError("there are no queries to tune the index with")
    prepared_QD = index.tables.metric.prepare(next(block for _, block in source.blocks(len(source))))
    stages = index.stages()
    count = max(1, len(index))
    values = {
        "nprobe": sorted({min(1 << power, index.num_lists) for power in range(12)}),
        "quantizer_efSearch": [16] if index.tables.coarse is None else [16, 64, 256],
        "nshort": sorted({min(max(length, k), count) for length in _TUNED_LENGTHS}),
        "nmid_short": [1] if index.pairwise is None else [1, 4, 16],
    }

    def judged(options: SearchOptions) -> Measurement:
        found = measure(stages, prepared_QD, nearest_Q, options, _BATCH_ROWS)
        # The sweep's front is that of recall@1: here the share at rank k takes its place.
        best = np.concatenate(
            [
                stages.run(prepared_QD[start : start + _BATCH_ROWS], k, options)[0].ids
                for start in range(0, len(prepared_QD), _BATCH_ROWS)
            ]
        )
        return Measurement({1: recall(best, nearest_Q, (k,))[k]}, {}, found.seconds_by_stage, found.num_queries)

    total = len(combinations(values))
    result = sweep(
        values,
        judged,
        Conditions({}, torch.get_num_threads(), ""),
        on_progress=lambda done: on_progress("measuring settings", done, total),
    )
    front = [(setting, result.measured[setting].recall[1]) for setting in result.front]
    reaching = [setting for setting, share in front if share >= target_recall]
    if not reaching:
        raise ConfigError(
            f"target_recall={target_recall} is out of reach: recall@{k} comes to "
            f"{max(share for _, share in front):.4f}; give a lower one, a larger k, or longer codes"
        )
    options = reaching[0].options
    index.options = options if index.tables.coarse is not None else replace(options, ef_search=None)
    return index.options
