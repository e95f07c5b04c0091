"""A server that is killed, ended, flooded, kept waiting or out of disk: it answers, and loses no acknowledged write."""

import http.client
import os
import random
import resource
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from server_process import ServerProcess, ask

from qinco.collection.collection import Collection

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="it reads the memory of processes in /proc"),
]
DIM = 16
MAKE = {"vectors": {"size": DIM, "distance": "Euclid"}}
MIB = 1 << 20


def point(number: int) -> dict:
    return {"id": number, "vector": np.random.default_rng(number).standard_normal(DIM).round(4).tolist(),
            "payload": {"n": number}}  # fmt: skip


class Writers:
    """Threads that upsert batches until the server is gone, and know what was acknowledged."""

    def __init__(self, server: ServerProcess, count: int = 4, batch: int = 20):
        self.acknowledged: list[range] = []
        self.refused: list[int] = []
        self._threads = [
            threading.Thread(target=self._write, args=(server, 10**6 * one, batch)) for one in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, server: ServerProcess, first: int, batch: int) -> None:
        connection = server.connect()
        try:
            while True:
                numbers = range(first, first + batch)
                status, _ = ask(connection, "PUT", "/collections/a/points", {"points": list(map(point, numbers))})
                if status != 200:
                    self.refused.append(status)
                    return
                self.acknowledged.append(numbers)
                first += batch
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)

    def check(self, folder) -> int:
        """That all are there that were acknowledged, and nothing is damaged."""
        with Collection.open(folder / "a.qinco") as docs:
            assert docs.verify() == []
            there = {record.id: record.payload for record in docs.get()}
            hit = docs.search(np.array(point(0)["vector"]), 1)[0]
        assert hit.id == 0 and hit.score < 1e-6
        wanted = [number for numbers in self.acknowledged for number in numbers]
        assert not [number for number in wanted if there.get(number) != {"n": number}]
        return len(wanted)


@pytest.fixture
def server(tmp_path):
    with ServerProcess.of(tmp_path, receive_timeout=2.0, drain=20.0) as server:
        assert server.ask("PUT", "/collections/a", MAKE)[0] == 200
        yield server
    assert "Traceback" not in server.log, server.log


def test_a_kill_under_load_loses_nothing_that_was_acknowledged(tmp_path):
    number = 0
    for seed in range(5):
        with ServerProcess.of(tmp_path) as server:
            server.ask("PUT", "/collections/a", MAKE)
            writers = Writers(server)
            searcher = threading.Thread(target=searching, args=(server,))
            searcher.start()
            time.sleep(random.Random(seed).uniform(0.5, 2.0))
            server.kill()
            writers.join()
            searcher.join()
        number += writers.check(tmp_path)
    print(f"{number} acknowledged points are there after 5 kills")
    assert number > 500


def searching(server: ServerProcess) -> None:
    connection = server.connect()
    try:
        while ask(connection, "POST", "/collections/a/points/query", {"query": point(0)["vector"]})[0]:
            pass
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


def test_a_server_that_is_told_to_end_finishes_what_it_began(tmp_path, server):
    writers = Writers(server)
    assert server.ask("POST", "/v1/a/optimize")[0] == 202
    time.sleep(1.0)
    begun = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - begun < 15
    writers.join()
    assert not (tmp_path / "a.qinco" / "collection.sqlite-wal").exists()  # moved into the database
    assert writers.check(tmp_path) > 100 and set(writers.refused) <= {503}


def test_an_optimization_ends_with_the_server_and_goes_on_later(tmp_path, server):
    with ServerProcess.of(tmp_path / "other", optimize=False) as other:
        assert other.ask("PUT", "/collections/a", MAKE | {"optimizers_config": {"indexing_threshold": 1}})[0] == 200
        for first in range(0, 24_000, 4000):
            points = [{"id": first + n, "vector": x} for n, x in enumerate(
                np.random.default_rng(first).standard_normal((4000, DIM)).round(3).tolist())]  # fmt: skip
            assert other.ask("PUT", "/collections/a/points", {"points": points})[0] == 200
        assert other.ask("POST", "/v1/a/optimize?minutes=5")[0] == 202
        time.sleep(5)
        assert other.ask("GET", "/v1/a/optimize")[1]["result"]["state"] == "running"
        assert other.ask("GET", "/collections/a")[1]["result"]["status"] in ("green", "yellow")
        begun = time.monotonic()
        assert other.end() == 0
        assert time.monotonic() - begun < 20
    with Collection.open(tmp_path / "other" / "a.qinco") as docs:
        assert docs.count() == 24_000 and docs.verify() == []


def test_requests_that_come_too_slowly_are_ended(server):
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    starts = [b"", b"GET / HT", b"PUT /collections/a/points HTTP/1.1\r\nHost: localhost\r\n"
              b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"]  # fmt: skip
    for number, one in enumerate(slow):
        one.settimeout(15)
        one.sendall(starts[number % 3])
    begun, open_ones = time.monotonic(), list(enumerate(slow))
    while open_ones and time.monotonic() - begun < 15:
        time.sleep(0.5)
        for number, one in list(open_ones):
            try:
                one.sendall(b" " if number % 3 else b"")  # a byte from time to time
                one.setblocking(False)
                if not one.recv(4096):
                    open_ones.remove((number, one))
            except BlockingIOError:
                pass
            except OSError:
                open_ones.remove((number, one))
            finally:
                one.setblocking(True)
        assert server.ask("GET", "/readyz")[0] == 200
    assert not open_ones
    for one in slow:
        one.close()


def test_clients_that_do_not_read_are_ended(server):
    points = [point(n) | {"payload": {"text": "x" * 5000}} for n in range(1000)]
    for first in range(0, 1000, 500):
        assert server.ask("PUT", "/collections/a/points", {"points": points[first : first + 500]})[0] == 200
    deaf = []
    for _ in range(20):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", server.port))
        body = b'{"limit": 1000, "with_payload": true}'
        one.sendall(b"POST /collections/a/points/scroll HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
        deaf.append(one)
    time.sleep(1.0)
    assert connections(server) == 20
    begun = time.monotonic()
    while connections(server) and time.monotonic() - begun < 30:
        time.sleep(0.5)
    assert not connections(server)
    for one in deaf:
        one.close()


def connections(server: ServerProcess) -> int:
    """Established connections of a server, without that which asks."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{server.port:04X}") and row[3] == "01" for row in rows)


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_of_8_gigabytes_is_refused_at_once(server, has_length):
    server.ask("GET", "/collections")
    before, begun, sent = server.memory("VmRSS"), time.monotonic(), 0
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    length = b"Content-Length: 8589934592" if has_length else b"Transfer-Encoding: chunked"
    connection.sendall(b"PUT /collections/a/points HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       + length + b"\r\n\r\n")  # fmt: skip
    piece = bytes(MIB) if has_length else b"100000\r\n" + bytes(MIB) + b"\r\n"
    try:
        while sent < 8 << 30:
            connection.sendall(piece)
            sent += MIB
    except OSError:
        pass
    assert sent < 6 << 30 and time.monotonic() - begun < 20
    assert server.memory() - before < 120 * MIB, server.memory()
    assert server.ask("GET", "/readyz")[0] == 200
    print(
        f"ended after {sent >> 20} MiB, {time.monotonic() - begun:.1f} s; {(server.memory() - before) >> 20} MiB more"
    )
    connection.close()
    answer = server.connect()
    answer.putrequest("PUT", "/collections/a/points")
    answer.putheader("Content-Length", str(8 << 30))
    answer.endheaders()
    assert answer.getresponse().status == 413
    answer.close()


def test_ten_thousand_connections(tmp_path):
    wanted = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(wanted + 300, hard if hard != resource.RLIM_INFINITY else wanted + 300)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    number, made = most - 300, []
    with ServerProcess.of(tmp_path, receive_timeout=120.0, max_connections=number - 100) as server:
        before = server.memory("VmRSS")
        try:
            for _ in range(number):
                one = socket.socket()
                one.connect(("127.0.0.1", server.port))
                made.append(one)
            time.sleep(2.0)
            held = server.memory("VmRSS") - before
            print(f"{connections(server)} of {number} connections are open, {held / MIB:.0f} MiB more")
            assert number - 300 <= connections(server) <= number - 100
            assert held < 400 * MIB
            request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            for one in made[:2000:100]:
                one.settimeout(30)
                one.sendall(request)
                assert one.recv(4096).startswith(b"HTTP/1.1 200")
        finally:
            for one in made:
                one.close()
        time.sleep(2.0)
        assert server.ask("GET", "/readyz")[0] == 200
        assert server.end() == 0
    assert "Traceback" not in server.log


def test_a_full_disk_refuses_writes_and_answers_reads(tmp_path):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))

    with ServerProcess.of(tmp_path, preexec_fn=small_files, optimize=False) as server:
        server.ask("PUT", "/collections/a", MAKE)
        acknowledged, statuses = [], []
        for number in range(200):
            points = [point(1000 * number + n) | {"payload": {"text": "x" * 2000}} for n in range(20)]
            status, answer = server.ask("PUT", "/collections/a/points", {"points": points})
            statuses.append(status)
            acknowledged += [one["id"] for one in points] if status == 200 else []
            if status != 200:
                assert "room" in answer["status"]["error"] and "Traceback" not in str(answer)
            if len(statuses) - statuses.count(200) > 5:
                break
        assert statuses[0] == 200 and statuses[-1] in (503, 507)
        assert server.ask("POST", "/collections/a/points/query", {"query": point(0)["vector"]})[0] == 200
        counted = server.ask("POST", "/collections/a/points/count", {})[1]["result"]["count"]
        assert counted == len(acknowledged)
        assert server.end() == 0
    assert "Traceback" not in server.log, server.log
    with Collection.open(tmp_path / "a.qinco") as docs:
        assert docs.verify() == [] and {record.id for record in docs.get()} == set(acknowledged)


def test_wrong_requests_get_a_sentence_and_no_trace(server):
    deep = b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    bodies = [
        b"", b"{", b"null", b"[]", b'{"points": 1}', b"\xff\xfe\x00", deep, b'{"points": [{"id": 1, "vector": [NaN]}]}',
        b'{"points": [{"id": 1e999, "vector": []}]}', b'{"query": "' + b"9" * 100_000 + b'"}', b"0" * 5000,
        b'{"points": [{"id": ' + b"9" * 5000 + b', "vector": [1]}]}', os.urandom(1000),
    ]  # fmt: skip
    paths = [("PUT", "/collections/a/points"), ("POST", "/collections/a/points/query"), ("PUT", "/collections/b"),
             ("POST", "/collections/a/points/scroll"), ("POST", "/v1/a/search"), ("POST", "/v1/a/points"),
             ("POST", "/v1/a/encode"), ("POST", "/v1/a/decode"), ("POST", "/collections/aliases"),
             ("PUT", "/collections/%2e%2e%2fx"), ("GET", "/page/..%2f..%2fapp.py"),
             ("POST", "/collections/%00/points")]  # fmt: skip
    kinds = ["application/json", "application/x-npy", "application/vnd.apache.arrow.stream", "text/plain"]
    for method, path in paths:
        for body in bodies:
            for kind in kinds:
                status, answer = server.ask(method, path, body, {"Content-Type": kind})
                assert 400 <= status < 500 or (status == 200 and body in (b"", b"null", b"[]")), (
                    method,
                    path,
                    body[:50],
                )
                if status != 200:
                    sentence = answer["status"]["error"]
                    assert sentence and "Traceback" not in sentence and len(sentence) < 2000, (method, path, body[:50])
    for raw in (b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
                b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", os.urandom(4000)):  # fmt: skip
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
            try:
                one.sendall(raw)
                one.shutdown(socket.SHUT_WR)
                assert b"Traceback" not in one.recv(65536)
            except OSError:
                pass
    assert server.ask("GET", "/readyz")[0] == 200


def test_markup_stays_text(server):
    hostile = {"text": "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>": "${1}{{2}}"}
    id = "<script>alert(1)</script>"
    body = {"points": [{"id": id, "vector": [1.0] * DIM, "payload": hostile}]}
    assert server.ask("PUT", "/collections/a/points", body)[0] == 200
    connection = server.connect()
    connection.request("POST", "/collections/a/points/scroll", b'{"limit": 1}', {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert id.encode() in response.read()
    connection.close()
    for path in ("/collections/<script>alert(1)</script>", "/<script>", "/collections/a/points/<img>"):
        connection = server.connect()
        connection.request("GET", path, headers={"Accept": "text/html"})
        response = connection.getresponse()
        assert response.status in (400, 404) and response.headers["Content-Type"] == "application/json"
        connection.close()
