"""A server of a folder on a free port, in a thread; what it needs is imported by those who use it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Serving(NamedTuple):
    url: str
    catalog: Any


@contextmanager
def serving(folder, read_only: bool = False, **settings) -> Iterator[Serving]:
    import uvicorn

    from qinco.server.app import create_app
    from qinco.server.catalog import Catalog
    from qinco.server.settings import ServerSettings

    with Catalog.open(folder, read_only=read_only) as catalog, socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(catalog, ServerSettings(read_only=read_only, **settings))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Serving(f"http://127.0.0.1:{listener.getsockname()[1]}", catalog)
        finally:
            server.should_exit = True
            thread.join()
