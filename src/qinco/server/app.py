"""`create_app`: a server's routes, on a catalog of collections."""

from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from qinco.server import arrays, bodies, envelope, operations, pages, qdrant_collections, qdrant_points, qdrant_queries
from qinco.server.catalog import Catalog
from qinco.server.settings import ServerSettings
from qinco.server.work import Work
from qinco.version import __version__


def create_app(catalog: Catalog, settings: ServerSettings | None = None) -> FastAPI:
    """An ASGI application that answers clients of Qdrant from collections.

    Its state has `catalog`, `settings` and `work`. Whoever opened the catalog closes it.

    Args:
        catalog: of the collections.
        settings: limits and keys; None for those of `ServerSettings()`.

    Example:
        >>> with Catalog.open("data") as catalog:  # doctest: +SKIP
        ...     uvicorn.run(create_app(catalog), port=6333)
    """
    settings = ServerSettings() if settings is None else settings

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        app.state.work.close()

    app = FastAPI(title="qinco", version=__version__, lifespan=lifespan)
    app.state.catalog, app.state.settings, app.state.work = catalog, settings, Work(settings)
    bodies.install(app)

    @app.get("/")
    async def root(request: Request):
        """The page for browsers; for clients, the version of Qdrant that this server speaks like."""
        if pages.wants_page(request):
            return pages.page()
        return {"title": "qinco", "version": settings.qdrant_version}

    modules = qdrant_queries, arrays, qdrant_points, qdrant_collections, pages  # what is called most comes first
    for module in modules:
        app.include_router(module.router)
    operations.install(app)
    envelope.install(app, [module.router for module in (*modules, operations)])
    return app
