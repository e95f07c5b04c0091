"""Exact nearest neighbours by the compiled engine, against a few lines of numpy."""

import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Timer, main_thread
from types import SimpleNamespace

import numpy as np
import pytest
from native_levels import LEVELS, needs_native

from qinco.errors import ResourceError
from qinco.native import flat as module
from qinco.native.flat import Flat


@pytest.fixture(params=[*(level for level in LEVELS if level != "avx512_bf16"), "numpy"], autouse=True)
def level(request, monkeypatch):
    """Each instruction set that the processor has, and numpy."""
    if request.param == "numpy":
        monkeypatch.setattr(module, "compiled", lambda: None)
    else:
        monkeypatch.setenv("QINCO_NATIVE_LEVEL", request.param)
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(count, dim, seed=0):
    """Small whole numbers: all arithmetic with them is exact, and many are equally near."""
    return np.random.default_rng(seed).integers(-2, 3, (count, dim)).astype(np.float32)


def values_of(x_ND, vectors_VD, inner_product):
    x_ND, vectors_VD = x_ND.astype(np.float64), vectors_VD.astype(np.float64)
    if inner_product:
        return -x_ND @ vectors_VD.T
    return np.stack([np.square(x_D - vectors_VD).sum(1) for x_D in x_ND])


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize(
    ("num_vectors", "dim", "num_queries", "count"),
    [
        (1, 1, 1, 1), (3, 2, 4, 3), (15, 7, 13, 1), (64, 32, 5, 64), (65, 33, 2, 64), (700, 5, 97, 10),
        (1300, 4, 99, 1), (1300, 4, 3, 1000), (200, 1024, 7, 3), (129, 1025, 9, 128), (40, 2300, 1, 2),
        (300, 96, 200, 150),
    ],
)  # fmt: skip
def test_the_nearest_in_order_of_value_and_number(num_vectors, dim, num_queries, count, inner_product):
    x_ND, vectors_VD = whole(num_queries, dim, 1), whole(num_vectors, dim, 2)
    wanted_NV = values_of(x_ND, vectors_VD, inner_product)
    order_NR = np.argsort(wanted_NV, axis=1, kind="stable")[:, :count]
    flat = Flat(vectors_VD, inner_product)
    for threads in (1, 3):
        values_NR, numbers_NR = flat.search(x_ND, count, threads)
        assert (values_NR.dtype, numbers_NR.dtype) == (np.float32, np.int64)
        assert np.array_equal(numbers_NR, order_NR)
        assert np.array_equal(values_NR, np.take_along_axis(wanted_NV, order_NR, 1))
        numbers_N, values_N = flat.nearest(x_ND, threads)
        assert np.array_equal(numbers_N, order_NR[:, 0]) and np.array_equal(values_N, values_NR[:, 0])


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("num_queries", [1, 2, 50])  # compared with vectors as they are, and packed
@pytest.mark.parametrize("count", [1, 30])
def test_what_is_added_to_the_values_of_vectors(count, num_queries, inner_product):
    x_ND, vectors_VD, added_V = whole(num_queries, 19, 1), whole(333, 19, 2), whole(333, 1, 3)[:, 0] * 20
    wanted_NV = values_of(x_ND, vectors_VD, inner_product) + added_V
    order_NR = np.argsort(wanted_NV, axis=1, kind="stable")[:, :count]
    flat = Flat(vectors_VD, inner_product, added_V)
    for each in (flat, pickle.loads(pickle.dumps(flat))):
        values_NR, numbers_NR = each.search(x_ND, count, 1)
        assert np.array_equal(numbers_NR, order_NR)
        assert np.array_equal(values_NR, np.take_along_axis(wanted_NV, order_NR, 1))
    with pytest.raises(AssertionError):
        Flat(vectors_VD, inner_product, added_V[1:])


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("count", [1, 7, 500])
def test_values_of_any_numbers(count, inner_product):
    x_ND, vectors_VD = normal(60, 40, seed=1), normal(3000, 40)
    wanted_NV = values_of(x_ND, vectors_VD, inner_product)
    values_NR, numbers_NR = Flat(vectors_VD, inner_product).search(x_ND, count, 1)
    assert (np.diff(values_NR, axis=1) >= 0).all() and all(len(set(row)) == count for row in numbers_NR.tolist())
    for found_NR in (values_NR, np.take_along_axis(wanted_NV, numbers_NR, 1)):
        np.testing.assert_allclose(found_NR, np.sort(wanted_NV)[:, :count], rtol=1e-4, atol=1e-4)


def test_results_do_not_depend_on_what_is_searched_together():
    x_ND, flat = normal(200, 48, seed=1), Flat(normal(900, 48))
    for count in (1, 20):
        wanted = flat.search(x_ND, count, 1)
        for threads in (0, 2, 7, 40):
            assert all(map(np.array_equal, flat.search(x_ND, count, threads), wanted))
        for rows in (1, 2, 5, 31):
            parts = [flat.search(x_ND[start : start + rows], count, 1) for start in range(0, 200, rows)]
            assert all(map(np.array_equal, map(np.concatenate, zip(*parts, strict=True)), wanted))


def test_found_distances_are_those_of_the_differences():
    """Also far from zero, where the expanded form has lost nearly all of them."""
    vectors_VD = normal(50, 20) + np.float32(4000)
    values_NR, numbers_NR = Flat(vectors_VD).search(vectors_VD, 9, 1)
    found_NR = np.square(vectors_VD[:, None].astype(np.float64) - vectors_VD[numbers_NR]).sum(2)
    np.testing.assert_allclose(values_NR, found_NR, rtol=1e-5)
    assert (np.diff(values_NR) >= 0).all()


@pytest.mark.parametrize("inner_product", [False, True])
def test_a_few_queries_find_what_many_find(inner_product):
    """They are compared with vectors that are not packed."""
    x_ND, vectors_VD = normal(40, 19, seed=1), normal(700, 19)
    for count in (1, 9, 700):
        many = Flat(vectors_VD, inner_product).search(x_ND, count, 1)
        for rows in (1, 3, 9):
            few = Flat(vectors_VD, inner_product).search(x_ND[:rows], count, 2)
            assert all(np.array_equal(found, wanted[:rows]) for found, wanted in zip(few, many, strict=True))


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_what_overflows_comes_last(count, inner_product):
    vectors_VD, x_ND = normal(200, 6), normal(9, 6, seed=1)
    vectors_VD[::3] *= np.float32(1e30)
    x_ND[::2] *= np.float32(1e35)
    values_NR, numbers_NR = Flat(vectors_VD, inner_product).search(x_ND, count, 1)
    assert all(len(set(row)) == count for row in numbers_NR.tolist()) and not np.isnan(values_NR).any()
    assert numbers_NR.min() >= 0 and numbers_NR.max() < 200
    assert not (values_NR[:, 1:] < values_NR[:, :-1]).any()
    if not inner_product:
        near_NV = values_of(x_ND[1::2], vectors_VD, False)
        assert np.array_equal(numbers_NR[1::2, : min(count, 133)], np.argsort(near_NV, 1)[:, : min(count, 133)])


def test_nothing_near_is_the_first(level):
    far_VD = np.full((70, 3), 3e38, np.float32)
    values_NR, numbers_NR = Flat(far_VD).search(-far_VD[:4], 70, 1)
    assert np.isposinf(values_NR).all() and np.array_equal(numbers_NR, [np.arange(70)] * 4)
    assert np.array_equal(Flat(far_VD).nearest(-far_VD[:4], 1)[0], np.zeros(4))


def test_no_queries_and_queries_of_any_layout():
    flat, x_ND = Flat(normal(30, 8)), normal(10, 8, seed=1)
    assert flat.search(x_ND[:0], 3, 2)[0].shape == (0, 3)
    wanted = flat.search(x_ND, 3, 1)
    read_only_ND = x_ND.copy()
    read_only_ND.flags.writeable = False
    for given_ND in (np.asfortranarray(x_ND), np.repeat(x_ND, 2, 0)[::2], x_ND.astype(np.float64), read_only_ND):
        assert all(map(np.array_equal, flat.search(given_ND, 3, 1), wanted))
    for refused in (lambda: flat.search(x_ND[:, :7], 3, 1), lambda: flat.search(x_ND, 31, 1)):
        with pytest.raises(AssertionError):
            refused()


def test_threads_of_the_caller_share_it():
    """Also while the vectors are packed."""
    x_ND = normal(300, 20, seed=1)
    wanted, flat = Flat(normal(500, 20)).search(x_ND, 6, 1), Flat(normal(500, 20))
    with ThreadPoolExecutor(4) as pool:
        for call in [pool.submit(flat.search, x_ND, 6, 2) for _ in range(20)]:
            assert all(map(np.array_equal, call.result(), wanted))


@needs_native
def test_exhausted_memory_is_a_resource_error(monkeypatch):
    for made in (None, 1):
        exhausted = SimpleNamespace(
            qinco_create_flat=lambda *_, made=made: made, qinco_search_flat=lambda *_: 1, qinco_destroy_flat=print
        )
        monkeypatch.setattr(module, "compiled", lambda exhausted=exhausted: exhausted)
        with pytest.raises(ResourceError, match="memory"):
            Flat(normal(5, 2)).nearest(normal(3, 2), 1)


@needs_native
@pytest.mark.parametrize("count", [1, 100])
def test_ctrl_c_ends_a_search_that_would_take_hours(count):
    flat, x_ND = Flat(normal(20_000, 64)), normal(10, 64, seed=1)
    before, many_ND = flat.search(x_ND, count, 1), np.broadcast_to(x_ND[:1], (3_000_000, 64))
    many_ND = np.ascontiguousarray(many_ND[: 3_000_000 // count])
    Timer(0.2, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            flat.search(many_ND, count, 3)
    assert all(map(np.array_equal, flat.search(x_ND, count, 1), before))
