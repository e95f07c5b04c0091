import numpy as np
import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
IDS = [*range(8), "3f8a0c1e-9a4b-4c7d-8f00-0123456789ab", "any string", "zoë/ä?", "9"]
PAYLOADS = [{"n": n, "tag": ["even" if n % 2 == 0 else "odd", "all"], "of": {"name": f"a{n % 3}"}} for n in range(12)]


@pytest.fixture
def client(tmp_path):
    with served(tmp_path / "data", max_payload_bytes=500) as client:
        result(client.put("/collections/c", json={"vectors": {"size": 4, "distance": "Cosine"}}))
        points = [{"id": id, "vector": x_D.tolist(), "payload": payload} for id, x_D, payload in
                  zip(IDS, X, PAYLOADS, strict=True)]  # fmt: skip
        result(client.put("/collections/c/points", json={"points": points}))
        yield client


def get(client, *ids, **options):
    return result(client.post("/collections/c/points", json={"ids": ids, **options}))


def post(client, what, **body):
    return client.post(f"/collections/c/points/{what}", json=body)


def test_points_come_back_with_vectors_of_length_1(client):
    found = get(client, "any string", 1, 99, with_vector=True)
    assert [one["id"] for one in found] == ["any string", 1]
    assert found[0]["payload"] == PAYLOADS[9]
    np.testing.assert_allclose(found[0]["vector"], X[9] / np.linalg.norm(X[9]), rtol=1e-5)
    assert get(client, 1, with_payload=False) == [{"id": 1}]
    assert get(client, 1, with_payload=["of.name"]) == [{"id": 1, "payload": {"of": {"name": "a1"}}}]
    assert get(client, 1, with_payload={"exclude": ["n", "of"]}) == [{"id": 1, "payload": {"tag": ["odd", "all"]}}]


def test_one_point_has_a_route(client):
    assert result(client.get("/collections/c/points/3"))["payload"] == PAYLOADS[3]
    assert result(client.get("/collections/c/points/any%20string"))["id"] == "any string"
    error(client.get("/collections/c/points/77"), 404)


def test_a_uuid_is_one_however_it_is_spelt(client):
    for spelt in (IDS[8].upper(), IDS[8].replace("-", ""), f"{{{IDS[8]}}}", f"urn:uuid:{IDS[8]}"):
        assert get(client, spelt)[0]["id"] == IDS[8]
        by_filter = {"must": [{"has_id": [spelt, 1]}]}
        assert result(post(client, "count", filter=by_filter)) == {"count": 2}


def test_columns_are_upserted_too(client):
    batch = {"ids": [1, 50], "vectors": X[:2].tolist(), "payloads": [{"new": 1}, {"new": 2}]}
    result(client.put("/collections/c/points", json={"batch": batch}))
    assert [one["payload"] for one in get(client, 1, 50)] == batch["payloads"]
    error(client.put("/collections/c/points", json={"batch": batch | {"ids": [1]}}), 400)


def test_upserts_may_be_conditional(client):
    point = {"id": 1, "vector": [1, 0, 0, 0], "payload": {"n": 1, "new": True}}
    for body, is_new in (({"update_mode": "insert_only"}, False),
                         ({"update_filter": {"must": [{"key": "n", "match": {"value": 2}}]}}, False),
                         ({"update_mode": "update_only"}, True)):  # fmt: skip
        result(client.put("/collections/c/points", json={"points": [point, point | {"id": 99}], **body}))
        assert get(client, 1)[0]["payload"].get("new", False) is is_new
    assert result(post(client, "count")) == {"count": 13}


def test_wrong_points_are_refused_and_nothing_is_stored(client):
    good = {"id": 100, "vector": [1, 2, 3, 4]}
    for wrong in ({"id": 101, "vector": [1, 2]}, {"id": 101, "vector": {"a": [1, 2, 3, 4]}}, {"id": -1, "vector": []},
                  {"id": 101, "vector": {"indices": [1], "values": [1]}}, {"id": "a" * 600, "vector": [1, 2, 3, 4]},
                  {"id": 101, "vector": [[1, 2, 3, 4]]}):  # fmt: skip
        error(client.put("/collections/c/points", json={"points": [good, wrong]}), 400)
    error(client.put("/collections/c/points", json={"points": []}), 400)
    error(client.put("/collections/c/points", json={"points": [good | {"payload": {"text": "x" * 500}}]}), 413)
    error(client.put("/collections/c/points", content=b'{"points": [{"id": 1, "vector": [NaN, 1, 1, 1]}]}'), 400)
    error(client.put("/collections/none/points", json={"points": [good]}), 404)
    assert get(client, 100) == []


def test_pages_follow_each_other(client):
    seen, offset = [], None
    while True:
        page = result(post(client, "scroll", limit=5, offset=offset, with_payload=False))
        seen += [one["id"] for one in page["points"]]
        offset = page["next_page_offset"]
        if offset is None:
            break
    assert seen == [*range(8), *sorted(IDS[8:])]
    odd = {"must": [{"key": "tag", "match": {"value": "odd"}}]}
    page = result(post(client, "scroll", limit=2, filter=odd, offset=2))
    assert [one["id"] for one in page["points"]] == [3, 5] and page["next_page_offset"] == 7


def test_points_are_ordered_by_a_field(client):
    result(client.put("/collections/c/points", json={"points": [
        {"id": 60, "vector": X[0].tolist(), "payload": {"n": [3, 2.5, "x", None]}},
        {"id": 61, "vector": X[0].tolist(), "payload": {"n": True}},
    ]}))  # fmt: skip
    page = result(post(client, "scroll", limit=5, order_by={"key": "n", "start_from": 2}))
    assert [(one["id"], one["order_value"]) for one in page["points"]] == [
        (2, 2), (60, 2.5), (3, 3), (60, 3), (4, 4)
    ]  # fmt: skip
    falling = result(post(client, "scroll", limit=2, order_by={"key": "n", "direction": "desc"}, with_payload=False))
    assert [one["id"] for one in falling["points"]] == [IDS[11], IDS[10]]
    error(post(client, "scroll", order_by="n", offset=1), 400)


def test_points_are_counted_and_deleted(client):
    even = {"must": [{"key": "tag", "match": {"value": "even"}}]}
    assert result(post(client, "count", filter=even, exact=False)) == {"count": 6}
    result(post(client, "delete", filter=even))
    result(post(client, "delete", points=[1, 99]))
    assert result(post(client, "count")) == {"count": 5}
    error(post(client, "delete", points=[]), 400)


def test_payloads_change(client):
    result(post(client, "payload", payload={"a": 1, "n": None}, points=[1, 2]))
    assert get(client, 1)[0]["payload"] == {"tag": ["odd", "all"], "of": {"name": "a1"}, "a": 1}
    result(post(client, "payload", payload={"b": 1}, filter={"must": [{"has_id": [1]}]}, key="of"))
    assert get(client, 1)[0]["payload"]["of"] == {"name": "a1", "b": 1}
    result(post(client, "payload/delete", keys=["tag[]", "of.b"], points=[1]))
    assert get(client, 1)[0]["payload"] == {"tag": [], "of": {"name": "a1"}, "a": 1}
    result(client.put("/collections/c/points/payload", json={"payload": {"x": 1}, "points": [1]}))
    assert get(client, 1)[0]["payload"] == {"x": 1}
    result(post(client, "payload/clear", points=[1]))
    assert get(client, 1)[0]["payload"] == {}
    assert "99" in error(post(client, "payload", payload={"y": 1}, points=[99, 1]), 404)
    assert get(client, 1)[0]["payload"] == {"y": 1}
    error(post(client, "payload", payload={"y": 1}), 400)
    error(post(client, "payload", payload={"text": "x" * 500}, points=[1]), 413)


def test_vectors_change_alone(client):
    update = {"points": [{"id": 1, "vector": [0, 0, 0, 2]}]}
    result(client.put("/collections/c/points/vectors", json=update))
    assert get(client, 1, with_vector=True) == [{"id": 1, "payload": PAYLOADS[1], "vector": [0, 0, 0, 1]}]
    result(post(client, "vectors/delete", points=[1], vector=[""]))
    assert get(client, 1, with_vector=True) == [{"id": 1, "payload": PAYLOADS[1], "vector": {}}]
    error(post(client, "vectors/delete", points=[1], vector=["other"]), 400)
    update = {"points": [{"id": 99, "vector": [0, 0, 0, 2]}, {"id": 2, "vector": [0, 0, 2, 0]}]}
    assert "99" in error(client.put("/collections/c/points/vectors", json=update), 404)
    assert get(client, 2, with_vector=True)[0]["vector"] == [0, 0, 1, 0]


def test_vectors_change_of_points_that_a_filter_admits(client):
    for filter, vector in (({"must": [{"key": "n", "match": {"value": 2}}]}, [1, 0, 0, 0]), ({}, [0, 1, 0, 0])):
        points = [{"id": 2, "vector": vector}, {"id": 3, "vector": vector}]
        result(client.put("/collections/c/points/vectors", json={"points": points, "update_filter": filter}))
        assert get(client, 2, with_vector=True)[0]["vector"] == vector
        assert (get(client, 3, with_vector=True)[0]["vector"] == vector) is (not filter)


def test_several_changes_are_made_one_after_the_other(client):
    operations = [
        {"upsert": {"points": [{"id": 70, "vector": [1, 0, 0, 0], "payload": {"a": 1}}]}},
        {"set_payload": {"payload": {"b": 2}, "points": [70]}},
        {"delete": {"points": [1]}},
        {"delete_payload": {"keys": ["a"], "points": [70]}},
    ]
    assert len(result(post(client, "batch", operations=operations))) == 4
    assert get(client, 1, 70) == [{"id": 70, "payload": {"b": 2}}]


def test_values_are_counted(client):
    hits = result(client.post("/collections/c/facet", json={"key": "tag"}))["hits"]
    assert hits == [{"value": "all", "count": 12}, {"value": "even", "count": 6}, {"value": "odd", "count": 6}]
    narrow = {"key": "of.name", "limit": 1, "filter": {"must": [{"key": "n", "range": {"lt": 4}}]}}
    assert result(client.post("/collections/c/facet", json=narrow))["hits"] == [{"value": "a0", "count": 2}]


def test_limits_are_said(client):
    for body in ({"limit": 0}, {"limit": 10_001}, {"limit": -1}):
        assert "limit" in error(post(client, "scroll", **body), 400)
