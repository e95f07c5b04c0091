"""qdrant-client with our server, beside its own implementation in memory (`QdrantClient(":memory:")`)."""

import datetime
import random
import socket
import threading
import time
import uuid
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("qdrant_client")

import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_client.http import models as m
from qdrant_client.http.exceptions import UnexpectedResponse

import qinco
from qinco.server.app import create_app
from qinco.server.catalog import Catalog

NAMES = {"image": (12, m.Distance.COSINE), "text": (8, m.Distance.DOT), "code": (6, m.Distance.EUCLID)}
COLORS, WORDS = ["red", "green", "blue", "déjà vu"], ["alpha", "beta", "gamma", "delta"]
DRAWN = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def serving(folder):
    """The URL of a server of a folder, in a thread."""
    with Catalog.open(folder) as catalog, socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(catalog), log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served")) as url:
        yield url


@pytest.fixture(scope="module")
def ours(url):
    client = QdrantClient(url=url, timeout=30)
    yield client
    client.close()


@pytest.fixture(scope="module")
def theirs():
    client = QdrantClient(":memory:")
    yield client
    client.close()


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
        "group": draw.choice([draw.randrange(9), draw.choice(WORDS)]),
        "empty": [],
    }
    return {name: value for name, value in payload.items() if draw.random() > 0.15}


def points_of(count: int, seed: int) -> list[m.PointStruct]:
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    found = []
    for number in range(count):
        vectors = {name: rng.standard_normal(dim).tolist() for name, (dim, _) in NAMES.items()}
        kept = {name: vector for name, vector in vectors.items() if draw.random() > 0.1}
        id = number if number % 3 else str(uuid.UUID(int=draw.getrandbits(128)))
        found.append(m.PointStruct(id=id, vector=kept, payload=payload_of(draw, number)))
    return found


POINTS = points_of(1000, 1)
IDS = [point.id for point in POINTS]
CONFIG = {name: m.VectorParams(size=dim, distance=distance) for name, (dim, distance) in NAMES.items()}


@pytest.fixture(scope="module", autouse=True)
def points(ours, theirs):
    for client in (ours, theirs):
        client.create_collection("points", CONFIG)
        client.upsert("points", POINTS)


def fields(**parts):
    return st.fixed_dictionaries(parts)


def some_fields(parts: dict):
    """Some of the parts, and one at least."""
    return st.fixed_dictionaries({}, optional=parts).filter(bool)


# Filters are drawn as JSON: the models of qdrant-client cannot be shown as a failing example
keys = st.sampled_from(["number", "rating", "flag", "color", "when", "of.name", "of.tags", "parts[].kind", "parts",
                        "parts[].size", "empty", "group", "missing", "of.tags[]", "parts[0].size", "of"])  # fmt: skip
texts, integers = st.sampled_from([*COLORS, *WORDS, "none"]), st.integers(-1, 21)
BOUNDS = "gt", "gte", "lt", "lte"
ranges = some_fields({name: st.integers(-1, 21) | st.floats(-1, 21) for name in BOUNDS})
counts = some_fields({name: st.integers(0, 4) for name in BOUNDS})
days = st.dates(datetime.date(2023, 12, 1), datetime.date(2024, 12, 31)).map(lambda day: f"{day}T10:00:00Z")
lists = st.lists(texts, max_size=3) | st.lists(integers, max_size=3)
matches = st.one_of(
    fields(value=texts | integers | st.booleans()),
    fields(any=lists),
    st.fixed_dictionaries({"except": lists}),
)
of_values = st.one_of(
    fields(key=keys, match=matches),
    fields(key=keys, range=ranges),
    fields(key=st.just("when"), range=some_fields({name: days for name in BOUNDS})),
    fields(key=keys, values_count=counts),
    fields(key=keys, is_empty=st.booleans()),
    fields(key=keys, is_null=st.booleans()),
    fields(is_empty=fields(key=keys)),
    fields(is_null=fields(key=keys)),
)
of_points = st.one_of(
    fields(has_id=st.lists(st.sampled_from(IDS), max_size=40)),
    fields(has_vector=st.sampled_from(list(NAMES))),
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


def same_points(ours, theirs, order: bool = True):
    """The same ids, payloads and vectors, and scores that are equal but for rounding."""
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    if not order:
        ours, theirs = (sorted(some, key=lambda one: str(one.id)) for some in (ours, theirs))
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


def vector(draw_data, name: str) -> list[float]:
    return np.random.default_rng(draw_data.draw(st.integers(0, 1 << 30))).standard_normal(NAMES[name][0]).tolist()


@DRAWN
@given(filter=whole_filters)
def test_filters_admit_the_same_points(ours, theirs, filter):
    filter = filter_of(filter)
    assert ours.count("points", filter).count == theirs.count("points", filter).count
    found = [client.scroll("points", filter, limit=1000, with_payload=False) for client in (ours, theirs)]
    assert [one.id for one in found[0][0]] == [one.id for one in found[1][0]]


@DRAWN
@given(data=st.data(), filter=st.none() | whole_filters, limit=st.integers(1, 30), offset=st.integers(0, 20))
def test_queries_find_the_same_points(ours, theirs, data, filter, limit, offset):
    name = data.draw(st.sampled_from(list(NAMES)))
    example = data.draw(st.sampled_from([point.id for point in POINTS if name in point.vector]))
    other = data.draw(st.sampled_from([point.id for point in POINTS if name in point.vector]))
    query = [
        vector(data, name), example, m.NearestQuery(nearest=example),
        m.RecommendQuery(recommend=m.RecommendInput(positive=[example, vector(data, name)], negative=[other])),
    ][data.draw(st.integers(0, 3))]  # fmt: skip
    threshold = data.draw(st.none() | st.floats(-1, 4))
    options = {"using": name, "query_filter": filter_of(filter), "limit": limit, "offset": offset, "score_threshold": threshold,
               "with_payload": data.draw(st.sampled_from([True, False, ["of.name", "parts[].kind"]])),
               "with_vectors": data.draw(st.sampled_from([True, False, ["code"]]))}  # fmt: skip
    same_points(*(client.query_points("points", query, **options).points for client in (ours, theirs)))


@DRAWN
@given(data=st.data(), filter=st.none() | whole_filters, limit=st.integers(1, 8), size=st.integers(1, 4))
def test_groups_are_the_same(ours, theirs, data, filter, limit, size):
    name = data.draw(st.sampled_from(list(NAMES)))
    options = {"using": name, "query_filter": filter_of(filter), "limit": limit, "group_size": size, "with_payload": ["group"],
               "group_by": data.draw(st.sampled_from(["group", "of.tags", "number"]))}  # fmt: skip
    query = vector(data, name)
    found = [client.query_points_groups("points", query=query, **options).groups for client in (ours, theirs)]
    assert [group.id for group in found[0]] == [group.id for group in found[1]]
    for one, other in zip(*found, strict=True):
        same_points(one.hits, other.hits)


@DRAWN
@given(filter=st.none() | whole_filters, key=keys, limit=st.integers(1, 20))
def test_facets_are_the_same(ours, theirs, filter, key, limit):
    found = [client.facet("points", key, filter_of(filter), limit).hits for client in (ours, theirs)]
    assert [(hit.value, hit.count) for hit in found[0]] == [(hit.value, hit.count) for hit in found[1]]


values = st.recursive(
    st.none() | st.booleans() | integers | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
new_payloads = st.dictionaries(st.sampled_from(["number", "color", "of", "new"]), values, max_size=3)
paths = st.sampled_from(
    ["number", "of", "of.name", "of.new", "parts[].kind", "parts[0]", "parts[1].new", "parts[]", "new.a"]
)
FEW = points_of(24, 2)
few_ids = st.lists(st.sampled_from([*(point.id for point in FEW), 5000]), min_size=1, max_size=4)
selectors = st.one_of(fields(points=few_ids), fields(filter=filters(of_values)))
changes = st.one_of(
    fields(delete=selectors),
    fields(clear_payload=selectors),
    st.builds(lambda chosen, payload, key: {"set_payload": {**chosen, "payload": payload, **key}}, selectors,
              new_payloads, st.just({}) | fields(key=paths)),
    st.builds(lambda chosen, payload: {"overwrite_payload": {**chosen, "payload": payload}}, selectors, new_payloads),
    st.builds(lambda chosen, names: {"delete_payload": {**chosen, "keys": names}}, selectors, st.lists(paths, min_size=1)),
    st.builds(lambda chosen, names: {"delete_vectors": {**chosen, "vector": names}}, selectors,
              st.lists(st.sampled_from(list(NAMES)), min_size=1)),
    st.builds(lambda row, id, how: {"upsert": {"points": [{"id": id, "vector": POINTS[row].vector,
                                                           "payload": POINTS[row].payload}], **how}},
              st.integers(0, 500), st.sampled_from([*(point.id for point in FEW), 5000]),
              st.sampled_from([{}, {"update_mode": "insert_only"}, {"update_mode": "update_only"}])
              | fields(update_filter=filters(of_values))),
    st.builds(lambda row, id: {"update_vectors": {"points": [{"id": id, "vector": POINTS[row].vector}]}},
              st.integers(0, 500), st.sampled_from([*(point.id for point in FEW), 5000])),
)  # fmt: skip


@DRAWN
@given(given=st.lists(changes, min_size=1, max_size=6))
def test_changes_leave_the_same_points(ours, theirs, given):
    operations = [m.UpdateOperations.model_validate({"operations": [one]}).operations[0] for one in given]
    for client in (ours, theirs):
        if client.collection_exists("changed"):
            client.delete("changed", m.Filter())
        else:
            client.create_collection("changed", CONFIG)
        client.upsert("changed", FEW)
    for operation in operations:
        refused = []
        for client in (ours, theirs):
            try:
                client.batch_update_points("changed", [operation])
            except (UnexpectedResponse, ValueError, KeyError) as error:
                refused.append(error)
        assert len(refused) in (0, 2), refused
    found = [client.scroll("changed", limit=100, with_vectors=True)[0] for client in (ours, theirs)]
    same_points(*found)
