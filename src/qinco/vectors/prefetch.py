"""Reading ahead: the next items are made in a thread while the consumer works on the last one."""

from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from qinco.config import require_int

T = TypeVar("T")


def read_ahead(items: Iterator[T], depth: int = 1) -> Generator[T, None, None]:
    """The items of an iterator, in order, drawn from it in a thread before they are asked for, `depth` at most.

    Drawing begins when the first item is asked for. An exception of `items` is raised where its item would have come.
    The thread ends, and closes `items`, when no item is left or this generator is closed, as leaving a `for` over it
    does; that waits for the item in the making.
    """
    require_int("depth", depth)
    permits, made, closed = SimpleQueue(), SimpleQueue(), Event()
    for _ in range(depth):
        permits.put(True)
    # A daemon: one that hangs in a read must not keep a process that has been interrupted from ending.
    thread = Thread(target=_draw, args=(items, permits, closed, made), name="read ahead", daemon=True)
    try:
        thread.start()
        is_item, found = made.get()
        while is_item:
            permits.put(True)
            yield found
            is_item, found = made.get()
        if found is not None:
            raise found
    finally:
        found = None  # the traceback of an exception holds this frame, which must not hold the exception
        closed.set()
        permits.put(False)
        with suppress(RuntimeError):  # the collector may close a generator in the generator's own thread
            thread.join()


def _draw(items: Iterator[T], permits: SimpleQueue, closed: Event, made: SimpleQueue) -> None:
    """Put (True, item) for each permit, and at the end (False, the exception of `items` or None)."""
    try:
        try:
            while permits.get() and not closed.is_set():
                made.put((True, next(items)))
        finally:
            getattr(items, "close", lambda: None)()
    except StopIteration:
        made.put((False, None))
    except BaseException as error:
        made.put((False, error))
