"""Routes of Qdrant about collections: creation, settings, indexes of fields and aliases."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from qdrant_client.http import models as m

from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.config import EXACT_BELOW
from qinco.errors import ConfigError
from qinco.server.bodies import DescribedRoute, Parser
from qinco.server.catalog import Catalog, Served
from qinco.server.envelope import RESPONSES, answer, done
from qinco.server.qdrant_records import UNNAMED
from qinco.server.refusals import UnsupportedError, ignored_hints
from qinco.server.totals import parts_of

router = APIRouter(route_class=DescribedRoute, responses=RESPONSES, tags=["collections"])
CATALOG = "/catalog"  # the writer of what is of no single collection; no collection has this name
METRICS = {m.Distance.COSINE: "cosine", m.Distance.DOT: "inner_product", m.Distance.EUCLID: "l2"}
_DISTANCES = {metric: distance.value for distance, metric in METRICS.items()}
_MAX_DIM, _MAX_BYTES, _DEFAULT_BYTES = 65_536, 256, 8
_FIELDS = {
    "keyword": "keyword", "integer": "integer", "float": "float", "bool": "bool", "datetime": "datetime",
    "uuid": "keyword",
}  # fmt: skip
Bytes = Annotated[int | None, Query(ge=1, le=_MAX_BYTES)]
Rows = Annotated[int | None, Query(ge=0, le=1 << 40)]


@router.get("/collections")
async def collections(request: Request):
    return answer(request, {"collections": [{"name": name} for name in request.app.state.catalog.names()]})


@router.get("/collections/{name}/exists")
async def exists(request: Request, name: str):
    catalog: Catalog = request.app.state.catalog
    return answer(request, {"exists": name in catalog.names() or name in catalog.aliases()})


@router.put("/collections/{name}")
async def create(
    request: Request, name: str, body: Annotated[m.CreateCollection, Depends(Parser(m.CreateCollection))],
    bytes: Bytes = None, exact_below: Rows = None,
):  # fmt: skip
    """Create a collection; `bytes` and `exact_below` are qinco's, and may be given in metadata, too."""
    state = request.app.state
    ours = (body.metadata or {}).get("qinco", {})
    ours = ours if isinstance(ours, dict) else {}
    bytes, exact_below = bytes or ours.get("bytes"), ours.get("exact_below") if exact_below is None else exact_below
    make = maker(body, bytes, EXACT_BELOW if exact_below is None else exact_below)
    details = {"metadata": body.metadata, "warnings": ignored_hints(body)}
    await state.work.write(CATALOG, state.catalog.create, name, make, details)
    return answer(request, True)


@router.patch("/collections/{name}")
async def update(request: Request, name: str, body: Annotated[m.UpdateCollection, Depends(Parser(m.UpdateCollection))]):
    state = request.app.state
    name = state.catalog.resolve(name)
    hints = ignored_hints(body)
    if body.metadata is None and not hints:
        return answer(request, True)

    def changed(details: dict[str, Any]) -> dict[str, Any]:
        metadata = (details.get("metadata") or {}) | (body.metadata or {})
        kept = {key: value for key, value in metadata.items() if value is not None}
        return {"metadata": kept or None, "warnings": sorted({*details.get("warnings", ()), *hints})}

    await state.work.write(CATALOG, state.catalog.change_details, name, changed)
    return answer(request, True)


@router.delete("/collections/{name}")
async def drop(request: Request, name: str):
    state = request.app.state
    dropped = await state.work.write(CATALOG, state.catalog.drop, name)
    if dropped:
        state.work.forget(name)
        state.jobs.forget(name)
    return answer(request, dropped)


@router.get("/collections/{name}")
async def information(request: Request, name: str):
    state = request.app.state
    name = state.catalog.resolve(name)
    collection = state.catalog.get(name)
    found = await state.work.read(describe, collection, state.catalog.details(name))
    return answer(request, found | {"status": "yellow" if state.jobs.is_running(name) else "green"})


@router.put("/collections/{name}/index")
async def add_index(
    request: Request, name: str, body: Annotated[m.CreateFieldIndex, Depends(Parser(m.CreateFieldIndex))]
):
    state = request.app.state
    name, kind = state.catalog.resolve(name), field_kind(body.field_schema)
    await state.work.write(name, state.catalog.get(name).add_field, body.field_name, kind)
    return done(request)


@router.delete("/collections/{name}/index/{field}")
async def drop_index(request: Request, name: str, field: str):
    state = request.app.state
    name = state.catalog.resolve(name)
    await state.work.write(name, state.catalog.get(name).drop_field, field)
    return done(request)


@router.post("/collections/aliases")
async def change_aliases(
    request: Request, body: Annotated[m.ChangeAliasesOperation, Depends(Parser(m.ChangeAliasesOperation))]
):
    state = request.app.state
    await state.work.write(CATALOG, state.catalog.change_aliases, [_alias_change(one) for one in body.actions])
    return answer(request, True)


@router.get("/aliases")
async def aliases(request: Request):
    return answer(request, {"aliases": _aliases(request.app.state.catalog, None)})


@router.get("/collections/{name}/aliases")
async def aliases_of(request: Request, name: str):
    catalog = request.app.state.catalog
    return answer(request, {"aliases": _aliases(catalog, catalog.resolve(name))})


def maker(body: m.CreateCollection, bytes: Any, exact_below: Any):
    """A function that makes the collection that a body asks for in a folder; refuses what cannot be made."""
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if getattr(body, name) not in (None, 1):
            raise UnsupportedError(f"several shards or replicas: {name} is {getattr(body, name)}", name)
    if body.sharding_method == m.ShardingMethod.CUSTOM:
        raise UnsupportedError("shard keys", "sharding_method")
    if not body.vectors:
        raise ConfigError('Wrong input: vectors say the size of vectors and their distance: give {"size": 384, '
                          '"distance": "Cosine"}')  # fmt: skip
    vectors = body.vectors
    if isinstance(vectors, dict) and vectors.keys() == {UNNAMED}:
        vectors = vectors[UNNAMED]
    if not isinstance(vectors, dict):
        settings = _vector_settings(vectors, body.quantization_config, bytes, UNNAMED)
        return partial(Collection.create, exact_below=exact_below, **settings)
    named = {name: _vector_settings(one, body.quantization_config, bytes, name) for name, one in vectors.items()}
    return partial(NamedCollection.create, vectors=named, exact_below=exact_below)


def _vector_settings(params: m.VectorParams, quantization: Any, bytes: Any, name: str) -> dict[str, Any]:
    where = f" of vector {name!r}" if name else ""
    if params.distance not in METRICS:
        raise UnsupportedError(f"the distance {params.distance.value}: use Cosine, Dot or Euclid", "it")
    if not 1 <= params.size <= _MAX_DIM:
        raise ConfigError(f"Wrong input: the size{where} must be from 1 to {_MAX_DIM:,}, not {params.size}")
    if params.datatype not in (None, m.Datatype.FLOAT32, m.Datatype.FLOAT16):
        raise UnsupportedError(f"the datatype {params.datatype.value}", "datatype")
    config = params.quantization_config or quantization
    if bytes is None and isinstance(config, m.ProductQuantization):  # the others are refused
        bytes = _bytes_of(config.product.compression, params.size)
    return {"dim": params.size, "metric": METRICS[params.distance], "bytes": _DEFAULT_BYTES if bytes is None else bytes}


def _bytes_of(compression: m.CompressionRatio, dim: int) -> int:
    """The bytes of a vector's code at a ratio of compression."""
    found = max(1, 4 * dim // int(compression.value.removeprefix("x")))
    if found > _MAX_BYTES:
        raise ConfigError(f"Wrong input: {compression.value} of {dim} dimensions is {found} bytes a vector, and codes "
                          f"have {_MAX_BYTES} at most: give a higher compression, or ?bytes=")  # fmt: skip
    return found


def field_kind(schema: Any) -> str:
    """The kind of an index of a field, as of `Collection.add_field`."""
    if schema is None:
        raise ConfigError("Wrong input: field_schema is the kind of the field: give keyword, integer, float, bool or "
                          "datetime")  # fmt: skip
    kind = schema.value if isinstance(schema, m.PayloadSchemaType) else schema.type.value
    if kind not in _FIELDS:
        what = "indexes of places" if kind == "geo" else "indexes of text"
        raise UnsupportedError(what, f"the index of kind {kind}")
    return _FIELDS[kind]


def describe(collection: Served, details: dict[str, Any]) -> dict[str, Any]:
    """What `GET /collections/{name}` says."""
    stats = collection.stats()
    each = parts_of(stats)
    is_named = isinstance(collection, NamedCollection)
    params = dict(zip(stats["vectors"], map(_params, each), strict=True)) if is_named else _params(stats)
    warnings = [*details.get("warnings", ()), *stats["warnings"]]
    return {
        "optimizer_status": "ok",
        "warnings": [{"message": message} for message in warnings],
        "indexed_vectors_count": sum(one["compressed"] for one in each),
        "points_count": stats["records"],
        "segments_count": sum(len(one["segments"]) + (one["fresh"] > 0) for one in each),
        "config": {
            "params": {"vectors": params, "shard_number": 1,
                       "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True},
            # What clients expect to find, though qinco has neither: no graph, and no optimizer of itself
            "hnsw_config": {"m": 0, "ef_construct": 0, "full_scan_threshold": 0},
            "optimizer_config": {"default_segment_number": 0, "flush_interval_sec": 0},
            "metadata": details.get("metadata"),
        },
        "payload_schema": {path: {"data_type": kind, "points": stats["records"]}
                           for path, kind in stats["fields"].items()},
    }  # fmt: skip


def _params(stats: dict[str, Any]) -> dict[str, Any]:
    return {"size": stats["dim"] or 0, "distance": _DISTANCES[stats["metric"]]}


def _alias_change(action: Any) -> tuple[str, str, str]:
    if isinstance(action, m.CreateAliasOperation):
        return "create", action.create_alias.alias_name, action.create_alias.collection_name
    if isinstance(action, m.DeleteAliasOperation):
        return "delete", action.delete_alias.alias_name, ""
    return "rename", action.rename_alias.old_alias_name, action.rename_alias.new_alias_name


def _aliases(catalog: Catalog, name: str | None) -> list[dict[str, str]]:
    found = sorted(catalog.aliases().items())
    return [{"alias_name": alias, "collection_name": of} for alias, of in found if name in (None, of)]
