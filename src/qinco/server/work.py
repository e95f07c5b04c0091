"""What a server's event loop does not do itself: reads and searches in threads, and writes in one a collection."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from qinco.collection.collection import Collection
from qinco.collection.records import Hit
from qinco.server.indexes import ServedIndex
from qinco.server.settings import ServerSettings

MAX_BATCH = 64
# Of the event loop before a batch is taken: in one it reads the requests that have come meanwhile, in the next it
# parses them. Their queries join the batch, and larger ones take less time a query.
_TURNS = 2


class Unavailable(Exception):
    """A request that the server cannot answer now: status 503, with the header `Retry-After`."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class Work:
    """Runs blocking calls for the routes of a server, all of them on one event loop.

    A call that is cancelled while it waits is not begun; one that has begun is completed, though nobody waits for it.
    How many wait is limited by `RequestLimits`.

    Attributes:
        on_batch: is told how many queries a search answers.
    """

    def __init__(self, settings: ServerSettings):
        self._readers = ThreadPoolExecutor(settings.readers, "qinco-reader")
        self._writers: dict[str, ThreadPoolExecutor] = {}
        self._searches: dict[tuple, deque[tuple[np.ndarray, asyncio.Future]]] = {}
        self._batches: set[asyncio.Task] = set()
        self.on_batch: Callable[[int], None] = lambda size: None

    async def read(self, function: Callable, *args, **named) -> Any:
        """What a function returns that reads."""
        return await _run(self._readers, partial(function, *args, **named))

    async def write(self, name: str, function: Callable, *args, **named) -> Any:
        """What a function returns that changes the collection of this name; such calls run one after the other."""
        if (writer := self._writers.get(name)) is None:
            writer = self._writers[name] = ThreadPoolExecutor(1, f"qinco-writer-{name}")
        return await _run(writer, partial(function, *args, **named))

    def forget(self, name: str) -> None:
        """End the thread that writes a collection that was dropped."""
        if (writer := self._writers.pop(name, None)) is not None:
            writer.shutdown(wait=False)

    async def search(
        self, name: str, collection: Collection | ServedIndex, query: Any, k: int = 10, **options
    ) -> list[Hit]:
        """The hits of one query, as `Collection.search` finds them.

        Queries with the same options that wait while another is answered are answered together, up to 64 at a time.
        """
        options = {option: value for option, value in options.items() if value is not None}
        query_D = _plain_query(query)
        if query_D is None or not options.keys().isdisjoint(("where", "filter")):
            return await self.read(collection.search, query, k, **options)
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
        for executor in (self._readers, *self._writers.values()):
            executor.shutdown(wait=True, cancel_futures=True)

    async def _answer(self, key: tuple, search: Callable) -> None:
        """Answer the searches of a key until none waits."""
        waiting = self._searches[key]
        try:
            while waiting:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                taken = [waiting.popleft() for _ in range(min(MAX_BATCH, len(waiting)))]
                if batch := [(query_D, found) for query_D, found in taken if not found.done()]:
                    await self._answer_batch(batch, search)
        finally:
            del self._searches[key]

    async def _answer_batch(self, batch: list[tuple[np.ndarray, asyncio.Future]], search: Callable) -> None:
        queries_QD = np.stack([query_D for query_D, _ in batch])
        self.on_batch(len(batch))
        try:
            hits = await _run(self._readers, partial(search, queries_QD))
        except asyncio.CancelledError:
            for _, found in batch:
                found.cancel()
            raise
        except Exception as error:
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
            return
        for (_, found), own in zip(batch, hits, strict=True):
            if not found.done():
                found.set_result(own)


async def _run(executor: Executor, call: Callable) -> Any:
    try:
        waiting = asyncio.get_running_loop().run_in_executor(executor, call)
    except RuntimeError:  # it was shut down
        raise Unavailable("the server is ending: try again when it is back", 5) from None
    return await waiting


def _plain_query(query: Any) -> np.ndarray | None:
    """A query as float32 (D,), all finite; None of anything else, which `Collection.search` refuses or understands."""
    try:
        with np.errstate(over="ignore"):  # what is infinite then is refused
            query_D = np.asarray(query, np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    return query_D if query_D.ndim == 1 and len(query_D) and np.isfinite(query_D).all() else None
