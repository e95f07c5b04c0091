"""Collections without segments: records in and out, and exact searches."""

import threading

import numpy as np
import pytest
from small_indexes import exact
from small_models import random_vectors

from qinco.collection.collection import Collection
from qinco.errors import ConfigError, DataError

N, D = 300, 8
X = random_vectors(N, D)
QUERIES = random_vectors(5, D, seed=1)
PAYLOADS = [{"n": row, "group": row % 3, "author": {"name": f"a{row % 4}"}} for row in range(N)]
IDS = [row if row % 2 else f"s{row}" for row in range(N)]


@pytest.fixture
def empty(tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2") as collection:
        yield collection


@pytest.fixture
def docs(empty):
    empty.upsert(IDS, X, PAYLOADS)
    return empty


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
@pytest.mark.parametrize("payload", [True, False])
def test_fresh_vectors_are_searched_exactly(tmp_path, metric, payload):
    with Collection.create(tmp_path / "c.qinco", metric=metric, payload=payload) as docs:
        docs.upsert(range(N), X)
        found = docs.search(QUERIES, k=7)
        truth_QN = exact(metric, QUERIES, X)
        order_QN = np.argsort(truth_QN if metric == "l2" else -truth_QN, 1)
        assert [[hit.id for hit in hits] for hits in found] == order_QN[:, :7].tolist()
        scores = np.array([[hit.score for hit in hits] for hits in found])
        assert np.allclose(scores, np.take_along_axis(truth_QN, order_QN[:, :7], 1), rtol=1e-4)
        limit = float(scores[0, 3])
        assert [hit.id for hit in docs.search(QUERIES[0], score_limit=limit)] == order_QN[0, :4].tolist()


def test_an_empty_collection_finds_nothing(empty):
    assert len(empty) == 0 and bool(empty) and empty.dim is None and empty.get() == []
    assert empty.search(QUERIES[0]) == [] and empty.search(QUERIES) == [[]] * len(QUERIES)
    assert empty.delete([1]) == 0 and empty.count({"a": 1}) == 0


def test_records_come_back(docs):
    assert len(docs) == N and docs.dim == D and docs.count({"group": 1}) == 100
    record = docs.get(["s4"], with_vectors=True)[0]
    assert record.id == "s4" and record.payload == PAYLOADS[4] and np.array_equal(record.vector, X[4])
    assert [one.id for one in docs.get([9, "missing", "s2", 9])] == [9, "s2", 9]
    hit = docs.search(X[5], k=1, with_vectors=True)[0]
    assert (hit.id, hit.payload) == (5, PAYLOADS[5]) and np.array_equal(hit.vector, X[5])
    assert docs.search(X[5], k=1, with_payload=False)[0].payload is None


def test_integers_and_strings_differ(empty):
    empty.upsert([1, "1"], X[:2])
    assert (
        len(empty) == 2 and 1 in empty and "1" in empty and 2 not in empty and None not in empty and True not in empty
    )
    assert empty.search(X[1], 1)[0].id == "1"
    assert empty.delete(1) == 1 and 1 not in empty and "1" in empty


def test_upserts_replace_whole_records(docs):
    docs.upsert([1, "new", 1], X[10:13], [{"old": 1}, None, None])
    assert len(docs) == N + 1
    assert docs.get(1, with_vectors=True)[0].payload is None and np.array_equal(
        docs.get(1, with_vectors=True)[0].vector, X[12]
    )
    assert [hit.id for hit in docs.search(X[1], 1)] != [1]


def test_records_without_vectors_are_kept_and_not_found(empty):
    empty.upsert(["a", "b"], [None, X[0]], [{"t": 1}, None])
    empty.upsert(["c"], None, [{"t": 2}])
    assert len(empty) == 3 and [hit.id for hit in empty.search(X[0])] == ["b"]
    assert empty.get("a", with_vectors=True)[0].vector is None
    empty.upsert(["b"], [None])
    assert empty.search(X[0]) == [] and len(empty) == 3


@pytest.mark.parametrize(
    ("ids", "vectors", "payloads"),
    [
        ([1, None], X[:2], None),
        ([1, 2], X[:3], None),
        ([1, 2], X[:2, :5], None),
        ([1, 2], [X[0], np.full(D, np.nan)], None),
        ([1, 2], X[:2], [{"a": 1}, {"a": float("nan")}]),
        ([1, 2], X[:2], [{"a": 1}]),
    ],
)
def test_a_refused_batch_leaves_nothing(docs, ids, vectors, payloads):
    before = docs.get(with_vectors=True)
    with pytest.raises(DataError):
        docs.upsert(ids, vectors, payloads)
    assert docs.get() == before and len(docs) == N


def test_pages_follow_ids_or_a_field(docs):
    pages, after = [], None
    while page := docs.get(limit=70, after=after):
        pages += [one.id for one in page]
        after = page[-1].id
    assert pages == sorted(i for i in IDS if isinstance(i, int)) + sorted(i for i in IDS if isinstance(i, str))
    docs.upsert(["bare"], X[:1])
    for sign in ("", "-"):
        found, after = [], None
        while page := docs.get(where=None, limit=37, after=after, order_by=f"{sign}author.name"):
            found += [(one.payload and one.payload["author"]["name"]) for one in page]
            after = page[-1].id
        assert len(found) == N + 1 and found[-1] is None
        assert found[:-1] == sorted(found[:-1], reverse=sign == "-")
    assert [one.payload["n"] for one in docs.get(where={"group": 2}, limit=3, order_by="-n")] == [299, 296, 293]


def test_filters_and_ids_restrict_searches(docs):
    found = docs.search(QUERIES, k=N, where={"group": 1, "n": {"gte": 100}})
    assert all({hit.payload["n"] for hit in hits} == {n for n in range(100, N) if n % 3 == 1} for hits in found)
    chosen = [IDS[row] for row in (3, 4, 100)] + ["unknown"]
    assert {hit.id for hit in docs.search(QUERIES[0], filter=chosen)} == {3, "s4", "s100"}
    assert {hit.id for hit in docs.search(QUERIES[0], where={"group": 1}, filter=chosen)} == {"s4", "s100"}
    assert docs.search(QUERIES[0], where={"group": 7}) == []


def test_samples_are_random_records(docs):
    docs.upsert([500, "bare"], [None, None], [{"group": 1}, None])
    assert docs.sample(5, seed=1) == docs.sample(5, seed=1) != docs.sample(5, seed=2)
    for where in None, {"group": 1}, {"n": {"lt": 4}}, {"n": -1}:
        for has_vector in True, False:
            known = {one.id for one in docs.get(where=where, with_vectors=True)
                     if one.vector is not None or not has_vector}  # fmt: skip
            found = docs.sample(1000, where, has_vector=has_vector)
            assert len(found) == len(known) and {*found} == known and len(docs.sample(3, where)) == min(3, len(known))
    assert np.ptp([id for id in docs.sample(100, {"$not": {"n": -1}}, seed=0) if not isinstance(id, str)]) > N / 2


def test_payloads_change_and_vectors_stay(docs):
    assert docs.update_payload({"seen": True, "group": 9}, ids=[1, "s2", "unknown"]) == 2
    assert docs.get(1)[0].payload == PAYLOADS[1] | {"seen": True, "group": 9}
    assert docs.update_payload({"only": 1}, where={"group": 9}, mode="replace") == 2
    assert docs.get("s2")[0].payload == {"only": 1} and docs.search(X[2], 1)[0].payload == {"only": 1}
    assert docs.update_payload(["n", "absent"], ids=3, mode="remove") == 1 and "n" not in docs.get(3)[0].payload
    docs.update_payload({"born": 1900}, ids=3, key="author")
    assert docs.get(3)[0].payload["author"] == {"name": "a3", "born": 1900}
    docs.upsert(["bare"], X[:1])
    docs.update_payload({"a": 1}, ids="bare", key="x.y")
    assert docs.update_payload(lambda old: {"was": old.get("n")}, ids=["s2", "unknown"]) == 1
    assert docs.get("bare")[0].payload == {"x": {"y": {"a": 1}}}


def test_declared_fields_are_found_by_an_index(docs):
    wanted = docs.get(where={"author.name": "a1", "n": {"gte": 40}})
    for path, kind in (("author.name", "keyword"), ("n", "integer"), ("n", "float")):
        docs.add_field(path, kind)
        assert docs.get(where={"author.name": "a1", "n": {"gte": 40}}) == wanted
    assert docs.stats()["fields"] == {"author.name": "keyword", "n": "float"}
    docs.upsert(["late"], X[:1], [{"author": {"name": "a1"}, "n": 500}])
    assert len(docs.get(where={"author.name": "a1", "n": {"gte": 40}})) == len(wanted) + 1
    assert docs.drop_field("n") and not docs.drop_field("n") and docs.count({"n": 500}) == 1
    with pytest.raises(ConfigError):
        docs.add_field("n", "number")
    with pytest.raises(ConfigError):
        docs.add_field("tags[]", "keyword")


def test_deletes_by_ids_and_filters(docs):
    assert docs.delete([1, "s2", "unknown"]) == 2 and docs.delete(where={"group": 0}) == 100 and len(docs) == N - 102
    assert {hit.payload["n"] for hit in docs.search(QUERIES[0], N)} == {
        n for n in range(N) if n % 3 and n not in (1, 2)
    }
    docs.clear()
    assert len(docs) == 0 and docs.search(QUERIES[0]) == []
    docs.upsert([5], X[:1])
    assert [hit.id for hit in docs.search(QUERIES[0])] == [5]


@pytest.mark.parametrize("call", [
    lambda docs: docs.delete(), lambda docs: docs.delete([1], where={"a": 1}),
    lambda docs: docs.update_payload({"a": 1}),
    lambda docs: docs.get([1], where={"a": 1}), lambda docs: docs.search(QUERIES, k=0),
    lambda docs: docs.search(QUERIES[:, :3]), lambda docs: docs.get(order_by='a"b'), lambda docs: docs.get(limit=-1),
    lambda docs: docs.get(order_by="n", after="unknown"), lambda docs: docs.search(QUERIES, where=5),
    lambda docs: docs.update_payload(5, ids=[1]), lambda docs: docs.update_payload(lambda old: 5, ids=[1]),
    lambda docs: docs.update_payload(dict, ids=[1], mode="replace"),
    lambda docs: docs.update_payload({}, ids=[1], mode="other"),
    lambda docs: docs.search(QUERIES, score_limit="high"), lambda docs: docs.optimize(minutes=0),
    lambda docs: docs.retrain([1], X[:1], minutes=-1),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(docs, call):
    with pytest.raises((ConfigError, DataError)):
        call(docs)


def test_ids_alone(tmp_path):
    with Collection.create(tmp_path / "c.qinco", payload=False, metric="l2") as docs:
        docs.upsert([7, 3, 7], X[:3])
        assert len(docs) == 2 and 7 in docs and 5 not in docs and "7" not in docs
        assert np.array_equal(docs.get(7, with_vectors=True)[0].vector, X[2])
        assert [one.id for one in docs.get()] == [3, 7] and [one.id for one in docs.get(limit=1, after=3)] == [7]
        assert docs.delete([3, 4]) == 1 and [hit.id for hit in docs.search(X[0])] == [7]
        for call in (lambda: docs.upsert(["a"], X[:1]), lambda: docs.upsert([1], X[:1], [{"a": 1}]),
                     lambda: docs.upsert([1], [None]), lambda: docs.count({"a": 1}), lambda: docs.get(where={"a": 1}),
                     lambda: docs.update_payload({"a": 1}, ids=[7])):  # fmt: skip
            with pytest.raises(ConfigError):
                call()


def test_zero_vectors_are_similar_to_nothing(tmp_path):
    with Collection.create(tmp_path / "c.qinco") as docs:
        docs.upsert([0, 1], np.stack([np.zeros(D), np.ones(D)]))
        assert [(hit.id, round(hit.score, 5)) for hit in docs.search(np.ones(D))] == [(1, 1.0), (0, 0.0)]


def test_everything_is_there_again_when_it_is_opened(docs):
    before, hits = docs.get(), docs.search(QUERIES)
    docs.close()
    for call in (len, lambda docs: docs.upsert([1], X[:1]), lambda docs: docs.search(QUERIES)):
        with pytest.raises(ConfigError):
            call(docs)
    for read_only in (True, False):
        with Collection.open(docs.folder, read_only=read_only) as again:
            assert again.get() == before and again.search(QUERIES) == hits and again.metric == "l2"


def test_threads_search_while_another_writes(docs):
    ends, faults = threading.Event(), []

    def search():
        try:
            while not ends.is_set():
                hits = docs.search(QUERIES[0], N * 2)
                assert len({hit.id for hit in hits}) == len(hits) and len(hits) % 50 == 0
                assert len(docs.get(where={"batch": 1})) in (0, 50)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(20):
        ids = [f"t{row}" for row in range(50)]
        docs.delete(ids) if step % 3 == 2 else docs.upsert(ids, X[step : step + 50], [{"batch": step % 2}] * 50)
    ends.set()
    for thread in threads:
        thread.join()
    assert not faults, faults
