"""`QincoVectorStore` beside LlamaIndex's own `SimpleVectorStore`, with vectors as given and with compressed ones."""

import json

import numpy as np
import pytest
from compressed import codec, empty
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_index.core", reason="the extra integrations is not installed")

from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from qinco import ConfigError, DataError
from qinco.integrations.llama_index import QincoVectorStore

DIM = 6
METADATA = [
    {"year": 2000, "name": "Ada", "tags": ["a", "b"], "rate": 0.5},
    {"year": 2001, "name": "ada", "tags": ["b"], "rate": 1},
    {"year": 2002, "name": "Grace", "tags": [], "rate": 1.0},
    {"year": 2003, "name": "", "tags": ["ab"], "rate": -1},
    {"year": None, "name": "a", "tags": ["c", "a", "b"]},
    {},
]
CONDITIONS = [
    (FilterOperator.EQ, "name", "Ada"), (FilterOperator.EQ, "year", 2001), (FilterOperator.NE, "name", "Ada"),
    (FilterOperator.GT, "year", 2001), (FilterOperator.GTE, "rate", 1), (FilterOperator.LT, "rate", 0.75),
    (FilterOperator.LTE, "year", 2001), (FilterOperator.IN, "name", ["Ada", "Grace"]),
    (FilterOperator.NIN, "year", [2000, 2003]), (FilterOperator.ANY, "tags", ["a", "ab"]),
    (FilterOperator.ALL, "tags", ["a", "b"]), (FilterOperator.TEXT_MATCH, "name", "a"),
    (FilterOperator.TEXT_MATCH_INSENSITIVE, "name", "A"), (FilterOperator.CONTAINS, "tags", "b"),
    (FilterOperator.CONTAINS, "name", "da"), (FilterOperator.IS_EMPTY, "tags", None),
    (FilterOperator.IS_EMPTY, "name", None), (FilterOperator.EQ, "none", 1), (FilterOperator.NE, "none", 1),
]  # fmt: skip


def node(number: int, metadata: dict, document: str | None = None) -> TextNode:
    vector = np.random.default_rng(number).standard_normal(DIM).tolist()
    made = TextNode(id_=f"n{number}", text=f"text {number}", metadata=dict(metadata), embedding=vector)
    if document:
        made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return made


NODES = [node(number, metadata, f"d{number % 2}") for number, metadata in enumerate(METADATA)]


def all_near(store, query: list[float] | None = None, **restrictions) -> list[str]:
    restrictions = {"similarity_top_k": 100, **restrictions}
    return store.query(VectorStoreQuery(query_embedding=query or NODES[0].embedding, **restrictions)).ids


@pytest.fixture(scope="module", params=["exact", "compressed"])
def stores(request, tmp_path_factory):
    """Our store and LlamaIndex's, with the same nodes; not to be changed."""
    reference = SimpleVectorStore()
    reference.add(NODES)
    with empty(request.param, tmp_path_factory.mktemp("llama") / "a.qinco", DIM) as collection:
        store = QincoVectorStore(collection=collection)
        store.add(NODES)
        yield store, reference


@pytest.fixture(params=["exact", "compressed"])
def store(request, tmp_path):
    with empty(request.param, tmp_path / "a.qinco", DIM) as collection:
        store = QincoVectorStore(collection=collection)
        store.add(NODES)
        yield store


@pytest.mark.parametrize("condition", FilterCondition)
@pytest.mark.parametrize("named", CONDITIONS, ids=lambda one: f"{one[0].name} {one[1]}")
def test_every_operator_with_every_condition(stores, named, condition):
    operator, key, value = named
    one = MetadataFilter(key=key, operator=operator, value=value)
    other = MetadataFilter(key="year", operator=FilterOperator.EQ, value=2000)
    for some in ([one], [one, other], [other, one]):
        filters = MetadataFilters(filters=some, condition=condition)
        wanted = set(all_near(stores[1], filters=filters))
        assert set(all_near(stores[0], filters=filters)) == wanted
        assert {found.node_id for found in stores[0].get_nodes(filters=filters)} == wanted


def test_every_operator_is_tested():
    assert {operator for operator, _, _ in CONDITIONS} == set(FilterOperator) and len(FilterOperator) == 14


strings = st.sampled_from(["", "a", "b", "ab", "A", "1"])
numbers = st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 1.5])
lists = st.lists(strings, max_size=2) | st.lists(numbers, max_size=2)
stored = st.one_of(st.none(), st.booleans(), strings, numbers, lists, st.fixed_dictionaries({"a": strings}))
keys = st.sampled_from(["k", "k.l", 'q"', "none"])
metadatas = st.lists(st.dictionaries(keys, stored, max_size=3), min_size=1, max_size=5)
values = st.none() | strings | numbers | st.lists(strings, max_size=2) | st.lists(st.integers(-2, 2), max_size=2)
leaves = st.builds(MetadataFilter, key=keys, operator=st.sampled_from(list(FilterOperator)), value=values)
flat = st.builds(
    MetadataFilters, filters=st.lists(leaves, max_size=3), condition=st.sampled_from(list(FilterCondition))
)


@pytest.fixture(scope="module")
def shared_store():
    return QincoVectorStore()


@settings(max_examples=400, deadline=None)
@given(metadatas, flat)
def test_filters_are_those_of_the_simple_store(shared_store, metadatas, filters):
    """Where that store does not raise; where it does, for values that cannot be compared, ours may pass them over."""
    nodes = [node(number, metadata) for number, metadata in enumerate(metadatas)]
    reference = SimpleVectorStore()
    reference.add(nodes)
    shared_store.clear()
    shared_store.add(nodes)
    query = VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10, filters=filters)
    try:
        wanted = reference.query(query)
    except (TypeError, ValueError):
        return
    found = shared_store.query(query)
    assert set(found.ids) == set(wanted.ids)
    np.testing.assert_allclose(found.similarities, wanted.similarities, atol=1e-5)
    assert {one.node_id for one in shared_store.get_nodes(filters=filters)} == set(wanted.ids)


def test_filters_in_filters(stores):
    def of(key, value):
        return MetadataFilter(key=key, value=value)

    inner = MetadataFilters(filters=[of("name", "Ada"), of("name", "Grace")], condition=FilterCondition.OR)
    both = MetadataFilters(filters=[inner, of("year", 2002)])
    assert all_near(stores[0], filters=both) == ["n2"]
    neither = MetadataFilters(filters=[both, of("name", "a")], condition=FilterCondition.NOT)
    assert set(all_near(stores[0], filters=neither)) == {"n0", "n1", "n3", "n5"}
    text = MetadataFilter(key="name", operator=FilterOperator.TEXT_MATCH_INSENSITIVE, value="ADA")
    decided = MetadataFilters(filters=[neither, MetadataFilters(filters=[text], condition=FilterCondition.OR)])
    assert set(all_near(stores[0], filters=decided)) == {"n0", "n1"}


def test_queries_restricted_to_nodes_and_documents(stores):
    store, reference = stores
    assert set(all_near(store, node_ids=[])) == {one.node_id for one in NODES}  # VectorStoreIndex means all
    assert set(all_near(store, node_ids=["n1", "n4", "x"])) == set(all_near(reference, node_ids=["n1", "n4", "x"]))
    assert set(all_near(store, doc_ids=["d1"])) == {"n1", "n3", "n5"}
    text = MetadataFilter(key="name", operator=FilterOperator.TEXT_MATCH_INSENSITIVE, value="a")
    assert all_near(store, doc_ids=["d1"], node_ids=["n0", "n1"], filters=MetadataFilters(filters=[text])) == ["n1"]
    assert {one.node_id for one in store.get_nodes([])} == {one.node_id for one in NODES}
    assert [one.node_id for one in store.get_nodes(["n3"])] == ["n3"]


def test_results_hold_whole_nodes(stores):
    query = VectorStoreQuery(query_embedding=NODES[4].embedding, similarity_top_k=2)
    found = stores[0].query(query)
    assert found.ids[0] == "n4" and found.similarities[0] == pytest.approx(1, abs=0.15)
    assert found.nodes[0].to_dict() == NODES[4].model_copy(update={"embedding": None}).to_dict()
    assert stores[0].query(VectorStoreQuery(query_embedding=NODES[4].embedding, similarity_top_k=0)).ids == []


def test_kinds_of_nodes_are_kept():
    store = QincoVectorStore()
    nodes = [
        IndexNode(id_="i", text="index", index_id="other", embedding=[1.0, 0.0], metadata={"n": 1}),
        ImageNode(id_="p", image="aGk=", embedding=[0.0, 1.0]),
        TextNode(id_="t", text="with \0 and é", embedding=[1.0, 1.0]),
    ]
    assert store.add(nodes) == ["i", "p", "t"]
    for found, given_one in zip(store.get_nodes(), nodes, strict=True):
        assert type(found) is type(given_one) and found.get_content() == given_one.get_content()
    with pytest.raises(ValueError, match="embedding"):
        store.add([TextNode(text="without")])


def test_marginal_relevance(stores):
    store, reference = stores
    query = VectorStoreQuery(query_embedding=NODES[0].embedding, similarity_top_k=2, mode=VectorStoreQueryMode.MMR)
    for threshold in (0.0, 0.4, 1.0):
        wanted = reference.query(query, mmr_threshold=threshold).ids
        found = store.query(query, mmr_threshold=threshold, mmr_prefetch_factor=3).ids
        assert found[0] == wanted[0] and len(set(found)) == 2
        assert found == wanted or store.client.stats()["compressed"]
    query.mmr_threshold = 1.0
    assert store.query(query, mmr_threshold=0.0).ids == all_near(store, similarity_top_k=2)  # that of the query counts


def test_what_is_not_supported_is_refused(stores):
    for mode in set(VectorStoreQueryMode) - {VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR}:
        with pytest.raises(ValueError, match=mode.value):
            all_near(stores[0], mode=mode)
    with pytest.raises(ConfigError, match="embedding"):
        stores[0].query(VectorStoreQuery(query_str="text"))
    with pytest.raises(ConfigError, match="collection="):
        QincoVectorStore("x.qinco", collection=stores[0].client)


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_similarities_fall_with_rank_for_every_metric(metric):
    store = QincoVectorStore(metric=metric)
    store.add(NODES)
    found = store.query(VectorStoreQuery(query_embedding=NODES[0].embedding, similarity_top_k=6)).similarities
    assert len(found) == 6 and found == sorted(found, reverse=True)


def test_deletions(store):
    store.delete("d1")
    assert set(all_near(store)) == {"n0", "n2", "n4"}
    store.delete_nodes(["n0", "n1"])
    assert set(all_near(store)) == {"n2", "n4"}
    grace = MetadataFilters(filters=[MetadataFilter(key="name", value="Grace")])
    store.delete_nodes(["n4"], grace)
    assert set(all_near(store)) == {"n2", "n4"}
    store.delete_nodes(filters=grace)
    assert all_near(store) == ["n4"]
    store.clear()
    assert all_near(store) == [] and store.get_nodes() == []


async def test_async_twins(store):
    await store.async_add([node(9, {"name": "new"}, "d9")])
    new = MetadataFilters(filters=[MetadataFilter(key="name", value="new")])
    assert [one.node_id for one in await store.aget_nodes(filters=new)] == ["n9"]
    query = VectorStoreQuery(query_embedding=node(9, {}).embedding, similarity_top_k=1)
    assert (await store.aquery(query)).ids == ["n9"]
    await store.adelete("d9")
    await store.adelete_nodes(["n0"])
    assert set(all_near(store)) == {"n1", "n2", "n3", "n4", "n5"}
    await store.aclear()
    assert all_near(store) == []


def test_a_store_is_persisted_beside_its_context(tmp_path):
    store = QincoVectorStore(tmp_path / "a.qinco", codec=codec(DIM), exact_below=0)
    store.add(NODES)
    store.client.optimize()
    index = VectorStoreIndex.from_vector_store(store, embed_model=MockEmbedding(DIM))
    for _ in range(2):  # the second replaces the first
        index.storage_context.persist(str(tmp_path / "storage"))
        copy = QincoVectorStore.from_persist_dir(str(tmp_path / "storage"))
        assert all_near(copy) == all_near(store) and copy.client.verify() == []
        store.persist(str(store.client.folder))  # where it is already
        copy.client.close()
    assert sorted(path.name for path in (tmp_path / "storage").iterdir() if path.is_dir()) == [
        "default__vector_store.json"
    ]
    (tmp_path / "file").write_text("x")
    for call in (store.persist, QincoVectorStore.from_persist_path):
        with pytest.raises((ConfigError, DataError)):
            call(str(tmp_path / "file"))
    again = QincoVectorStore.from_dict(json.loads(json.dumps(store.to_dict())))
    assert again.client is store.client
    store.client.close()


def test_an_index_of_documents(store, tmp_path):
    """Written, asked, changed and opened again as LlamaIndex does."""
    store.clear()
    model = MockEmbedding(DIM)
    documents = [Document(doc_id=f"doc{n}", text=f"This is text {n}. " * 40, metadata={"n": n}) for n in range(4)]
    index = VectorStoreIndex.from_documents(
        documents, StorageContext.from_defaults(vector_store=store), embed_model=model,
        transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0)],
    )  # fmt: skip
    assert store.client.count() > 4
    filters = MetadataFilters(filters=[MetadataFilter(key="n", operator=FilterOperator.GTE, value=3)])
    found = index.as_retriever(similarity_top_k=50, filters=filters).retrieve("text")
    assert found and {one.node.ref_doc_id for one in found} == {"doc3"}
    again = VectorStoreIndex.from_vector_store(store, embed_model=model)
    again.delete_ref_doc("doc3")
    assert index.as_retriever(filters=filters).retrieve("text") == []
    again.delete_nodes([store.get_nodes()[0].node_id])
    mmr = again.as_retriever(
        vector_store_query_mode="mmr", similarity_top_k=3, vector_store_kwargs={"mmr_threshold": 0.3}
    )
    assert len(mmr.retrieve("text")) == 3


@pytest.mark.parametrize("meta, value", [
    ([1], [1]), (["a"], ["a"]), ([1.0], [1]), ([], []), ([2], [1]), ("a", ["a"]), ([1, 2], [1]),
])  # fmt: skip
@pytest.mark.parametrize("operator", ["==", "!="])
def test_lists_are_compared_as_a_whole(meta, value, operator):
    given = MetadataFilters(filters=[MetadataFilter(key="a", operator=operator, value=value)])
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=2, filters=given)
    stores = SimpleVectorStore(), QincoVectorStore()
    for one in stores:
        one.add([TextNode(id_="0", text="a", metadata={"a": meta}, embedding=[1.0, 0.0])])
    expected, found = (one.query(query).ids for one in stores)
    assert found == expected
