import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")


@pytest.fixture
def client(tmp_path):
    with served(tmp_path / "data") as client:
        yield client


def test_clients_are_told_the_version_of_qdrant(client):
    assert client.get("/").json() == {"title": "qinco", "version": "1.20.0"}


def test_collections_are_made_and_listed_and_dropped(client):
    vectors = {"vectors": {"size": 4, "distance": "Dot"}}
    assert result(client.put("/collections/a", json=vectors)) is True
    assert "already exists" in error(client.put("/collections/a", json=vectors), 409)
    assert result(client.get("/collections")) == {"collections": [{"name": "a"}]}
    assert result(client.get("/collections/a/exists")) == {"exists": True}
    assert result(client.delete("/collections/a")) is True
    assert result(client.delete("/collections/a")) is False
    assert result(client.get("/collections/a/exists")) == {"exists": False}
    assert "a" in error(client.get("/collections/a"), 404)


def test_what_is_no_route_is_an_error_in_the_envelope(client):
    error(client.get("/nothing"), 404)
    assert "query" in error(client.post("/collections/a/points/search", json={}), 404)
    response = client.delete("/collections")
    error(response, 405)
    assert response.headers["allow"] == "GET"
    for path, methods in {
        "/collections/a": "DELETE, GET, PATCH, PUT", "/collections/aliases": "POST", "/v1/a/optimize": "GET, POST",
        "/collections/a/points/payload": "POST, PUT", "/": "GET",
    }.items():  # fmt: skip
        response = client.request("OPTIONS", path)
        assert "Method" in error(response, 405) and response.headers["allow"] == methods


def test_bodies_are_parsed_strictly(client):
    for body in (b"", b"{", b"[]", b'{"vectors": {"size": "4", "distance": "Dot"}}', b'{"vectors": 4}', b'{"a": 1}'):
        error(client.put("/collections/a", content=body), 422)


def test_the_openapi_document_has_the_schemas_of_bodies(client):
    document = client.get("/openapi.json").json()
    schema = document["paths"]["/collections/{name}/points/count"]["post"]["requestBody"]["content"]
    assert "filter" in schema["application/json"]["schema"]["properties"]
    diversity = document["components"]["schemas"]["Mmr"]["properties"]["diversity"]
    assert diversity["anyOf"] == [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]
    assert "FieldCondition" in document["components"]["schemas"]
