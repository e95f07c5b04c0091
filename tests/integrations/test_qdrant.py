"""qdrant-client with our server, beside its own implementation in memory (`QdrantClient(":memory:")`)."""

import uuid

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("qdrant_client")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_client.http import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from qdrant_drawn import (
    FEW,
    POINTS,
    SCHEMES,
    changed,
    config,
    filter_of,
    having,
    integers,
    keys,
    operation_of,
    same_points,
    schemes,
    vector_of,
    whole_filters,
)
from serving import serving
from small_indexes import trained, vectors

from qinco import Collection, Index

DRAWN = settings(max_examples=50, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served") / "data") as server:
        yield server.url


@pytest.fixture(scope="module")
def clients(url):
    """Ours and theirs."""
    ours, theirs = QdrantClient(url=url, timeout=60), QdrantClient(":memory:")
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture(scope="module", autouse=True)
def points(clients):
    for client in clients:
        for scheme in SCHEMES:
            client.create_collection(scheme, config(scheme))
            client.upsert(scheme, POINTS[scheme])
            client.create_collection(f"{scheme}-changed", config(scheme))


@DRAWN
@given(scheme=schemes, given=whole_filters)
def test_filters_admit_the_same_points(clients, scheme, given):
    filter = filter_of(given)
    ours, theirs = (client.scroll(scheme, filter, limit=1000, with_payload=False)[0] for client in clients)
    assert [one.id for one in ours] == [one.id for one in theirs]
    assert clients[0].count(scheme, filter).count == len(ours)


@DRAWN
@given(data=st.data(), scheme=schemes, filter=st.none() | whole_filters, limit=st.integers(1, 30),
       offset=st.integers(0, 20), threshold=st.none() | st.floats(-1, 4), seed=st.integers(0, 1 << 30))  # fmt: skip
def test_queries_find_the_same_points(clients, data, scheme, filter, limit, offset, threshold, seed):
    name = data.draw(st.sampled_from(list(SCHEMES[scheme])))
    vector = vector_of(scheme, name, seed)
    first, second = (data.draw(st.sampled_from(having(scheme, name))) for _ in range(2))
    query = [
        vector, first, m.NearestQuery(nearest=second),
        m.RecommendQuery(recommend=m.RecommendInput(positive=[first, vector], negative=[second])),
    ][data.draw(st.integers(0, 3))]  # fmt: skip
    options = {"using": name or None, "query_filter": filter_of(filter), "limit": limit, "offset": offset,
               "score_threshold": threshold,
               "with_payload": data.draw(st.sampled_from([True, False, ["of.name", "parts[].kind"]])),
               "with_vectors": data.draw(st.sampled_from([True, False, ["text"]]))}  # fmt: skip
    same_points(*(client.query_points(scheme, query, **options).points for client in clients))


@DRAWN
@given(scheme=schemes, filter=st.none() | whole_filters, limit=st.integers(1, 8), size=st.integers(1, 4),
       key=st.sampled_from(["group", "of.tags", "number"]), seed=st.integers(0, 1 << 30))  # fmt: skip
def test_groups_are_the_same(clients, scheme, filter, limit, size, key, seed):
    name = next(iter(SCHEMES[scheme]))
    options = {"using": name or None, "query_filter": filter_of(filter), "limit": limit, "group_size": size,
               "with_payload": ["group"], "group_by": key}  # fmt: skip
    query = vector_of(scheme, name, seed)
    ours, theirs = (client.query_points_groups(scheme, query=query, **options).groups for client in clients)
    assert [group.id for group in ours] == [group.id for group in theirs]
    for one, other in zip(ours, theirs, strict=True):
        same_points(one.hits, other.hits)


@DRAWN
@given(scheme=schemes, filter=st.none() | whole_filters, key=keys, limit=st.integers(1, 20))
def test_facets_are_the_same(clients, scheme, filter, key, limit):
    ours, theirs = (client.facet(scheme, key, filter_of(filter), limit).hits for client in clients)
    assert [(hit.value, hit.count) for hit in ours] == [(hit.value, hit.count) for hit in theirs]


@DRAWN
@given(scheme=schemes, filter=st.none() | whole_filters, key=keys, is_rising=st.booleans(),
       limit=st.integers(1, 50), start=st.none() | integers)  # fmt: skip
def test_orders_have_the_same_values(clients, scheme, filter, key, is_rising, limit, start):
    order = m.OrderBy(key=key, direction="asc" if is_rising else "desc", start_from=start)
    ours, theirs = (client.scroll(scheme, filter_of(filter), order_by=order, limit=limit)[0] for client in clients)
    assert [one.order_value for one in ours] == [one.order_value for one in theirs]


@DRAWN
@given(scheme=schemes, given=st.lists(changed, min_size=1, max_size=6))
def test_changes_leave_the_same_points(clients, scheme, given):
    place = f"{scheme}-changed"
    for client in clients:
        client.delete(place, m.Filter())
        client.upsert(place, FEW[scheme])
    for one in given:
        operation, refused = operation_of(scheme, *one), []
        for client in clients:
            try:
                client.batch_update_points(place, [operation])
            except (UnexpectedResponse, ValueError, KeyError) as error:
                refused.append(error)
        assert len(refused) in (0, 2), refused
    same_points(*(client.scroll(place, limit=100, with_vectors=True)[0] for client in clients))


def test_compressed_vectors_are_found_as_well_as_by_an_index(tmp_path):
    x_ND, queries_QD = vectors(), vectors(300, seed=3)
    truth_QR = np.square(x_ND[None] - queries_QD[:, None]).sum(2).argsort(1)[:, :10]
    index_QR = Index.build(trained("plain"), x_ND, num_lists=16).search(queries_QD, 10)[1]
    with serving(tmp_path / "data") as server:
        server.catalog.create(
            "codes", lambda folder: Collection.create(folder, metric="l2", codec=trained("plain"), exact_below=1000), {}
        )
        server.catalog.get("codes").upsert(range(len(x_ND)), x_ND)
        server.catalog.get("codes").optimize()
        client = QdrantClient(url=server.url)
        information = client.get_collection("codes")
        assert information.indexed_vectors_count == information.points_count == len(x_ND)
        requests = [m.QueryRequest(query=query_D.tolist(), limit=10) for query_D in queries_QD]
        found_QR = [[one.id for one in response.points] for response in client.query_batch_points("codes", requests)]
        client.close()
    ours_Q, others_Q = (
        np.array([len(set(ours) & set(true)) / 10 for ours, true in zip(some, truth_QR, strict=True)])
        for some in (found_QR, index_QR)
    )
    assert others_Q.mean() > 0.3
    differences_Q = ours_Q - others_Q  # of lists and levels that are others
    assert differences_Q.mean() >= -2 * differences_Q.std() / np.sqrt(len(differences_Q))


def test_any_string_is_an_id(url):
    client = QdrantClient(url=url)
    client.create_collection("strings", m.VectorParams(size=2, distance=m.Distance.DOT))
    ids = ["doc-1", "1", "ü/?&#", "a b"]
    client.upsert("strings", [m.PointStruct(id=id, vector=[n, 1], payload={"n": n}) for n, id in enumerate(ids)])
    assert {one.id for one in client.scroll("strings")[0]} == set(ids)
    assert client.query_points("strings", "ü/?&#", limit=1).points[0].id == "a b"
    client.delete("strings", ["1", "a b"])
    assert [one.payload["n"] for one in client.retrieve("strings", ["ü/?&#", "1", "doc-1"])] == [2, 0]
    client.close()


def test_collections_and_aliases_are_as_qdrants(clients):
    for client in clients:
        params = m.VectorParams(size=4, distance=m.Distance.COSINE)
        client.create_collection("made", params, metadata={"of": "me"}, on_disk_payload=True)
        assert client.collection_exists("made") and not client.collection_exists("other")
        client.update_collection_aliases([
            m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name="made", alias_name="first")),
            m.RenameAliasOperation(rename_alias=m.RenameAlias(old_alias_name="first", new_alias_name="second")),
        ])  # fmt: skip
        client.upsert("second", [m.PointStruct(id=1, vector=[1, 2, 3, 4])])
        assert client.count("made").count == client.get_collection("second").points_count == 1
        assert [one.alias_name for one in client.get_collection_aliases("made").aliases] == ["second"]
        found = client.get_collection("made")
        assert (found.status, found.config.params.vectors) == (m.CollectionStatus.GREEN, params)
        assert found.config.metadata == {"of": "me"}
        client.delete_collection("made")
        assert client.get_aliases().aliases == []
        with pytest.raises((UnexpectedResponse, ValueError)):
            client.count("second")


def test_fields_get_an_index(url):
    client = QdrantClient(url=url)
    client.create_collection("fields", m.VectorParams(size=2, distance=m.Distance.DOT))
    client.upsert("fields", [m.PointStruct(id=1, vector=[1, 1], payload={"n": 1})])
    client.create_payload_index("fields", "n", m.PayloadSchemaType.INTEGER)
    client.create_payload_index("fields", "of.name", m.KeywordIndexParams(type="keyword", is_tenant=True))
    schema = client.get_collection("fields").payload_schema
    assert {path: one.data_type.value for path, one in schema.items()} == {"n": "integer", "of.name": "keyword"}
    client.delete_payload_index("fields", "n")
    assert set(client.get_collection("fields").payload_schema) == {"of.name"}
    with pytest.raises(UnexpectedResponse, match="places"):
        client.create_payload_index("fields", "place", m.PayloadSchemaType.GEO)
    client.close()


def test_the_store_of_langchain_works(url):
    pytest.importorskip("langchain_qdrant")
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_qdrant import QdrantVectorStore

    texts, ids = ["cats", "dogs", "birds"], [str(uuid.uuid4()) for _ in range(3)]
    store = QdrantVectorStore.from_texts(
        texts, DeterministicFakeEmbedding(size=16), [{"n": n} for n in range(3)], ids, url=url,
        collection_name="langchain",
    )  # fmt: skip
    assert [one.page_content for one in store.similarity_search("dogs", k=1)] == ["dogs"]
    document, score = store.similarity_search_with_score("birds", k=1)[0]
    assert (document.metadata["n"], document.metadata["_id"]) == (2, ids[2]) and score == pytest.approx(1, abs=1e-5)
    odd = m.Filter(must=[m.FieldCondition(key="metadata.n", range=m.Range(gte=1, lt=2))])
    assert [one.page_content for one in store.similarity_search("cats", filter=odd)] == ["dogs"]
    assert len(store.max_marginal_relevance_search("cats", k=2, fetch_k=3)) == 2
    assert [one.page_content for one in store.get_by_ids([ids[1]])] == ["dogs"]
    store.delete([ids[1]])
    assert "dogs" not in [one.page_content for one in store.similarity_search("dogs", k=3)]
    store.add_texts(["fish"])
    assert [one.page_content for one in store.similarity_search("fish", k=1)] == ["fish"]
