"""HNSW graphs by the compiled engine, against comparing everything."""

import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Timer, main_thread
from types import SimpleNamespace

import numpy as np
import pytest
from native_levels import LEVELS, needs_native

from qinco.errors import ResourceError
from qinco.native import graph as module
from qinco.native.flat import NativeFlat
from qinco.native.graph import Links, NativeGraph

pytestmark = needs_native


@pytest.fixture(params=[level for level in LEVELS if level != "avx512_bf16"], autouse=True)
def level(request, monkeypatch):
    monkeypatch.setenv("QINCO_NATIVE_LEVEL", request.param)
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def arrays(links: Links):
    return links.levels, links.offsets, links.neighbors


def share(found_NR, wanted_NR):
    return (
        np.mean([len(set(a) & set(b)) for a, b in zip(found_NR.tolist(), wanted_NR.tolist(), strict=True)])
        / (wanted_NR.shape[1])
    )


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize(("count", "dim"), [(1, 3), (2, 1), (60, 5), (400, 17), (3000, 40)])
def test_the_nearest_are_found(count, dim, inner_product):
    vectors_VD, x_ND = normal(count, dim), normal(50, dim, seed=1)
    wanted = NativeFlat(vectors_VD, inner_product).search(x_ND, min(count, 10), 1)
    graph = NativeGraph(vectors_VD, inner_product=inner_product)
    values_NR, numbers_NR = graph.search(x_ND, min(count, 10), 400, 1)
    assert (values_NR.dtype, numbers_NR.dtype) == (np.float32, np.int64)
    assert share(numbers_NR, wanted[1]) > 0.98 and (np.diff(values_NR, axis=1) >= 0).all()
    there_NR = vectors_VD[numbers_NR].astype(np.float64)
    exact_NR = -(there_NR @ x_ND[..., None])[..., 0]
    if not inner_product:
        exact_NR = np.square(x_ND[:, None] - there_NR).sum(2)
    np.testing.assert_allclose(values_NR, exact_NR, rtol=1e-5, atol=1e-5)


def test_links_are_those_of_the_paper():
    count = 20_000
    links = NativeGraph(normal(count, 4)).links
    assert links.are_sound() and links.levels[links.entry] == links.levels.max() > 2
    assert (links.levels > 1).mean() == pytest.approx(1 / 32, rel=0.1)
    level_0 = links.neighbors[links.offsets[:-1, None] + np.arange(64)]
    assert (np.sort(level_0 < 0) == (level_0 < 0)).all()  # -1 after all others
    own = np.arange(count)[:, None]
    assert ((level_0 == own).sum(), (level_0 >= 0).all(1).mean() < 0.5) == (0, True)
    ordered = np.sort(np.where(level_0 < 0, -own - 1, level_0))
    assert ((np.diff(ordered) == 0) & (ordered[:, 1:] >= 0)).sum() == 0  # no vector twice


def test_a_graph_is_the_same_for_the_same_seed_alone():
    vectors_VD = normal(2000, 8)
    first, again, other = (NativeGraph(vectors_VD, seed=seed).links for seed in (1, 1, 2))
    assert first.entry == again.entry and all(map(np.array_equal, arrays(first), arrays(again)))
    assert not np.array_equal(first.levels, other.levels)
    graph, x_ND = NativeGraph(vectors_VD, again), normal(99, 8, seed=3)
    wanted = graph.search(x_ND, 5, 20, 1)
    for threads in (0, 2, 7):
        assert all(map(np.array_equal, graph.search(x_ND, 5, 20, threads), wanted))


def test_effort_finds_more():
    vectors_VD, x_ND = normal(4000, 20), normal(100, 20, seed=1)
    wanted_NR = NativeFlat(vectors_VD).search(x_ND, 5, 1)[1]
    graph = NativeGraph(vectors_VD)
    found = [share(graph.search(x_ND, 5, effort, 1)[1], wanted_NR) for effort in (5, 50, 4000, 10**6)]
    assert found[0] < found[1] < found[2] == found[3] > 0.999


def test_vectors_that_nothing_leads_to_are_missing():
    vectors_VD = normal(30, 6)
    whole = NativeGraph(vectors_VD).links
    alone = NativeGraph(vectors_VD, replace(whole, neighbors=np.full_like(whole.neighbors, -1)))
    values_NR, numbers_NR = alone.search(normal(20, 6, seed=1), 3, 30, 1)
    assert (numbers_NR == [[whole.entry, -1, -1]]).all()
    assert np.isfinite(values_NR[:, 0]).all() and np.isposinf(values_NR[:, 1:]).all()


@pytest.mark.parametrize("inner_product", [False, True])
def test_a_graph_of_faiss_is_searched(inner_product):
    faiss = pytest.importorskip("faiss")
    vectors_VD, x_ND = normal(3000, 24), normal(100, 24, seed=1)
    theirs = faiss.IndexHNSWFlat(24, 16, faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2)
    theirs.add(vectors_VD)
    levels, offsets, neighbors = (
        faiss.vector_to_array(getattr(theirs.hnsw, name)) for name in ("levels", "offsets", "neighbors")
    )
    links = Links(levels, offsets.astype(np.int64), neighbors, theirs.hnsw.entry_point, 16)
    assert links.are_sound()
    found = NativeGraph(vectors_VD, links, inner_product=inner_product).search(x_ND, 5, 40, 1)[1]
    assert share(found, theirs.search(x_ND, 5, params=faiss.SearchParametersHNSW(efSearch=40))[1]) > 0.97


def test_links_that_lead_out_of_the_arrays_are_noticed():
    good = NativeGraph(normal(300, 4)).links
    upper = int(np.argmax(good.levels))
    assert good.are_sound() and good.levels[upper] > 1

    def changed(name, place, value):
        array = getattr(good, name).copy()
        array[place] = value
        return replace(good, **{name: array})

    only_below = int(np.argmin(good.levels))
    for links in (
        changed("levels", 7, 0), changed("levels", 7, 9), changed("offsets", 1, 60), changed("offsets", 0, 1),
        changed("neighbors", 5, 300), changed("neighbors", 5, -2), replace(good, entry=300), replace(good, entry=-1),
        replace(good, entry=only_below), replace(good, links=16), replace(good, neighbors=good.neighbors[:-1]),
        replace(good, offsets=good.offsets[:-1]), changed("neighbors", good.offsets[upper] + 64, only_below),
        Links(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int32), 0),
    ):  # fmt: skip
        assert not links.are_sound()


def test_values_that_overflow_are_infinite():
    vectors_VD = normal(200, 3)
    vectors_VD[::2] *= np.float32(1e30)
    values_NR, numbers_NR = NativeGraph(vectors_VD).search(normal(5, 3, seed=1), 200, 200, 1)
    assert not np.isnan(values_NR).any() and (np.sort(numbers_NR)[:, -1] < 200).all()


def test_threads_of_the_caller_share_a_graph():
    graph, x_ND = NativeGraph(normal(1000, 12)), normal(200, 12, seed=1)
    wanted = graph.search(x_ND, 3, 30, 1)
    with ThreadPoolExecutor(4) as pool:
        for call in [pool.submit(graph.search, x_ND, 3, 30, 2) for _ in range(20)]:
            assert all(map(np.array_equal, call.result(), wanted))
    assert graph.search(x_ND[:0], 3, 30, 2)[0].shape == (0, 3)


def test_ctrl_c_ends_building():
    vectors_VD = normal(300_000, 64)
    Timer(0.3, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        NativeGraph(vectors_VD)


def test_exhausted_memory_is_a_resource_error(monkeypatch):
    graph = NativeGraph(normal(5, 2))
    exhausted = SimpleNamespace(qinco_build_graph=lambda *_: 1, qinco_search_graph=lambda *_: 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "compiled", lambda: exhausted)
        for call in (lambda: NativeGraph(normal(5, 2)), lambda: graph.search(normal(3, 2), 1, 1, 1)):
            with pytest.raises(ResourceError, match="memory"):
                call()
