"""Searches by ids, for hits that differ, and by several vectors."""

import numpy as np
import pytest
from small_indexes import DIM, trained, vectors

from qinco.collection.collection import Collection
from qinco.errors import ConfigError, DataError

X, N = vectors(600, 4), 600
METRICS = ["l2", "cosine", "inner_product"]


def prepared(metric, x_ND):
    return x_ND / np.linalg.norm(x_ND, axis=-1, keepdims=True) if metric == "cosine" else x_ND


def similarities(metric, queries_TD, x_ND):
    """Of which the largest are nearest."""
    queries_TD, x_ND = prepared(metric, queries_TD), prepared(metric, x_ND)
    return -np.square(queries_TD[:, None] - x_ND).sum(2) if metric == "l2" else queries_TD @ x_ND.T


@pytest.fixture(params=METRICS)
def docs(request, tmp_path):
    """400 records in a segment and 200 fresh ones."""
    with Collection.create(tmp_path / "c.qinco", metric=request.param, codec=trained("plain")) as docs:
        docs.upsert(range(400), X[:400], [{"n": n} for n in range(400)])
        docs.optimize()
        docs.upsert([f"f{n}" for n in range(200)], X[400:])
        yield docs


def test_records_near_another(docs):
    for id in (7, "f3"):
        vector = docs.get(id, with_vectors=True)[0].vector
        wanted = [hit.id for hit in docs.search(vector, 11) if hit.id != id][:10]
        assert [hit.id for hit in docs.search_by_id(id, 10)] == wanted
    assert [len(hits) for hits in docs.search_by_id([1, "f1", 1], 4)] == [4, 4, 4]
    assert {hit.id for hit in docs.search_by_id(np.int64(3), 50, {"n": {"lt": 9}})} == set(range(9)) - {3}
    docs.upsert(["bare"], None)
    for wrong in (12345, "bare"):
        with pytest.raises(DataError, match=str(wrong)):
            docs.search_by_id(wrong)


def test_ids_alone_are_searched_by(tmp_path):
    with Collection.create(tmp_path / "c.qinco", payload=False) as docs:
        docs.upsert(range(5, 50), X[5:50])
        assert docs.search_by_id(7, 3) == [hit for hit in docs.search(X[7], 4) if hit.id != 7]


def test_hits_that_differ(docs):
    """As a plain maximal marginal relevance over the same candidates."""
    query, metric, k = X[500], docs.metric, 8
    found = docs.search(query, 40, with_vectors=True)
    x = prepared(metric, np.stack([hit.vector for hit in found]))
    relevance = np.array([-hit.score if metric == "l2" else hit.score for hit in found])
    among = -np.square(x[:, None] - x).sum(2) if metric == "l2" else x @ x.T
    for diversity in (0.3, 1.0):
        chosen = [0] if diversity < 1 else []
        while len(chosen) < k:
            left = [row for row in range(40) if row not in chosen]
            values = [(1 - diversity) * relevance[row] - diversity * max(among[row, chosen], default=0) for row in left]
            chosen.append(left[int(np.argmax(values))])
        hits = docs.search(query, k, diversity=diversity, candidates=40)
        assert [hit.id for hit in hits] == [found[row].id for row in chosen]
    assert docs.search(X[:2], 3, diversity=0.0) == docs.search(X[:2], 3)
    id = docs.search(X[0], 1)[0].id
    near = docs.search_by_id(id, 5, diversity=0.5, candidates=5)  # which are all that can be chosen
    assert {hit.id for hit in near} == {hit.id for hit in docs.search_by_id(id, 5)}
    with pytest.raises(ConfigError, match="candidates must be between 5"):
        docs.search_by_id(id, 5, candidates=4)
    assert len(docs.search(X[:2], 3, diversity=0.5, where={"n": {"lt": 2}})[1]) == 2
    with pytest.raises(ConfigError, match="candidates"):
        docs.search(query, 8, diversity=0.5, candidates=5)


@pytest.fixture(params=METRICS)
def texts(request, tmp_path):
    """Records of several vectors each, fresh and compressed, and where their vectors lie in X."""
    generator = np.random.default_rng(0)
    places = {f"t{n}": generator.integers(0, N, generator.integers(1, 8)) for n in range(120)}
    with Collection.create(tmp_path / "c.qinco", metric=request.param, codec=trained("plain"), multi=True) as texts:
        for first in (0, 60):
            some = list(places)[first : first + 60]
            texts.upsert(some, [X[places[id]] for id in some], [{"n": int(id[1:])} for id in some])
            if not first:
                texts.optimize()
        yield texts, places


def best(texts, query_TD, vectors_of: dict) -> list:
    """Ids and MaxSim of all records, nearest first."""
    scores = {id: float(similarities(texts.metric, query_TD, x_nD).max(1).sum()) for id, x_nD in vectors_of.items()}
    return sorted(scores.items(), key=lambda one: -one[1])


def stored(texts) -> dict:
    return {one.id: one.vector for one in texts.get(with_vectors=True) if one.vector is not None}


def test_records_of_several_vectors(texts):
    texts, places = texts
    assert len(texts) == 120 and texts.stats()["vectors"] == sum(map(len, places.values())) and texts.verify() == []
    for id in ("t3", "t100"):
        (record,) = texts.get(id, with_vectors=True)
        assert record.vector.shape == (len(places[id]), X.shape[1])
    assert np.array_equal(texts.get("t100", with_vectors=True)[0].vector, X[places["t100"]])


def test_the_nearest_by_several_vectors(texts):
    texts, places = texts
    queries, number = [X[:5], X[9:10], X[20:32]], sum(map(len, places.values()))
    for exact in (True, False):
        found = texts.search_multi(queries, 7, exact=exact, candidates=number - 1, nprobe=100, num_short=1000)
        for query_TD, hits in zip(queries, found, strict=True):
            wanted = best(texts, query_TD, stored(texts))
            scores = [-hit.score if texts.metric == "l2" else hit.score for hit in hits]
            assert np.allclose(scores, [score for _, score in wanted[:7]], rtol=1e-3, atol=1e-3)
            assert np.allclose(scores, [dict(wanted)[hit.id] for hit in hits], rtol=1e-3, atol=1e-3)
    assert texts.search_multi(queries[0], 3) == texts.search_multi(np.array([queries[0]]), 3)[0]
    few = [hit.id for hit in texts.search_multi(queries[0], 10, candidates=30)]
    assert len(set(few) & {id for id, _ in best(texts, queries[0], stored(texts))[:10]}) >= 6
    assert texts.search(X[:2], 3) == texts.search_multi(X[:2, None], 3)
    near = [hit for hit in texts.search_multi(stored(texts)["t3"], 4) if hit.id != "t3"]
    assert texts.search_by_id("t3", 3) == near[:3]


def test_filters_and_changes_of_records_of_several_vectors(texts):
    texts, _ = texts
    assert {hit.id for hit in texts.search_multi(X[:3], 50, {"n": {"lt": 20}})} == {f"t{n}" for n in range(20)}
    assert {hit.id for hit in texts.search_multi(X[:3], 50, filter=["t1", "t70"])} == {"t1", "t70"}
    assert texts.delete([f"t{n}" for n in range(0, 120, 2)]) == 60
    texts.upsert(["t1", "t1", "new", "none"], [X[:1], X[1:5], X[5:9], None])
    left = stored(texts)
    assert left.keys() == {f"t{n}" for n in range(1, 120, 2)} | {"new"} and left["t1"].shape == (4, X.shape[1])
    for _ in range(2):
        hits = texts.search_multi(X[:3], 200, candidates=1000, nprobe=100, num_short=1000)
        assert {hit.id for hit in hits} == left.keys() and texts.verify() == []
        texts.optimize()
    with Collection.open(texts.folder, read_only=True) as reader:
        assert reader.search_multi(X[:3], 5) == texts.search_multi(X[:3], 5)


def test_records_found_often_leave_room_for_others(tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2", multi=True) as texts:
        texts.upsert(["many", "few", "far"], [np.repeat(X[:1], 300, 0), X[1:2], X[2:3] + 100])
        assert [hit.id for hit in texts.search_multi(X[:1], 3)] == ["many", "few", "far"]
        assert texts.search_multi([], 3) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda texts: texts.search_multi(np.zeros((0, X.shape[1]), np.float32)),
        lambda texts: texts.search_multi(X[:2, :3]),
        lambda texts: texts.search_multi([X[:2], X[:2, :3]]),
        lambda texts: texts.search(X[0], diversity=0.5),
        lambda texts: texts.upsert(["a"], X[:1]),
        lambda texts: texts.upsert(["a"], [X[:2, :3]]),
        lambda texts: texts.upsert(["a", "b"], [X[:2]]),
        lambda texts: texts.upsert(["a"], [X[:2] * np.nan]),
        lambda texts: texts.search_multi(X[:2], candidates=3),
    ],
)
def test_several_vectors_that_do_not_fit_are_refused(tmp_path, call):
    with Collection.create(tmp_path / "c.qinco", multi=True, dim=X.shape[1]) as texts:
        with pytest.raises((ConfigError, DataError)):
            call(texts)
        assert len(texts) == 0


def test_collections_of_single_vectors_say_so(docs, tmp_path):
    with pytest.raises(ConfigError, match="multi=true"):
        docs.search_multi(X[:2])
    with pytest.raises(ConfigError, match="payload"):
        Collection.create(tmp_path / "d.qinco", multi=True, payload=False)


@pytest.mark.parametrize("strange", [[], ["a\0b", "a\0c"]])
def test_ids_are_the_same_with_payloads_and_without(tmp_path, strange):
    """Without payloads they are read in one row, unless one holds NUL or there are many."""
    ids = [0, (1 << 63) - 1, "0", "", "ü\n\"'\\\x01\u2028", "🙂", "x" * 512, *strange, *range(5, 1500)]
    x_ND = np.random.default_rng(0).standard_normal((len(ids), 4)).astype(np.float32)
    with Collection.create(tmp_path / "ids.qinco", metric="l2") as docs:
        docs.upsert(ids, x_ND, [{"n": 1}] * len(ids))
        for k, queries in ((1, x_ND[: 8 + len(strange)]), (5, x_ND[3]), (len(ids), x_ND[:2])):
            plain, hits = docs.search(queries, k), docs.search(queries, k, with_payload=False)
            plain, hits = ([found] if queries.ndim == 1 else found for found in (plain, hits))
            assert [[(one.id, one.score) for one in own] for own in hits] == [
                [(one.id, one.score) for one in own] for own in plain
            ]
            assert all(type(one.id) is type(other.id) for own, others in zip(hits, plain, strict=True)
                       for one, other in zip(own, others, strict=True))  # fmt: skip
        assert [own[0].id for own in docs.search(x_ND, 1, with_payload=False)] == ids


def test_arrays_and_files_of_queries_find_the_same(tmp_path):
    x_ND = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    np.save(tmp_path / "queries.npy", x_ND[:9])
    with Collection.create(tmp_path / "c.qinco", metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(300), x_ND)
        for fresh in (True, False):  # and then compressed
            found = docs.search(tmp_path / "queries.npy", 4)
            assert docs.search(x_ND[:9], 4) == docs.search(x_ND[:9].tolist(), 4) == found
            assert docs.search(x_ND[0], 4, exact=True) == docs.search(x_ND[:1], 4, exact=True)[0]
            with pytest.raises(DataError, match="dimension"):
                docs.search(x_ND[:9, 1:], 4)
            if fresh:
                docs.optimize()
