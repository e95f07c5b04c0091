"""Libraries that codecs and indexes are compared with: what is installed, threads, and limits of time."""

import importlib.util
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qinco.interrupts import handling, is_main_thread


def is_installed(library: str) -> bool:
    """Whether a library can be imported.

    Example:
        >>> is_installed("numpy")
        True
    """
    return importlib.util.find_spec(library) is not None


@contextmanager
def using_faiss(threads: int = 1) -> Iterator[Any]:
    """Give faiss's module, which uses so many threads until the block ends.

    Example:
        >>> with using_faiss() as faiss:
        ...     index = faiss.IndexFlatL2(8)
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


class TimeOver(Exception):
    """What was begun within `ended_after` took too long."""


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise TimeOver in the block after so many seconds, also in a call of faiss that listens to Ctrl-C.

    Without signals, in another thread or on Windows, the block takes as long as it takes.

    Example:
        >>> with ended_after(60):
        ...     index.train(x)
    """
    if not is_main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number, frame) -> None:
        raise TimeOver

    with handling(stop, signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
