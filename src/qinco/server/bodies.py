"""Bodies of requests as models of qdrant-client, parsed strictly, and their schema in the OpenAPI document."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, TypeAdapter, ValidationError

from qinco.server.envelope import MalformedError, TimedRoute, faults
from qinco.server.refusals import refuse_unsupported
from qinco.server.schemas import supported_schema

_IN_THREAD_BYTES = 64 << 10  # larger bodies take milliseconds
_definitions: dict[str, Any] = {}  # schemas of models by name


class Parser:
    """A dependency of a route: its body as a model, which has nothing that qinco lacks."""

    def __init__(self, model: Any):
        self.adapter = TypeAdapter(model)

    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        if len(body) > _IN_THREAD_BYTES:
            return await asyncio.to_thread(self.parse, body)
        return self.parse(body)

    def description(self) -> dict[str, Any]:
        """The body as OpenAPI has it; models that it refers to become components."""
        schema = supported_schema(self.adapter.json_schema(ref_template="#/components/schemas/{model}"))
        _definitions.update(schema.pop("$defs", {}))
        return {"required": True, "content": {"application/json": {"schema": schema}}}

    def parse(self, body: bytes) -> Any:
        """The body as a model; MalformedError if it is none."""
        try:
            found = self.adapter.validate_json(body, strict=True)
        except ValidationError as error:
            raise MalformedError(faults(error)) from None
        refuse_unsupported(found)
        return found


def plain(model: BaseModel) -> dict[str, Any]:
    """A model as JSON values."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


class DescribedRoute(TimedRoute):
    """A route whose parser is in the OpenAPI document."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        for dependency in self.dependant.dependencies:
            if isinstance(dependency.call, Parser):
                self.openapi_extra = (self.openapi_extra or {}) | {"requestBody": dependency.call.description()}


def install(app: FastAPI) -> None:
    """Put the schemas of bodies into the app's OpenAPI document."""
    plain_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain_document()
        document.setdefault("components", {}).setdefault("schemas", {}).update(_definitions)
        return document

    app.openapi = openapi
