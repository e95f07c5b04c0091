"""What is known of requests: how many are in progress, how long they took, and which failed."""

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qinco.server.auth import OPEN
from qinco.server.envelope import refusal
from qinco.server.metrics import Metrics

log = logging.getLogger(__name__)
_RETRY_SECONDS = "5"
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")  # what users have stored is never taken for a page
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Traffic:
    """Requests in progress.

    Attributes:
        active: their number, without those for health.
        is_ending: new requests are answered with 503.
    """

    def __init__(self):
        self.active, self.is_ending = 0, False


class Observer:
    """ASGI middleware that counts requests, answers those that failed, and none that comes while the server ends."""

    def __init__(self, app: ASGIApp, traffic: Traffic, metrics: Metrics, logs_requests: bool):
        self.app, self._traffic, self._logs_requests = app, traffic, logs_requests
        self._requests = Labelled(metrics.requests.labels)
        self._seconds = Labelled(metrics.seconds.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, is_health = time.perf_counter(), 0, scope["path"] in OPEN

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), _NO_SNIFFING]
            await send(message)

        self._traffic.active += not is_health
        try:
            if self._traffic.is_ending and not is_health:
                headers = {"Retry-After": _RETRY_SECONDS, "Connection": "close"}
                await refusal(503, "the server is ending: try again when it is back", headers)(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            message = f"the server failed ({type(error).__name__}): see its log, and report it"
            await refusal(500, message)(scope, receive, sending)
        finally:
            self._traffic.active -= not is_health
            self._note(scope, status or 499, time.perf_counter() - begun)  # 499: its client was gone

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests[route, method, status].inc()
        self._seconds[(route,)].observe(seconds)
        if self._logs_requests:
            fields = {"method": method, "path": scope["path"], "status": status, "seconds": round(seconds, 6)}
            log.info("%s %s %d %.1f ms", method, scope["path"], status, 1000 * seconds, extra={"fields": fields})


class Labelled(dict):
    """Children of a metric by the values of their labels, which are looked up without a lock."""

    def __init__(self, labels: Callable):
        super().__init__()
        self._labels = labels

    def __missing__(self, values: tuple):
        child = self[values] = self._labels(*values)
        return child
