from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
import torch
from small_models import random_vectors

from qinco.engines import coarse
from qinco.engines.coarse import GRAPH_LISTS, CoarseAssigner, assigner_of, faiss_threads, search_effort
from qinco.errors import DataError

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


def test_assignment_is_exact():
    lists = CoarseAssigner(CENTROIDS).assign(QUERIES[::2])
    assert lists.dtype == np.int64
    np.testing.assert_array_equal(lists, exact(QUERIES[::2], CENTROIDS)[1][:, 0])
    assert CoarseAssigner(CENTROIDS[:1]).assign(QUERIES).tolist() == [0] * len(QUERIES)


def test_tensors_are_assigned_on_their_device(device):
    assign = assigner_of(torch.from_numpy(CENTROIDS).to(device))
    lists_N = assign(torch.from_numpy(QUERIES[::2]).to(device))
    assert lists_N.dtype == torch.int64 and lists_N.device.type == device.type
    np.testing.assert_array_equal(lists_N.cpu().numpy(), exact(QUERIES[::2], CENTROIDS)[1][:, 0])
    assert assign(torch.empty(0, 6, device=device)).shape == (0,)


def test_inner_products_do_not_change_the_assignment():
    assigner = CoarseAssigner(CENTROIDS, inner_product=True)
    np.testing.assert_array_equal(assigner.assign(QUERIES), CoarseAssigner(CENTROIDS).assign(QUERIES))


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("hnsw", [False, True])
def test_probes_are_the_nearest_centroids(inner_product, hnsw):
    values_QV, order_QV = exact(QUERIES, CENTROIDS, inner_product)
    assigner = CoarseAssigner(CENTROIDS, inner_product=inner_product, hnsw=hnsw)
    values, lists = assigner.probe(QUERIES, 10, ef_search=500)
    assert values.dtype == np.float32 and lists.dtype == np.int64 and lists.shape == (len(QUERIES), 10)
    assert agreement(lists, order_QV[:, :10]) > (0.97 if hnsw else 0.999)
    np.testing.assert_allclose(values, np.take_along_axis(values_QV, lists, 1), rtol=1e-3, atol=1e-3)
    assert (np.diff(values, axis=1) >= 0).all()


@pytest.mark.parametrize("hnsw", [False, True])
def test_all_centroids_are_probed_where_there_are_fewer_than_asked_for(hnsw):
    _, lists = CoarseAssigner(CENTROIDS[:7], hnsw=hnsw).probe(QUERIES, 20)
    assert (np.sort(lists, axis=1) == np.arange(7)).all()


def test_the_effort_of_the_search_is_honoured():
    order_QV = exact(QUERIES, CENTROIDS)[1]
    assigner = CoarseAssigner(CENTROIDS, hnsw=True)
    found = {effort: agreement(assigner.probe(QUERIES, 1, effort)[1], order_QV[:, :1]) for effort in (1, 300)}
    assert found[1] < found[300] and found[300] >= 0.99
    assert search_effort(16, 4) == 16 and search_effort(4, 90) == 90 and search_effort(100, None) == 200


def test_a_graph_that_does_not_lead_everywhere_is_helped():
    centroids_VD = np.repeat(random_vectors(3, 6), 200, axis=0)
    assigner = CoarseAssigner(centroids_VD, hnsw=True)
    plain = faiss.IndexHNSWFlat(6, 32)
    plain.add(centroids_VD)
    assert (plain.search(QUERIES, 600)[1] < 0).any()
    values, lists = assigner.probe(QUERIES, 600)
    assert (np.sort(lists, axis=1) == np.arange(600)).all() and np.isfinite(values).all()


def test_threads_with_different_efforts_do_not_disturb_each_other():
    assigner = CoarseAssigner(CENTROIDS, hnsw=True)
    efforts = [1, 2, 300] * 8
    alone = {effort: CoarseAssigner(CENTROIDS, hnsw=True).probe(QUERIES, 1, effort)[1] for effort in set(efforts)}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda effort: assigner.probe(QUERIES, 1, effort)[1], efforts))
    for effort, lists in zip(efforts, together, strict=True):
        np.testing.assert_array_equal(lists, alone[effort])


def test_graphs_are_for_many_centroids():
    few, many = (CoarseAssigner(np.zeros((count, 1), np.float32)) for count in (GRAPH_LISTS - 1, GRAPH_LISTS))
    assert (few.has_graph, many.has_graph) == (False, True)


def test_very_many_centroids_are_assigned_through_a_graph(monkeypatch):
    monkeypatch.setattr(coarse, "_EXACT_LISTS", 100)
    assigner = CoarseAssigner(CENTROIDS)
    x_ND = random_vectors(2000, 6, seed=3)
    assert (assigner.assign(x_ND) == exact(x_ND, CENTROIDS)[1][:, 0]).mean() > 0.99
    monkeypatch.setattr(coarse, "_ASSIGN_EFFORT", 1)
    assert (assigner.assign(x_ND) == exact(x_ND, CENTROIDS)[1][:, 0]).mean() < 0.99


def test_the_graph_does_not_depend_on_threads():
    with faiss_threads(2):
        assert faiss.omp_get_max_threads() == 2
        several = CoarseAssigner(CENTROIDS, hnsw=True).serialize()
    with faiss_threads(1):
        assert CoarseAssigner(CENTROIDS, hnsw=True).serialize() == several


def test_threads_are_given_back():
    before = faiss.omp_get_max_threads()
    with pytest.raises(KeyError), faiss_threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
        raise KeyError
    with faiss_threads(None):
        assert faiss.omp_get_max_threads() == before
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("inner_product", [False, True])
def test_a_graph_comes_back_from_bytes_and_from_a_file(tmp_path, inner_product):
    assigner = CoarseAssigner(CENTROIDS, inner_product=inner_product, hnsw=True)
    data = assigner.serialize()
    assert len(data) < faiss.serialize_index(assigner._index(inner_product, True)).nbytes - CENTROIDS.nbytes
    path = tmp_path / "graph.faissindex"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        again = CoarseAssigner.deserialize(source, CENTROIDS, inner_product=inner_product)
        for mine, theirs in zip(again.probe(QUERIES, 5, 5), assigner.probe(QUERIES, 5, 5), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert again.serialize() == data


def test_no_graph_is_no_bytes():
    assert CoarseAssigner(CENTROIDS).serialize() == b""
    again = CoarseAssigner.deserialize(b"", CENTROIDS)
    assert not again.has_graph and (again.probe(QUERIES, 3)[1] == exact(QUERIES, CENTROIDS)[1][:, :3]).all()


def _serialized(index):
    return faiss.serialize_index(index).tobytes()


def _flat():
    index = faiss.IndexFlatL2(6)
    index.add(CENTROIDS)
    return index


def _whole_graph():
    index = faiss.IndexHNSWFlat(6, 32)
    index.add(CENTROIDS)
    return index


@pytest.mark.parametrize(
    ("data", "centroids", "reason"),
    [
        (lambda good: good[:-1], CENTROIDS, "needs 4 more bytes and has 3"),
        (lambda good: good[: len(good) // 2], CENTROIDS, "truncated or damaged"),
        (lambda good: good[:3], CENTROIDS, "truncated or damaged"),
        (lambda good: good + b"\0", CENTROIDS, "bytes after its end"),
        (lambda good: b"no graph at all", CENTROIDS, "of the kind 'no g'"),
        (lambda good: good, CENTROIDS[:-1], "another dimension, number of lists or metric"),
        (lambda good: good, CENTROIDS[:, :-1], "another dimension, number of lists or metric"),
        (lambda good: _serialized(_flat()), CENTROIDS, "no graph without its centroids"),
        (lambda good: _serialized(_whole_graph()), CENTROIDS, "no graph without its centroids"),
    ],
)
def test_what_is_no_graph_of_the_centroids_is_refused(tmp_path, data, centroids, reason):
    damaged = data(CoarseAssigner(CENTROIDS, hnsw=True).serialize())
    with pytest.raises(DataError, match=f"^the graph of the coarse centroids.*{reason}"):
        CoarseAssigner.deserialize(damaged, centroids)
    path = tmp_path / "hnsw.bin"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=f"hnsw.bin.*{reason}"):
        CoarseAssigner.deserialize(path, centroids)


def test_another_metric_and_a_missing_file_are_refused(tmp_path):
    data = CoarseAssigner(CENTROIDS, hnsw=True).serialize()
    with pytest.raises(DataError, match="metric"):
        CoarseAssigner.deserialize(data, CENTROIDS, inner_product=True)
    with pytest.raises(DataError, match=r"cannot read .*nothing\.bin: No such file"):
        CoarseAssigner.deserialize(tmp_path / "nothing.bin", CENTROIDS)


def test_a_damaged_graph_is_refused_or_harmless():
    centroids_VD = CENTROIDS[:40]
    good = np.frombuffer(CoarseAssigner(centroids_VD, hnsw=True).serialize(), np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for place in [*range(400), *generator.integers(len(good), size=600)]:
        bad = good.copy()
        bad[place] ^= 1 << generator.integers(8)
        try:
            assigner = CoarseAssigner.deserialize(bad.tobytes(), centroids_VD)
        except DataError:
            refused += 1
        else:
            for effort in (1, 100):
                lists = assigner.probe(QUERIES, 5, effort)[1]
                assert lists.min() >= 0 and lists.max() < 40
    assert 0 < refused < 1000
