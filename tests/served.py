"""Servers of collections in new folders, called without a network; what they need is imported by those who use them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def served(folder, cluster: str | None = None, **settings) -> Iterator[Any]:
    """A client of the collections in a folder, or of one collection or index."""
    from starlette.testclient import TestClient

    from qinco.server.app import create_app
    from qinco.server.catalog import Catalog
    from qinco.server.settings import ServerSettings

    with Catalog.open(folder, cluster=cluster) as catalog:
        app = create_app(catalog, ServerSettings(**settings))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


def result(response) -> Any:
    """What a request that succeeded has found."""
    assert response.status_code == 200, response.text
    return response.json()["result"]


def error(response, code: int) -> str:
    """The sentence of a request that was refused."""
    assert response.status_code == code, response.text
    return response.json()["status"]["error"]
