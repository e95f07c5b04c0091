"""Searches that go past FastAPI are answered as its routes answer them: status, headers, body and counts."""

import json

import numpy as np
import pytest
from served import result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.server import npy
from qinco.server.direct import Direct

QUERY, SEARCH = "/collections/c/points/query", "/v1/c/search"
NPY = {"Content-Type": npy.TYPE}
ARRAY = npy.array_bytes(np.ones((1, 2), np.float32))
VECTOR = {"query": [1.0, 2]}


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """With the shortcut, and without."""
    with served(tmp_path_factory.mktemp("direct"), max_k=50, max_body_bytes=2000) as direct:
        result(direct.put("/collections/c", json={"vectors": {"size": 2, "distance": "Dot"}}))
        points = [{"id": n, "vector": [n, 1], "payload": {"n": n}} for n in range(1, 9)]
        result(direct.put("/collections/c/points", json={"points": points}))
        with served(tmp_path_factory.mktemp("plain"), max_k=50, max_body_bytes=2000) as plain:
            plain.app.user_middleware[:] = [one for one in plain.app.user_middleware if one.cls is not Direct]
            plain.app.middleware_stack = plain.app.build_middleware_stack()
            plain.app.state.catalog.close()
            plain.app.state.catalog = direct.app.state.catalog
            yield direct, plain


def asked(path, body=VECTOR, headers=None, method="POST"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"method": method, "url": path, "content": content, "headers": headers or {}}


REQUESTS = [
    asked(QUERY),
    asked(QUERY, VECTOR | {"limit": 3, "with_payload": True, "with_vector": True, "offset": 1}),
    asked(QUERY, VECTOR | {"filter": {"must": [{"key": "n", "range": {"gt": 3}}]}}),
    asked(QUERY, {"query": 3, "with_payload": ["n"]}),
    asked(QUERY, {}),
    asked(f"{QUERY}?timeout=20&consistency=majority"),
    asked(f"{QUERY}?timeout=soon"),
    asked("/collections/%63/points/query"),
    asked("/collections/no%20such/points/query"),
    asked("/collections/none/points/query"),
    asked(QUERY, VECTOR | {"limit": 51}),
    asked(QUERY, VECTOR | {"limit": "a"}),
    asked(QUERY, VECTOR | {"unknown": 1}),
    asked(QUERY, VECTOR | {"shard_key": "a"}),
    asked(QUERY, VECTOR | {"using": "b"}),
    asked(QUERY, {"query": [1.0, 2, 3]}),
    asked(QUERY, {"query": 99}),
    asked(QUERY, b'{"query": [1e999, 2]}'),
    asked(QUERY, b"{"),
    asked(QUERY, b""),
    asked(QUERY, b" " * 3000),
    asked(QUERY, method="GET"),
    asked(QUERY, method="PUT"),
    asked(f"{QUERY}/"),
    asked(SEARCH, ARRAY, NPY),
    asked(f"{SEARCH}?k=3", ARRAY, NPY | {"Accept": "application/json"}),
    asked(f"{SEARCH}?k=51", ARRAY, NPY),
    asked(f"{SEARCH}?l=1", ARRAY, NPY),
    asked(SEARCH, ARRAY),
    asked(SEARCH, ARRAY[:-1], NPY),
    asked("/v1/none/search", ARRAY, NPY),
    asked(SEARCH, method="GET"),
]


def name_of(request):
    return f"{request['method']}-{request['url']}-{request['content'][:60]!r}"


@pytest.mark.parametrize("request_", REQUESTS, ids=map(name_of, REQUESTS))
def test_answers_are_those_of_the_routes(clients, request_):
    direct, plain = (client.request(**request_) for client in clients)
    assert direct.status_code == plain.status_code
    assert without_time(direct) == without_time(plain)
    headers = [dict(answer.headers) | {"content-length": "some"} for answer in (direct, plain)]
    assert headers[0] == headers[1]


def without_time(answer):
    if answer.headers["content-type"] != "application/json":
        return answer.content
    found = answer.json()
    assert isinstance(found.pop("time", 0.0), float)
    return found


def test_a_bug_is_answered_and_counted_as_of_a_route(clients):
    for client in clients:
        before, work = counts(client), client.app.state.work
        client.app.state.work = None
        answer = client.post(QUERY, json=VECTOR)
        client.app.state.work = work
        assert answer.status_code == 500 and "AttributeError" in answer.json()["status"]["error"]
        client.post(QUERY, json=VECTOR)
        client.post(SEARCH, content=ARRAY, headers=NPY)
        after = counts(client)
        found = {name: number - before.get(name, 0) for name, number in after.items() if number != before.get(name)}
        assert found == {("/collections/{name}/points/query", "500"): 1,
                         ("/collections/{name}/points/query", "200"): 1, ("/v1/{name}/search", "200"): 1}  # fmt: skip


def counts(client):
    """Requests so far, by route and code."""
    families = client.app.state.metrics.requests.collect()
    return {(one.labels["route"], one.labels["code"]): one.value for one in families[0].samples
            if one.name.endswith("_total")}  # fmt: skip
