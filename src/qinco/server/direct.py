"""Searches of one query without FastAPI's way to a route, which takes as long as the rest of an answer."""

import re
import time
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qinco.errors import QincoError
from qinco.server import arrays, qdrant_queries
from qinco.server.envelope import explained
from qinco.server.work import Unavailable

Endpoint = Callable[[Request, str], Awaitable[Response]]


class Direct:
    """ASGI middleware, the last before the routes, that calls the endpoints of searches itself.

    They are the same functions that the routes call, and their errors are explained in the same words.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self._routes = [
            (re.compile(r"/collections/([^/]+)/points/query"), _Route("/collections/{name}/points/query"), _query),
            (re.compile(r"/v1/([^/]+)/search"), _Route("/v1/{name}/search"), arrays.search),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            for path, route, endpoint in self._routes:
                if (found := path.fullmatch(scope["path"])) is not None:
                    scope["route"] = route
                    response = await _answered(endpoint, Request(scope, receive, send), found[1])
                    await response(scope, receive, send)
                    return
        await self.app(scope, receive, send)


class _Route:
    """What requests are counted by."""

    def __init__(self, path: str):
        self.path = path


async def _query(request: Request, name: str) -> Response:
    return await qdrant_queries.query(request, name, await qdrant_queries.QUERY(request))


async def _answered(endpoint: Endpoint, request: Request, name: str) -> Response:
    request.state.started = time.perf_counter()
    try:
        return await endpoint(request, name)
    except (QincoError, Unavailable) as error:
        return explained(error)
