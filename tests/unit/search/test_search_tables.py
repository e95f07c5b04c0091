from dataclasses import replace

import numpy as np
import pytest
from small_indexes import DIM, NUM_VECTORS, built, trained, vectors

from qinco.decoders.lookup import LookupDecoder
from qinco.search import selection as selection_module
from qinco.search.metric import METRICS
from qinco.search.options import SearchOptions
from qinco.search.selection import Selection
from qinco.search.tables import CoarseGraph, SearchTables

QUERIES_QD = vectors(30, 1)


def shortlist(index, num_short, options, selection=None, **limits):
    queries_QD = index.tables.metric.prepare(QUERIES_QD)
    return index.tables.shortlist(queries_QD, num_short, options, index.segments, selection, 1, **limits)


def looked_up(index):
    """All vectors by the look-up decoder, in the order of their ids."""
    parts = [index.tables.lookup.decode(codes_NM, lists_N) for codes_NM, _, lists_N, _ in index.segments[0].blocks()]
    return np.concatenate(parts)[index.segments[0].ids.argsort()]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_values_are_those_of_the_look_up_decoder(kind, metric):
    """But for what a scalar's level differs from it."""
    index = built(kind, metric)
    found = shortlist(index, NUM_VECTORS, SearchOptions(nprobe=index.num_lists))
    queries_QD, x_ND = index.tables.metric.prepare(QUERIES_QD).astype(np.float64), looked_up(index).astype(np.float64)
    exact_QN = np.square(queries_QD[:, None] - x_ND).sum(2) if metric != "inner_product" else -queries_QD @ x_ND.T
    codes_NM, bytes_N, lists_N, ids_N = next(index.segments[0].blocks())
    rounded_N = np.empty(NUM_VECTORS)
    rounded_N[ids_N] = index.tables.levels[bytes_N] - index.tables.scanner.norms(codes_NM, lists_N)
    expected_QS = np.take_along_axis(exact_QN + rounded_N, found.ids, 1)
    assert (np.sort(found.ids) == np.arange(NUM_VECTORS)).all() and (found.scanned == NUM_VECTORS).all()
    np.testing.assert_allclose(found.values, expected_QS, rtol=1e-5, atol=1e-3)
    assert (np.diff(found.values) >= 0).all() and rounded_N.std() < 0.02 * exact_QN.std()


def test_whole_vectors_are_looked_up_where_lists_say_nothing_more():
    """Codes of a codec without lists: tables that were added to centroids would have to unlearn them."""
    index = built("plain")
    lists_N = index.segments[0].lists_of(index.segments[0].ids.argsort())
    codes_NM = trained("plain").encode(vectors())
    added = LookupDecoder.fit([(codes_NM, lists_N, vectors())], 4, 16, index.tables.centroids_VD)
    errors = [np.square(x - vectors()).sum(1).mean() for x in (looked_up(index), added.decode(codes_NM, lists_N))]
    assert index.tables.lookup.centroids_VD is None and index.tables.partition_VD.shape == (index.num_lists, DIM)
    assert 2 * errors[0] < errors[1]


def test_lists_are_visited_nearest_first():
    for kind in ("plain", "ivf"):
        index = built(kind)
        distances_QV = np.square(QUERIES_QD[:, None] - index.tables.centroids_VD).sum(2)
        for nprobe in (1, 3, 10_000):
            found = shortlist(index, NUM_VECTORS, SearchOptions(nprobe=nprobe))
            visited_QV = distances_QV.argsort(1)[:, :nprobe]
            sizes_V = np.diff(index.segments[0].starts)
            assert np.array_equal(found.scanned, sizes_V[visited_QV].sum(1)) and np.array_equal(
                (found.lists >= 0).sum(1), found.scanned
            )
            for lists_S, visited_V in zip(found.lists, visited_QV, strict=True):
                assert set(lists_S[lists_S >= 0]) <= set(visited_V)


@pytest.mark.parametrize("few", [0, selection_module.FEW])
@pytest.mark.parametrize("kind", ["plain", "ivf"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_filter_finds_its_vectors_wherever_they_are(metric, kind, few, monkeypatch):
    """By scanning more lists, or those that hold them."""
    monkeypatch.setattr(selection_module, "FEW", few)
    index = built(kind, metric)
    whole = shortlist(index, NUM_VECTORS, SearchOptions(nprobe=index.num_lists))
    for rows in (1 << 22, 8):  # the second: one query at a time
        for ids in (
            np.arange(0, NUM_VECTORS, 300),
            np.array([7]),
            np.array([3, 10**6, 10**15]),
            np.arange(NUM_VECTORS),
        ):
            found = shortlist(index, 5, SearchOptions(nprobe=1), Selection.of_ids(index.segments, ids), max_probes=rows)
            there = ids[ids < NUM_VECTORS]
            assert ((found.lists >= 0).sum(1) == min(5, len(there))).all()
            if len(there) > 5:
                assert np.isin(found.ids, ids).all()
                continue
            expected_QS = np.stack([row[np.isin(row, there)] for row in whole.ids])
            assert np.array_equal(found.ids[:, : len(there)], expected_QS)


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_leads_to_many_lists(metric, monkeypatch):
    index = built("plain", metric)
    expected = shortlist(index, 20, SearchOptions(nprobe=4))
    tables = replace(index.tables, min_graph_lists=5)
    assert index.tables.coarse is None and tables.coarse is not None
    prepared_QD = index.tables.metric.prepare(QUERIES_QD)
    efforts = []
    probe = CoarseGraph.probe
    monkeypatch.setattr(
        CoarseGraph, "probe",
        lambda self, x, n, effort, threads: (efforts.append(effort), probe(self, x, n, effort, threads))[1],
    )  # fmt: skip
    for effort in (None, 7):  # a dozen centroids are all linked to one another: the graph finds what comparing does
        found = tables.shortlist(prepared_QD, 20, SearchOptions(nprobe=4, ef_search=effort), index.segments, None, 1)
        assert np.array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-3)
    assert efforts == [None, 7]
    tables.shortlist(prepared_QD, 20, SearchOptions(nprobe=99), index.segments, None, 1)
    assert efforts == [None, 7], "all lists are visited: nothing is to be found"


def test_inner_products_have_levels_for_corrections_only():
    tables = built("ivf", "inner_product").tables
    codes_NM, _, lists_N, _ = next(built("ivf").segments[0].blocks())
    assert tables.levels.any() and not tables.ranked(None, codes_NM, lists_N).levels.any()
    levels = built("ivf").tables.levels
    assert (np.diff(levels) >= 0).all() and levels[0] < levels[-1]


def test_levels_are_fitted_to_a_sample():
    index = built("ivf")
    codes_NM, _, lists_N, _ = next(index.segments[0].blocks())
    sampled = SearchTables.fit(index.tables.lookup, codes_NM, lists_N, index.tables.metric, level_rows=500)
    again = SearchTables.fit(index.tables.lookup, codes_NM[::3], lists_N[::3], index.tables.metric)
    assert np.array_equal(sampled.levels, again.levels)
