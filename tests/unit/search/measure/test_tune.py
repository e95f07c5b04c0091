from dataclasses import replace

import numpy as np
import pytest
import torch
from small_indexes import NUM_LISTS, NUM_VECTORS, built, copied, vectors

from qinco.errors import ConfigError, DataError
from qinco.maths.metrics import recall
from qinco.search.measure import timing
from qinco.search.measure.explore import Measurement
from qinco.search.measure.timing import TUNED_LENGTHS, measure, tune
from qinco.search.options import SearchOptions

QUERIES_QD = vectors(60, 1)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    monkeypatch.setattr(timing, "MIN_REPEATS", 1)


def nearest(count: int, metric: str = "l2") -> np.ndarray:
    """Numbers of the true neighbours of QUERIES_QD, int64 (Q, count)."""
    if metric == "l2":
        return np.square(QUERIES_QD[:, None] - vectors()).sum(2).argsort(1)[:, :count]
    return (-(QUERIES_QD / np.linalg.norm(QUERIES_QD, axis=1)[:, None]) @ (
        vectors() / np.linalg.norm(vectors(), axis=1)[:, None]
    ).T).argsort(1)[:, :count]  # fmt: skip


def share(index, k: int, truth_Q=None) -> float:
    truth_Q = nearest(1)[:, 0] if truth_Q is None else truth_Q
    return recall(index.search(QUERIES_QD, k)[1], truth_Q, (k,))[k]


@pytest.mark.parametrize("pairwise", [False, True])
def test_measurements_are_those_of_the_search(pairwise):
    index, nearest_Q = built("ivf", pairwise=pairwise), nearest(1)[:, 0]
    for options, length in ((SearchOptions(2, 20), 20), (SearchOptions(2, 0), 100), (SearchOptions(4, 5, 10), 5)):
        found = measure(index, QUERIES_QD, nearest_Q, options, 17)
        index_ = copied(index)
        index_.options = options
        assert found.recall == recall(index_.search(QUERIES_QD, length)[1], nearest_Q)
        assert found.num_queries == 60 and found.seconds_by_stage["total"] > 0
        assert found.seconds_by_stage.keys() == {"search", "pairwise", "decode", "rerank", "total"}
        assert sum(found.seconds_by_stage.values()) <= 2.001 * found.seconds_by_stage["total"]
        mid = length if not pairwise else options.num_mid or 4 * length
        # Not by `search`, which goes on to further lists where these hold fewer than `mid` vectors.
        looked_up = index.with_pairwise(None).pipeline(SearchOptions(options.nprobe, mid, 0), length)
        looked_up = looked_up.run(QUERIES_QD, length)[1].ids
        assert found.shortlist_recall == recall(looked_up, nearest_Q)


@pytest.mark.parametrize(("k", "target"), [(1, 0.15), (10, 0.5), (10, 0.9), (100, 0.99)])
def test_tuned_options_reach_the_target(k, target):
    index = copied(built("ivf"))
    options = index.tune(QUERIES_QD, nearest(5), target, k)
    assert options is index.options and share(index, k) >= target
    assert options.ef_search is None, "there is no graph whose effort could be fitted"


def test_the_fastest_options_are_taken():
    """Of all that reach the target, on a clock that ticks once for each list and each vector."""
    index, clock = copied(built("ivf")), {}

    def timed(options):
        found = measure(index, QUERIES_QD, nearest(1)[:, 0], options, rank=10)
        clock[options] = options.nprobe + options.num_short / 10
        return Measurement(found.recall, found.shortlist_recall, {"total": clock[options]}, found.num_queries)

    for target in (0.3, 0.9, 0.97):
        index.options = tune(index, QUERIES_QD, nearest(1), target, measure_options=timed)
        chosen = replace(index.options, ef_search=16)
        assert share(index, 10) >= target
        for options in [options for options in clock if clock[options] < 0.9 * clock[chosen]]:
            index.options = options
            assert share(index, 10) < target


def test_what_is_tuned_is_saved_and_progress_is_told(tmp_path):
    index, heard = copied(built("ivf", pairwise=True)), []
    index.tune(QUERIES_QD, nearest(1)[:, 0].tolist(), 0.8, progress=lambda *told: heard.append(told))
    _, done, totals, _ = zip(*heard, strict=True)
    assert list(done) == sorted(done) and len(set(done)) > 2 and (done[0], done[-1]) == (0, totals[0])
    index.save(tmp_path)
    loaded = type(index).load(tmp_path)
    assert loaded.options == index.options and share(loaded, 10) >= 0.8


def test_any_metric_is_tuned():
    index = copied(built("plain", "cosine"))
    truth_Q = nearest(1, "cosine")[:, 0]
    index.tune(QUERIES_QD * 7, torch.from_numpy(truth_Q), 0.7)
    assert share(index, 10, truth_Q) >= 0.7


def test_a_target_out_of_reach_says_how_far_it_is():
    index = copied(built("ivf"))
    before = index.options
    found = [index.search(QUERIES_QD, 1, NUM_LISTS, length)[1] for length in TUNED_LENGTHS if length <= NUM_VECTORS]
    most = max(recall(ids_QR, nearest(1)[:, 0], (1,))[1] for ids_QR in found)
    with pytest.raises(ConfigError, match=f"{most:.4f}"):
        index.tune(QUERIES_QD, nearest(1), 1.0, k=1)
    assert index.options is before
    with pytest.raises(DataError, match="no vectors"):  # before anything is measured
        index.emptied().tune(QUERIES_QD, nearest(1), 0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *(({"target_recall": wrong}, ConfigError, f"{wrong}") for wrong in (0, 1.01, float("nan"), "high")),
        ({"k": 0}, ConfigError, "k must be"), ({"k": 1.5}, ConfigError, "k must be"),
        ({"queries": QUERIES_QD[:, :5]}, DataError, "not 5"), ({"queries": QUERIES_QD[:9]}, DataError, "60"),
        ({"queries": QUERIES_QD[:0], "ground_truth": []}, DataError, "queries must not be empty"),
        ({"queries": QUERIES_QD * np.nan}, DataError, "NaN"), ({"queries": QUERIES_QD[0]}, DataError, r"\(1, "),
        ({"ground_truth": nearest(1) * 1.0}, DataError, "integers"),
        ({"ground_truth": nearest(1)[:, :0]}, DataError, "integers"),
        ({"ground_truth": nearest(1) - 10**6}, DataError, "not in the index"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused(change, error, message):
    settings = {"queries": QUERIES_QD, "ground_truth": nearest(1), "target_recall": 0.5, "k": 10} | change
    with pytest.raises(error, match=message):
        built().tune(**settings)
