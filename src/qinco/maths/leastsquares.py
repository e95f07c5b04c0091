"""Additive look-up tables by least squares, from vectors and their codes.

Shape suffixes: N vectors, n vectors of a block, D dimension, M steps, K codewords, T = M · K table rows.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

MAX_DENSE_ROWS = 8192
_BLOCK_ROWS = 2048  # a block's vectors stay in cache while every step adds them to its own rows
_BLOCK_COLUMNS = 128
_WHOLE_ROWS, _CHOLESKY_ROWS = 2048, 256  # of matrices that are factored at once, and of the blocks of larger ones
_MIN_RIDGE = 1e-9  # of the largest count: less is lost in rounding
_TOLERANCE, _MAX_ITERATIONS = 1e-6, 200


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
    right_TD, shift_D, rows_NM = _right_side(blocks, num_steps, codebook_size)
    ridge *= len(right_TD) / len(rows_NM)
    if len(right_TD) <= max_dense_rows:
        gram_TT = _co_occurrences(rows_NM, codebook_size)
        counts_T = gram_TT.diagonal()
        counts_T += max(ridge, _MIN_RIDGE * float(counts_T.max()))
        tables_TD = _solve_directly(gram_TT, right_TD)
    else:
        tables_TD = torch.cat(
            [_solve_iteratively(rows_NM, part_TD, ridge) for part_TD in right_TD.split(_BLOCK_COLUMNS, 1)], 1
        )
    tables_TD += shift_D / num_steps
    return tables_TD.float().view(num_steps, codebook_size, -1).numpy()


def _right_side(blocks, num_steps: int, codebook_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the vectors, minus a shift, of each table row, float64 (T, D); the shift (D,); codes as rows (N, M)."""
    right_TD, shift_D, kept = torch.empty(0), torch.empty(0), []
    for codes_nM, x_nD in blocks:
        if not len(codes_nM):
            continue
        if not kept:
            right_TD = torch.zeros(num_steps * codebook_size, x_nD.shape[1], dtype=torch.float64)
            shift_D = torch.from_numpy(x_nD.mean(0, dtype=np.float64))
        # Codes as rows of the tables laid one after the other.
        rows_nM = torch.from_numpy(codes_nM.astype(np.int32) + np.arange(num_steps, dtype=np.int32) * codebook_size)
        kept.append(rows_nM)
        for first in range(0, len(x_nD), _BLOCK_ROWS):
            part_nD = torch.from_numpy(x_nD[first : first + _BLOCK_ROWS].astype(np.float64))
            _add_to_rows(right_TD, rows_nM[first : first + _BLOCK_ROWS], part_nD - shift_D)
    return right_TD, shift_D, torch.cat(kept)


def _add_to_rows(sums_TD: Tensor, rows_nM: Tensor, x_nD: Tensor) -> None:
    for rows_n in rows_nM.unbind(1):
        sums_TD.index_add_(0, rows_n, x_nD)


def _co_occurrences(rows_NM: Tensor, codebook_size: int) -> Tensor:
    """Number of vectors that use each pair of table rows: float64 (T, T)."""
    rows_MN = rows_NM.T.contiguous().long()
    num_steps, size = len(rows_MN), codebook_size
    gram_MKMK = torch.zeros(num_steps, size, num_steps, size, dtype=torch.float64)
    for i in range(num_steps):
        for j in range(i, num_steps):
            joint_N = (rows_MN[i] - i * size) * size + (rows_MN[j] - j * size)
            counts_KK = torch.bincount(joint_N, minlength=size**2).view(size, size)
            gram_MKMK[i, :, j], gram_MKMK[j, :, i] = counts_KK, counts_KK.T
    return gram_MKMK.view(num_steps * size, -1)


def _solve_directly(gram_TT: Tensor, right_TD: Tensor) -> Tensor:
    """Solve the normal equations by Cholesky's method, large ones in blocks, in place: Ctrl-C is heard between them."""
    size = len(gram_TT)
    if size <= _WHOLE_ROWS:
        return torch.cholesky_solve(right_TD, torch.linalg.cholesky(gram_TT))
    blocks = [slice(start, start + _CHOLESKY_ROWS) for start in range(0, size, _CHOLESKY_ROWS)]
    lower, solve = gram_TT, torch.linalg.solve_triangular
    for number, j in enumerate(blocks):
        for i in blocks[number:]:
            lower[i, j] -= lower[i, : j.start] @ lower[j, : j.start].T
            if i == j:
                lower[j, j] = torch.linalg.cholesky(lower[j, j])
            else:
                lower[i, j] = solve(lower[j, j].T, lower[i, j], upper=True, left=False)
    for j in blocks:
        right_TD[j] = solve(lower[j, j], right_TD[j] - lower[j, : j.start] @ right_TD[: j.start], upper=False)
    for j in reversed(blocks):
        known = lower[j.stop :, j].T @ right_TD[j.stop :]
        right_TD[j] = solve(lower[j, j].T, right_TD[j] - known, upper=True)
    return right_TD


def _solve_iteratively(rows_NM: Tensor, right_TD: Tensor, ridge: float) -> Tensor:
    """Solve the normal equations by conjugate gradients, preconditioned by the diagonal, for each column separately.

    The matrix is never formed: its product with the tables decodes all codes and sums the results by table row.
    """
    diagonal_T1 = torch.bincount(rows_NM.flatten(), minlength=len(right_TD)).double()[:, None] + ridge
    solution_TD = torch.zeros_like(right_TD)
    residual_TD = right_TD.clone()
    direction_TD = residual_TD / diagonal_T1
    energy_D = (residual_TD * direction_TD).sum(0)
    enough_D = energy_D * _TOLERANCE**2
    for _ in range(_MAX_ITERATIONS):
        product_TD = direction_TD * ridge
        weights_TD = direction_TD.float()
        for rows_nM in rows_NM.split(_BLOCK_ROWS):
            _add_to_rows(product_TD, rows_nM, embedding_bag(rows_nM, weights_TD, mode="sum").double())
        tiny = torch.finfo(torch.float64).tiny
        step_D = energy_D / (direction_TD * product_TD).sum(0).clamp_(min=tiny)
        solution_TD += step_D * direction_TD
        residual_TD -= step_D * product_TD
        scaled_TD = residual_TD / diagonal_T1
        before_D, energy_D = energy_D, (residual_TD * scaled_TD).sum(0)
        if (energy_D <= enough_D).all():
            break
        direction_TD = scaled_TD + energy_D / before_D.clamp(min=tiny) * direction_TD
    return solution_TD
