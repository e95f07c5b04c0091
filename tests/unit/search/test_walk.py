"""Shortlists of which no more is decoded than may come among the first."""

from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import pytest
from native_levels import needs_native
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, built, copied, vectors, with_margin

import qinco
from qinco.errors import DataError
from qinco.search import pipeline
from qinco.search.index import Index
from qinco.search.metric import METRICS
from qinco.search.options import SearchOptions
from qinco.search.pipeline import NeuralDecoder, Pipeline
from qinco.search.ranking import Score
from qinco.search.scan import Shortlist
from qinco.search.walk import walk, walked_values

QUERIES_QD = vectors(200, 21)
OPTIONS = {"nprobe": NUM_LISTS, "num_short": 200}
MANY = 48


def num_decoded(monkeypatch, search) -> int:
    """How many vectors the network decodes for a search."""
    decode, walked_values, counts = NeuralDecoder.decode, pipeline.walked_values, []

    def compiled(*given):
        found = walked_values(*given)
        counts.append(np.count_nonzero(np.isfinite(found[0])))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(NeuralDecoder, "decode", lambda *given: [counts.append(len(given[1])), decode(*given)][1])
        patch.setattr(pipeline, "walked_values", compiled)
        search()
    return sum(counts)


def walked(look_up_QS, neural_QS, wanted, margin):
    """The rounds of a walk, as numbers of flattened shortlists; what is −1 by both is not there.

    All queries are there MANY times, of which the first counts: rounds of few vectors are longer.
    """
    look_up_QS, neural_QS = (np.tile(np.float32(values_QS), (MANY, 1)) for values_QS in (look_up_QS, neural_QS))
    lists_QS = np.where(neural_QS < 0, -1, 0).astype(np.int32)
    nothing_QS, values_QS = np.zeros_like(lists_QS), np.full(neural_QS.shape, np.inf, np.float32)
    shortlist = Shortlist(look_up_QS, nothing_QS, lists_QS, nothing_QS[..., None], nothing_QS, nothing_QS[:, 0])
    rounds = []
    for rows_N in walk(shortlist, values_QS, wanted, margin):
        assert np.isinf(values_QS.ravel()[rows_N]).all()
        values_QS.reshape(-1)[rows_N] = neural_QS.ravel()[rows_N]
        rounds.append(rows_N[rows_N < neural_QS.size // MANY].tolist())
    return rounds


def test_a_query_goes_on_while_its_next_may_win():
    look_up_QS = np.stack([np.arange(30.0)] * 3)
    neural_QS = look_up_QS + np.array([[0.0], [5.5], [100.0]])
    first, second, *others = walked(look_up_QS, neural_QS, 2, 4)
    assert first == [*range(10), *range(30, 40), *range(60, 70)]
    assert second == [*range(40, 48), *range(70, 78)]  # the first stops: 10 − 4 is no less than its second, 1
    assert others == [[*range(78, 90)]]  # a round of the last four would be short
    assert walked(look_up_QS, neural_QS, 2, None) == [list(range(90))]
    assert sorted(chain(*walked(look_up_QS, neural_QS, 2, 1e30))) == list(range(90))
    assert walked(look_up_QS, neural_QS, 25, 0) == [list(range(90))]


@pytest.mark.parametrize(
    ("width", "ends"), [(40, [40]), (65, [65]), (66, [58, 66]), (300, [58, 106, 154, 202, 252, 300])]
)
def test_rounds_of_one_query_are_not_short(width, ends):
    lists_1S = np.zeros((1, width), np.int32)
    values_1S, codes_1SM = np.zeros((1, width), np.float32), np.zeros((1, width, 1), np.uint8)
    shortlist = Shortlist(values_1S, lists_1S, lists_1S, codes_1SM, codes_1SM[..., 0], lists_1S[:, 0])
    assert [rows_N[-1] + 1 for rows_N in walk(shortlist, np.full((1, width), np.inf), 10, 1.0)] == ends


def test_what_is_missing_is_not_decoded():
    look_up_QS = np.array([[*range(12), *[np.inf] * 8], [np.inf] * 20])
    assert walked(look_up_QS, np.where(np.isinf(look_up_QS), -1, look_up_QS), 1, 1e30) == [[*range(9)], [9, 10, 11]]
    assert walked(np.full((2, 20), np.inf), np.full((2, 20), -1), 1, 1) == [[]]
    assert walked(np.empty((0, 20)), np.empty((0, 20)), 1, 1) == []


def test_queries_without_numbers_go_on():
    look_up_QS = np.arange(20.0)[None]
    assert sum(map(len, walked(look_up_QS, np.full((1, 20), np.nan), 3, 0))) == 20


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_wide_margin_all_is_decoded(kind, metric, monkeypatch):
    index = built(kind, metric)
    wide, none = with_margin(index, 1e30), with_margin(index, None)
    for k, filtered in ((1, range(0, NUM_VECTORS, 30)), (30, None)):  # 50 may be found of the shortlists' 60
        found, counts = [], []
        for one in (wide, none):
            search = partial(one.search, QUERIES_QD[:30], k, NUM_LISTS, 60, filtered)
            counts.append(num_decoded(monkeypatch, lambda search=search, found=found: found.append(search())))
        assert counts == [30 * (60 if filtered is None else 50)] * 2
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_the_fitted_margins_find_the_same_and_decode_less(metric, pairwise, monkeypatch):
    index = built("plain", metric, pairwise)
    ranking = index.tables.ranking
    assert np.isfinite(ranking.pairwise_margin if pairwise else ranking.margin)
    _, nearest_Q1 = qinco.exhaustive_search(QUERIES_QD, vectors(), 1, metric=metric)
    everything = with_margin(index, None)
    for k in (1, 10):
        (_, found_QR), (_, all_QR) = (one.search(QUERIES_QD, k, **OPTIONS) for one in (index, everything))
        assert abs((found_QR == nearest_Q1).any(1).mean() - (all_QR == nearest_Q1).any(1).mean()) <= 0.01
        assert (found_QR >= 0).all() and all(len(set(row)) == k for row in found_QR.tolist())
        assert num_decoded(monkeypatch, lambda k=k: index.search(QUERIES_QD, k, **OPTIONS)) < 200 * 200 // 2


def by_arrays(index: Index, queries_QD, k: int, monkeypatch):
    """What a search finds whose vectors are decoded and valued by arrays, not by the compiled walk."""
    with monkeypatch.context() as patch:
        patch.setattr(NeuralDecoder, "native", lambda decoder: None)
        return index.search(queries_QD, k, **OPTIONS)


@needs_native
@pytest.mark.parametrize(
    ("kind", "metric", "pairwise"),
    [*(("plain", metric, False) for metric in METRICS), ("ivf", "l2", False), ("plain", "l2", True)],
)
def test_the_compiled_walk_finds_what_arrays_do(kind, metric, pairwise, monkeypatch):
    fitted = built(kind, metric, pairwise)
    table = fitted.tables.ranking.lookup
    changes = (
        {}, {"margin": None, "pairwise_margin": None}, {"margin": 0.0, "pairwise_margin": 0.0},
        {"low": -0.01, "high": 0.01, "typical": 3.0}, {"low": -9.0, "high": 9.0, "typical": 0.0},
        {"neural": Score(-0.7, 0.3, 1.0)},
        {"lookup": replace(table, correction=-0.8, length=0.25)}, {"lookup": Score()},
    )  # fmt: skip
    for change in changes:
        index = copied(fitted)
        index.tables = replace(index.tables, ranking=replace(index.tables.ranking, **change))
        for k in (1, 20):
            distances_QR, ids_QR = index.search(QUERIES_QD, k, **OPTIONS)
            plain_QR, plain_ids_QR = by_arrays(index, QUERIES_QD, k, monkeypatch)
            np.testing.assert_allclose(distances_QR, plain_QR, rtol=1e-4, atol=1e-4)
            assert np.mean(ids_QR == plain_ids_QR) > 0.999  # equal ones may change places


@needs_native
def test_only_what_the_compiled_engine_decodes_is_walked_by_it(monkeypatch):
    calls = []
    monkeypatch.setattr(pipeline, "walked_values", lambda *given: [calls.append(1), walked_values(*given)][1])
    zeros_ND = vectors().copy()
    zeros_ND[::10] = 0
    with_zeros = Index.build(built().codec, zeros_ND, NUM_LISTS, metric="cosine")
    for index, queries_QD, ranking in (
        (built("plain"), QUERIES_QD, "decoded"), (built("product"), QUERIES_QD, "calibrated"),
        (with_zeros, QUERIES_QD, "calibrated"),
        (built("plain", "cosine"), np.zeros((1, DIM), np.float32), "calibrated"),
    ):  # fmt: skip
        index.search(queries_QD, 5, ranking=ranking, **OPTIONS)
    assert not calls
    built("plain", "cosine").search(QUERIES_QD, 5, **OPTIONS)
    assert calls == [1]


@needs_native
def test_queries_beyond_float32_are_walked():
    index = built()
    for value in (1e30, -3e38):
        distances, ids = index.search(np.full((2, DIM), value, np.float32), 5, **OPTIONS)
        assert np.isposinf(distances).all() or (ids >= 0).all()


def test_a_code_that_the_codec_does_not_have_is_refused():
    index = built()
    stage = index.pipeline(SearchOptions(num_short=50, num_mid=0), 10).stages[-1]
    shortlist = Shortlist(
        np.zeros((1, 20), np.float32), np.zeros((1, 20), np.int64), np.zeros((1, 20), np.int32),
        np.full((1, 20, index.codec.num_codes), 255, np.uint8), np.zeros((1, 20), np.uint8), np.zeros(1, np.int64),
    )  # fmt: skip
    searched = Pipeline(lambda queries_QD, length: shortlist, 20, [stage], tables=index.tables)
    with pytest.raises(DataError, match="holds the code 255"):
        searched.run(QUERIES_QD[:1], 5)


def test_single_queries_and_batches_find_the_same():
    index = built("ivf")
    distances_QR, ids_QR = index.search(QUERIES_QD, 5, **OPTIONS)
    for query in range(0, 200, 40):
        distances_R, ids_R = index.search(QUERIES_QD[query], 5, **OPTIONS)
        np.testing.assert_allclose(distances_R, distances_QR[query], rtol=1e-5)
        assert (ids_R == ids_QR[query]).all()


def test_zero_vectors_are_similar_to_nothing():
    x_ND = vectors().copy()
    x_ND[::10] = 0
    index = Index.build(built().codec, x_ND, NUM_LISTS, metric="cosine")
    queries_QD = np.concatenate([QUERIES_QD[:50], np.zeros((2, DIM), np.float32)])
    for k in (1, 40):
        found = [one.search(queries_QD, k, **OPTIONS) for one in (with_margin(index, 1e30), with_margin(index, None))]
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)
        distances_QR, ids_QR = index.search(queries_QD, k, **OPTIONS)
        assert not distances_QR[50:].any() and (ids_QR >= 0).all()
        assert not distances_QR[ids_QR % 10 == 0].any()


def test_orders_without_a_margin_are_decoded_whole(monkeypatch):
    index = built("plain", "l2", True)
    stage = index.pipeline(SearchOptions(num_short=50, num_mid=0), 10).stages[-1]
    assert stage.margin == index.tables.ranking.margin
    first, last = index.pipeline(SearchOptions(num_short=50), 10).stages
    assert (first.margin, last.margin) == (None, index.tables.ranking.pairwise_margin)
    for options in (SearchOptions(num_short=50, num_mid=0), SearchOptions(num_short=50)):
        stages = index.pipeline(options, 10, ranking="decoded").stages
        assert {stage.margin for stage in stages} == {None}
    other = index.with_pairwise(index.pairwise)  # may be any
    assert other.pipeline(SearchOptions(num_short=50), 10).stages[-1].margin is None
    assert other.tables.ranking.margin == index.tables.ranking.margin
    index = with_margin(built(), 0.0)
    search = {"k": 5, **OPTIONS, "refine": vectors(), "num_refine": 20}
    assert num_decoded(monkeypatch, lambda: index.search(QUERIES_QD, **search)) == 200 * 200


def test_the_margin_is_stored(tmp_path):
    index = copied(built("plain", "l2", True))  # that knows its folder
    index.save(tmp_path / "one")
    for name in ("margin", "pairwise_margin"):
        assert getattr(Index.load(tmp_path / "one").tables.ranking, name) == getattr(index.tables.ranking, name)
    few = Index.build(index.codec, vectors()[:50], 2)
    few.save(tmp_path / "few")
    assert few.tables.ranking.margin is None is Index.load(tmp_path / "few").tables.ranking.margin
