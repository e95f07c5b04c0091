"""Ctrl-C and SIGTERM during long calls: heard at once, but not in the middle of a change."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module


class StoppedTwice(KeyboardInterrupt):
    """A second Ctrl-C while the first was held back: what was under way is not complete."""


@contextmanager
def handling(handler: Callable, *signals: signal.Signals) -> Iterator[None]:
    """Send signals to `handler` unless this process was started to ignore them; only the main thread can do that."""
    if not is_main_thread():
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


def import_whole(name: str) -> None:
    """Import a module that could not be imported again if Ctrl-C left it in pieces: that goes on in the background."""
    if name not in sys.modules and is_main_thread():
        thread = threading.Thread(target=import_module, args=(name,), name="import")
        thread.start()
        while thread.is_alive():
            thread.join(0.1)


def is_main_thread() -> bool:
    """Whether this is the thread in which Python handles signals."""
    return threading.current_thread() is threading.main_thread()
