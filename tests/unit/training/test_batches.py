import itertools
import threading
import tracemalloc
from functools import partial

import numpy as np
import pytest

from qinco.training.batches import batches
from qinco.vectors.rows import VectorSource, as_source

PATIENCE = 60  # seconds, before a test that would wait for ever fails
pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Runs:
    """Numbered rows that say how often they were read."""

    dtype = np.dtype(np.float32)

    def __init__(self, count, dim=2):
        self.shape, self.read, self.times = (count, dim), threading.Semaphore(0), 0

    def __getitem__(self, key):
        self.times += 1
        self.read.release()
        return np.repeat(np.arange(*key.indices(self.shape[0]), dtype=np.float32)[:, None], self.shape[1], 1)

    def wait_for(self, number):
        for _ in range(number):
            assert self.read.acquire(timeout=PATIENCE)


def plain_order(count, seed, rows_per_buffer, length):
    """The first rows of the passes as a few lines say them, which runs that were saved rely on."""
    rows = []
    for number in itertools.count():
        generator = np.random.default_rng((seed, number))
        runs = [
            np.arange(run * 1024, min(count, run * 1024 + 1024)) for run in generator.permutation(-(-count // 1024))
        ]
        step = max(1, rows_per_buffer // 1024)
        for begin in range(0, len(runs), step):
            together = np.concatenate(runs[begin : begin + step])
            rows.extend(together[generator.permutation(len(together))])
        if len(rows) >= length:
            return np.array(rows[:length])


def numbered(count, dim=2):
    return as_source(np.repeat(np.arange(count, dtype=np.float32)[:, None], dim, 1))


def rows_of(parts):
    return np.concatenate([part[:, 0] for part in parts]).astype(int)


@pytest.fixture(params=[1 << 27, 4 * 2 * 1024], ids=["one buffer", "a buffer for each run"])
def epochs(request):
    return partial(batches, buffer_bytes=request.param)


@pytest.mark.parametrize("count", [1, 5, 1024, 1025, 3000])
def test_an_epoch_of_all_vectors_holds_each_once(count, epochs):
    bounds = np.arange(4) * count // 3 if count > 3 else np.array([0, count])
    parts = list(epochs(numbered(count), 0, bounds, 0, 1))
    assert [len(part) for part in parts] == np.diff(bounds).tolist()
    assert sorted(rows_of(parts)) == list(range(count))


def test_epochs_have_orders_of_their_own_that_the_seed_decides(epochs):
    def order(epoch, seed):
        return rows_of(epochs(numbered(2000), epoch, np.array([0, 2000]), 0, seed)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(epoch, seed)) for epoch, seed in itertools.product((0, 1), (1, 2))}) == 4
    assert order(0, 1) != list(range(2000))


@pytest.mark.parametrize(
    ("count", "bounds", "num_epochs", "times"), [(2100, [0, 300, 700], 3, 1), (2000, [0, 1000, 1500], 4, 3)]
)
def test_short_epochs_reach_all_vectors_across_passes(count, bounds, num_epochs, times, epochs):
    rows = [rows_of(epochs(numbered(count), epoch, np.array(bounds), 0, 1)) for epoch in range(num_epochs)]
    assert [len(epoch) for epoch in rows] == [bounds[-1]] * num_epochs
    assert np.bincount(np.concatenate(rows), minlength=count).tolist() == [times] * count


def test_batches_without_vectors_end_nothing():
    """More batches than vectors, as with a large grad_accumulate."""
    bounds = np.arange(6) * 3 // 5
    parts = list(batches(numbered(3), 0, bounds, 0, 1))
    assert [len(part) for part in parts] == np.diff(bounds).tolist()
    assert sorted(rows_of(parts)) == [0, 1, 2]


@pytest.mark.parametrize("rows_per_buffer", [1024, 3072, 1 << 20])
@pytest.mark.parametrize(("count", "epoch", "seed"), [(1, 2, 0), (3000, 0, 1), (5000, 1, 2), (4097, 2, 3)])
def test_the_order_stays_as_it_is_from_every_step_on(count, epoch, seed, rows_per_buffer):
    length = count * 5 // 4
    bounds = np.arange(8) * length // 7
    expected = plain_order(count, seed, rows_per_buffer, (epoch + 1) * length)[epoch * length :]
    for first_step in range(7):
        parts = list(batches(numbered(count), epoch, bounds, first_step, seed, rows_per_buffer * 4 * 2))
        assert all(part.dtype == np.float32 for part in parts)
        assert [len(part) for part in parts] == np.diff(bounds)[first_step:].tolist()
        assert rows_of(parts).tolist() == expected[bounds[first_step] :].tolist()


def test_a_buffer_is_read_while_another_is_handed_out():
    runs = Runs(10 * 1024)
    stream = batches(VectorSource(runs), 0, np.arange(11) * 1024, 0, 1, 2 * 1024 * 4 * 2)
    for taken in range(4):
        next(stream)
        if taken % 2 == 0:
            runs.wait_for(4 if taken == 0 else 2)  # the next buffer's, before a batch of it is asked for
    stream.close()
    assert runs.times == 6


@pytest.mark.parametrize("first_step", [0, 1])
def test_nothing_is_read_beyond_an_epoch(first_step):
    runs = Runs(10 * 1024)
    parts = list(batches(VectorSource(runs), 0, np.array([0, 1024, 3000]), first_step, 1, 1024 * 4 * 2))
    assert len(parts) == 2 - first_step
    assert runs.times == 3 - first_step


def test_what_cannot_be_read_is_said_where_its_batch_would_come():
    class Damaged(Runs):
        def __getitem__(self, key):
            if self.times == 2:
                raise OSError("cannot be read")
            return super().__getitem__(key)

    stream = batches(VectorSource(Damaged(5 * 1024)), 0, np.arange(6) * 1024, 0, 1, 1024 * 4 * 2)
    assert [len(next(stream)) for _ in range(2)] == [1024, 1024]
    with pytest.raises(OSError, match="cannot be read"):
        next(stream)


def test_memory_is_that_of_two_buffers():
    """And, for the moment in which one is exchanged, a third."""
    size = 1 << 22
    source = VectorSource(Runs(5 * size // 256, 64))
    bounds = np.arange(101) * len(source) // 100
    tracemalloc.start()
    try:
        for _ in batches(source, 0, bounds, 0, 1, size):
            pass
        assert tracemalloc.get_traced_memory()[1] < 3.5 * size
    finally:
        tracemalloc.stop()
