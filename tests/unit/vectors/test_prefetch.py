"""Items come in order and ahead of the consumer, by a thread that is gone whatever happens."""

import gc
import itertools
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from contextlib import suppress

import numpy as np
import pytest
import torch

from qinco.errors import ConfigError
from qinco.vectors.formats import write_vectors
from qinco.vectors.prefetch import read_ahead
from qinco.vectors.rows import as_source, open_vectors

PATIENCE = 60  # seconds, before a test that would wait for ever fails


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


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


@pytest.mark.parametrize("depth", [0, -1, 1.5])
def test_a_depth_that_is_none_is_refused(depth):
    with pytest.raises(ConfigError, match="depth"):
        next(read_ahead(iter([1]), depth))


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


def test_an_exception_holds_nothing_in_a_circle():
    """Or the buffers of a source that failed would stay until the collector comes."""

    class Failure(Exception):
        def __init__(self):
            failures.append(weakref.ref(self))

    failures = []

    def items():
        yield 1
        raise Failure

    gc.disable()
    try:
        with suppress(Failure):
            list(read_ahead(items()))
        assert failures[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exceptions_that_end_a_program_come_through(kind):
    def items():
        yield 1
        raise kind

    stream = read_ahead(items())
    assert next(stream) == 1
    with pytest.raises(kind):
        next(stream)


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


def test_closing_waits_for_the_item_in_the_making():
    begun, may_go_on, made = threading.Event(), threading.Event(), []

    def items():
        yield 0
        begun.set()
        assert may_go_on.wait(PATIENCE)
        made.append(1)
        yield 1
        made.append(2)

    stream = read_ahead(items())
    assert next(stream) == 0
    assert begun.wait(PATIENCE)
    closing = threading.Thread(target=stream.close)
    closing.start()
    assert made == []
    may_go_on.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert made == [1]


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


@pytest.mark.parametrize("kind", ["x.fvecs", "x.npy", "array", "tensor", "bfloat16", "hdf5"])
def test_sources_of_every_kind_are_read_in_another_thread(tmp_path, kind):
    check_source(make_source(kind, tmp_path, np.arange(600, dtype=np.float32).reshape(200, 3)))


def check_source(source):
    """Blocks read ahead are those read here, while rows are read here, too."""
    expected = source[:]
    for first, block in read_ahead(source.blocks(16)):
        assert np.array_equal(block, expected[first : first + 16])
        assert np.array_equal(source[:5], expected[:5])
    assert first + len(block) == len(source)


def make_source(kind, folder, x):
    if kind == "array":
        return as_source(x)
    if kind in ("tensor", "bfloat16"):
        return as_source(torch.from_numpy(x).to(torch.float32 if kind == "tensor" else torch.bfloat16))
    if kind.startswith("x."):
        write_vectors(folder / kind, x)
        return open_vectors(folder / kind)
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.hdf5", "w") as file:
        file.create_dataset("train", data=x, chunks=(30, 3), compression="gzip")
    return open_vectors(folder / "x.hdf5")
