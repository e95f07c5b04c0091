"""Routes of Qdrant that search: one query, several, and groups."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from qdrant_client.http import models as m

from qinco.errors import ConfigError
from qinco.server.bodies import DescribedRoute, Parser
from qinco.server.envelope import RESPONSES, answer
from qinco.server.qdrant_points import limit_of
from qinco.server.qdrant_records import Shape
from qinco.server.qdrant_search import find, groups

router = APIRouter(prefix="/collections/{name}", route_class=DescribedRoute, responses=RESPONSES, tags=["search"])
QUERY = Parser(m.QueryRequest)


@router.post("/points/query")
async def query(request: Request, name: str, body: Annotated[m.QueryRequest, Depends(QUERY)]):
    return answer(request, {"points": await _points(request.app.state, name, body)})


@router.post("/points/query/batch")
async def query_batch(
    request: Request, name: str, body: Annotated[m.QueryRequestBatch, Depends(Parser(m.QueryRequestBatch))]
):
    most = request.app.state.settings.max_queries
    if len(body.searches) > most:
        raise ConfigError(f"Wrong input: there are {len(body.searches):,} searches, and {most:,} are the most")
    request.app.state.catalog.get(name)
    found = await asyncio.gather(*(_points(request.app.state, name, one) for one in body.searches))
    return answer(request, [{"points": points} for points in found])


@router.post("/points/query/groups")
async def query_groups(
    request: Request, name: str, body: Annotated[m.QueryGroupsRequest, Depends(Parser(m.QueryGroupsRequest))]
):
    state = request.app.state
    return answer(request, {"groups": await groups(state, name, body, limit_of(body.limit, state.settings))})


async def _points(state: Any, name: str, body: m.QueryRequest) -> list[dict[str, Any]]:
    limit, offset = limit_of(body.limit, state.settings), body.offset or 0
    if not 0 <= offset <= state.settings.max_k - limit:
        raise ConfigError(f"Wrong input: offset must be 0 or more, and {state.settings.max_k:,} at most with limit, "
                          f"not {offset} and {limit}")  # fmt: skip
    shape = Shape(state.catalog.get(name), body.with_payload, body.with_vector, payload_by_default=False)
    found = await find(state, name, body, limit + offset, shape.kinds)
    return [one.json(shape) for one in found[offset:]]
