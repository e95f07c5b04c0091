"""Additive look-up tables by least squares, from vectors and their codes.

Shape suffixes: N vectors, n vectors of a block, D dimension, M steps, K codewords, T = M · K table rows.
"""

from collections.abc import Iterable
from itertools import combinations_with_replacement

import numpy as np

from qinco.machine import num_threads
from qinco.native.tables import decode_rows, sum_by_row

MAX_DENSE_ROWS = 8192
_BLOCK_ROWS, _BLOCK_COLUMNS = 1 << 14, 128
_CHOLESKY_ROWS, _PRODUCT_ROWS = 256, 2048  # of blocks between which Ctrl-C is heard
_MIN_RIDGE = 1e-9  # of the largest count: less is lost in rounding
_TOLERANCE, _MAX_ITERATIONS = 1e-6, 200
_TINY = np.finfo(np.float64).tiny


def fit_additive_tables(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    num_steps: int,
    codebook_size: int,
    *,
    ridge: float = 1.0,
    max_dense_rows: int = MAX_DENSE_ROWS,
) -> np.ndarray:
    """Fit the tables whose sum over the steps of a code is nearest to its vector.

    Minimizes the squared error plus a ridge term. The normal equations are solved by Cholesky's method, or by conjugate
    gradients where there are many table rows.

    Args:
        blocks: pairs of codes (n, M), integers below K, and vectors float32 (n, D), one at least. Vectors are read once
            and not kept; codes are kept as int32.
        num_steps, codebook_size: M and K.
        ridge: pulls every table row to the mean as strongly as `ridge * T / N` vectors at the mean: firmly where few
            vectors share a row, hardly where many do. Must be positive, because the tables of different steps are
            collinear (a constant can move between them).
        max_dense_rows: up to so many table rows T the normal equations are a matrix in memory.

    Returns:
        float32 (M, K, D). A row that no code uses holds its share of the mean.
    """
    codes_NM, right_TD = _right_side(blocks, num_steps, codebook_size)
    counts_T = np.concatenate([np.bincount(codes_N, minlength=codebook_size) for codes_N in codes_NM.T])
    mean_D = right_TD[:codebook_size].sum(0) / len(codes_NM)
    ridge *= len(right_TD) / len(codes_NM)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller sees that tables are not finite
        right_TD -= counts_T[:, None] * mean_D
        if len(right_TD) <= max_dense_rows:
            gram_TT = _co_occurrences(codes_NM, codebook_size)
            gram_TT.flat[:: len(gram_TT) + 1] += max(ridge, _MIN_RIDGE * float(counts_T.max()))
            _solve_directly(gram_TT, right_TD)
        else:
            for first in range(0, right_TD.shape[1], _BLOCK_COLUMNS):
                part_TD = right_TD[:, first : first + _BLOCK_COLUMNS]
                part_TD[:] = _solve_iteratively(codes_NM, codebook_size, part_TD, counts_T + ridge, ridge)
        right_TD += mean_D / num_steps
        return right_TD.astype(np.float32).reshape(num_steps, codebook_size, -1)


def _right_side(blocks, num_steps: int, codebook_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All codes, int32 (N, M), and the sums of the vectors of each table row, float64 (T, D)."""
    kept, right_TD = [], np.empty((0, 0))
    for codes_nM, x_nD in blocks:
        if not kept:
            right_TD = np.zeros((num_steps * codebook_size, x_nD.shape[1]))
        kept.append(np.ascontiguousarray(codes_nM, np.int32))
        x_nD = np.ascontiguousarray(x_nD, np.float32)
        sum_by_row(x_nD, kept[-1], codebook_size, right_TD, threads=num_threads())
    return np.concatenate(kept), right_TD


def _co_occurrences(codes_NM: np.ndarray, codebook_size: int) -> np.ndarray:
    """Number of vectors that use each pair of table rows: float64 (T, T)."""
    codes_MN, size = codes_NM.T.astype(np.int64, order="C"), codebook_size
    gram_MKMK = np.zeros((len(codes_MN), size, len(codes_MN), size))
    for i, j in combinations_with_replacement(range(len(codes_MN)), 2):
        counts_KK = np.bincount(codes_MN[i] * size + codes_MN[j], minlength=size**2).reshape(size, size)
        gram_MKMK[i, :, j], gram_MKMK[j, :, i] = counts_KK, counts_KK.T
    return gram_MKMK.reshape(len(codes_MN) * size, -1)


def _solve_directly(gram_TT: np.ndarray, right_TD: np.ndarray) -> None:
    """Solve the normal equations by Cholesky's method, in blocks and in place."""
    size, lower_TT, inverses = len(gram_TT), gram_TT, []
    blocks = [slice(start, min(start + _CHOLESKY_ROWS, size)) for start in range(0, size, _CHOLESKY_ROWS)]
    for j in blocks:
        for start in range(j.start, size, _PRODUCT_ROWS):
            i = slice(start, start + _PRODUCT_ROWS)
            lower_TT[i, j] -= lower_TT[i, : j.start] @ lower_TT[j, : j.start].T
        # Blocks on the diagonal are inverted: numpy solves no triangular equations.
        inverses.append(np.linalg.inv(np.linalg.cholesky(lower_TT[j, j])))
        lower_TT[j.stop :, j] = lower_TT[j.stop :, j] @ inverses[-1].T
        right_TD[j] = inverses[-1] @ (right_TD[j] - lower_TT[j, : j.start] @ right_TD[: j.start])
    for j, inverse in zip(reversed(blocks), reversed(inverses), strict=True):
        right_TD[j] = inverse.T @ (right_TD[j] - lower_TT[j.stop :, j].T @ right_TD[j.stop :])


def _solve_iteratively(codes_NM: np.ndarray, codebook_size: int, right_TD: np.ndarray, diagonal_T, ridge: float):
    """Solve the normal equations by conjugate gradients, preconditioned by the diagonal, for each column separately.

    The matrix is never formed: its product with the tables decodes all codes and sums the results by table row.
    """
    solution_TD, residual_TD = np.zeros_like(right_TD), right_TD.copy()
    direction_TD = residual_TD / diagonal_T[:, None]
    energy_D = (residual_TD * direction_TD).sum(0)
    enough_D = energy_D * _TOLERANCE**2
    for _ in range(_MAX_ITERATIONS):
        product_TD = direction_TD * ridge
        _add_product(codes_NM, codebook_size, direction_TD.astype(np.float32), product_TD)
        step_D = energy_D / np.maximum((direction_TD * product_TD).sum(0), _TINY)
        solution_TD += step_D * direction_TD
        residual_TD -= step_D * product_TD
        scaled_TD = residual_TD / diagonal_T[:, None]
        before_D, energy_D = energy_D, (residual_TD * scaled_TD).sum(0)
        if (energy_D <= enough_D).all():
            break
        direction_TD = scaled_TD + energy_D / np.maximum(before_D, _TINY) * direction_TD
    return solution_TD


def _add_product(codes_NM: np.ndarray, codebook_size: int, tables_TD: np.ndarray, product_TD: np.ndarray) -> None:
    for first in range(0, len(codes_NM), _BLOCK_ROWS):
        codes_nM = codes_NM[first : first + _BLOCK_ROWS]
        decoded_nD = decode_rows(tables_TD, codes_nM, codebook_size, threads=num_threads())
        sum_by_row(decoded_nD, codes_nM, codebook_size, product_TD, threads=num_threads())
