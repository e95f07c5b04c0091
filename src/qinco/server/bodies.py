"""Bodies of requests as models of qdrant-client, parsed strictly, and their schema in the OpenAPI document."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from qinco.server.envelope import MalformedError, faults
from qinco.server.refusals import refuse_unsupported

_IN_THREAD_BYTES = 64 << 10  # larger bodies take milliseconds


class Parser:
    """A dependency of a route: its body as a model, which has nothing that qinco lacks."""

    def __init__(self, model: Any):
        self.adapter = TypeAdapter(model)

    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        if len(body) > _IN_THREAD_BYTES:
            return await asyncio.to_thread(self.parse, body)
        return self.parse(body)

    def parse(self, body: bytes) -> Any:
        """The body as a model; MalformedError if it is none."""
        try:
            found = self.adapter.validate_json(body, strict=True)
        except ValidationError as error:
            raise MalformedError(faults(error)) from None
        refuse_unsupported(found)
        return found


def plain(model: Any) -> dict | None:
    """A model as JSON values, such as a filter for `where=`; None stays None."""
    return None if model is None else model.model_dump(mode="json", by_alias=True, exclude_none=True)


def install(app: FastAPI) -> None:
    """Put the schemas of bodies into the app's OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for route in app.routes:
        if not isinstance(route, APIRoute):
            continue
        for dependency in route.dependant.dependencies:
            if not isinstance(dependency.call, Parser):
                continue
            schema = dependency.call.adapter.json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            for method in route.methods:
                document["paths"][route.path][method.lower()]["requestBody"] = {
                    "required": True,
                    "content": {"application/json": {"schema": schema}},
                }
    return document
