"""`qinco serve` as a command: a source is indexed first, and the log can be JSON."""

import json
import signal
import sys
import time

import numpy as np
import pytest
from server_process import ServerProcess

from qinco.collection.collection import Collection

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("qdrant_client")
pytestmark = pytest.mark.slow


def serve(folder, *words) -> ServerProcess:
    return ServerProcess([sys.executable, "-m", "qinco", "serve", *words, "port=0"], cwd=folder)


def test_a_source_is_indexed_and_then_served_as_it_is(tmp_path):
    x = np.random.default_rng(0).standard_normal((300, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    query = {"query": x[7].tolist(), "limit": 1}
    for shown in ("300 vectors", "served as it is"):
        with serve(tmp_path, "x.npy", "metric=l2") as server:
            status, answer = server.ask("POST", "/collections/x/points/query", query)
            assert status == 200 and answer["result"]["points"][0]["id"] == 7
            assert server.end() == 0
        assert shown in server.log
    with Collection.open(tmp_path / "x.qinco") as docs:
        assert docs.count() == 300


def test_keys_come_from_a_file_and_log_lines_are_json(tmp_path):
    (tmp_path / "keys").write_text("all\nlook\n")
    with serve(tmp_path, "data", "api_key_file=keys", "log_requests=true", "--json-logs") as server:
        make = {"vectors": {"size": 2, "distance": "Dot"}}
        assert server.ask("PUT", "/collections/a", make)[0] == 401
        assert server.ask("PUT", "/collections/a", make, {"api-key": "look"})[0] == 403
        assert server.ask("PUT", "/collections/a", make, {"api-key": "all"})[0] == 200
        assert server.end() == 0
    lines = [json.loads(line) for line in server.lines]
    logged = [(one["method"], one["path"], one["status"]) for one in lines if "status" in one]
    assert logged == [("PUT", "/collections/a", status) for status in (401, 403, 200)]
    assert all(one["level"] == "info" and one["seconds"] >= 0 for one in lines if "status" in one)
    assert "all" not in {word for one in lines for word in one["message"].split()}


@pytest.mark.parametrize("pause", [0.0, 0.8])  # one signal that comes twice, and one from somebody who does not wait
def test_a_second_signal_ends_it_without_a_traceback(tmp_path, pause):
    with serve(tmp_path, "data") as server:
        slow = server.connect()
        slow.putrequest("PUT", "/collections/a")
        slow.putheader("Content-Length", "100")
        slow.endheaders(b"{")  # a request in progress, for which the first signal waits
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert pause == 0 or time.monotonic() - begun < 10
        slow.close()
    assert "Traceback" not in server.log, server.log
