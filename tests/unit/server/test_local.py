import pytest

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from served import served

from qinco.server.local import LocalCheck


@pytest.fixture
def client(tmp_path):
    from starlette.testclient import TestClient

    with served(tmp_path) as inner:
        yield TestClient(LocalCheck(inner.app), "http://127.0.0.1:6333")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:6333", "localhost:80", "LOCALHOST", "[::1]", "[::1]:6333"])
def test_names_of_this_machine_pass(client, host):
    assert client.get("/collections", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:6333", "127.0.0.1.evil.example", "", "192.168.0.7"])
def test_other_names_do_not(client, host):
    assert client.get("/collections", headers={"Host": host}).status_code == 403
    assert client.get("/readyz", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_change_nothing(client):
    make = {"vectors": {"size": 2, "distance": "Dot"}}
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
                    {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:8000"}):  # fmt: skip
        assert client.put("/collections/a", json=make, headers=headers).status_code == 403
        assert client.get("/collections", headers=headers).status_code == 200
    for number, headers in enumerate(({}, {"Origin": "http://127.0.0.1:6333"}, {"Sec-Fetch-Site": "same-origin"})):
        assert client.put(f"/collections/a{number}", json=make, headers=headers).status_code == 200
