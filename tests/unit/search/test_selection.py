"""Selections of vectors, and the searches that take them."""

import numpy as np
import pytest
from small_indexes import NUM_LISTS, NUM_VECTORS, built, copied, exact, vectors

from qinco.errors import ConfigError, DataError
from qinco.search import selection as module
from qinco.search.index import Index
from qinco.search.metric import METRICS
from qinco.search.selection import FEW, Selection

QUERIES_QD = vectors(30, 1)
ALL = {"nprobe": NUM_LISTS, "num_short": NUM_VECTORS, "precision": "float32"}


@pytest.fixture
def grown() -> Index:
    """In two segments, one of them of wide ids."""
    index = copied(built())
    index.add(vectors(100, 4), ids=np.arange(100) + 2**40)
    assert len(index.segments) == 2
    return index


def ids_of(selection: Selection, index: Index) -> list[int]:
    found = [ids[selection.positions(number)].tolist() for number, ids in enumerate(index.parts.ids)]
    masks = [selection.mask(number, 0, len(ids)) for number, ids in enumerate(index.parts.ids)]
    assert found == [ids[mask].tolist() for ids, mask in zip(index.parts.ids, masks, strict=True)]
    assert [len(part) for part in found] == list(selection.counts) and selection.count == sum(map(len, found))
    return sorted(number for part in found for number in part)


def test_what_is_selected_is_what_ids_say_less_what_is_excluded(grown):
    every, far = grown.ids.tolist(), 2**40
    for ids, exclude, wanted in [
        (None, None, every), (range(100), None, every[:100]), ([5, 5, -1, 10**9], None, [5]),
        (None, [7, far], [number for number in every if number not in (7, far)]), ([3, 4, far], [4], [3, far]),
        (grown.select([3, 4, far]), grown.select([3]), [4, far]), (range(10), grown.select(), []),
        (grown.select(), slice(5, None), every[:5]), ([], None, []), (None, [], every),
    ]:  # fmt: skip
        assert ids_of(grown.select(ids, exclude), grown) == wanted


def test_masks_select_by_position(grown):
    masks = [np.arange(NUM_VECTORS) % 3 == 0, None]
    selection = Selection.from_masks(masks, grown.segments)
    ids = [*grown.segments[0].ids[masks[0]].tolist(), *range(2**40, 2**40 + 100)]
    assert ids_of(selection, grown) == sorted(ids) and repr(selection) == "Selection(600 of 1,600 vectors)"
    assert ids_of(grown.select(selection, exclude=range(9)), grown) == sorted(set(ids) - set(range(9)))
    for wrong in ([masks[0]], [masks[0], masks[0]], [masks[0].astype(np.uint8), None], [None, None, None]):
        with pytest.raises(ConfigError, match=r"bool \(1500,\), bool \(100,\)"):
            Selection.from_masks(wrong, grown.segments)


def test_a_selection_is_of_one_state_of_an_index(grown):
    selection, masks = grown.select(range(9)), Selection.from_masks([None, None], grown.segments)
    grown.upsert(vectors(1, 7), [2**40 + 3])
    for one in (selection, masks):
        for use in (
            lambda one=one: grown.search(QUERIES_QD, filter=one), lambda one=one: grown.search(QUERIES_QD, exclude=one),
            lambda one=one: grown.select(exclude=one), lambda one=one: grown.search_among(QUERIES_QD, one),
            lambda one=one: grown.range_search(QUERIES_QD, 1.0, filter=one),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=r"make it again by index\.select"):
                use()
    assert grown.search(QUERIES_QD, filter=grown.select(range(9)))[1].max() < 9


@pytest.mark.parametrize("few", [0, FEW])
@pytest.mark.parametrize("metric", METRICS)
def test_searches_find_the_nearest_of_what_is_selected(metric, few, monkeypatch):
    """As if nothing else were there."""
    monkeypatch.setattr(module, "FEW", few)
    index = copied(built("plain", metric))
    index.add(vectors(100, 4))
    sign = 1 if metric == "l2" else -1
    for share in (0.02, 0.5, 0.95):
        ids = np.flatnonzero(np.random.default_rng(1).random(len(index)) < share)
        others = np.setdiff1d(index.ids, ids)
        wanted_QN = np.sort(sign * exact(metric, QUERIES_QD, index.reconstruct(ids)))
        for options in (
            {"filter": ids}, {"exclude": others}, {"filter": index.select(ids)}, {"exclude": index.select(others)},
            {"filter": range(len(index)), "exclude": others}, {"filter": index.select(exclude=others)},
        ):  # fmt: skip
            found = index.search(QUERIES_QD, k=20, ranking="decoded", **ALL | options)
            assert np.isin(found[1], ids).all()
            np.testing.assert_allclose(sign * found[0], wanted_QN[:, :20], rtol=1e-5, atol=1e-4)
            radius = sign * float(np.median(wanted_QN[:, 5]))
            given = {"nprobe": NUM_LISTS, "precision": "float32", "ranking": "decoded"} | options
            lims, _, near = index.range_search(QUERIES_QD, radius, **given)
            assert np.isin(near, ids).all() and (np.diff(lims) == (wanted_QN < sign * radius).sum(1)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_queries_find_together_what_each_finds_alone(kind, metric):
    """Also where copies of few selected vectors are scanned, of several segments, some of which are equally near."""
    index, random = copied(built(kind, metric)), np.random.default_rng(2)
    for seed in (4, 4, 5):
        index.add(vectors(100, seed))
    queries_QD = vectors(40, 9)
    for ids in (random.choice(index.ids, 300, replace=False), index.ids[-250:], index.ids[-3:], []):
        selection = index.select(ids)
        for options in ({"num_short": 0}, {"num_short": 30}, {"num_short": 0, "ranking": "decoded"}):
            together = index.search(queries_QD, 20, filter=selection, **options)
            own = index.select(ids)  # of which the first query scans the lists
            alone = [index.search(query_D, 20, filter=own if row < 5 else index.select(ids), **options)
                     for row, query_D in enumerate(queries_QD)]  # fmt: skip
            distances_QR, ids_QR = (np.stack(each) for each in zip(*alone, strict=True))
            np.testing.assert_allclose(together[0], distances_QR, rtol=1e-5, atol=1e-5)
            if kind == "plain" and options["num_short"] == 0:  # else products of matrices round in other ways
                assert np.array_equal(together[0], distances_QR) and np.array_equal(together[1], ids_QR)


@pytest.mark.parametrize("ranking", ["calibrated", "decoded"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_a_search_among_ids_is_one_of_all_lists(kind, metric, ranking):
    index = built(kind, metric)
    for ids in (np.arange(3, NUM_VECTORS, 100), np.arange(0, NUM_VECTORS, 2), np.array([7]), []):
        distances_QR, ids_QR = index.search_among(QUERIES_QD, ids, 12, ranking=ranking, precision="float32")
        found = index.search(QUERIES_QD, 12, filter=ids, ranking=ranking, **ALL)
        assert distances_QR.dtype == np.float32 and ids_QR.dtype == np.int64
        np.testing.assert_allclose(distances_QR, found[0], rtol=1e-4, atol=1e-4)
        assert np.isin(ids_QR, [*ids, -1]).all() and ((ids_QR >= 0).sum(1) == min(12, len(ids))).all()
        if ranking == "calibrated":  # vectors of equal codes may be equally near by what they decode to
            assert (ids_QR == found[1]).mean() > 0.99
        one = index.search_among(QUERIES_QD[4], index.select(ids), 12, ranking=ranking, precision="float32")
        assert np.array_equal(one[1], ids_QR[4])


def test_a_search_among_ids_ranks_by_originals():
    index, ids = built(), np.arange(0, NUM_VECTORS, 9)
    distances_QR, ids_QR = index.search_among(QUERIES_QD, ids, 5, refine=vectors(), num_refine=len(ids))
    wanted_QN = np.square(QUERIES_QD[:, None] - vectors()[ids]).sum(2)
    assert np.array_equal(ids_QR, ids[wanted_QN.argsort(1)[:, :5]])
    np.testing.assert_allclose(distances_QR, np.sort(wanted_QN)[:, :5], rtol=1e-5)
    found = index.search(QUERIES_QD, 5, num_short=200, filter=ids, refine=vectors(), num_refine=len(ids))
    assert np.array_equal(found[1], ids_QR)


def test_a_search_among_ids_without_codec_is_by_the_tables():
    index = built()
    bare, ids = Index(None, index.parts), np.arange(0, NUM_VECTORS, 50)
    found = bare.search_among(QUERIES_QD, ids, 5)
    np.testing.assert_allclose(found[0], bare.search(QUERIES_QD, 5, filter=ids)[0], rtol=1e-2)
    for ids in (None, "7", lambda number: True):
        with pytest.raises((DataError, ConfigError), match="ids"):
            index.search_among(QUERIES_QD, ids)
