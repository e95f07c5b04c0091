"""Sums of table rows, and of vectors by table row: compiled and by numpy, against plain definitions."""

import signal
from threading import Timer, main_thread

import numpy as np
import pytest
from native_levels import LEVELS

from qinco.errors import ResourceError
from qinco.native import tables as module
from qinco.native.tables import decode_rows, multiply, sum_by_row

SIZE = 7


@pytest.fixture(params=[*LEVELS, "numpy"], autouse=True)
def level(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(module, "compiled", lambda: None)
    else:
        monkeypatch.setenv("QINCO_NATIVE_LEVEL", request.param)
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def draw_codes(count, steps, size=SIZE):
    return np.random.default_rng(1).integers(0, size, (count, steps), np.int32)


def sums_of_rows(tables_PJD, joint_NP):
    """One after the other, in float32."""
    total_ND = np.zeros((len(joint_NP), tables_PJD.shape[2]), np.float32)
    for table_JD, joint_N in zip(tables_PJD, joint_NP.T, strict=True):
        total_ND += table_JD[joint_N].astype(np.float32)
    return total_ND


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dim", [1, 3, 4, 15, 16, 33, 100, 300])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_decoded_vector_is_the_sum_of_its_rows(count, dim, dtype):
    tables_PJD, codes_NW = normal(3, SIZE, dim).astype(dtype), draw_codes(count, 3)
    wanted_ND = sums_of_rows(tables_PJD, codes_NW)
    tables_TD = tables_PJD.reshape(-1, dim)
    for threads in (1, 3):
        found_ND = decode_rows(tables_TD, codes_NW, SIZE, threads=threads)
        np.testing.assert_array_equal(found_ND, wanted_ND)
    assert found_ND.dtype == np.float32
    start_ND = normal(count, dim, seed=2)
    held_ND = start_ND.copy()
    assert decode_rows(tables_TD, codes_NW, SIZE, threads=2, scale=0.25, add_to=held_ND) is held_ND
    np.testing.assert_array_equal(held_ND, start_ND + 0.25 * wanted_ND)
    np.testing.assert_allclose(decode_rows(tables_TD, codes_NW, SIZE, threads=1, scale=3.1), 3.1 * wanted_ND, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dim", [2, 20, 129])
def test_rows_of_pairs(dim, dtype):
    pairs_P2 = np.array([[3, 0], [1, 2], [3, 3], [0, 1]], np.int32)
    tables_PJD, codes_NW = normal(4, SIZE**2, dim).astype(dtype), draw_codes(3000, 4)
    wanted_ND = sums_of_rows(tables_PJD, codes_NW[:, pairs_P2[:, 0]] * SIZE + codes_NW[:, pairs_P2[:, 1]])
    found_ND = decode_rows(tables_PJD.reshape(-1, dim), codes_NW, SIZE, threads=2, pairs_P2=pairs_P2)
    np.testing.assert_array_equal(found_ND, wanted_ND)
    none_ND = decode_rows(tables_PJD.reshape(-1, dim)[:0], codes_NW, SIZE, threads=2, pairs_P2=pairs_P2[:0])
    assert not none_ND.any() and none_ND.shape == wanted_ND.shape


@pytest.mark.parametrize("dim", [1, 16])
def test_every_number_of_float16(dim):
    tables_TD = np.arange(1 << 16, dtype=np.uint16).view(np.float16).repeat(dim).reshape(-1, dim)
    codes_N1 = np.arange(1 << 16, dtype=np.int32)[:, None]
    found_ND = decode_rows(tables_TD, codes_N1, 1 << 16, threads=1)
    np.testing.assert_array_equal(found_ND, tables_TD.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "dim"), [(0, 3), (1, 1), (3000, 5), (3000, 32), (9000, 100)])
def test_vectors_are_added_to_their_rows(level, count, dim, dtype):
    x_ND, codes_NW, start_TD = normal(count, dim), draw_codes(count, 3), normal(3 * SIZE, dim, seed=2).astype(dtype)
    wanted_TD = start_TD.copy()
    for step, codes_N in enumerate(codes_NW.T):
        np.add.at(wanted_TD, codes_N + step * SIZE, x_ND.astype(dtype))
    for threads in (1, 3):
        found_TD = start_TD.copy()
        sum_by_row(x_ND, codes_NW, SIZE, found_TD, threads=threads)
        if level == "numpy":
            np.testing.assert_allclose(found_TD, wanted_TD, rtol=1e-4, atol=1e-3 if dtype == np.float32 else 1e-9)
        else:
            np.testing.assert_array_equal(found_TD, wanted_TD)


def test_rows_that_are_not_used_stay_as_they_are():
    sums_TD = np.full((9, 4), np.inf)
    sum_by_row(normal(2, 4), np.array([[4], [4]], np.int32), 9, sums_TD, threads=1)
    assert np.isposinf(sums_TD).all()


def test_ctrl_c_ends_a_call_that_would_take_minutes(level):
    if level == "numpy":
        pytest.skip("numpy hears it between blocks")
    codes_NW, pairs_P2 = np.zeros((1 << 22, 1), np.int32), np.zeros((1 << 16, 2), np.int32)
    Timer(0.1, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        decode_rows(normal(1 << 16, 1), codes_NW, 1, threads=2, pairs_P2=pairs_P2)


def test_exhausted_memory_is_said(level, monkeypatch):
    class Exhausted:
        def __getattr__(self, name):
            return lambda *arguments: 1

    if level == "numpy":
        pytest.skip("numpy says so itself")
    monkeypatch.setattr(module, "compiled", Exhausted)
    monkeypatch.setattr(module, "level", lambda: level)
    with pytest.raises(ResourceError, match="out of memory"):
        decode_rows(normal(7, 3), draw_codes(5, 1), SIZE, threads=1)
    with pytest.raises(ResourceError, match="out of memory"):
        sum_by_row(normal(5, 3), draw_codes(5, 1), SIZE, np.zeros((7, 3)), threads=1)


@pytest.mark.parametrize(("num_rows", "inner", "columns"), [(1, 1, 1), (5, 7, 3), (9, 9, 64), (33, 20, 130), (4, 3, 0)])
def test_products_of_one_matrix_with_others(num_rows, inner, columns):
    a_RI, b_BIC = normal(num_rows, inner), normal(4, inner, columns, seed=1)
    found_BRC = multiply(a_RI, b_BIC, threads=3)
    assert found_BRC.dtype == np.float32
    np.testing.assert_allclose(found_BRC, a_RI.astype(np.float64) @ b_BIC.astype(np.float64), atol=1e-4)
    np.testing.assert_array_equal(multiply(a_RI, b_BIC, threads=1), found_BRC)
    assert multiply(a_RI, b_BIC[:0], threads=1).shape == (0, num_rows, columns)
