"""JSON schemas of bodies for the OpenAPI document: what the server understands of Qdrant's."""

from typing import Any

from pydantic import BaseModel
from qdrant_client.http import models as m

from qinco.server.refusals import SUPPORTED

_SOME = {"minItems": 1}
# What values must fulfil besides their types, as the routes check it.
BOUNDS: dict[type[BaseModel], dict[str, dict[str, Any]]] = {
    m.QuantizationSearchParams: {"oversampling": {"minimum": 1, "maximum": 1000}},
    m.Mmr: {"diversity": {"minimum": 0, "maximum": 1}},
    m.PointsList: {"points": _SOME},
    m.Batch: {"ids": _SOME},
    m.PointIdsList: {"points": _SOME},
    m.UpdateVectors: {"points": _SOME},
    m.SetPayload: {"points": _SOME},
    m.DeletePayload: {"points": _SOME},
    m.DeleteVectors: {"points": _SOME, "vector": _SOME},
}


def supported_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a body with what the server understands of it, and nothing that it refuses by name."""
    definitions = schema.pop("$defs", {})
    models = {model.__name__: model for model in SUPPORTED}
    kept = {name: one for name, one in definitions.items() if name in models or "properties" not in one}
    for name, one in [(schema.get("title"), schema), *kept.items()]:
        if (model := models.get(name or "")) is not None and "*" not in SUPPORTED[model]:
            aliases = {model.model_fields[field].alias or field for field in SUPPORTED[model]}
            one["properties"] = {field: part for field, part in one["properties"].items() if field in aliases}
            for field, bounds in BOUNDS.get(model, {}).items():
                _bound(one["properties"][field], bounds)
    refused = {f"/{name}" for name in definitions.keys() - kept.keys()}
    schema, kept = (_without(one, refused) for one in (schema, kept))
    used: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in _references(waiting.pop()) - used.keys():
            used[name] = kept[name]
            waiting.append(kept[name])
    return schema | ({"$defs": used} if used else {})


def _bound(schema: dict[str, Any], bounds: dict[str, Any]) -> None:
    """Put bounds into the schema of a value, or into those of its alternatives."""
    for one in schema.get("anyOf", [schema]):
        if one.get("type") != "null":
            one.update(bounds)


def _without(schema: Any, refused: set[str]) -> Any:
    """A schema without those alternatives that refer to models that are refused."""
    if isinstance(schema, list):
        return [_without(one, refused) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _without(one, refused) for name, one in schema.items()}
    for name in ("anyOf", "oneOf"):
        if name in found:
            found[name] = [one for one in found[name] if not _is_refused(one, refused)]
    return found


def _is_refused(schema: Any, refused: set[str]) -> bool:
    """Whether a schema is of a model that is refused, or of lists or mappings of such."""
    if "$ref" in schema:
        return f"/{schema['$ref'].rpartition('/')[2]}" in refused
    inner = schema.get("items", schema.get("additionalProperties"))
    return schema.get("anyOf") == [] or (isinstance(inner, dict) and _is_refused(inner, refused))


def _references(schema: Any) -> set[str]:
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    found = set().union(*map(_references, parts))
    return found | {schema["$ref"].rpartition("/")[2]} if isinstance(schema, dict) and "$ref" in schema else found
