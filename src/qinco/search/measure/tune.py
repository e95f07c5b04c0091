"""The fastest options of an index that reach a recall."""

from dataclasses import replace
from numbers import Real

from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.progress import ProgressOption, reporting
from qinco.search.measure.explore import Measurement, combinations, explore, pareto_front
from qinco.search.measure.timing import measure, open_queries
from qinco.search.options import SearchOptions

TUNED_LENGTHS = (5, 10, 20, 50, 100, 200, 500, 1000)


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
    settings = combinations(
        {
            "nprobe": [min(1 << power, index.num_lists) for power in range(12)],
            "quantizer_efSearch": [16, 64, 256] if index.has_graph else [16],
            "nshort": [min(max(length, k), count) for length in TUNED_LENGTHS],
            "nmid_short": [1] if index.pairwise is None else [1, 4, 16],
        }
    )

    def measured_by_search(options: SearchOptions) -> Measurement:
        return measure(index, prepared_QD, nearest_Q, options, rank=k)

    with reporting(progress) as report:

        def tell(measured, skipped) -> None:
            report("measuring settings", len(measured) + len(skipped), len(settings), "setting")

        measured = explore(
            settings, measure_options or measured_by_search, objective=lambda found: found.recall[k], on_measured=tell
        )
    found = list(measured.items())
    for i in pareto_front([(one.microseconds, one.recall[k]) for _, one in found]):  # from the fastest on
        setting, best = found[i][0], found[i][1].recall[k]
        if best >= target_recall:
            return setting.options if index.has_graph else replace(setting.options, ef_search=None)
    raise ConfigError(
        f"target_recall={target_recall} is out of reach: recall@{k} is {best:.4f} at most; give a lower target, "
        "a larger k, or longer codes"
    )
