from functools import partial

import numpy as np
import pytest

from qinco.maths import leastsquares
from qinco.native import tables

STEPS, SIZE, DIM = 3, 8, 5


def codes_and_vectors(count, seed=0, offset=0.0):
    """Codes that depend on each other, as those of a residual quantizer do, and vectors that no tables explain."""
    generator = np.random.default_rng(seed)
    codes_NM = generator.integers(0, SIZE, (count, STEPS))
    codes_NM[:, 1] = np.where(generator.random(count) < 0.4, codes_NM[:, 0], codes_NM[:, 1])
    tables_MKD = generator.standard_normal((STEPS, SIZE, DIM))
    x_ND = decoded(tables_MKD, codes_NM) + generator.standard_normal((count, DIM)) + offset
    return codes_NM.astype(np.uint8), x_ND.astype(np.float32)


def decoded(tables_MKD, codes_NM):
    return sum(table_KD[codes_NM[:, m]] for m, table_KD in enumerate(tables_MKD))


def least_squares(codes_NM, x_ND):
    """The predictions of numpy's least squares for the same vectors."""
    one_hot_NT = np.concatenate([np.eye(SIZE)[codes_N] for codes_N in codes_NM.T], 1)
    x_ND = x_ND.astype(np.float64)
    return one_hot_NT @ np.linalg.lstsq(one_hot_NT, x_ND, rcond=None)[0]


@pytest.fixture(params=[leastsquares.MAX_DENSE_ROWS, 0], ids=["dense", "iterative"])
def fit_additive_tables(request):
    return partial(leastsquares.fit_additive_tables, max_dense_rows=request.param)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_predictions_are_those_of_least_squares(fit_additive_tables, offset):
    codes_NM, x_ND = codes_and_vectors(3000, offset=offset)
    tables_MKD = fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE)
    assert tables_MKD.shape == (STEPS, SIZE, DIM) and tables_MKD.dtype == np.float32
    wanted = least_squares(codes_NM, x_ND)
    spread = np.linalg.norm(wanted - wanted.mean(0))
    assert np.linalg.norm(decoded(tables_MKD.astype(np.float64), codes_NM) - wanted) < 1e-3 * spread
    exact_MKD = fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE, ridge=1e-3)
    rounding = np.sqrt(wanted.size) * offset * 1e-7
    assert np.linalg.norm(decoded(exact_MKD.astype(np.float64), codes_NM) - wanted) < 1e-5 * spread + rounding


def test_blocks_are_one_set(fit_additive_tables):
    codes_NM, x_ND = codes_and_vectors(5000)
    whole = fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE)
    blocks = ((codes_NM[i : i + 999].astype(np.int64), x_ND[i : i + 999]) for i in range(-999, 5000, 999))
    np.testing.assert_allclose(fit_additive_tables(blocks, STEPS, SIZE), whole, atol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_few_vectors_are_enough(fit_additive_tables, count):
    codes_NM, x_ND = codes_and_vectors(count, offset=100.0)
    tables_MKD = fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE)
    assert np.isfinite(tables_MKD).all()
    before = np.square(x_ND - x_ND.mean(0)).sum()
    assert np.square(decoded(tables_MKD, codes_NM) - x_ND).sum() <= before + 1e-6
    unused = next(k for k in range(SIZE) if k not in codes_NM[:, 0]) if count < 40 else None
    if unused is not None:
        np.testing.assert_allclose(tables_MKD[0, unused], x_ND.mean(0) / STEPS, rtol=1e-5)


def test_codes_that_are_all_the_same(fit_additive_tables):
    codes_NM = np.full((1000, STEPS), 3, np.uint8)
    x_ND = np.random.default_rng(0).standard_normal((1000, DIM)).astype(np.float32) + 7
    tables_MKD = fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE)
    np.testing.assert_allclose(decoded(tables_MKD, codes_NM[:1])[0], x_ND.mean(0), rtol=1e-5)


def test_more_table_rows_than_a_matrix_is_made_for():
    generator = np.random.default_rng(0)
    size, count = 6000, 20_000
    codes_NM = generator.integers(0, size, (count, 2)).astype(np.uint16)
    tables_MKD = generator.standard_normal((2, size, 2))
    x_ND = (decoded(tables_MKD, codes_NM) + 5).astype(np.float32)
    found_MKD = leastsquares.fit_additive_tables([(codes_NM, x_ND)], 2, size, ridge=1e-4)
    used = codes_NM[np.bincount(codes_NM[:, 0], minlength=size)[codes_NM[:, 0]] > 1]
    np.testing.assert_allclose(decoded(found_MKD, used), decoded(tables_MKD, used) + 5, atol=0.02)


def test_many_rows_are_solved_in_blocks():
    """As by conjugate gradients."""
    random = np.random.default_rng(0)
    codes_NM, x_ND = random.integers(0, 2100, (3000, 1)), random.standard_normal((3000, 2)).astype(np.float32)
    direct, iterated = (
        leastsquares.fit_additive_tables([(codes_NM, x_ND)], 1, 2100, max_dense_rows=rows) for rows in (4000, 0)
    )
    np.testing.assert_allclose(direct, iterated, atol=1e-5)


def test_numpy_alone_gives_the_same_tables(fit_additive_tables, monkeypatch):
    codes_NM, x_ND = codes_and_vectors(3000)
    found_MKD = fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE)
    monkeypatch.setattr(tables, "compiled", lambda: None)
    np.testing.assert_allclose(fit_additive_tables([(codes_NM, x_ND)], STEPS, SIZE), found_MKD, atol=1e-5)
