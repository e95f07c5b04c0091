"""Connections of a server: so many, and none that waits for ever for its client."""

import asyncio
import socket
from contextlib import suppress
from typing import Any

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Protocol  # the faster one
except ImportError:
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Protocol

from qinco.server.settings import ServerSettings

_Base: Any = _Protocol  # one of two classes


def protocol_class(settings: ServerSettings, max_connections: int) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with limits.

    A request must begin within `receive_timeout` seconds of its first byte or its connection; how long it goes on is
    limited by `RequestLimits`. The kernel ends connections whose clients do not read their answers.
    """

    class LimitedProtocol(_Base):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            self._headers_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self.connections.discard(self)
                transport.abort()
                return
            _limit_unread(transport, settings.receive_timeout)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_request()
            elif self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
            super().connection_lost(exc)

        def _expect_request(self) -> None:
            if self._headers_due is None:
                self._headers_due = self.loop.call_later(settings.receive_timeout, self._give_up)

        def _give_up(self) -> None:
            self._headers_due = None
            if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
                self.transport.abort()

    return LimitedProtocol


def _limit_unread(transport: asyncio.BaseTransport, seconds: float) -> None:
    """End the connection when what is sent is not taken for so long, where the system can do that."""
    connection = transport.get_extra_info("socket")
    with suppress(AttributeError, OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(1000 * seconds)))
