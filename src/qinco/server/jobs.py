"""Optimizations in the background, at most one of a collection at a time."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from qinco.errors import QincoError
from qinco.server.envelope import ConflictError
from qinco.server.totals import parts_of

log = logging.getLogger(__name__)
_GROWTH = 0.1  # of compressed vectors: as many fresh ones are worth an optimization
_LEAST = 1000
_RETRY_SECONDS = 600.0  # after an optimization that failed


class Jobs:
    """The last optimization of each collection of a server.

    Attributes:
        on_end: is told the seconds of each.
    """

    def __init__(self):
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self.on_end: Callable[[float], None] = lambda seconds: None

    def start(self, name: str, collection: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """Begin to optimize a collection in a process of its own, with arguments of `optimize`; returns its state."""
        with self._lock:
            if self.is_running(name):
                raise ConflictError(f"the collection {name} is being optimized already: wait until it is done")
            if self._is_closed:
                raise ConflictError("the server is ending: ask again when it is back")
            job = self._jobs[name] = _Job(name, collection, settings, self.on_end)
        job.start()
        return job.state()

    def state(self, name: str) -> dict[str, Any]:
        """What is known of the last one: "state" is "none", "running", "done" or "failed"."""
        job = self._jobs.get(name)
        return {"state": "none"} if job is None else job.state()

    def is_running(self, name: str) -> bool:
        job = self._jobs.get(name)
        return job is not None and job.is_alive()

    def start_if_due(self, name: str, collection: Any, stats: dict[str, Any], last_version: int | None) -> None:
        """Begin if enough vectors are fresh, and none came since the version that was seen before."""
        job = self._jobs.get(name)
        is_late = job is None or job.error is None or time.monotonic() - job.ended > _RETRY_SECONDS
        due = [part["fresh"] for part in parts_of(stats) if is_due(part, last_version)]
        if is_late and not self.is_running(name) and due:
            log.info("%s: %s vectors are fresh, and are compressed now", name, f"{sum(due):,}")
            self.start(name, collection, {})

    def forget(self, name: str) -> None:
        """A collection was dropped."""
        self._jobs.pop(name, None)

    def close(self) -> None:
        """Begin no more. Those that run end when their collections are closed."""
        with self._lock:
            self._is_closed = True

    def wait(self) -> None:
        """Wait until none runs."""
        for job in list(self._jobs.values()):
            job.join()


class _Job(threading.Thread):
    def __init__(self, name: str, collection: Any, settings: dict[str, Any], on_end: Callable[[float], None]):
        super().__init__(name=f"qinco-optimize-{name}", daemon=True)
        self._collection, self._settings, self._on_end = collection, settings, on_end
        self._collection_name, self._begun = name, time.monotonic()
        self._progress: dict[str, Any] | None = None
        self.ended, self.error, self._result = 0.0, None, None

    def run(self) -> None:
        try:
            self._result = self._collection.optimize(in_child=True, progress=self._report, **self._settings)
            log.info("%s was optimized: %s", self._collection_name, self._result)
        except QincoError as error:
            self.error = str(error)
            log.warning("%s could not be optimized: %s", self._collection_name, error)
        except Exception as error:
            self.error = f"it failed ({type(error).__name__}): see the server's log"
            log.exception("the optimization of %s failed", self._collection_name)
        self.ended = time.monotonic()
        self._on_end(self.ended - self._begun)

    def _report(self, stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        self._progress = {"stage": stage, "done": done, "total": total, "unit": unit}

    def state(self) -> dict[str, Any]:
        if self._result is not None:
            return {"state": "done", "seconds": self.ended - self._begun, "result": self._result}
        if self.error is not None:
            return {"state": "failed", "seconds": self.ended - self._begun, "error": self.error}
        return {"state": "running", "seconds": time.monotonic() - self._begun, "progress": self._progress}


def is_due(stats: dict[str, Any], last_version: int | None) -> bool:
    """Whether a collection should be optimized: it has many fresh vectors, and is not being filled right now.

    `last_version` is that of the statistics of some seconds before.
    """
    enough = max(stats["exact_below"], _LEAST, int(_GROWTH * stats["compressed"]))
    return stats["fresh"] >= (enough if stats["version"] == last_version else 4 * enough)
