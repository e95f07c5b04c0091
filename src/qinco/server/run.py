"""Serving a catalog until a signal comes."""

import asyncio
import gc
import logging
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from qinco.errors import ConfigError, QincoError
from qinco.progress import counted
from qinco.server.app import create_app
from qinco.server.catalog import Catalog
from qinco.server.local import LocalCheck
from qinco.server.protocol import protocol_class
from qinco.server.settings import ServerSettings

try:
    import resource
except ImportError:  # on Windows
    resource = None

log = logging.getLogger(__name__)
_OTHER_FILES = 256  # that a server opens besides its connections
_REPEATED_SECONDS = 0.5  # in which a signal is one with that before: `timeout` sends it to the process and to its group
_LAST_SECONDS = 2  # for requests that did not end in time
_SWITCH_SECONDS = 0.0005  # that the event loop waits for a thread that runs Python
_WATCH_SECONDS = 5.0  # between looks at how many vectors are fresh


def serve(catalog: Catalog, settings: ServerSettings) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then let those in progress end, and close the catalog."""
    listener, app, interval = _listen(settings), create_app(catalog, settings), sys.getswitchinterval()
    try:
        sys.setswitchinterval(_SWITCH_SECONDS)
        guarded: Any = app if settings.has_keys or not settings.is_local else LocalCheck(app)
        config = uvicorn.Config(
            guarded, http=protocol_class(settings, _num_connections(settings)), ws="none", lifespan="on",
            loop="asyncio",  # with uvloop, where it is installed, queries were answered a fifth slower
            log_config=None, access_log=False, server_header=False, date_header=False, proxy_headers=False,
            timeout_graceful_shutdown=_LAST_SECONDS, timeout_keep_alive=int(max(1, settings.receive_timeout)),
        )  # fmt: skip
        with _Logs():
            _Server(config, app, settings).run([listener])
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        listener.close()
        app.state.jobs.close()
        catalog.close()
        app.state.jobs.wait()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: ServerSettings):
        super().__init__(config)
        self._app, self._settings = app, settings
        self._ending_since: float | None = None
        self._watching: asyncio.Task | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # or each full collection would look through all modules, while requests wait
        host, port = (sockets or [])[0].getsockname()[:2]
        catalog = self._app.state.catalog
        names, indexes = catalog.names(), [f"index {name}" for name in catalog.index_names()]
        what = ", ".join([counted(len(names), "collection")] * bool(names or not indexes) + indexes)
        shown = f"[{host}]" if ":" in host else host
        log.info("serving %s at http://%s:%d", what, shown, port)
        self._watching = asyncio.create_task(_watch(self._app.state, self._settings))

    def handle_exit(self, sig: int, frame) -> None:
        """Take no new requests; at a second signal wait for none."""
        if self._ending_since is not None:
            if time.monotonic() - self._ending_since > _REPEATED_SECONDS:
                logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what is cut off is no fault
                self.should_exit = self.force_exit = True
            return
        self._ending_since = time.monotonic()
        self._app.state.traffic.is_ending = True

    async def on_tick(self, counter: int) -> bool:
        if self._ending_since is not None:
            is_late = time.monotonic() - self._ending_since >= self._settings.drain
            self.should_exit = self.should_exit or is_late or not self._app.state.traffic.active
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("the server ends, with %s in progress", counted(self._app.state.traffic.active, "request"))
        if self._watching is not None:
            self._watching.cancel()
        await super().shutdown(sockets)


async def _watch(state: Any, settings: ServerSettings) -> None:
    """Load what collections search with, before it is asked for; then compress fresh vectors where there are many."""
    versions: dict[str, int] = {}
    while True:
        for name in state.catalog.names():
            try:
                collection = state.catalog.get(name)
                stats = await state.work.read(collection.stats)
                if settings.optimize and not settings.read_only:
                    state.jobs.start_if_due(name, collection, stats, versions.get(name))
                versions[name] = stats["version"]
            except QincoError as error:  # it was dropped just now, or is damaged
                log.debug("%s: %s", name, error)
            except Exception:
                log.exception("the collection %s was not looked at", name)
        if not settings.optimize or settings.read_only:
            return
        await asyncio.sleep(_WATCH_SECONDS)


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host={settings.host} cannot be listened on ({error.strerror}): give another") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): end what listens "
                          "there, or give another port=") from None  # fmt: skip
    return listener


def _num_connections(settings: ServerSettings) -> int:
    """So many as may be open at once: as files of the process, too."""
    wanted = settings.max_connections + _OTHER_FILES
    if resource is None:
        return settings.max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > wanted:
        hard = wanted
    if hard > soft:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = hard
    return max(16, min(settings.max_connections, soft - _OTHER_FILES))


class _Logs(logging.Handler):
    """While it is open, what uvicorn has to complain of is logged as the server's own."""

    def __enter__(self) -> None:
        logger = logging.getLogger("uvicorn")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.propagate = False
        logger.setLevel(logging.WARNING)

    def __exit__(self, *error) -> None:
        logger = logging.getLogger("uvicorn")
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, "%s", record.getMessage().strip(), exc_info=record.exc_info)
