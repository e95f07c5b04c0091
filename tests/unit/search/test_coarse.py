"""Coarse centroids: which list a vector belongs to, and which lists a query probes."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
import torch
from small_models import random_vectors

from qinco.errors import DataError
from qinco.machine import using_threads
from qinco.maths.assignment import NearestCentroids, assigner, search_effort
from qinco.maths.clustering import faiss_threads
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


def test_the_effort_of_the_search_is_honoured():
    order_QV = exact(QUERIES, CENTROIDS)[1]
    assigner = CoarseGraph(CENTROIDS)
    found = {effort: agreement(assigner.probe(QUERIES, 1, effort)[1], order_QV[:, :1]) for effort in (1, 300)}
    assert found[1] < found[300] and found[300] >= 0.99
    assert search_effort(16, 4) == 16 and search_effort(4, 90) == 90 and search_effort(100, None) == 200


def test_a_graph_that_does_not_lead_everywhere_is_helped():
    centroids_VD = np.repeat(random_vectors(3, 6), 200, axis=0)
    assigner = CoarseGraph(centroids_VD)
    plain = faiss.IndexHNSWFlat(6, 32)
    plain.add(centroids_VD)
    assert (plain.search(QUERIES, 600)[1] < 0).any()
    values, lists = assigner.probe(QUERIES, 600)
    assert (np.sort(lists, axis=1) == np.arange(600)).all() and np.isfinite(values).all()


def test_threads_with_different_efforts_do_not_disturb_each_other():
    assigner = CoarseGraph(CENTROIDS)
    efforts = [1, 2, 300] * 8
    alone = {effort: CoarseGraph(CENTROIDS).probe(QUERIES, 1, effort)[1] for effort in set(efforts)}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda effort: assigner.probe(QUERIES, 1, effort)[1], efforts))
    for effort, lists in zip(efforts, together, strict=True):
        np.testing.assert_array_equal(lists, alone[effort])


def test_the_graph_does_not_depend_on_threads():
    with using_threads(2), faiss_threads(2):
        assert faiss.omp_get_max_threads() == 2
        several = CoarseGraph(CENTROIDS).serialize()
    with faiss_threads(1):
        assert CoarseGraph(CENTROIDS).serialize() == several


@pytest.mark.parametrize("inner_product", [False, True])
def test_a_graph_comes_back_from_a_file(tmp_path, inner_product):
    graph = CoarseGraph(CENTROIDS, inner_product=inner_product)
    data = graph.serialize()
    whole = NearestCentroids(CENTROIDS, inner_product=inner_product).graph()
    assert len(data) < faiss.serialize_index(whole).nbytes - CENTROIDS.nbytes
    path = tmp_path / "graph.faissindex"
    path.write_bytes(data)
    again = CoarseGraph.read(path, CENTROIDS, inner_product=inner_product)
    for mine, theirs in zip(again.probe(QUERIES, 5, 5), graph.probe(QUERIES, 5, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.serialize() == data


def _of_faiss(index) -> bytes:
    index.add(CENTROIDS)
    return faiss.serialize_index(index).tobytes()


@pytest.mark.parametrize(
    ("data", "centroids", "options"),
    [
        (lambda good: good[:-1], CENTROIDS, {}), (lambda good: good[:3], CENTROIDS, {}),
        (lambda good: good, CENTROIDS[:-1], {}), (lambda good: good, CENTROIDS[:, :-1], {}),
        (lambda good: good, CENTROIDS, {"inner_product": True}),
        (lambda good: _of_faiss(faiss.IndexFlatL2(6)), CENTROIDS, {}),
        (lambda good: _of_faiss(faiss.IndexHNSWFlat(6, 32)), CENTROIDS, {}),
    ],
)  # fmt: skip
def test_what_is_no_graph_of_the_centroids_is_refused(tmp_path, data, centroids, options):
    path = tmp_path / "hnsw.bin"
    path.write_bytes(data(CoarseGraph(CENTROIDS).serialize()))
    with pytest.raises(DataError, match=r"hnsw\.bin"):
        CoarseGraph.read(path, centroids, **options)


def test_a_damaged_graph_is_refused_or_harmless(tmp_path):
    centroids_VD, path = CENTROIDS[:40], tmp_path / "hnsw.bin"
    good = np.frombuffer(CoarseGraph(centroids_VD).serialize(), np.uint8)
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
