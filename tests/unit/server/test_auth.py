import base64

import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.server.auth import reads

MAKE = {"vectors": {"size": 2, "distance": "Dot"}}


@pytest.fixture
def client(tmp_path):
    with served(tmp_path, api_key="all", read_only_api_key="look") as client:
        client.put("/collections/a", json=MAKE, headers={"api-key": "all"})
        yield client


def basic(key):
    return {"Authorization": f"Basic {base64.b64encode(f'user:{key}'.encode()).decode()}"}


def test_everything_but_health_needs_a_key(client):
    for path in ("/healthz", "/livez", "/readyz"):
        assert client.get(path).status_code == 200
    for path in ("/", "/metrics", "/collections", "/openapi.json", "/nothing", "/v1/a/stats"):
        response = client.get(path)
        assert "key" in error(response, 401) and "Basic" in response.headers["WWW-Authenticate"]
    for headers in ({"api-key": "other"}, {"api-key": ""}, {"api-key": "al"}, {"Authorization": "Bearer allx"},
                    {"Authorization": "all"}, basic("x"), {"Authorization": "Basic %%%"},
                    {"api-key": "é".encode()}):  # fmt: skip
        error(client.get("/collections", headers=headers), 401)


@pytest.mark.parametrize(
    "headers", [{"api-key": "all"}, {"Authorization": "Bearer all"}, {"Authorization": "bearer all"}]
)
def test_the_key_for_everything_reads_and_writes(client, headers):
    assert result(client.put("/collections/b", json=MAKE, headers=headers))
    assert result(client.get("/collections", headers=headers))
    assert result(client.delete("/collections/b", headers=headers))


@pytest.mark.parametrize(
    "headers", [{"api-key": "look"}, {"Authorization": "Bearer look"}, basic("look"), basic("all")]
)
def test_other_keys_read_alone(client, headers):
    for path, body in (("points/query", {"query": [1, 2]}), ("points/scroll", {}), ("points/count", {}),
                       ("points", {"ids": [1]})):  # fmt: skip
        result(client.post(f"/collections/a/{path}", json=body, headers=headers))
    points = {"points": [{"id": 1, "vector": [1, 2]}]}
    for method, path, body in (
        ("PUT", "/collections/b", MAKE), ("DELETE", "/collections/a", None), ("PUT", "/collections/a/points", points),
        ("POST", "/collections/a/points/delete", {"points": [1]}), ("POST", "/collections/a/points/payload", {}),
        ("POST", "/v1/a/optimize", None), ("POST", "/v1/a/points", None), ("PATCH", "/collections/a", {}),
        ("POST", "/collections/aliases", {"actions": []}), ("POST", "/collections/a/points/batch", {}),
    ):  # fmt: skip
        assert "key" in error(client.request(method, path, json=body, headers=headers), 403)
    assert result(client.get("/collections", headers=headers))["collections"] == [{"name": "a"}]


def test_a_server_that_only_reads_refuses_changes(tmp_path):
    with served(tmp_path, read_only=True) as client:
        assert "read_only" in error(client.put("/collections/a", json=MAKE), 403)
        assert result(client.get("/collections")) == {"collections": []}


def test_what_is_not_known_to_read_is_a_change():
    assert reads("GET", "/collections/a/points/delete") and reads("HEAD", "/")
    assert reads("POST", "/v1/a/search") and reads("POST", "/collections/a/facet")
    assert reads("POST", "/page/neighbours")
    for path in ("/collections/a/points/query/", "/collections/a/points/queryx", "/collections/a/b/points/query",
                 "/v1/a/optimize", "/collections/a/points/vectors", "/x/collections/a/points/query"):  # fmt: skip
        assert not reads("POST", path)
    assert not reads("PUT", "/collections/a/points/query") and not reads("BREW", "/collections")
