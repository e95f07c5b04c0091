"""Limits of requests, called as ASGI so that bodies can be slow or without end."""

import asyncio
import json
from dataclasses import replace

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.server.limits import RequestLimits
from qinco.server.settings import ServerSettings

PATIENT = ServerSettings(max_body_bytes=1000, readers=1, max_waiting=1)
HASTY = replace(PATIENT, timeout=0.3, receive_timeout=0.2)


class Call:
    """One request to an app behind limits, whose body comes in pieces with pauses."""

    def __init__(self, pieces=(), headers=(), query=b"", path="/collections/a/points", pause=0.0, then=None):
        self.pieces, self.pause, self.read, self.then = list(pieces), pause, 0, then
        self.scope = {"type": "http", "method": "PUT", "path": path, "query_string": query,
                      "headers": [(name.encode(), value.encode()) for name, value in headers]}  # fmt: skip
        self.status, self.body, self.headers, self.seen = None, b"", {}, None

    async def receive(self):
        await asyncio.sleep(self.pause)
        if not self.pieces:
            return self.then or await asyncio.Event().wait()
        self.read += 1
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": bool(self.pieces)}

    async def send(self, message):
        self.status = message.get("status", self.status)
        self.headers |= {name.decode(): value.decode() for name, value in message.get("headers", ())}
        self.body += message.get("body", b"")

    @property
    def error(self):
        return json.loads(self.body)["status"]["error"]

    async def app(self, scope, receive, send):
        self.seen = b""
        while True:
            message = await receive()
            self.seen += message.get("body", b"")
            if not message.get("more_body", False):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def run(self, limits=None, settings=PATIENT):
        await (limits or RequestLimits(self.app, settings))(self.scope, self.receive, self.send)
        return self


CHUNKED = (("transfer-encoding", "chunked"),)


def test_a_stated_length_is_refused_before_any_of_the_body_is_read():
    for length in ("1001", "8589934592", "9" * 40, "-1", "x"):
        call = asyncio.run(Call([b"x"] * 9, [("content-length", length)], then={"type": "http.disconnect"}).run())
        assert call.status == 413 and "1,000 bytes" in call.error and call.seen is None
        assert call.headers["connection"] == "close"


def test_a_body_without_a_length_is_refused_when_it_is_too_long():
    call = asyncio.run(Call([b"x" * 400] * 9, CHUNKED, pause=0.01).run())
    assert call.status == 413 and call.seen is None
    whole = asyncio.run(Call([b"x" * 400] * 2 + [b"x" * 200], CHUNKED).run())
    assert whole.status == 200 and whole.seen == b"x" * 1000


def test_a_slow_body_is_given_up():
    call = asyncio.run(Call([b"x"] * 100, CHUNKED, pause=0.05).run(settings=HASTY))
    assert call.status == 408 and call.seen is None and call.read < 10
    assert asyncio.run(Call([b"x"], (("content-length", "1"),), pause=0.05).run()).status == 200


def test_a_client_that_goes_away_is_not_answered():
    call = asyncio.run(Call([], CHUNKED, then={"type": "http.disconnect"}).run())
    assert call.status is None and call.seen is None


def test_streams_may_be_long_but_not_slow():
    call = asyncio.run(Call([b"x" * 400] * 100, CHUNKED, path="/v1/a/points").run())
    assert call.status == 200 and len(call.seen) == 40_000
    call = asyncio.run(Call([b"x"] * 2, CHUNKED, path="/v1/a/points", pause=0.3).run(settings=HASTY))
    assert call.status == 408


def test_what_takes_too_long_is_answered_with_503():
    async def slow(scope, receive, send):
        await asyncio.sleep(10)

    for query, shown in ((b"", "0.3"), (b"timeout=100", "0.3"), (b"wait=true&timeout=0.1", "0.1")):
        call = Call(query=query)
        asyncio.run(call.run(RequestLimits(slow, HASTY)))
        assert call.status == 503 and shown in call.error and call.headers["retry-after"] == "1"
    for query in (b"timeout=x", b"timeout=-1", b"timeout=nan", b"timeout="):
        assert asyncio.run(Call(query=query).run()).status == 400


async def others_run():
    """Until all of them wait for something else than their turn."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_too_many_requests_and_too_large_bodies_at_once_are_refused():
    gate = asyncio.Event()

    async def wait(scope, receive, send):
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def ask():
        limits = RequestLimits(wait, PATIENT)
        calls = [Call() for _ in range(5)]
        tasks = [asyncio.create_task(call.run(limits)) for call in calls]
        await others_run()
        gate.set()
        await asyncio.gather(*tasks)
        assert sorted(call.status for call in calls) == [200, 200, 503, 503, 503]
        assert (await Call().run(limits)).status == 200
        many = RequestLimits(wait, ServerSettings(max_body_bytes=1000, readers=100))
        gate.clear()
        calls = [Call([b"x" * 1000], CHUNKED) for _ in range(20)]
        tasks = [asyncio.create_task(call.run(many)) for call in calls]
        await others_run()
        gate.set()
        await asyncio.gather(*tasks)
        assert sorted(call.status for call in calls) == [200] * 16 + [503] * 4
        assert (await Call([b"x" * 1000], CHUNKED).run(many)).status == 200

    asyncio.run(ask())
