"""Conditional upserts, and vectors that change while ids and payloads stay."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.collection.facets import facet_queries
from qinco.collection.matching import matches
from qinco.collection.paths import nodes, path_steps
from qinco.collection.where import parse
from qinco.errors import ConfigError, DataError

X = vectors(60, 4)


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "c", codec=trained("plain")) as docs:
        yield docs


def fill(docs, count=40, **options):
    docs.upsert(range(count), X[:count], [{"n": n % 3, "id": n} for n in range(count)], **options)


@pytest.mark.parametrize("payload", [True, False])
@pytest.mark.parametrize("is_encoded", [True, False])
def test_vectors_are_updated(tmp_path, payload, is_encoded):
    with Collection.create(tmp_path / "c", metric="l2", codec=trained("plain"), payload=payload) as docs:
        docs.upsert(range(20), X[:20], [{"n": n} for n in range(20)] if payload else None)
        if is_encoded:
            docs.optimize(progress=False)
        before = docs.get()
        docs.update_vectors([3, 5, 3], X[40:43])
        assert docs.get() == before and docs.verify() == []
        assert docs.search(X[[42, 41]], k=1)[0][0].id == 3 and docs.search(X[41], k=1)[0].id == 5
        np.testing.assert_array_equal(docs.get(3, with_vectors=True)[0].vector, X[42])
        docs.optimize(progress=False)
        assert docs.verify() == [] and docs.stats()["vectors"] == 20
        with pytest.raises(DataError, match="99"):
            docs.update_vectors([3, 99], X[:2])
        with pytest.raises(DataError, match="dimension"):
            docs.update_vectors([3], X[:1, :2])


def test_vectors_of_several_are_updated(tmp_path):
    with Collection.create(tmp_path / "c", multi=True, codec=trained("plain")) as docs:
        docs.upsert(["a", "b"], [X[:3], X[3:8]], [{"n": 1}, {"n": 2}])
        docs.optimize(progress=False)
        docs.search_multi(X[:2])
        docs.update_vectors(["b", "a"], [X[20:21], None])
        assert docs.verify() == [] and docs.stats()["vectors"] == 1
        np.testing.assert_array_equal(docs.get("b", with_vectors=True)[0].vector, X[20:21])
        assert [hit.id for hit in docs.search_multi(X[:2])] == ["b"]
        assert docs.delete_vectors(["b"]) == 1 and docs.search_multi(X[:2]) == [] and len(docs) == 2


@pytest.mark.parametrize("is_encoded", [True, False])
def test_vectors_are_deleted(docs, is_encoded):
    fill(docs)
    if is_encoded:
        docs.optimize(progress=False)
    before = docs.get()
    assert docs.delete_vectors([1, 1, 2, "none"]) == 2 and docs.delete_vectors(where={"n": 2}) == 12
    assert docs.delete_vectors(where={"n": 2}) == 0
    assert docs.get() == before and docs.verify() == []
    assert {hit.id for hit in docs.search(X[0], 100)} == {n for n in range(40) if n % 3 != 2 and n != 1}
    docs.update_vectors([2], X[2:3])
    assert docs.search(X[2], 1)[0].id == 2
    docs.optimize(progress=False)
    assert docs.verify() == [] and docs.stats()["vectors"] == 27


def test_without_payload_records_are_their_vectors(tmp_path):
    with Collection.create(tmp_path / "c", payload=False) as docs:
        docs.upsert([1, 2], X[:2])
        for call in (lambda: docs.delete_vectors([1]), lambda: docs.update_vectors([1], [None])):
            with pytest.raises(ConfigError, match="are their vectors"):
                call()
        docs.upsert([2, 3, 3], X[5:8], mode="insert")
        docs.upsert([1, 9], X[10:12], mode="update")
        found = docs.get([1, 2, 3, 9], with_vectors=True)
        for record, row in zip(found, [10, 1, 6], strict=True):
            np.testing.assert_array_equal(record.vector, X[row])
        with pytest.raises(ConfigError, match="no fields"):
            docs.facet("n")


IDS, NUMBERS = st.integers(0, 5), st.integers(0, 3)
BATCHES = st.lists(st.tuples(IDS, NUMBERS), max_size=8)


@pytest.fixture(scope="module")
def reused(tmp_path_factory):
    with Collection.create(tmp_path_factory.mktemp("reused") / "c", fields={"x": "keyword"}) as docs:
        yield docs


@settings(max_examples=50, deadline=None)
@given(BATCHES, BATCHES, st.sampled_from(["upsert", "insert", "update"]), st.none() | NUMBERS)
def test_conditional_upserts_are_those_one_by_one(reused, first, second, mode, least):
    where = None if least is None else {"n": {"lt": least}}
    records = dict(first)
    for id, n in second:
        if id in records:
            if mode != "insert" and (where is None or records[id] < least):
                records[id] = n
        elif mode != "update":
            records[id] = n
    reused.clear()
    for batch, options in (first, {}), (second, {"mode": mode, "only_where": where}):
        rows = X[[10 * id + n for id, n in batch]] if batch else []
        reused.upsert([id for id, _ in batch], list(rows), [{"n": n} for _, n in batch], **options)
    assert {one.id: one.payload["n"] for one in reused.get()} == records
    for one in reused.get(with_vectors=True):
        np.testing.assert_array_equal(one.vector, X[10 * one.id + records[one.id]])
    assert reused.verify() == []


def test_wrong_modes_and_filters_write_nothing(docs):
    fill(docs, 3)
    with pytest.raises(ConfigError, match="replace"):
        docs.upsert([1], X[:1], mode="replace")
    with pytest.raises(ConfigError, match="nor"):
        docs.upsert([1], X[:1], only_where={"$nro": []})
    assert docs.get(1)[0].payload == {"n": 1, "id": 1}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from([1.0, 0.5, "a", "b", "1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=8,
)
FIELDS = st.lists(st.dictionaries(st.sampled_from("xy"), VALUES, max_size=2) | st.none(), max_size=6)


def plain_facet(payloads, path, where):
    counts = {}
    for id, payload in enumerate(payloads):
        if where is None or matches(parse(where), id, payload):
            found = [one for value in nodes(payload, path_steps(path)) for one in
                     (value if isinstance(value, list) else [value])]  # fmt: skip
            for pair in {(type(one), one) for one in found if isinstance(one, str | int)}:
                counts[pair] = counts.get(pair, 0) + 1
    kinds = bool, int, str
    order = sorted(counts.items(), key=lambda item: (-item[1], kinds.index(item[0][0]), item[0][1]))
    return [(repr(value), number) for (_, value), number in order]


@settings(max_examples=80, deadline=None)
@given(FIELDS, st.sampled_from(["x", "x.y", "x[].y", "x[]", "x[0]", "y.x[].x"]), st.sampled_from([None, {"y": 1}]))
def test_facets_count_values(reused, payloads, path, where):
    expected = plain_facet(payloads, path, where)
    reused.clear()
    reused.upsert(range(len(payloads)), None, payloads)
    assert [(repr(value), number) for value, number in reused.facet(path, where, None)] == expected
    assert [(repr(value), number) for value, number in reused.facet(path, where, 1)] == expected[:1]


def test_facets_of_declared_fields_read_the_index(docs):
    docs.add_field("n", "integer")
    fill(docs)
    with sqlite3.connect(docs.folder / "collection.sqlite") as connection:
        for query, parameters in facet_queries("n", "1", ()):
            plan = [text for *_, text in connection.execute(f"EXPLAIN QUERY PLAN {query}", parameters)]
            assert any("INDEX field_" in text for text in plan), plan
