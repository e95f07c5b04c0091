"""The compiled iterations of Newton and Schulz, beside what they do to the singular values of a decomposition."""

import numpy as np
import pytest
from native_levels import LEVELS, needs_native, normal

from qinco.native.orthogonal import orthogonalize

pytestmark = needs_native
POLYNOMIALS = np.array([(6.25, -14.57, 9.03), (2.54, -1.87, 0.44), (1.93, -1.31, 0.38)], np.float32)
SHAPES = [(1, 1), (1, 7), (5, 2), (64, 64), (37, 100), (150, 67), (129, 200), (256, 128)]


def by_decomposition(matrix: np.ndarray, polynomials: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values /= (values**8).sum() ** (1 / 8)
    for a, b, c in polynomials.astype(np.float64):
        values = a * values + b * values**3 + c * values**5
    return left * values @ right


def orthogonalized(matrices, polynomials=POLYNOMIALS, *, in_bf16=False, threads=1) -> list[np.ndarray]:
    copies = [matrix.copy() for matrix in matrices]
    orthogonalize(copies, polynomials, in_bf16=in_bf16, threads=threads)
    return copies


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_singular_values_are_those_of_the_polynomials(level, iterations, monkeypatch):
    monkeypatch.setenv("QINCO_NATIVE_LEVEL", level)
    matrices = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    for matrix, found in zip(matrices, orthogonalized(matrices, POLYNOMIALS[:iterations]), strict=True):
        assert distance(found, by_decomposition(matrix, POLYNOMIALS[:iterations])) < 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_products_in_bf16_are_near(level, monkeypatch):
    """Where the processor has none, they are float32."""
    monkeypatch.setenv("QINCO_NATIVE_LEVEL", level)
    matrices = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    for matrix, found in zip(matrices, orthogonalized(matrices, POLYNOMIALS[:2], in_bf16=True), strict=True):
        assert distance(found, by_decomposition(matrix, POLYNOMIALS[:2])) < (0.15 if level == "avx512_bf16" else 1e-3)


@pytest.mark.parametrize("in_bf16", [False, True])
def test_threads_and_the_size_of_values_change_nothing(in_bf16):
    matrices = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    expected = orthogonalized(matrices, in_bf16=in_bf16)
    assert all(map(np.array_equal, orthogonalized(matrices, in_bf16=in_bf16, threads=3), expected))
    for factor in (np.float32(2.0**-60), np.float32(2.0**60)):
        scaled = orthogonalized([matrix * factor for matrix in matrices], in_bf16=in_bf16)
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(scaled, expected, strict=True))


@pytest.mark.parametrize("in_bf16", [False, True])
def test_zeros_stay_and_a_single_direction_is_not_lost(in_bf16):
    zeros, line = np.zeros((9, 4), np.float32), np.outer(normal(40), normal(70, seed=1))
    found = orthogonalized([zeros, line], POLYNOMIALS[:2], in_bf16=in_bf16)
    assert not found[0].any()
    assert distance(found[1], by_decomposition(line, POLYNOMIALS[:2])) < (0.15 if in_bf16 else 1e-3)
