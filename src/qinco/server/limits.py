"""How much a request may bring, and how long it may take."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qinco.server.envelope import refusal
from qinco.server.settings import ServerSettings

STREAMED = re.compile(r"/v1/[^/]+/points")  # bodies without end, which their route reads piece by piece
_HELD_BODIES = 16  # bodies of the largest size that are in memory at once
_LEAST_RATE = 16 << 10  # bytes a second that a body comes with
_LINGER_SECONDS = 2.0
_TIMEOUT = re.compile(rb"(?:^|&)timeout=([^&]*)")


class RequestLimits:
    """ASGI middleware: bodies are whole and no larger than they may be before a route sees them, and answers in time.

    A body whose length is stated is refused before any of it is read. A request may ask for less time by `timeout=`.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self.app, self._settings = app, settings
        self._held = 0  # bytes of bodies in memory
        self._active, self._most_active = 0, settings.readers + settings.max_waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")}
        held = 0
        try:
            if STREAMED.fullmatch(scope["path"]):
                await self.app(scope, self._patient(receive), send)
                return
            if headers:
                body = await self._body(receive, headers.get(b"content-length"))
                held = len(body)
                receive = _replayed(body, receive)
            await self._in_time(scope, receive, send)
        except ClientDisconnect:
            pass
        except Refused as error:
            await refuse(error, scope, receive, send)
        finally:
            self._held -= held

    async def _body(self, receive: Receive, length: bytes | None) -> bytes:
        """The whole body, which counts as held from then on."""
        most = self._settings.max_body_bytes
        if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > most):
            raise _too_large(most)
        pieces, size, begun = [], 0, time.monotonic()
        try:
            while True:
                left = self._settings.receive_timeout + size / _LEAST_RATE - (time.monotonic() - begun)
                message = await _within(left, receive)
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                if size + len(piece) > most:
                    raise _too_large(most)
                if self._held + len(piece) > most * _HELD_BODIES:
                    raise Refused(503, "the server holds too many large bodies now: try again in a second")
                pieces.append(piece)
                size += len(piece)
                self._held += len(piece)
                if not message.get("more_body", False):
                    return piece if len(pieces) == 1 else b"".join(pieces)
        except BaseException:
            self._held -= size
            raise

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._active >= self._most_active:
            raise Refused(503, f"{self._active} requests are waiting already: try again in a second")
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        seconds = self._seconds(scope["query_string"])
        self._active += 1
        try:
            async with asyncio.timeout(seconds) as limit:
                await self.app(scope, receive, sending)
        except TimeoutError:
            if begun or not limit.expired():
                raise
            raise Refused(503, f"there was no answer within {seconds:g} seconds: try again, or ask for less") from None
        finally:
            self._active -= 1

    def _seconds(self, query_string: bytes) -> float:
        most = self._settings.timeout
        asked = _TIMEOUT.search(query_string) if b"timeout=" in query_string else None
        if asked is None:
            return most
        try:
            seconds = float(asked[1])
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 1e9:
            raise Refused(400, f"timeout must be a number of seconds above 0, not {asked[1].decode('latin-1')!r:.40}")
        return min(seconds, most)

    def _patient(self, receive: Receive) -> Receive:
        """Receives pieces of a body that come without long pauses."""

        async def receiving() -> Message:
            return await _within(self._settings.receive_timeout, receive)

        return receiving


class Refused(Exception):
    """A request that is answered with an error before or while its body comes."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def _too_large(most: int) -> Refused:
    return Refused(413, f"a body may have {most:,} bytes: send fewer points or queries at a time")


async def _within(seconds: float, receive: Callable[[], Awaitable[Message]]) -> Message:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await receive()
    except TimeoutError:
        raise Refused(408, "the body came too slowly: send it again") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving


async def refuse(error: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error, and close the connection."""
    headers = {"Connection": "close"} | ({"Retry-After": "1"} if error.status == 503 else {})
    answer = refusal(error.status, str(error), headers)
    if error.status != 413:
        await answer(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": error.status, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    await linger(receive)
    await send({"type": "http.response.body", "body": b""})


async def linger(receive: Receive) -> None:
    """Read on for a moment: where a connection is closed with unread data, its client may see no answer."""
    with suppress(TimeoutError, Refused):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
