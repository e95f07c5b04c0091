import itertools

import numpy as np
import pytest

from qinco.training import batches as module
from qinco.training.batches import batches
from qinco.vectors.source import as_source


def numbered(count, dim=2):
    return as_source(np.repeat(np.arange(count, dtype=np.float32)[:, None], dim, 1))


def rows_of(parts):
    return np.concatenate([part[:, 0] for part in parts]).astype(int)


@pytest.fixture(params=[1 << 27, 4 * 2 * 1024], ids=["one buffer", "a buffer for each run"])
def buffer(request, monkeypatch):
    monkeypatch.setattr(module, "_BUFFER_BYTES", request.param)


@pytest.mark.parametrize("count", [1, 5, 1024, 1025, 3000])
def test_an_epoch_of_all_vectors_holds_each_once(count, buffer):
    bounds = np.arange(4) * count // 3 if count > 3 else np.array([0, count])
    parts = list(batches(numbered(count), 0, bounds, 0, 1))
    assert [len(part) for part in parts] == np.diff(bounds).tolist()
    assert sorted(rows_of(parts)) == list(range(count))


def test_epochs_have_orders_of_their_own_that_the_seed_decides(buffer):
    def order(epoch, seed):
        return rows_of(batches(numbered(2000), epoch, np.array([0, 2000]), 0, seed)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(epoch, seed)) for epoch, seed in itertools.product((0, 1), (1, 2))}) == 4
    assert order(0, 1) != list(range(2000))


def test_short_epochs_reach_all_vectors(buffer):
    bounds = np.array([0, 300, 700])
    epochs = [rows_of(batches(numbered(2100), epoch, bounds, 0, 1)) for epoch in range(3)]
    assert sorted(np.concatenate(epochs)) == list(range(2100))


def test_an_epoch_may_cross_from_one_pass_to_the_next(buffer):
    bounds = np.array([0, 1000, 1500])
    epochs = [rows_of(batches(numbered(2000), epoch, bounds, 0, 1)) for epoch in range(4)]
    assert [len(epoch) for epoch in epochs] == [1500] * 4
    assert np.bincount(np.concatenate(epochs), minlength=2000).tolist() == [3] * 2000


@pytest.mark.parametrize("first_step", range(8))
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_later_beginning_goes_on_where_the_whole_would_be(first_step, epoch, buffer):
    bounds = np.arange(9) * 2500 // 8
    whole = list(batches(numbered(2500), epoch, bounds, 0, 1))
    rest = list(batches(numbered(2500), epoch, bounds, first_step, 1))
    assert len(rest) == 8 - first_step
    assert all(np.array_equal(a, b) for a, b in zip(whole[first_step:], rest, strict=True))


def test_batches_without_vectors_end_nothing():
    """More batches than vectors, as with a large grad_accumulate."""
    bounds = np.arange(6) * 3 // 5
    parts = list(batches(numbered(3), 0, bounds, 0, 1))
    assert [len(part) for part in parts] == np.diff(bounds).tolist()
    assert sorted(rows_of(parts)) == [0, 1, 2]
