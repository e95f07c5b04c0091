"""Routes of Qdrant about points: what is stored, read page by page, counted, changed and deleted."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from qdrant_client.http import models as m

from qinco.errors import ConfigError
from qinco.server import qdrant_changes as changes
from qinco.server.bodies import DescribedRoute, Parser
from qinco.server.envelope import RESPONSES, NotFoundError, answer, done
from qinco.server.qdrant_order import ordered
from qinco.server.qdrant_records import Shape, id_of, ids_of, page, where_of
from qinco.server.settings import ServerSettings

router = APIRouter(prefix="/collections/{name}", route_class=DescribedRoute, responses=RESPONSES, tags=["points"])
_LIMIT = 10
Selector = Annotated[m.PointIdsList | m.FilterSelector, Depends(Parser(m.PointIdsList | m.FilterSelector))]
SetPayload = Annotated[m.SetPayload, Depends(Parser(m.SetPayload))]
Points = Annotated[m.PointsBatch | m.PointsList, Depends(Parser(m.PointsBatch | m.PointsList))]


async def _changed(request: Request, name: str, change: Callable, body: Any) -> Any:
    state = request.app.state
    name = state.catalog.resolve(name)
    return await state.work.write(name, change, state.catalog.get(name), body, state.settings.max_payload_bytes)


def limit_of(given: int | None, settings: ServerSettings, default: int = _LIMIT, what: str = "limit") -> int:
    """A limit of a request; refuses those that are not from 1 to the largest that the server answers."""
    if given is not None and not 1 <= given <= settings.max_k:
        raise ConfigError(f"Wrong input: {what} must be from 1 to {settings.max_k:,}, not {given}")
    return default if given is None else given


@router.put("/points")
async def upsert(request: Request, name: str, body: Points):
    await _changed(request, name, changes.upsert, body)
    return done(request)


@router.post("/points")
async def retrieve(request: Request, name: str, body: Annotated[m.PointRequest, Depends(Parser(m.PointRequest))]):
    state = request.app.state
    collection = state.catalog.get(name)
    shape = Shape(collection, body.with_payload, body.with_vector, payload_by_default=True)
    if len(body.ids) > state.settings.max_k:
        raise ConfigError(f"Wrong input: there are {len(body.ids):,} ids, and {state.settings.max_k:,} are the most")
    records = await state.work.read(collection.get, ids_of(body.ids), **shape.kinds)
    return answer(request, [shape.of(record) for record in records])


@router.get("/points/{id}")
async def point(request: Request, name: str, id: str):
    """A point; an id of digits is an integer."""
    state = request.app.state
    collection = state.catalog.get(name)
    shape = Shape(collection, True, True, payload_by_default=True)
    given = id_of(int(id) if id.isascii() and id.isdigit() and len(id) < 20 else id)
    records = await state.work.read(collection.get, [given], **shape.kinds)
    if not records:
        raise NotFoundError(f"Not found: Point with id {id:.60} does not exist!")
    return answer(request, shape.of(records[0]))


@router.post("/points/scroll")
async def scroll(request: Request, name: str, body: Annotated[m.ScrollRequest, Depends(Parser(m.ScrollRequest))]):
    state = request.app.state
    collection, limit = state.catalog.get(name), limit_of(body.limit, state.settings)
    shape = Shape(collection, body.with_payload, body.with_vector, payload_by_default=True)
    where = where_of(body.filter)
    if body.order_by is not None:
        if body.offset is not None:
            raise ConfigError("Wrong input: offset is an id, which order_by passes by: give order_by.start_from")
        found = await state.work.read(ordered, collection, where, body.order_by, limit, shape.kinds)
        return answer(request, {"points": [shape.of(record) | {"order_value": value} for record, value in found],
                                "next_page_offset": None})  # fmt: skip
    offset = None if body.offset is None else id_of(body.offset)
    records, following = await state.work.read(page, collection, where, limit, offset, shape.kinds)
    return answer(request, {"points": [shape.of(record) for record in records], "next_page_offset": following})


@router.post("/points/count")
async def count(request: Request, name: str, body: Annotated[m.CountRequest, Depends(Parser(m.CountRequest))]):
    """The number of points, exactly, whatever `exact` says."""
    state = request.app.state
    return answer(request, {"count": await state.work.read(state.catalog.get(name).count, where_of(body.filter))})


@router.post("/facet")
async def facet(request: Request, name: str, body: Annotated[m.FacetRequest, Depends(Parser(m.FacetRequest))]):
    state = request.app.state
    limit = limit_of(body.limit, state.settings)
    hits = await state.work.read(state.catalog.get(name).facet, body.key, where_of(body.filter), limit)
    return answer(request, {"hits": [{"value": value, "count": number} for value, number in hits]})


@router.post("/points/delete")
async def delete(request: Request, name: str, body: Selector):
    await _changed(request, name, changes.delete, body)
    return done(request)


@router.post("/points/payload")
async def set_payload(request: Request, name: str, body: SetPayload):
    await _changed(request, name, changes.set_payload, body)
    return done(request)


@router.put("/points/payload")
async def overwrite_payload(request: Request, name: str, body: SetPayload):
    await _changed(request, name, changes.overwrite_payload, body)
    return done(request)


@router.post("/points/payload/delete")
async def delete_payload(
    request: Request, name: str, body: Annotated[m.DeletePayload, Depends(Parser(m.DeletePayload))]
):
    await _changed(request, name, changes.delete_payload, body)
    return done(request)


@router.post("/points/payload/clear")
async def clear_payload(request: Request, name: str, body: Selector):
    await _changed(request, name, changes.clear_payload, body)
    return done(request)


@router.put("/points/vectors")
async def update_vectors(
    request: Request, name: str, body: Annotated[m.UpdateVectors, Depends(Parser(m.UpdateVectors))]
):
    await _changed(request, name, changes.update_vectors, body)
    return done(request)


@router.post("/points/vectors/delete")
async def delete_vectors(
    request: Request, name: str, body: Annotated[m.DeleteVectors, Depends(Parser(m.DeleteVectors))]
):
    await _changed(request, name, changes.delete_vectors, body)
    return done(request)


@router.post("/points/batch")
async def batch(request: Request, name: str, body: Annotated[m.UpdateOperations, Depends(Parser(m.UpdateOperations))]):
    await _changed(request, name, changes.batch, body)
    return answer(request, [{"operation_id": 0, "status": "completed"} for _ in body.operations])


@router.post("/points/search", include_in_schema=False)
@router.post("/points/search/batch", include_in_schema=False)
@router.post("/points/search/groups", include_in_schema=False)
@router.post("/points/recommend", include_in_schema=False)
@router.post("/points/recommend/batch", include_in_schema=False)
@router.post("/points/recommend/groups", include_in_schema=False)
@router.post("/points/discover", include_in_schema=False)
@router.post("/points/discover/batch", include_in_schema=False)
async def replaced(request: Request, name: str):
    """Routes of older clients."""
    raise NotFoundError(f"qinco does not have {request.url.path.rsplit('/points/')[-1]}, which Qdrant replaced: use "
                        "POST /collections/{name}/points/query, as qdrant-client from 1.10 on does")  # fmt: skip
