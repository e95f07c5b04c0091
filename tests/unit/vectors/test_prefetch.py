"""Items come in order and ahead of the consumer, by a thread that is gone whatever happens."""

import gc
import itertools
import signal
import subprocess
import sys
import threading
import traceback

import pytest

from qinco.vectors.prefetch import read_ahead

PATIENCE = 60  # seconds, before a test that would wait for ever fails
pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Items:
    """Numbers from 0; says in which threads they were made and the iterator was closed, and how far it has come."""

    def __init__(self, count=None, fails_at=None):
        self.count, self.fails_at = count, fails_at
        self.made, self.threads, self.closed_in = threading.Semaphore(0), set(), []

    def __iter__(self):
        try:
            for number in itertools.count() if self.count is None else range(self.count):
                self.threads.add(threading.current_thread())
                if number == self.fails_at:
                    self.fail()
                self.made.release()
                yield number
        finally:
            self.closed_in.append(threading.current_thread())

    def fail(self):
        raise OSError("no such row")

    def wait_for(self, number):
        for _ in range(number):
            assert self.made.acquire(timeout=PATIENCE)

    def check_closed(self):
        assert self.closed_in == list(self.threads)
        assert threading.current_thread() not in self.threads


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_all_items_come_in_order(count, depth):
    items = Items(count)
    stream = read_ahead(iter(items), depth)
    assert items.threads == set()  # nothing is drawn before the first item is asked for
    assert list(stream) == list(range(count))
    if count:
        items.check_closed()


@pytest.mark.parametrize("depth", [1, 3])
def test_items_are_made_while_the_consumer_is_at_work_and_no_more_than_depth(depth):
    items, asked, too_early = Items(), 0, []

    def watched():
        for number in items:
            if number - depth + 1 > asked:  # the consumer holds at most the item before the one that it asks for
                too_early.append((number, asked))
            yield number

    stream = read_ahead(watched(), depth)
    for number in range(20):
        asked += 1
        assert next(stream) == number
        items.wait_for(1 + depth if number == 0 else 1)  # before the next one is asked for
    stream.close()
    assert not items.made.acquire(blocking=False)
    assert too_early == []
    items.check_closed()


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_an_exception_comes_at_its_place_with_its_traceback(fails_at):
    items, seen = Items(fails_at=fails_at), []
    with pytest.raises(OSError, match="no such row") as caught:
        seen.extend(read_ahead(iter(items), 2))
    assert seen == list(range(fails_at))
    assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    items.check_closed()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("taken", [1, 2, 7])
def test_leaving_the_loop_in_any_way_ends_the_thread(taken, depth):
    for leave in ("break", "exception", "collected"):
        items = Items()
        if leave == "break":
            for number in read_ahead(iter(items), depth):
                if number + 1 == taken:
                    break
        elif leave == "exception":
            with pytest.raises(ZeroDivisionError):
                for number in read_ahead(iter(items), depth):
                    1 / (taken - number - 1)
        else:
            stream = read_ahead(iter(items), depth)
            assert [next(stream) for _ in range(taken)] == list(range(taken))
            del stream
        items.check_closed()


def test_ctrl_c_ends_the_wait_for_an_item():
    items = Items()

    def interrupting():
        for number in items:
            if number == 3:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            yield number

    with pytest.raises(KeyboardInterrupt):
        for _ in read_ahead(interrupting()):
            pass
    gc.collect()
    assert len(items.threads) == 1


FORGOTTEN = """
import sys, threading
from qinco.vectors.prefetch import read_ahead

def items():
    yield 0
    if sys.argv[2] == "hangs":
        threading.Event().wait()
    yield 1

def fails():
    stream = read_ahead(items())
    next(stream)
    raise ValueError("with a stream in its frames")

if sys.argv[1] == "fails":
    fails()
stream = read_ahead(items())
next(stream)
"""


@pytest.mark.parametrize("source", ["waits", "hangs"])
@pytest.mark.parametrize("end", ["ends", "fails"])
def test_a_process_ends_though_a_stream_was_forgotten(end, source):
    script = [sys.executable, "-c", FORGOTTEN, end, source]
    done = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == (1 if end == "fails" else 0)
    assert ("ValueError: with a stream in its frames" in done.stderr) == (end == "fails")
    assert "ahead.py" not in done.stderr
