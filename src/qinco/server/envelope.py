"""Bodies of answers: results and errors as clients of Qdrant read them."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from qinco.errors import ConfigError, QincoError, ResourceError
from qinco.server.work import Unavailable

log = logging.getLogger(__name__)
_SHOWN_FAULTS = 3


class NotFoundError(QincoError):
    """There is no collection, record or alias of this name: status 404."""


class ConflictError(ConfigError):
    """There is one of this name already: status 409."""


class TooLargeError(ConfigError):
    """A body, or a part of it, is larger than the server takes: status 413."""


class MediaTypeError(ConfigError):
    """A body, or an answer that is asked for, of a type that the route does not know: status 415."""


class MalformedError(ConfigError):
    """A body that does not have the form of its schema: status 422."""


_ERROR = {
    "type": "object",
    "required": ["status", "time"],
    "properties": {
        "status": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        "time": {"type": "number"},
    },
}
_MEANINGS = {400: "Refused", 404: "Not found", 409: "There already", 413: "Too large", 422: "Not of the schema",
             503: "Not now"}  # fmt: skip
RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"description": meaning, "content": {"application/json": {"schema": _ERROR}}}
    for code, meaning in _MEANINGS.items()
}


class TimedRoute(APIRoute):
    """A route that notes when it began to answer."""

    def get_route_handler(self) -> Callable:
        handler = super().get_route_handler()

        async def timed(request: Request):
            request.state.started = time.perf_counter()
            return await handler(request)

        return timed


def answer(request: Request, result: Any) -> JSONResponse:
    """A result, and how long it took."""
    seconds = time.perf_counter() - request.state.started
    return JSONResponse({"result": result, "status": "ok", "time": seconds})


def done(request: Request) -> JSONResponse:
    """A change that is on disk."""
    return answer(request, {"operation_id": 0, "status": "completed"})


def refusal(code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error, in one sentence."""
    return JSONResponse({"status": {"error": message}, "time": 0.0}, code, headers)


def faults(error: ValidationError | RequestValidationError) -> str:
    """What is wrong with a body, in one sentence."""
    found = error.errors()
    shown = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in found[:_SHOWN_FAULTS]]
    more = f", and {len(found) - _SHOWN_FAULTS} more faults" if len(found) > _SHOWN_FAULTS else ""
    return f"the body is not of its schema: {', '.join(shown)}{more}"


def status_of(error: Exception) -> int:
    """The status of an answer that tells of an error."""
    codes = {NotFoundError: 404, ConflictError: 409, TooLargeError: 413, MediaTypeError: 415, MalformedError: 422,
             ResourceError: 503, Unavailable: 503}  # fmt: skip
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 400)


def explained(error: QincoError | Unavailable) -> JSONResponse:
    """The answer to a request that was not done."""
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Unavailable) else None
    return refusal(status_of(error), str(error), headers)


def install(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Answer exceptions by the envelope; the app has the routes of the routers besides its own."""
    routes = [route for router in (app.router, *routers) for route in router.routes if isinstance(route, Route)]

    @app.exception_handler(Unavailable)
    @app.exception_handler(QincoError)
    async def refused(request: Request, error: QincoError | Unavailable):
        return explained(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError):
        return refusal(422, faults(error))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException):
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the error knows one of the routes of a path
            there = [route for route in routes if route.path_regex.fullmatch(request.url.path)]
            path = min((route.path for route in there), key=lambda path: path.count("{"))
            found = (route.methods or () for route in there if route.path == path)
            headers["Allow"] = ", ".join(sorted(set().union(*found)))
        return refusal(error.status_code, str(error.detail), headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception):
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refusal(500, f"the server failed ({type(error).__name__}): see its log, and report it")
