"""Ctrl-C and SIGTERM during long calls: heard at once, but not in the middle of a change."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_int32
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


class StoppedTwice(KeyboardInterrupt):
    """A second Ctrl-C while the first was held back: what was under way is not complete."""


@contextmanager
def handling(handler: Callable, *signals: signal.Signals) -> Iterator[None]:
    """Send signals to `handler` unless this process was started to ignore them; only the main thread can do that."""
    if not _is_main():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in signals
                if signal.getsignal(number) is not signal.SIG_IGN}  # fmt: skip
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block ends; the second one acts at once (StoppedTwice)."""
    came = []

    def hold(number, frame) -> None:
        came.append(number)
        if len(came) > 1:
            raise StoppedTwice

    with handling(hold, signal.SIGINT, signal.SIGTERM):
        yield
    if came:
        signal.raise_signal(came[0])


def run_stoppable(call: Callable[[c_int32], T]) -> T:
    """Run a long call of compiled code so that Ctrl-C ends it: `call` returns soon once its argument is not 0.

    Python handles signals in the main thread alone, and not within compiled code, so that the call is made in another
    thread while the main one waits.
    """
    stop, results = c_int32(0), []
    if not _is_main():
        return call(stop)
    thread = threading.Thread(target=lambda: results.append(call(stop)), name="compiled call", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # some systems hear no signal as long as a thread waits
    finally:
        stop.value = 1
        with suppress(RuntimeError):  # interrupted before it had begun
            thread.join()
    return results[0]


def import_whole(name: str) -> None:
    """Import a module that could not be imported again if Ctrl-C left it in pieces: that goes on in the background."""
    if name not in sys.modules and _is_main():
        thread = threading.Thread(target=import_module, args=(name,), name="import")
        thread.start()
        while thread.is_alive():
            thread.join(0.1)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
