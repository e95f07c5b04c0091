"""`QincoDocumentStore` beside Haystack's own suites, with embeddings as they were given and with compressed ones."""

import asyncio
import datetime
import json

import numpy as np
import pytest
from compressed import empty
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("haystack", reason="the extra integrations is not installed")
pytest.importorskip("pytest_asyncio", reason="the extra integrations is not installed")

from haystack import Document, Pipeline, component
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suite
from haystack.testing import document_store_async as async_suite

from qinco import ConfigError
from qinco.integrations.haystack import QincoDocumentStore, QincoEmbeddingRetriever

EMBEDDING_SIZE = 768  # the suites'
DIM = 6


class Exact(
    suite.DocumentStoreBaseExtendedTests, suite.CountDocumentsByFilterTest, suite.CountUniqueMetadataByFilterTest,
    suite.GetMetadataFieldsInfoTest, suite.GetMetadataFieldMinMaxTest, suite.GetMetadataFieldUniqueValuesTest,
    async_suite.DeleteAllAsyncTest, async_suite.CountDocumentsAsyncTest, async_suite.CountDocumentsByFilterAsyncTest,
    async_suite.CountUniqueMetadataByFilterAsyncTest, async_suite.DeleteByFilterAsyncTest,
    async_suite.UpdateByFilterAsyncTest, async_suite.WriteDocumentsAsyncTest, async_suite.DeleteDocumentsAsyncTest,
    async_suite.GetMetadataFieldsInfoAsyncTest, async_suite.GetMetadataFieldMinMaxAsyncTest,
    async_suite.GetMetadataFieldUniqueValuesAsyncTest, async_suite.FilterDocumentsAsyncTest,
):  # fmt: skip
    kind = "exact"

    @pytest.fixture
    def document_store(self, tmp_path):
        with empty(self.kind, tmp_path / "a.qinco", EMBEDDING_SIZE) as collection:
            yield QincoDocumentStore(collection=collection)

    def assert_documents_are_equal(self, received, expected):
        """In any order; embeddings are float32, and lossy once they are compressed."""
        parts = [sorted((one.to_dict() for one in some), key=lambda one: one["id"]) for some in (received, expected)]
        for found, wanted in zip(*parts, strict=True):
            embeddings = [one.pop("embedding") for one in (found, wanted)]
            assert found == wanted and (embeddings[0] is None) == (embeddings[1] is None)
            if embeddings[0] is not None and self.kind == "exact":
                np.testing.assert_allclose(*embeddings, rtol=1e-6)

    def test_write_documents(self, document_store):
        document = Document(content="x")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])

    async def test_write_documents_async(self, document_store):
        document = Document(content="x")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])


class TestExact(Exact):
    pass


class TestCompressed(Exact):
    kind = "compressed"


def documents(count: int = 12) -> list[Document]:
    vectors = np.random.default_rng(1).standard_normal((count, DIM)).tolist()
    metas = [{"year": 2000 + n, "tags": ["odd"] * (n % 2)} for n in range(count)]
    return [Document(id=f"{n}", content=f"text {n}", meta=metas[n], embedding=vectors[n]) for n in range(count)]


@pytest.fixture(params=["exact", "compressed"])
def store(request, tmp_path):
    with empty(request.param, tmp_path / "a.qinco", DIM) as collection:
        store = QincoDocumentStore(collection=collection)
        store.write_documents([*documents(), Document(id="none", content="without")])
        yield store


def test_retrieval_is_that_of_the_store_in_memory(store):
    reference = InMemoryDocumentStore(embedding_similarity_function="cosine")
    reference.write_documents(documents())
    filters = {"field": "meta.year", "operator": ">=", "value": 2005}
    for query in documents(5):
        for scaled in (False, True):
            found = store.embedding_retrieval(query.embedding, filters, top_k=7, scale_score=scaled)
            wanted = reference.embedding_retrieval(query.embedding, filters, top_k=7, scale_score=scaled)
            assert {one.id for one in found} == {one.id for one in wanted}
            scores = ({one.id: one.score for one in some} for some in (found, wanted))
            np.testing.assert_allclose(*[[of[id] for id in sorted(of)] for of in scores], atol=0.4)
            assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert store.embedding_retrieval(query.embedding, top_k=0) == []
    assert all(one.embedding is None for one in found)
    with_embedding = store.embedding_retrieval(query.embedding, top_k=1, return_embedding=True)
    np.testing.assert_allclose(np.array(with_embedding[0].embedding) / np.linalg.norm(with_embedding[0].embedding),
                               np.array(query.embedding) / np.linalg.norm(query.embedding), atol=0.6)  # fmt: skip


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_scores_fall_with_rank_for_every_metric(metric):
    store = QincoDocumentStore(metric=metric)
    store.write_documents(documents())
    for scaled in (False, True):
        scores = [one.score for one in store.embedding_retrieval(documents()[0].embedding, scale_score=scaled)]
        assert len(scores) == 10 and scores == sorted(scores, reverse=True)
        assert not scaled or (scores[-1] >= 0 and scores[0] <= 1)


DATES = ["2024-05-01", "2024-05-01T12:00:00", "2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00Z", "2024-05-02T24:00",
         "May 3, 2024", "2024-05-01 23:30:00-11:00", "0001-01-01", "9999-12-31T23:59:59"]  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 1.5, -0.5]),
                    st.sampled_from(["a", "b", "", "1", *DATES]))  # fmt: skip
metas = st.dictionaries(
    st.sampled_from("ab"), scalars | st.lists(scalars, max_size=2) | st.fixed_dictionaries({"c": scalars})
)
fields = st.sampled_from(["meta.a", "meta.b", "a", "meta.a.c", "content", "id", "meta.none"])
comparisons = st.one_of(
    st.tuples(fields, st.sampled_from(["==", "!="]), scalars | st.lists(scalars, max_size=2)),
    st.tuples(fields, st.sampled_from([">", ">=", "<", "<="]), scalars),
    st.tuples(fields, st.sampled_from(["in", "not in"]), st.lists(scalars, max_size=3)),
).map(lambda one: dict(zip(("field", "operator", "value"), one, strict=True)))
filters = st.recursive(
    comparisons,
    lambda inner: st.fixed_dictionaries(
        {"operator": st.sampled_from(["AND", "OR", "NOT"]), "conditions": st.lists(inner, max_size=3)}
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def shared_store():
    return QincoDocumentStore()


@settings(max_examples=300, deadline=None)
@given(st.lists(metas, max_size=6), filters)
def test_filters_are_those_of_the_store_in_memory(shared_store, metas, filters):
    """Where that store does not raise; where it does, for values that cannot be compared, ours may pass them over."""
    some = [Document(id=f"{n}", content="ab"[n % 2], meta=meta) for n, meta in enumerate(metas)]
    reference = InMemoryDocumentStore()
    reference.write_documents(some)
    shared_store.delete_all_documents()
    shared_store.write_documents(some)
    try:
        wanted = {one.id for one in reference.filter_documents(filters)}
    except (FilterError, TypeError, ValueError):
        return
    assert {one.id for one in shared_store.filter_documents(filters)} == wanted
    assert shared_store.count_documents_by_filter(filters) == len(wanted)


@pytest.mark.parametrize("meta, value", [
    ([1], [1]), (["a"], ["a"]), ([1, False], [True, False]), ([True], [1.0]), ([None], [None]), ([], []), ([1], [2]),
    ({"c": 1}, {"c": True}), ([[1]], [[1]]), ([1], 1),
])  # fmt: skip
def test_lists_are_compared_as_a_whole(shared_store, meta, value):
    some, reference = [Document(id="0", content="a", meta={"a": meta})], InMemoryDocumentStore()
    reference.write_documents(some)
    shared_store.delete_all_documents()
    shared_store.write_documents(some)
    for operator in ("==", "!=", "in", "not in"):
        filters = {"field": "meta.a", "operator": operator, "value": [value] if "in" in operator else value}
        expected = [one.id for one in reference.filter_documents(filters)]
        assert [one.id for one in shared_store.filter_documents(filters)] == expected


def test_times_as_datetimes(store):
    store.write_documents([Document(id="t", meta={"at": "2024-05-01T12:00:00+02:00"})])
    for time, expected in (
        (datetime.datetime(2024, 5, 1, 11, tzinfo=datetime.UTC), {"t"}),
        (datetime.datetime(2024, 5, 1, 11), set()),
    ):
        found = store.filter_documents({"field": "meta.at", "operator": "<", "value": time})
        assert {one.id for one in found} == expected


@pytest.mark.parametrize(
    "filters",
    [
        {"field": "meta.a"}, {"operator": "AND"}, {"conditions": []}, {"operator": "XOR", "conditions": []},
        {"field": "meta.a", "operator": "like", "value": 1}, {"field": "meta.a", "operator": "in", "value": "ab"},
        {"field": "meta.a", "operator": ">", "value": [1]}, {"operator": "AND", "conditions": [3]},
    ],
)  # fmt: skip
def test_wrong_filters_are_refused_also_where_there_are_no_documents(shared_store, filters):
    shared_store.delete_all_documents()
    for call in (shared_store.filter_documents, shared_store.delete_by_filter, shared_store.count_documents_by_filter):
        with pytest.raises(FilterError):
            call(filters)


def test_documents_without_embeddings_are_found_by_a_filter(store):
    found = store.filter_documents({"field": "embedding", "operator": "==", "value": None})
    assert [one.id for one in found] == ["none"]
    assert store.count_documents_by_filter({"field": "embedding", "operator": "!=", "value": None}) == 12


def test_whole_documents_are_kept(tmp_path):
    whole = Document(
        content="x",
        blob=ByteStream(b"\x00\xff", meta={"name": "b"}, mime_type="a/b"),
        meta={"id": 3, "content": {"a": [1, None]}},
        sparse_embedding=SparseEmbedding(indices=[1], values=[0.5]),
        score=0.25,
    )
    store = QincoDocumentStore(tmp_path / "a.qinco")
    store.write_documents([whole])
    assert store.filter_documents() == [whole]


def test_duplicates_in_one_call(store):
    twins = [Document(id="twin", content="first"), Document(id="twin", content="second")]
    with pytest.raises(DuplicateDocumentError, match="twin"):
        store.write_documents(twins)
    with pytest.raises(DuplicateDocumentError, match="3"):
        store.write_documents([Document(id="new"), *documents()[3:4]])
    assert store.count_documents() == 13  # nothing of it was written
    assert store.write_documents(twins, DuplicatePolicy.SKIP) == 1
    assert store.filter_documents({"field": "id", "operator": "==", "value": "twin"})[0].content == "first"
    assert store.write_documents(twins, DuplicatePolicy.OVERWRITE) == 2
    assert store.filter_documents({"field": "id", "operator": "==", "value": "twin"})[0].content == "second"


def test_settings_are_serialized_and_documents_are_not(tmp_path):
    store = QincoDocumentStore(tmp_path / "a.qinco", metric="l2", fields={"meta.year": "integer"})
    data = json.loads(json.dumps(store.to_dict()))
    assert not (tmp_path / "a.qinco").exists()  # until it is used
    store.write_documents(documents())
    again = QincoDocumentStore.from_dict(data)
    assert again.count_documents() == 12 and again.collection is store.collection and again.to_dict() == data
    store.collection.close()
    third = QincoDocumentStore.from_dict(data)
    assert [one.id for one in third.filter_documents()] == sorted(one.id for one in documents())
    reader = QincoDocumentStore(tmp_path / "a.qinco", read_only=True)
    assert reader.count_documents() == 12
    with pytest.raises(ConfigError, match="read_only"):
        reader.delete_all_documents()
    third.collection.close()
    with pytest.raises(ConfigError, match="codec="):
        QincoDocumentStore(codec=object()).to_dict()


@component
class Embedder:
    """Text as an embedding."""

    @component.output_types(embedding=list[float])
    def run(self, text: str):
        return {"embedding": next(one.embedding for one in documents() if one.content == text)}


def test_a_pipeline_writes_and_another_retrieves(tmp_path):
    store = QincoDocumentStore(str(tmp_path / "a.qinco"))
    writing = Pipeline()
    writing.add_component("writer", DocumentWriter(document_store=store))
    assert writing.run({"writer": {"documents": documents()}})["writer"]["documents_written"] == 12

    filters = {"field": "meta.year", "operator": "<", "value": 2010}
    retriever = QincoEmbeddingRetriever(store, filters=filters, top_k=3, filter_policy=FilterPolicy.MERGE)
    pipeline = Pipeline()
    pipeline.add_component("embedder", Embedder())
    pipeline.add_component("retriever", retriever)
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    modules = ["qinco.integrations.haystack", Embedder.__module__]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=modules)  # with a store of its own for the same folder
    for one in (pipeline, again):
        found = one.run({"embedder": {"text": "text 4"}})["retriever"]["documents"]
        assert len(found) == 3 and found[0].id == "4" and found[0].score == pytest.approx(1)
        texts = {"field": "content", "operator": "in", "value": ["text 9", "text 10"]}
        limited = {"retriever": {"filters": texts, "top_k": 5}}
        found = one.run({"embedder": {"text": "text 4"}} | limited)["retriever"]["documents"]
        assert [hit.id for hit in found] == ["9"]  # merged with the filter of the component
    found = asyncio.run(retriever.run_async(documents()[4].embedding, top_k=1))
    assert found["documents"][0].id == "4"
    store.collection.close()


def test_wrong_arguments_of_a_retriever_are_refused():
    with pytest.raises(TypeError, match="InMemory"):
        QincoEmbeddingRetriever(InMemoryDocumentStore())
    with pytest.raises(ConfigError, match="top_k"):
        QincoEmbeddingRetriever(QincoDocumentStore(), top_k=0)
