import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")


@pytest.fixture
def client(tmp_path):
    with served(tmp_path) as client:
        client.put("/collections/a", json={"vectors": {"size": 2, "distance": "Dot"}})
        client.put("/collections/a/points", json={"points": [{"id": 1, "vector": [1, 2]}, {"id": 2, "vector": [3, 4]}]})
        yield client


def samples(client):
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_metrics_count_requests_and_points(client):
    client.post("/collections/a/points/query", json={"query": [1, 2]})
    error(client.post("/collections/b/points/query", json={"query": [1, 2]}), 404)
    client.get("/nothing/at/all")
    found = samples(client)
    route = "/collections/{name}/points/query"
    assert found[f'qinco_requests_total{{code="200",method="POST",route="{route}"}}'] == 1
    assert found[f'qinco_requests_total{{code="404",method="POST",route="{route}"}}'] == 1
    assert found['qinco_requests_total{code="404",method="GET",route="none"}'] == 1
    assert found[f'qinco_request_seconds_count{{route="{route}"}}'] == 2
    assert found["qinco_search_batch_size_count"] == 1
    assert found['qinco_points{collection="a",state="fresh"}'] == 2
    assert found['qinco_bytes{collection="a",kind="fresh"}'] == 16
    assert "process_resident_memory_bytes" in found and "qinco_optimize_seconds_count" in found


def test_other_methods_and_paths_make_no_metrics_of_their_own(client):
    for number in range(3):
        client.request(f"BREW{number}", f"/collections/a/{number}")
    assert 'qinco_requests_total{code="404",method="other",route="none"}' in samples(client)


def test_a_server_that_ends_is_not_ready_and_takes_no_requests(client):
    assert client.get("/readyz").status_code == 200
    client.app.state.traffic.is_ending = True
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == client.get("/livez").status_code == 200
    response = client.get("/collections")
    assert "ending" in error(response, 503) and response.headers["retry-after"]
    assert client.app.state.traffic.active == 0


def test_a_bug_is_logged_and_its_trace_reaches_no_client(client, caplog):
    @client.app.get("/broken")
    async def broken():
        raise RuntimeError("secret")

    response = client.get("/broken")
    assert "secret" not in response.text and "RuntimeError" in error(response, 500)
    assert "secret" in caplog.text and "Traceback" in caplog.text
    assert samples(client)['qinco_requests_total{code="500",method="GET",route="/broken"}'] == 1
    assert result(client.get("/collections"))
