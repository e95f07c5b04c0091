"""Collections whose vectors have names: how they are served, and what statistics say of them."""

import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.server.totals import parts_of

NAMES = {"image": {"size": 4, "distance": "Cosine"}, "text": {"size": 3, "distance": "Euclid"}}
POINTS = [
    {"id": 1, "vector": {"image": [1, 0, 0, 0], "text": [0, 0, 1]}, "payload": {"n": 1}},
    {"id": "b", "vector": {"image": [0, 2, 0, 0]}, "payload": {"n": 2}},
    {"id": 3, "vector": {}},
]


@pytest.fixture
def client(tmp_path):
    with served(tmp_path / "data") as client:
        result(client.put("/collections/c", json={"vectors": NAMES}))
        result(client.put("/collections/c/points", json={"points": POINTS}))
        yield client


def get(client, *ids, **options):
    return result(client.post("/collections/c/points", json={"ids": ids, **options}))


def test_points_have_the_vectors_that_they_were_given(client):
    assert get(client, 1, "b", 3, with_vector=True, with_payload=False) == [
        {"id": 1, "vector": {"image": [1, 0, 0, 0], "text": [0, 0, 1]}},
        {"id": "b", "vector": {"image": [0, 1, 0, 0]}},
        {"id": 3, "vector": {}},
    ]
    assert get(client, 1, with_vector=["text", "none"], with_payload=False) == [
        {"id": 1, "vector": {"text": [0, 0, 1]}}
    ]


def test_one_kind_of_vector_is_searched(client):
    def find(**body):
        return client.post("/collections/c/points/query", json=body)

    found = result(find(query=[0, 3, 4], using="text", with_vector=["image"]))["points"]
    assert found == [{"id": 1, "version": 0, "score": pytest.approx(18**0.5), "vector": {"image": [1, 0, 0, 0]}}]
    assert [one["id"] for one in result(find(query="b", using="image"))["points"]] == [1]
    having = {"must": [{"has_vector": "text"}]}
    assert [one["id"] for one in result(find(query=[1, 1, 1, 1], using="image", filter=having))["points"]] == [1]
    assert "image" in error(find(query=[1, 2, 3]), 400)
    assert "other" in error(find(query=[1, 2, 3], using="other"), 400)
    assert "text" in error(find(query="b", using="text"), 404)


def test_one_kind_of_vector_changes(client):
    update = {"points": [{"id": "b", "vector": {"text": [0, 1, 0]}}]}
    result(client.put("/collections/c/points/vectors", json=update))
    result(client.post("/collections/c/points/vectors/delete", json={"points": [1], "vector": ["image"]}))
    assert get(client, 1, "b", with_vector=True, with_payload=False) == [
        {"id": 1, "vector": {"text": [0, 0, 1]}},
        {"id": "b", "vector": {"image": [0, 1, 0, 0], "text": [0, 1, 0]}},
    ]


def test_statistics_are_those_of_all_names(client):
    found = result(client.get("/collections/c"))
    assert found["config"]["params"]["vectors"] == NAMES
    assert (found["points_count"], found["indexed_vectors_count"], found["segments_count"]) == (3, 0, 2)
    stats = client.app.state.catalog.get("c").stats()
    assert [(part["fresh"], part["version"]) for part in parts_of(stats)] == [(2, stats["version"])] * 1 + [
        (1, stats["version"])
    ]
    assert 'qinco_points{collection="c",state="fresh"} 3.0' in client.get("/metrics").text
    assert [(one["name"], one["vectors"]) for one in client.get("/page/data").json()["collections"]] == [
        ("c.image", 2), ("c.text", 1)
    ]  # fmt: skip


def test_they_are_there_when_the_server_starts_again(tmp_path):
    with served(tmp_path / "data") as client:
        result(client.put("/collections/c", json={"vectors": NAMES}))
        result(client.put("/collections/c/points", json={"points": POINTS}))
    with served(tmp_path / "data") as client:
        assert len(get(client, 1, "b", 3)) == 3
