"""Coarse centroids: which list a vector belongs to, and which lists a query probes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from native_levels import needs_native
from small_models import random_vectors

from qinco.errors import DataError
from qinco.maths import assignment
from qinco.maths.assignment import NearestCentroids, assigner, search_effort
from qinco.native import flat
from qinco.search.tables import CoarseGraph

CENTROIDS = random_vectors(500, 6, seed=1)
QUERIES = random_vectors(80, 6, seed=2)


def exact(queries_QD, centroids_VD, inner_product=False):
    """All values of each query, and the order of them."""
    if inner_product:
        values_QV = -(queries_QD @ centroids_VD.T)
    else:
        values_QV = np.square(queries_QD[:, None] - centroids_VD).sum(2)
    return values_QV, np.argsort(values_QV, axis=1)


def agreement(lists, expected):
    return np.mean([np.isin(found, best).mean() for found, best in zip(lists, expected, strict=True)])


def test_assignment_is_exact(device):
    def sent(x_ND):
        return x_ND if device.type == "cpu" else torch.from_numpy(x_ND).to(device)

    assign = assigner(CENTROIDS, str(device))
    lists_N = assign(sent(QUERIES[::2].copy()))
    assert lists_N.dtype == np.int64
    np.testing.assert_array_equal(lists_N, exact(QUERIES[::2], CENTROIDS)[1][:, 0])
    assert assign(sent(np.empty((0, 6), np.float32))).shape == (0,)


@needs_native
def test_very_many_centroids_are_assigned_through_a_graph():
    x_ND = random_vectors(2000, 6, seed=3)
    assign = {effort: assigner(CENTROIDS, max_exact=100, effort=effort) for effort in (1, 128)}
    lists = {effort: found(x_ND) for effort, found in assign.items()}
    share = {effort: (lists_N == exact(x_ND, CENTROIDS)[1][:, 0]).mean() for effort, lists_N in lists.items()}
    assert share[1] < 0.99 < share[128]


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("effort", [None, 500])
def test_the_nearest_centroids_are_found(inner_product, effort):
    values_QV, order_QV = exact(QUERIES, CENTROIDS, inner_product)
    centroids = NearestCentroids(CENTROIDS, inner_product=inner_product)
    values, lists = centroids.search(QUERIES, 10, effort)
    assert values.dtype == np.float32 and lists.dtype == np.int64 and lists.shape == (len(QUERIES), 10)
    assert agreement(lists, order_QV[:, :10]) > (0.97 if effort else 0.999)
    np.testing.assert_allclose(values, np.take_along_axis(values_QV, lists, 1), rtol=1e-3, atol=1e-3)
    assert (np.diff(values, axis=1) >= 0).all()


@needs_native
def test_the_effort_of_the_search_is_honoured():
    order_QV = exact(QUERIES, CENTROIDS)[1]
    assigner = CoarseGraph(CENTROIDS)
    found = {effort: agreement(assigner.probe(QUERIES, 1, effort)[1], order_QV[:, :1]) for effort in (1, 300)}
    assert found[1] < found[300] and found[300] >= 0.99
    assert search_effort(16, 4) == 16 and search_effort(4, 90) == 90 and search_effort(100, None) == 200


@needs_native
def test_a_graph_that_does_not_lead_everywhere_is_helped():
    links = CoarseGraph(CENTROIDS).links
    alone = replace(links, neighbors=np.full_like(links.neighbors, -1))
    graph = CoarseGraph(CENTROIDS, links=alone)
    values, lists = graph.probe(QUERIES, 7)
    for found, wanted in zip((values, lists), NearestCentroids(CENTROIDS).search(QUERIES, 7), strict=True):
        assert np.array_equal(found, wanted)


def test_without_compiled_kernels_all_are_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(assignment, "is_available", lambda: False)
    monkeypatch.setattr(flat, "compiled", lambda: None)
    graph = CoarseGraph(CENTROIDS)
    assert np.array_equal(graph.probe(QUERIES, 5, 5)[1], exact(QUERIES, CENTROIDS)[1][:, :5]) and graph.links is None


def test_threads_with_different_efforts_do_not_disturb_each_other():
    assigner = CoarseGraph(CENTROIDS)
    efforts = [1, 2, 300] * 8
    alone = {effort: CoarseGraph(CENTROIDS).probe(QUERIES, 1, effort)[1] for effort in set(efforts)}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda effort: assigner.probe(QUERIES, 1, effort)[1], efforts))
    for effort, lists in zip(efforts, together, strict=True):
        np.testing.assert_array_equal(lists, alone[effort])


def of_faiss(tmp_path, index, centroids_VD=CENTROIDS, flags=None):
    faiss = pytest.importorskip("faiss")
    index.add(centroids_VD)
    path = tmp_path / "graph.faissindex"
    path.write_bytes(faiss.serialize_index(index, faiss.IO_FLAG_SKIP_STORAGE if flags is None else flags).tobytes())
    return path


@needs_native
@pytest.mark.parametrize("inner_product", [False, True])
def test_a_graph_comes_back_from_a_file(tmp_path, inner_product):
    graph, path = CoarseGraph(CENTROIDS, inner_product=inner_product), tmp_path / "graph.safetensors"
    graph.save(path)
    again = CoarseGraph.read(path, CENTROIDS, inner_product=inner_product)
    for mine, theirs in zip(again.probe(QUERIES, 5, 5), graph.probe(QUERIES, 5, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@needs_native
@pytest.mark.parametrize("inner_product", [False, True])
def test_a_graph_of_faiss_is_taken(tmp_path, inner_product):
    faiss = pytest.importorskip("faiss")
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    theirs = faiss.IndexHNSWFlat(6, 32, metric)
    graph = CoarseGraph.read(of_faiss(tmp_path, theirs), CENTROIDS, inner_product=inner_product)
    wanted = theirs.search(QUERIES, 5, params=faiss.SearchParametersHNSW(efSearch=20))[1]
    assert agreement(graph.probe(QUERIES, 5, 20)[1], wanted) > 0.97
    assert np.array_equal(graph.links.levels, faiss.vector_to_array(theirs.hnsw.levels))


@needs_native
@pytest.mark.parametrize(
    ("data", "centroids", "options"),
    [
        (lambda good: good[:-1], CENTROIDS, {}), (lambda good: good[:3], CENTROIDS, {}),
        (lambda good: good, CENTROIDS[:-1], {}), (lambda good: good, CENTROIDS, {"inner_product": True}),
        (lambda good: good.replace(b"levels", b"levelz"), CENTROIDS, {}),
        (lambda good: good.replace(b'"entry', b'"entrz'), CENTROIDS, {}),
    ],
)  # fmt: skip
def test_what_is_no_graph_of_the_centroids_is_refused(tmp_path, data, centroids, options):
    path = tmp_path / "hnsw.bin"
    CoarseGraph(CENTROIDS).save(path)
    path.write_bytes(data(path.read_bytes()))
    with pytest.raises(DataError, match=r"hnsw\.bin"):
        CoarseGraph.read(path, centroids, **options)


def test_other_files_of_faiss_are_refused(tmp_path):
    faiss = pytest.importorskip("faiss")
    for index, flags, centroids, options in (
        (faiss.IndexHNSWFlat(6, 32), None, CENTROIDS[:-1], {}),
        (faiss.IndexHNSWFlat(6, 32), None, CENTROIDS[:, :-1], {}),
        (faiss.IndexHNSWFlat(6, 32), None, CENTROIDS, {"inner_product": True}),
        (faiss.IndexFlatL2(6), 0, CENTROIDS, {}),
        (faiss.IndexHNSWFlat(6, 32), 0, CENTROIDS, {}),
    ):
        path = of_faiss(tmp_path, index, flags=flags)
        with pytest.raises(DataError, match=r"graph\.faissindex"):
            CoarseGraph.read(path, centroids, **options)


@needs_native
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_damaged_graph_is_refused_or_harmless(tmp_path, is_ours):
    centroids_VD, path = CENTROIDS[:40], tmp_path / "hnsw.bin"
    if is_ours:
        CoarseGraph(centroids_VD).save(path)
    else:
        faiss = pytest.importorskip("faiss")
        path = of_faiss(tmp_path, faiss.IndexHNSWFlat(6, 32), centroids_VD)
    good = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for place in [*range(400), *generator.integers(len(good), size=600)]:
        bad = good.copy()
        bad[place] ^= 1 << generator.integers(8)
        path.write_bytes(bad)
        try:
            graph = CoarseGraph.read(path, centroids_VD)
        except DataError:
            refused += 1
        else:
            for effort in (1, 100):
                lists = graph.probe(QUERIES, 5, effort)[1]
                assert lists.min() >= 0 and lists.max() < 40
    assert 0 < refused < 1000
