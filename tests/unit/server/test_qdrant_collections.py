import sqlite3
from contextlib import closing

import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.collection.schema import FILE

VECTORS = {"size": 32, "distance": "Cosine"}


@pytest.fixture
def client(tmp_path):
    with served(tmp_path / "data") as client:
        yield client


def made(client, name="c", query="", **body):
    result(client.put(f"/collections/{name}{query}", json={"vectors": VECTORS, **body}))
    return client.app.state.catalog.get(name)


@pytest.mark.parametrize(("query", "body", "expected"), [
    ("", {}, 8),
    ("?bytes=5", {}, 5),
    ("", {"metadata": {"qinco": {"bytes": 6}}}, 6),
    ("", {"quantization_config": {"product": {"compression": "x32"}}}, 4),
    ("", {"vectors": VECTORS | {"quantization_config": {"product": {"compression": "x64"}}}}, 2),
    ("?bytes=3", {"quantization_config": {"product": {"compression": "x32"}}}, 3),
])  # fmt: skip
def test_how_many_bytes_a_vector_takes_is_told_at_its_creation(client, query, body, expected):
    collection = made(client, query=query, **body)
    assert collection.dim == 32
    with closing(sqlite3.connect(collection.folder / FILE)) as database:
        assert database.execute("SELECT value FROM meta WHERE name = 'bytes'").fetchone() == (str(expected),)


@pytest.mark.parametrize(("body", "reason"), [
    ({}, "size"),
    ({"vectors": {}}, "size"),
    ({"vectors": VECTORS | {"distance": "Manhattan"}}, "Manhattan"),
    ({"vectors": VECTORS | {"size": 0}}, "size"),
    ({"vectors": VECTORS | {"size": 10**9}}, "size"),
    ({"vectors": VECTORS | {"datatype": "uint8"}}, "uint8"),
    ({"vectors": VECTORS, "shard_number": 2}, "shards"),
    ({"vectors": VECTORS, "replication_factor": 3}, "replica"),
    ({"vectors": VECTORS, "sharding_method": "custom"}, "shard keys"),
    ({"vectors": VECTORS, "sparse_vectors": {"s": {}}}, "sparse vectors"),
    ({"vectors": VECTORS, "strict_mode_config": {"enabled": True}}, "strict mode"),
    ({"vectors": VECTORS, "quantization_config": {"scalar": {"type": "int8"}}}, "scalar quantization"),
    ({"vectors": VECTORS | {"size": 4000}, "quantization_config": {"product": {"compression": "x4"}}}, "256"),
    ({"vectors": VECTORS, "metadata": {"qinco": {"bytes": "many"}}}, "bytes"),
])  # fmt: skip
def test_what_cannot_be_made_is_refused(client, body, reason):
    assert reason in error(client.put("/collections/c", json=body), 400)
    assert result(client.get("/collections"))["collections"] == []


def test_information_says_what_there_is_and_what_had_no_effect(client):
    made(client, metadata={"of": "me"}, hnsw_config={"m": 16}, on_disk_payload=True)
    points = [{"id": n, "vector": [n + 1.0] * 32, "payload": {"n": n}} for n in range(5)]
    result(client.put("/collections/c/points", json={"points": points}))
    result(client.put("/collections/c/index", json={"field_name": "n", "field_schema": "integer"}))
    found = result(client.get("/collections/c"))
    assert (found["status"], found["points_count"], found["indexed_vectors_count"]) == ("green", 5, 0)
    assert found["config"]["params"]["vectors"] == VECTORS and found["config"]["metadata"] == {"of": "me"}
    assert found["payload_schema"] == {"n": {"data_type": "integer", "points": 5}}
    assert [one["message"].split()[0] for one in found["warnings"]] == ["hnsw_config", "on_disk_payload"]
    result(client.patch("/collections/c", json={"metadata": {"of": None, "new": 1}, "optimizers_config": {}}))
    found = result(client.get("/collections/c"))
    assert found["config"]["metadata"] == {"new": 1} and len(found["warnings"]) == 3
    error(client.patch("/collections/c", json={"quantization_config": "Disabled"}), 400)
    error(client.patch("/collections/none", json={}), 404)


def test_indexes_of_fields(client):
    made(client)
    for schema in ("text", "geo", {"type": "text"}, None):
        error(client.put("/collections/c/index", json={"field_name": "n", "field_schema": schema}), 400)
    for schema in ("keyword", "uuid", {"type": "datetime"}, {"type": "integer", "lookup": True, "range": True}):
        result(client.put("/collections/c/index", json={"field_name": "a.b", "field_schema": schema}))
    assert client.app.state.catalog.get("c").stats()["fields"] == {"a.b": "integer"}
    result(client.delete("/collections/c/index/a.b"))
    assert client.app.state.catalog.get("c").stats()["fields"] == {}


def test_aliases(client):
    made(client)
    actions = [{"create_alias": {"collection_name": "c", "alias_name": "x"}},
               {"rename_alias": {"old_alias_name": "x", "new_alias_name": "y"}}]  # fmt: skip
    assert result(client.post("/collections/aliases", json={"actions": actions})) is True
    expected = {"aliases": [{"alias_name": "y", "collection_name": "c"}]}
    assert result(client.get("/aliases")) == result(client.get("/collections/y/aliases")) == expected
    assert result(client.get("/collections/y/exists")) == {"exists": True}
    delete = {"actions": [{"delete_alias": {"alias_name": "y"}}]}
    assert result(client.post("/collections/aliases", json=delete)) is True
    error(client.get("/collections/y"), 404)
    missing = {"actions": [{"create_alias": {"collection_name": "none", "alias_name": "x"}}]}
    error(client.post("/collections/aliases", json=missing), 404)
