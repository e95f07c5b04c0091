import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco.errors import ConfigError, DataError
from qinco.search.measure.explore import Measurement, Setting, combinations, pareto_front
from qinco.search.measure.sweep import SweepResult, record_sweep
from qinco.search.measure.timing import MAX_REPEATS, MIN_REPEATS, measure_stages
from qinco.search.options import SearchOptions

FINGERPRINT = {"index": "aa", "model": "bb", "queries": "cc"}
CONDITIONS = {"fingerprint": FINGERPRINT, "threads": 2, "machine": "a processor"}
VALUES = {
    "nprobe": [1, 4, 16, 64], "quantizer_efSearch": [4, 16, 64], "nshort": [4, 10, 50, 200], "nmid_short": [0, 2, 8],
}  # fmt: skip
SMALL = {"nprobe": [4, 16], "quantizer_efSearch": [4], "nshort": [4, 10], "nmid_short": [0]}
NUM_QUERIES = 500


def make_measurement(recall: float, seconds: float) -> Measurement:
    recalls = {1: recall, 10: recall, 100: recall}
    stages = {"search": seconds / 2, "decode": seconds / 4, "total": seconds}
    return Measurement(recalls, recalls | {1: recall / 2}, stages, NUM_QUERIES)


def measure(options: SearchOptions) -> Measurement:
    """A search whose recall and time never fall where a value rises, and saturate."""
    found = 1 - np.exp(-(options.nprobe**0.6) / 3)
    found *= 1 - 0.3 * np.exp(-options.ef_search / 8)
    found *= 1 - np.exp(-(options.num_short**0.5) / 3)
    found *= 1 - 0.2 * np.exp(-max(options.num_mid, options.num_short) / 60)
    microseconds = 20 + options.nprobe + options.ef_search / 4 + 4 * options.num_short + options.num_mid / 3
    return make_measurement(round(found * NUM_QUERIES) / NUM_QUERIES, microseconds * NUM_QUERIES / 1e6)


class Recorder:
    """Measures as `measure` does and remembers what it was asked for; interrupted after so many."""

    def __init__(self, function=measure, interrupt_after=None):
        self.function, self.interrupt_after, self.asked = function, interrupt_after, []

    def __call__(self, options):
        if len(self.asked) == self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append(options)
        return self.function(options)


def full_front(values, function=measure) -> set[tuple[float, float]]:
    measured = {setting: function(setting.options) for setting in combinations(values)}
    return front_points(SweepResult(list(measured), measured, [], CONDITIONS))


def front_points(result: SweepResult) -> set[tuple[float, float]]:
    return {(result.measured[s].microseconds, result.measured[s].recall[1]) for s in result.front}


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ((16, 64, 10, 4), (16, 10, 40, 64)), ((16, 64, 10, 0), (16, 10, 0, 64)), ((16, 64, 0, 4), (16, 0, 0, 64)),
        ((16, 64, 10, 1), (16, 10, 0, 64)),  # a pairwise decoder that keeps all of its shortlist does nothing
        (np.int64([16, 64, 0, 4]), (16, 0, 0, 64)),
    ],
)  # fmt: skip
def test_options_are_what_the_command_lines_values_mean(values, options):
    found = SearchOptions.from_multiples(*values)
    assert found == SearchOptions(*options) and all(type(value) is int for value in vars(found).values())


@pytest.mark.parametrize(
    "fields",
    [{"nprobe": 0}, {"nprobe": 4.0}, {"num_short": -1}, {"num_short": None}, {"num_mid": True}, {"num_mid": 99},
     {"ef_search": 0}],
)  # fmt: skip
def test_wrong_options_are_refused(fields):
    with pytest.raises(ConfigError, match=rf"{next(iter(fields))}.*{next(iter(fields.values()))}"):
        SearchOptions(**fields)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=30))
def test_the_front_is_the_points_that_no_other_beats(points):
    unbeaten = {
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
    }  # fmt: skip
    indices = pareto_front(points)
    front = [points[i] for i in indices]
    assert front == sorted(unbeaten) and indices == [points.index(point) for point in front]


def test_the_front_of_a_sweep_is_that_of_all_combinations_and_much_is_skipped():
    recorder, done = Recorder(), []
    result = record_sweep(
        VALUES, recorder, CONDITIONS, report=lambda stage, count, total, unit: done.append((count, total))
    )
    assert front_points(result) == full_front(VALUES)
    assert len(recorder.asked) == len(result.measured) < 0.7 * len(result.requested)
    assert sorted([*result.measured, *result.skipped]) == combinations(VALUES)
    # The cheapest and the dearest come first.
    assert recorder.asked[:2] == [SearchOptions(1, 4, 0, 4), SearchOptions(64, 200, 1600, 64)]
    count = len(combinations(VALUES))
    assert done == sorted(done) and (done[0], done[-1]) == ((0, count), (count, count))


def test_where_nothing_is_gained_the_two_extremes_are_enough():
    recorder = Recorder(lambda options: make_measurement(0.5, measure(options).seconds))
    values = VALUES | {"nmid_short": [0]}
    result = record_sweep(values, recorder, CONDITIONS)
    assert len(recorder.asked) == 2 and result.front == [Setting(1, 4, 4, 0)]
    assert len(result.skipped) == len(combinations(values)) - 2


def test_a_pairwise_decoder_that_loses_recall_hides_no_setting_without_it():
    def measured(options: SearchOptions) -> Measurement:
        return make_measurement(0.2 if options.num_mid else 0.1 + options.num_short / 1000, measure(options).seconds)

    values = {"nprobe": [4, 16], "quantizer_efSearch": [16], "nshort": [10, 50], "nmid_short": [0, 4]}
    assert {Setting(4, 16, 50, 0)} <= set(record_sweep(values, measured, CONDITIONS).measured)


def test_settings_that_come_to_the_same_search_are_measured_once():
    recorder = Recorder()
    result = record_sweep(VALUES | {"nmid_short": [0, 1, 4], "nshort": [0, 10]}, recorder, CONDITIONS)
    assert len(set(recorder.asked)) == len(recorder.asked)
    assert Setting(64, 64, 10, 1) in result.skipped or Setting(64, 64, 10, 0) in result.skipped


lists_of_values = st.fixed_dictionaries(
    {
        "nprobe": st.lists(st.integers(1, 100), min_size=1, max_size=4),
        "quantizer_efSearch": st.lists(st.integers(1, 100), min_size=1, max_size=3),
        "nshort": st.lists(st.integers(0, 100), min_size=1, max_size=4),
        "nmid_short": st.lists(st.integers(0, 8), min_size=1, max_size=3),
    }
)


def monotone(weights: list[int], levels: int):
    """A search of which neither recall nor time falls where a size of a stage rises; few levels make for many ties."""

    def function(options: SearchOptions) -> Measurement:
        sizes = np.array([options.nprobe, options.ef_search, options.num_short, options.num_mid])
        gain, cost = np.log2(1 + sizes) @ weights[:4], sizes @ weights[4:]
        return make_measurement(np.floor(gain / 300 * levels) / levels, 1 + float(cost))

    return function


@settings(max_examples=60, deadline=None)
@given(lists_of_values, st.lists(st.integers(0, 9), min_size=8, max_size=8), st.sampled_from([3, 20, 10_000]))
def test_skipping_loses_nothing_where_recall_and_time_are_monotone(values, weights, levels):
    result = record_sweep(values, monotone(weights, levels), CONDITIONS)
    assert front_points(result) == full_front(values, monotone(weights, levels))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_noise_of_the_clock_within_the_tolerance_loses_nothing(seed):
    generator = np.random.default_rng(seed)

    def noisy(options):
        exact = measure(options)
        return make_measurement(exact.recall[1], exact.seconds * generator.uniform(0.96, 1.04))

    result = record_sweep(VALUES, noisy, CONDITIONS)
    for setting in result.skipped:
        exact = measure(setting.options)
        assert any(
            measure(other.options).seconds <= exact.seconds and found.recall[1] >= exact.recall[1]
            for other, found in result.measured.items()
        )


def test_values_are_sorted_and_counted_once():
    asked = combinations({"nprobe": [4, 1, 4], "quantizer_efSearch": (8,), "nshort": [10], "nmid_short": [4, 0]})
    assert asked == [Setting(1, 8, 10, 0), Setting(1, 8, 10, 4), Setting(4, 8, 10, 0), Setting(4, 8, 10, 4)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nprobe": []}, r"search\.nprobe"), ({"nprobe": [4, 0]}, r"search\.nprobe.*0"),
        ({"quantizer_efSearch": [0]}, r"search\.quantizer_efSearch"), ({"nshort": [1.5]}, r"search\.nshort.*1\.5"),
        ({"nmid_short": [-1]}, r"search\.nmid_short.*-1"), ({"nprobe": [1 << 40]}, "nprobe.*1099511627776"),
        ({"nprobe": range(1, 500), "nshort": range(500)}, "2245500"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_before_anything_is_measured(values, message):
    recorder = Recorder()
    with pytest.raises(ConfigError, match=message):
        record_sweep(VALUES | values, recorder, CONDITIONS)
    assert recorder.asked == []


def test_the_file_has_the_keys_of_the_authors_code_and_ours(tmp_path):
    result = record_sweep(VALUES, measure, CONDITIONS, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    others = {"ivf_real_res", "settings", "skipped", "num_queries", "timing"}
    assert set(content) == others | set(CONDITIONS) and CONDITIONS.items() <= content.items()
    assert content["num_queries"] == NUM_QUERIES
    for theirs, ours in zip(content["ivf_real_res"], content["settings"], strict=True):
        assert list(theirs) == ["parameters", "cno", "t_search", "t_mid_rerank", "t_decode", "t_rerank", "t_total",
                                "recalls", "recalls_orig", "key"]  # fmt: skip
        setting = Setting(**theirs["parameters"])
        found = result.measured[setting]
        assert combinations(VALUES)[theirs["cno"]] == setting
        assert [values[i] for values, i in zip(VALUES.values(), theirs["key"], strict=True)] == list(setting)
        times = found.seconds / 2, 0, found.seconds / 4, 0, found.seconds
        assert tuple(seconds for name, seconds in theirs.items() if name.startswith("t_")) == times
        assert theirs["recalls"] == ours["recall"] == {str(rank): share for rank, share in found.recall.items()}
        assert theirs["recalls_orig"] == ours["shortlist_recall"] != ours["recall"]
        assert ours["parameters"] == theirs["parameters"] and ours["pareto"] == (setting in result.front)
        assert ours["queries_per_second"] == pytest.approx(NUM_QUERIES / ours["seconds_by_stage"]["total"])
    assert [Setting(**setting) for setting in content["skipped"]] == result.skipped


def test_an_interrupted_sweep_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop:
        record_sweep(VALUES, Recorder(interrupt_after=3), CONDITIONS)
    assert len(stop.value.measured) == 3
    output = tmp_path / "results.json"
    output.write_text("old")
    for count in (0, 3):  # the old file is kept until there is something to replace it by
        with pytest.raises(KeyboardInterrupt, match="resume=true" if count else None):
            record_sweep(VALUES, Recorder(interrupt_after=count), CONDITIONS, output)
        assert (output.read_text() == "old") == (count == 0)
    assert len(json.loads(output.read_text())["settings"]) == 3
    recorder = Recorder()
    resumed = record_sweep(VALUES, recorder, CONDITIONS, output, resume=True)
    assert resumed == record_sweep(VALUES, measure, CONDITIONS)
    assert len(recorder.asked) == len(resumed.measured) - 3
    before, recorder = output.read_text(), Recorder()
    record_sweep(VALUES, recorder, CONDITIONS, output, resume=True)
    assert recorder.asked == [] and output.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("resume", [True, False])
def test_settings_that_another_process_measures_meanwhile_are_kept(tmp_path, resume):
    output, wide = tmp_path / "results.json", SMALL | {"nprobe": [64]}

    def interrupted(options):
        if output.exists() and options.nprobe == 16:
            record_sweep(wide, measure, CONDITIONS, output, resume=True)
        return measure(options)

    if resume:
        record_sweep(SMALL | {"nprobe": [4]}, measure, CONDITIONS, output)
    result = record_sweep(SMALL, interrupted, CONDITIONS, output, resume=resume)
    there = {setting["parameters"]["nprobe"] for setting in json.loads(output.read_text())["settings"]}
    assert there == {4, 16, 64} == {setting.nprobe for setting in result.measured}


def test_results_without_a_number_of_queries_for_each_setting_are_resumed(tmp_path):
    """As earlier versions wrote them."""
    output = tmp_path / "results.json"
    first = record_sweep(SMALL, measure, CONDITIONS, output)
    content = json.loads(output.read_text())
    for setting in content["settings"]:
        del setting["num_queries"]
    output.write_text(json.dumps(content))
    assert record_sweep(SMALL, Recorder(interrupt_after=0), CONDITIONS, output, resume=True) == first


@pytest.mark.parametrize("nprobe", [[1, 2, 4, 8, 16, 64, 256], [256]])
def test_values_may_differ_when_a_sweep_is_resumed(tmp_path, nprobe):
    output = tmp_path / "results.json"
    first = record_sweep(VALUES, measure, CONDITIONS, output)
    recorder, values = Recorder(), VALUES | {"nprobe": nprobe}
    second = record_sweep(values, recorder, CONDITIONS, output, resume=True)
    both = VALUES | {"nprobe": sorted({*nprobe, *VALUES["nprobe"]})}
    assert first.measured.items() <= second.measured.items() and front_points(second) == full_front(both)
    assert {options.nprobe for options in recorder.asked} <= set(nprobe)
    assert not set(recorder.asked) & {setting.options for setting in first.measured}
    results = json.loads(output.read_text())["ivf_real_res"]
    assert len(results) == len(second.measured)
    assert all(combinations(both)[result["cno"]] == Setting(**result["parameters"]) for result in results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": FINGERPRINT | {"index": "other"}}, r"\(another index\)"),
        ({"fingerprint": FINGERPRINT | {"queries": "d", "decoder": "e"}}, r"\(another queries; another decoder\)"),
        ({"threads": 1, "machine": "b"}, r"\(threads=2 there, 1 here; machine=a processor there, b here\)"),
    ],
)
def test_results_of_other_conditions_are_not_resumed(tmp_path, change, message):
    output = tmp_path / "results.json"
    record_sweep(SMALL, measure, CONDITIONS, output)
    before, recorder = output.read_text(), Recorder()
    with pytest.raises(ConfigError, match=message):
        record_sweep(SMALL, recorder, CONDITIONS | change, output, resume=True)
    assert recorder.asked == [] and output.read_text() == before


UPSTREAM = '{"ivf_real_res": [{"parameters": {"nprobe": 4}, "cno": 0, "recalls": {"1": 0.5}, "key": [0, 0, 0, 0]}]}'


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\xff\xfe", "{}", "[" * 100_000, UPSTREAM])
def test_a_damaged_or_foreign_file_is_not_resumed(tmp_path, content):
    output = tmp_path / "results.json"
    output.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"results\.json"):
        record_sweep(SMALL, measure, CONDITIONS, output, resume=True)
    assert output.read_text(encoding="latin-1") == content


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("parameters", {"nprobe": 4}),
        ("parameters", {"nprobe": "4", "quantizer_efSearch": 4, "nshort": 4, "nmid_short": 0}),
        ("recall", {"1": 2.0}), ("recall", {"10": 0.5}), ("recall", {"1": "0.5"}), ("recall", {"1": float("nan")}),
        ("shortlist_recall", {"1": -0.5}), ("shortlist_recall", None), ("seconds_by_stage", {"total": 0}),
        ("seconds_by_stage", {"total": 1.0, "decode": float("inf")}), ("seconds_by_stage", {"total": "1"}),
        ("seconds_by_stage", {"decode": 1.0}),
    ],
)  # fmt: skip
def test_a_damaged_setting_is_refused(tmp_path, part, value):
    output = tmp_path / "results.json"
    record_sweep(SMALL, measure, CONDITIONS, output)
    content = json.loads(output.read_text())
    content["settings"][0][part] = value
    output.write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged"):
        record_sweep(SMALL, measure, CONDITIONS, output, resume=True)


def test_the_table_has_a_row_for_each_setting_of_the_front():
    result = record_sweep(VALUES, measure, CONDITIONS)
    rows, headers = result.front_table()
    assert headers == ["recall@1", "recall@10", "recall@100", "us/query", "queries/s", *Setting._fields]
    assert [Setting(*row[5:]) for row in rows] == result.front
    for i in (0, 3):
        assert [row[i] for row in rows] == sorted(row[i] for row in rows)
    cheapest = result.measured[result.front[0]]
    speed = cheapest.seconds / NUM_QUERIES * 1e6, NUM_QUERIES / cheapest.seconds
    assert rows[0][:5] == [*cheapest.recall.values(), *speed]


@pytest.mark.parametrize(
    ("seconds", "reported", "count"),
    [
        ([100.0, 9.0, 1.0, 4.0], 4.0, 1 + MIN_REPEATS),  # the median, without the first run
        ([5.0, 0.125], 0.125, 9),  # short runs are repeated for a second
        ([0.0], 0.0, 1 + MAX_REPEATS),
    ],
)
def test_the_median_run_is_reported(seconds, reported, count):
    made = []

    def run():
        made.append(seconds[min(len(made), len(seconds) - 1)])
        return {"search": made[-1] / 2, "total": made[-1]}

    assert measure_stages(run) == {"search": reported / 2, "total": reported}
    assert len(made) == count
