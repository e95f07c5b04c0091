"""The page about the served collections, and what it asks for."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field

from qinco.collection.collection import Collection
from qinco.errors import DataError
from qinco.page import ASSETS, collection_data, neighbours, render_page, shown
from qinco.server.catalog import Catalog
from qinco.server.envelope import NotFoundError

_TYPES = {".js": "text/javascript", ".css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}  # fmt: skip
router = APIRouter(prefix="/page", include_in_schema=False)


class NeighboursRequest(BaseModel):
    """A record's id as it was typed, or None for a random record; a filter, and how many."""

    collection: str
    id: str | None = None
    where: dict[str, Any] | None = None
    k: int = Field(10, ge=1, le=100)


def wants_page(request: Request) -> bool:
    """Whether a browser asks, and not a client of the API."""
    return "text/html" in request.headers.get("accept", "")


def page() -> Response:
    return HTMLResponse(render_page(), headers=_HEADERS)


@router.get("/data")
async def data(request: Request) -> Response:
    shown = _shown(request.app.state.catalog)
    found = [await request.app.state.work.read(collection_data, part, name) for name, part in shown.items()]
    return JSONResponse({"collections": found}, headers=_HEADERS)


@router.post("/neighbours")
async def neighbours_of(request: Request, body: NeighboursRequest) -> Response:
    collection = _shown(request.app.state.catalog).get(body.collection)
    if collection is None:
        raise NotFoundError(f"Not found: Collection `{body.collection:.100}` doesn't exist!")
    found = await request.app.state.work.read(_neighbours, collection, body)
    return JSONResponse(found, headers=_HEADERS)


@router.get("/{asset}")
async def asset(asset: str) -> Response:
    if asset not in {path.name for path in ASSETS.iterdir() if path.suffix in _TYPES}:
        raise NotFoundError(f"the page has no {asset:.60}")
    return FileResponse(ASSETS / asset, media_type=_TYPES[f".{asset.rpartition('.')[2]}"], headers=_HEADERS)


def _shown(catalog: Catalog) -> dict[str, Collection]:
    """Collections by name; of one with named vectors, those of each name by both names."""
    found: dict[str, Collection] = {}
    for name in catalog.names():
        found |= shown(catalog.get(name), name)
    return found


def _neighbours(collection: Collection, body: NeighboursRequest) -> dict[str, Any]:
    id = _id(collection, body.id)
    (record,) = collection.get([id])
    return {"id": id, "payload": record.payload, "hits": neighbours(collection, id, body.k, body.where)}


def _id(collection: Collection, typed: str | None) -> int | str:
    """The id that was typed: an integer where there is such a record, or else a string, with or without quotes."""
    if typed is None:
        found = collection.sample()
        if not found:
            raise DataError("no record has a vector yet")
        return found[0]
    bare = typed.strip()
    names = [int(bare)] if bare.isascii() and bare.isdigit() else []
    names += [bare[1:-1]] if len(bare) > 1 and bare[0] == bare[-1] == '"' else []
    found = next((name for name in [*names, bare, typed] if name in collection), None)
    if found is None:
        raise DataError(f"no record has the id {bare!r:.60}")
    return found
