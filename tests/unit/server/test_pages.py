"""The page of a server, and what it asks for."""

import re

import numpy as np
import pytest
from served import error, served

from qinco import Collection, NamedCollection
from qinco.page import ASSETS

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")
pytest.importorskip("jinja2")
X = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with Collection.create(folder / "docs.qinco", metric="l2") as docs:
        docs.upsert([*range(20), "7"], X[:21], [{"n": n} for n in range(21)])
    Collection.create(folder / "new.qinco").close()
    with NamedCollection.create(folder / "things.qinco", {"a": {"dim": 4}, "b/c": {"dim": 4}}) as things:
        things.upsert(range(10), {"a": X[:10], "b/c": X[10:20]})
    with served(folder) as client:
        yield client


def test_browsers_get_the_page_and_clients_the_version(client):
    page = client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert client.get("/", headers={"accept": "application/json"}).json()["title"] == "qinco"
    assets = re.findall(r'(?:src|href)="/page/(.*?)"', page.text)
    assert len(assets) == 4
    for name in assets:
        found = client.get(f"/page/{name}")
        assert found.status_code == 200 and found.content == (ASSETS / name).read_bytes()
        assert found.headers["x-content-type-options"] == "nosniff"
    for name in ("page.html", "../html.py", "nothing.js"):
        assert client.get(f"/page/{name}").status_code == 404


def test_data_are_of_all_collections_and_of_each_name(client):
    found = client.get("/page/data").json()["collections"]
    assert [(one["name"], one["vectors"]) for one in found] == [
        ("docs", 21), ("new", 0), ("things.a", 10), ("things.b/c", 10)
    ]  # fmt: skip


def neighbours(client, **body):
    return client.post("/page/neighbours", json=body)


def test_neighbours_of_a_record(client):
    found = neighbours(client, collection="docs", id="3", k=4, where={"n": {"lt": 10}}).json()
    assert found["id"] == 3 and found["payload"] == {"n": 3}
    assert all(hit["payload"]["n"] < 10 for hit in found["hits"]) and len(found["hits"]) == 4
    order = np.square(X[:10] - X[3]).sum(1).argsort()
    assert [hit["id"] for hit in found["hits"]] == order[1:5].tolist()
    assert [hit["exact_rank"] for hit in found["hits"]] == [1, 2, 3, 4]
    assert [neighbours(client, collection="docs", id=id).json()["id"] for id in ("7", '"7"', " 8 ")] == [7, "7", 8]
    assert neighbours(client, collection="docs").json()["id"] in [*range(20), "7"]
    assert len(neighbours(client, collection="things.b/c", id="1").json()["hits"]) == 9


def test_what_is_not_there_is_said(client):
    assert "none" in error(neighbours(client, collection="none"), 404)
    assert "things" in error(neighbours(client, collection="things"), 404)
    assert "'x'" in error(neighbours(client, collection="docs", id="x"), 400)
    assert "vector" in error(neighbours(client, collection="new"), 400)
    assert "year" in error(neighbours(client, collection="docs", id="1", where={"year": {"after": 1}}), 400)
    assert error(neighbours(client, collection="docs", id="1", k=1000), 422)
