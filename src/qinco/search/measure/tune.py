"""The fastest options of an index that reach a recall."""

from dataclasses import replace
from numbers import Real

from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.progress import ProgressOption, reporting
from qinco.search.measure.explore import Measurement, combinations, explore, pareto_front
from qinco.search.measure.timing import measure, prepared_queries
from qinco.search.options import SearchOptions

TUNED_LENGTHS = (5, 10, 20, 50, 100, 200, 500, 1000)


def tune(
    index, queries, ground_truth, target_recall: float = 0.9, k: int = 10, progress: ProgressOption = None,
    measure_options=None,
) -> SearchOptions:  # fmt: skip
    """The fastest options with recall@k of at least `target_recall`: see `Index.tune`.

    Args:
        measure_options: gives the Measurement of SearchOptions; searches the queries if None.
    """
    if not isinstance(target_recall, Real) or not 0 < target_recall <= 1:
        raise ConfigError(f"target_recall must be above 0 and at most 1, not {target_recall!r}")
    require_int("k", k, 1, 1 << 20)
    prepared_QD, nearest_Q = prepared_queries(index, queries, ground_truth)
    count = max(1, len(index))
    settings = combinations(
        {
            "nprobe": sorted({min(1 << power, index.num_lists) for power in range(12)}),
            "quantizer_efSearch": [16, 64, 256] if index.has_graph else [16],
            "nshort": sorted({min(max(length, k), count) for length in TUNED_LENGTHS}),
            "nmid_short": [1] if index.pairwise is None else [1, 4, 16],
        }
    )

    def recall_at_k(found: Measurement) -> float:
        return found.recall[k]

    with reporting(progress) as report:
        measured = explore(
            settings,
            measure_options or (lambda options: measure(index, prepared_QD, nearest_Q, options, rank=k)),
            objective=recall_at_k,
            on_measured=lambda measured, skipped: report(
                "measuring settings", len(measured) + len(skipped), len(settings), "setting"
            ),
        )
    found = list(measured.items())
    front = [found[i] for i in pareto_front([(one.microseconds, recall_at_k(one)) for _, one in found])]
    for setting, one in front:  # from the fastest on
        if recall_at_k(one) >= target_recall:
            options = setting.options
            return options if index.has_graph else replace(options, ef_search=None)
    best = max(map(recall_at_k, measured.values()))
    raise ConfigError(
        f"target_recall={target_recall} is out of reach: recall@{k} is {best:.4f} at most; give a lower target, "
        "a larger k, or longer codes"
    )
