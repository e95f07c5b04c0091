"""Recall and time of a search with some options.

Shape suffixes: Q queries, D dimension.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np

from qinco.errors import DataError
from qinco.maths.metrics import RANKS, recall
from qinco.search.ids import as_ids
from qinco.search.measure.explore import Measurement
from qinco.search.options import SearchOptions
from qinco.vectors.rows import as_source

# Of the timed runs the one of median total is reported.
MIN_REPEATS, MAX_REPEATS, MIN_SECONDS = 3, 100, 1.0
TIMING = (
    f"the median of at least {MIN_REPEATS} runs and {MIN_SECONDS:g} s ({MAX_REPEATS} runs at most) after one warm-up"
)
_BATCH_SHORTLISTED = 1 << 21  # vectors in the shortlists of a batch: about 100 MB


def measure(
    index,
    prepared_QD: np.ndarray,
    nearest_Q: np.ndarray,
    options: SearchOptions,
    batch_size: int = 4096,
    *,
    rank: int | None = None,
    precision: str = "auto",
    decoder: str = "neural",
    min_seconds: float | None = None,
) -> Measurement:
    """Recall and time of prepared queries with one setting.

    Args:
        index: Index or FaissSearcher.
        prepared_QD: float32, as the index's metric prepares queries.
        nearest_Q: ids of the true nearest neighbours, int64.
        options: of the search.
        batch_size: queries searched at a time at most; fewer where shortlists are long.
        rank: measure recall@rank among so many results. Without it, recall at 1, 10 and 100 among as many results as
            the network decodes, at most 100.
        precision: of the network.
        decoder: last stage of the pipeline: "neural", "pairwise" or "lookup".
        min_seconds: repeat for so long at least; MIN_SECONDS if None.
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

    seconds = measure_stages(run, min_seconds)
    final_QR, first_QR = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Measurement(
        recall(final_QR, nearest_Q, ranks), recall(first_QR, nearest_Q, ranks), seconds, len(prepared_QD)
    )


def measure_stages(run: Callable[[], Mapping[str, float]], min_seconds: float | None = None) -> dict[str, float]:
    """Seconds by stage, as TIMING says.

    Args:
        run: does all the work once and returns its seconds by stage, "total" among them.
        min_seconds: MIN_SECONDS if None.
    """
    least = MIN_SECONDS if min_seconds is None else min_seconds
    run()
    runs = [run() for _ in range(MIN_REPEATS)]
    while sum(stages["total"] for stages in runs) < least and len(runs) < MAX_REPEATS:
        runs.append(run())
    return dict(sorted(runs, key=lambda stages: stages["total"])[(len(runs) - 1) // 2])


def prepared_queries(index, queries, ground_truth) -> tuple[np.ndarray, np.ndarray]:
    """Queries as the index compares them, float32 (Q, D), and their nearest neighbours' ids, int64 (Q,).

    Args:
        queries: (Q, D), as `Index.search` takes them.
        ground_truth: (Q,) or (Q, any): ids of the true neighbours, the nearest first.

    Raises:
        DataError: other dimensions, other numbers of queries, or no queries.
    """
    source = as_source(queries, "queries")
    truth = np.asarray(ground_truth.cpu() if hasattr(ground_truth, "cpu") else ground_truth)
    nearest_Q = as_ids(truth[:, 0] if truth.ndim == 2 and truth.shape[1] else truth, len(source), unique=False)
    if source.dim != index.dim:
        raise DataError(f"{source.name} have {source.dim} dimensions, the index holds vectors of {index.dim}")
    if not len(source):
        raise DataError("there are no queries to measure with")
    metric = getattr(index, "tables", index).metric
    return metric.prepare(next(block for _, block in source.blocks(len(source)))), nearest_Q
