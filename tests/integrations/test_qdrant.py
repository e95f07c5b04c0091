"""qdrant-client with our server, beside its own implementation in memory (`QdrantClient(":memory:")`)."""

import datetime
import random
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
from serving import serving
from small_indexes import trained, vectors

from qinco import Collection, Index

SCHEMES = {
    "cosine": {"": (12, "Cosine")},
    "dot": {"": (8, "Dot")},
    "euclid": {"": (6, "Euclid")},
    "named": {"image": (12, "Cosine"), "text": (8, "Dot"), "code": (6, "Euclid")},
}
COLORS, WORDS = ["red", "green", "blue", "déjà vu"], ["alpha", "beta", "gamma", "delta"]
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


def payload_of(draw: random.Random, number: int) -> dict:
    """Values of all kinds, of which some are missing, null, or arrays."""
    day = datetime.datetime(2024, 1, 1) + datetime.timedelta(days=number % 300, hours=draw.randrange(24))
    payload = {
        "number": draw.choice([draw.randrange(20), [draw.randrange(20) for _ in range(draw.randrange(4))], None]),
        "rating": draw.choice([round(draw.uniform(0, 5), 2) + 0.001, None]),
        "flag": draw.choice([True, False]),
        "color": draw.choice([draw.choice(COLORS), draw.sample(COLORS, draw.randrange(4)), None, 7]),
        "when": day.isoformat() + "Z",
        "of": {"name": draw.choice(WORDS), "tags": draw.sample(WORDS, draw.randrange(3))},
        "parts": [{"kind": draw.choice(WORDS), "size": draw.randrange(6)} for _ in range(draw.randrange(3))],
        "text": " ".join(draw.sample([*WORDS, "Beta", "gamma-ray", "red,", "green!", "déjà"], draw.randrange(6))),
        "place": {"lon": round(draw.uniform(-20, 20), 3), "lat": round(draw.uniform(-60, 60), 3)},
        "group": draw.choice([draw.randrange(9), draw.choice(WORDS)]),
        "empty": [],
    }
    return {name: value for name, value in payload.items() if draw.random() > 0.15}


def points_of(scheme: str, count: int, seed: int) -> list[m.PointStruct]:
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    found = []
    for number in range(count):
        vectors = {name: rng.standard_normal(dim).tolist() for name, (dim, _) in SCHEMES[scheme].items()}
        kept = {name: vector for name, vector in vectors.items() if draw.random() > 0.1}
        id = number if number % 3 else str(uuid.UUID(int=draw.getrandbits(128)))
        vector = kept.get("", {}) if "" in SCHEMES[scheme] else kept
        found.append(m.PointStruct(id=id, vector=vector, payload=payload_of(draw, number)))
    return found


POINTS = {scheme: points_of(scheme, 1000, 1) for scheme in SCHEMES}
FEW = {scheme: points_of(scheme, 24, 2) for scheme in SCHEMES}
IDS = sorted({point.id for points in POINTS.values() for point in points}, key=str)
FEW_IDS = sorted({point.id for points in FEW.values() for point in points} | {5000}, key=str)


def config(scheme: str):
    params = {name: m.VectorParams(size=dim, distance=distance) for name, (dim, distance) in SCHEMES[scheme].items()}
    return params.get("", params)


@pytest.fixture(scope="module", autouse=True)
def points(clients):
    for client in clients:
        for scheme in SCHEMES:
            client.create_collection(scheme, config(scheme))
            client.upsert(scheme, POINTS[scheme])
            client.create_collection(f"{scheme}-changed", config(scheme))


def fields(**parts):
    return st.fixed_dictionaries(parts)


def some_fields(parts: dict):
    """Some of the parts, and one at least."""
    return st.fixed_dictionaries({}, optional=parts).filter(bool)


# Filters are drawn as JSON: the models of qdrant-client cannot be shown as a failing example
keys = st.sampled_from(["number", "rating", "flag", "color", "when", "of.name", "of.tags", "parts[].kind", "parts",
                        "parts[].size", "empty", "group", "missing", "of.tags[]", "parts[0].size", "of",
                        "text"])  # fmt: skip
names, schemes = st.sampled_from(["", "image", "text"]), st.sampled_from(list(SCHEMES))
texts, integers = st.sampled_from([*COLORS, *WORDS, "none"]), st.integers(-1, 21)
places = fields(lon=st.floats(-25, 25), lat=st.floats(-65, 65))
SQUARE = [{"lon": lon, "lat": lat} for lon, lat in ((-10, -10), (15, -12), (12, 14), (-9, 11), (-10, -10))]
BOUNDS = "gt", "gte", "lt", "lte"
ranges = some_fields({name: st.integers(-1, 21) | st.floats(-1, 21) for name in BOUNDS})
counts = some_fields({name: st.integers(0, 4) for name in BOUNDS})
days = st.dates(datetime.date(2023, 12, 1), datetime.date(2024, 12, 31)).map(lambda day: f"{day}T10:00:00Z")
words = st.sampled_from(["alpha", "Beta gamma", "vu", "red, green", "déjà VU", "a", ""])
lists = st.lists(texts, max_size=3) | st.lists(integers, max_size=3)
matches = st.one_of(
    fields(value=texts | integers | st.booleans()),
    fields(any=lists),
    fields(text=words),
    fields(text_any=words),
    fields(phrase=words),
    fields(prefix=words),
    fields(substring=words),
    st.fixed_dictionaries({"except": lists}),
)
of_values = st.one_of(
    fields(key=keys, match=matches),
    fields(key=keys, range=ranges),
    fields(key=st.just("when"), range=some_fields(dict.fromkeys(BOUNDS, days))),
    fields(key=keys, values_count=counts),
    fields(key=st.just("place"), geo_radius=fields(center=places, radius=st.floats(1e3, 5e6))),
    fields(key=st.just("place"), geo_bounding_box=fields(top_left=places, bottom_right=places)),
    fields(key=st.just("place"), geo_polygon=fields(exterior=fields(points=st.just(SQUARE)))),
    fields(key=keys, is_empty=st.booleans()),
    fields(key=keys, is_null=st.booleans()),
    fields(is_empty=fields(key=keys)),
    fields(is_null=fields(key=keys)),
)
of_points = st.one_of(
    fields(has_id=st.lists(st.sampled_from(IDS), max_size=40)),
    fields(has_vector=names),
)
of_parts = st.one_of(
    fields(key=st.just("kind"), match=fields(value=texts)),
    fields(key=st.just("size"), range=ranges),
)


def filters(conditions):
    some = st.lists(conditions, min_size=1, max_size=3)
    at_least = fields(conditions=some, min_count=st.integers(1, 3))
    clauses = {"must": some | conditions, "should": some, "must_not": some, "min_should": at_least}
    return st.fixed_dictionaries({}, optional=clauses)


nested = fields(nested=fields(key=st.sampled_from(["parts", "parts[]"]), filter=filters(of_parts)))
whole_filters = filters(st.recursive(st.one_of(of_values, of_points, nested), filters, max_leaves=8))


def filter_of(given: dict | None) -> m.Filter | None:
    return None if given is None else m.Filter.model_validate(given)


def same_points(ours, theirs):
    """The same ids, payloads and vectors, and scores that are equal but for rounding."""
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(
        [getattr(one, "score", 0) for one in ours], [getattr(one, "score", 0) for one in theirs], atol=1e-4, rtol=1e-4
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.id == other.id
        assert one.payload == other.payload
        same_vectors(one.vector, other.vector)


def same_vectors(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)
    elif one is None:
        assert other is None
    else:
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def vector_of(scheme: str, name: str, seed: int) -> list[float]:
    return np.random.default_rng(seed).standard_normal(SCHEMES[scheme][name][0]).tolist()


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


def having(scheme: str, name: str) -> list:
    """The ids of points that have a vector of this name."""
    return [point.id for point in POINTS[scheme] if (name in point.vector if name else point.vector)]


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


values = st.recursive(
    st.none() | st.booleans() | integers | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
new_payloads = st.dictionaries(st.sampled_from(["number", "color", "of", "new"]), values, max_size=3)
paths = st.sampled_from(["number", "of", "of.name", "of.new", "parts[].kind", "parts[0]", "parts[1].new", "parts[]",
                         "new.a"])  # fmt: skip
few_ids, rows = st.sampled_from(FEW_IDS), st.integers(0, 500)
selectors = st.one_of(fields(points=st.lists(few_ids, min_size=1, max_size=4)), fields(filter=filters(of_values)))
changed = st.one_of(
    st.tuples(st.just("delete"), selectors, st.just({})),
    st.tuples(st.just("clear_payload"), selectors, st.just({})),
    st.tuples(st.just("set_payload"), selectors, fields(payload=new_payloads)),
    st.tuples(st.just("set_payload"), selectors, fields(payload=new_payloads, key=paths)),
    st.tuples(st.just("overwrite_payload"), selectors, fields(payload=new_payloads)),
    st.tuples(st.just("delete_payload"), selectors, fields(keys=st.lists(paths, min_size=1))),
    st.tuples(st.just("delete_vectors"), selectors, fields(vector=st.lists(names, min_size=1))),
    st.tuples(st.just("upsert"), fields(id=few_ids, row=rows), fields(
        update_mode=st.sampled_from([None, "insert_only", "update_only"]),
        update_filter=st.none() | filters(of_values))),
    st.tuples(st.just("update_vectors"), fields(id=few_ids, row=rows), st.just({})),
)  # fmt: skip


def operation_of(scheme: str, kind: str, chosen: dict, more: dict) -> m.UpdateOperation:
    body = {**chosen, **more}
    if "row" in chosen:
        point = POINTS[scheme][chosen["row"]]
        given = {"payload": point.payload} if kind == "upsert" else {}
        body = {"points": [{"id": chosen["id"], "vector": point.vector, **given}], **more}
    return m.UpdateOperations.model_validate({"operations": [{kind: body}]}).operations[0]


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
    x_ND, queries_QD = vectors(), vectors(50, seed=3)
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
    recall, least = (
        np.mean([len(set(ours) & set(true)) / 10 for ours, true in zip(some, truth_QR, strict=True)])
        for some in (found_QR, index_QR)
    )
    assert recall >= least > 0.3


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
