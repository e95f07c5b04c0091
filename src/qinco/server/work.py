"""What a server's event loop does not do itself: reads and searches in threads, and writes in one a collection."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from qinco.collection.collection import Collection
from qinco.collection.records import Hit
from qinco.server.settings import ServerSettings

MAX_BATCH = 64


class Unavailable(Exception):
    """A request that the server cannot answer now: status 503, with the header `Retry-After`."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class Work:
    """Runs blocking calls for the routes of a server, all of them on one event loop.

    A call that is cancelled while it waits is not begun; one that has begun is completed, though nobody waits for it.

    Attributes:
        on_batch: is told how many queries a search answers.
    """

    def __init__(self, settings: ServerSettings):
        self._max_waiting = settings.max_waiting
        self._readers = _Threads(settings.readers, "qinco-reader")
        self._writers: dict[str, _Threads] = {}
        self._searches: dict[tuple, deque[tuple[np.ndarray, asyncio.Future]]] = {}
        self._batches: set[asyncio.Task] = set()
        self.on_batch: Callable[[int], None] = lambda size: None

    @property
    def waiting(self) -> int:
        """Reads and searches that wait for others."""
        return self._readers.waiting + sum(map(len, self._searches.values()))

    async def read(self, function: Callable, *args, **named) -> Any:
        """What a function returns that reads."""
        self._admit(self.waiting)
        return await self._readers.run(partial(function, *args, **named))

    async def write(self, name: str, function: Callable, *args, **named) -> Any:
        """What a function returns that changes the collection of this name; such calls run one after the other."""
        if (writer := self._writers.get(name)) is None:
            writer = self._writers[name] = _Threads(1, f"qinco-writer-{name}")
        self._admit(writer.waiting)
        return await writer.run(partial(function, *args, **named))

    def forget(self, name: str) -> None:
        """End the thread that writes a collection that was dropped."""
        if (writer := self._writers.pop(name, None)) is not None:
            writer.executor.shutdown(wait=False)

    async def search(self, name: str, collection: Collection, query: Any, k: int = 10, **options) -> list[Hit]:
        """The hits of one query, as `Collection.search` finds them.

        Queries with the same options that wait while another is answered are answered together, up to 64 at a time.
        """
        options = {option: value for option, value in options.items() if value is not None}
        query_D = _plain_query(query)
        if query_D is None or not options.keys().isdisjoint(("where", "filter")):
            return await self.read(collection.search, query, k, **options)
        self._admit(self.waiting)
        key = (name, id(collection), k, len(query_D), *sorted(options.items()))
        found = asyncio.get_running_loop().create_future()
        if key in self._searches:
            self._searches[key].append((query_D, found))
        else:
            self._searches[key] = deque([(query_D, found)])
            task = asyncio.create_task(self._answer(key, partial(collection.search, k=k, **options)))
            self._batches.add(task)  # the loop alone would not keep it
            task.add_done_callback(self._batches.discard)
        return await found

    def close(self) -> None:
        """Wait for what is running; what still waits is given up."""
        for threads in (self._readers, *self._writers.values()):
            threads.executor.shutdown(wait=True, cancel_futures=True)

    def _admit(self, waiting: int) -> None:
        if waiting >= self._max_waiting:
            raise Unavailable(f"{waiting} requests are waiting already: try again in a second")

    async def _answer(self, key: tuple, search: Callable) -> None:
        """Answer the searches of a key until none waits."""
        waiting = self._searches[key]
        try:
            while waiting:
                taken = [waiting.popleft() for _ in range(min(MAX_BATCH, len(waiting)))]
                if batch := [(query_D, found) for query_D, found in taken if not found.done()]:
                    await self._answer_batch(batch, search)
        finally:
            del self._searches[key]

    async def _answer_batch(self, batch: list[tuple[np.ndarray, asyncio.Future]], search: Callable) -> None:
        queries_QD = np.stack([query_D for query_D, _ in batch])
        self.on_batch(len(batch))
        try:
            hits = await self._readers.run(partial(search, queries_QD))
        except Exception as error:
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
            return
        for (_, found), own in zip(batch, hits, strict=True):
            if not found.done():
                found.set_result(own)


class _Threads:
    """Threads, and how many calls wait for one of them."""

    def __init__(self, count: int, name: str):
        self.executor = ThreadPoolExecutor(count, name)
        self._count, self._calls, self._lock = count, 0, threading.Lock()

    @property
    def waiting(self) -> int:
        return max(0, self._calls - self._count)

    async def run(self, call: Callable) -> Any:
        with self._lock:
            self._calls += 1
        try:
            future = self.executor.submit(call)
        except RuntimeError:  # it was shut down
            self._ended(None)
            raise Unavailable("the server is ending: try again when it is back", 5) from None
        future.add_done_callback(self._ended)
        return await asyncio.wrap_future(future)

    def _ended(self, future) -> None:
        with self._lock:
            self._calls -= 1


def _plain_query(query: Any) -> np.ndarray | None:
    """A query as float32 (D,), all finite; None of anything else, which `Collection.search` refuses or understands."""
    try:
        query_D = np.asarray(query, np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    return query_D if query_D.ndim == 1 and len(query_D) and np.isfinite(query_D).all() else None
