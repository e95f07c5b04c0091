"""Sums of rows of additive tables, of vectors by table row, and products: compiled, or by numpy where nothing is.

Tables lie one after the other, (T, D). A vector has a row in each: its code, or a · K + b for two codes a, b.

Shape suffixes: N vectors, n vectors of a block, D dimension, W codes of a vector, P pairs, K codewords, T table rows;
B matrices (I, C), R rows.
"""

from ctypes import Structure, byref, c_int32, c_int64, c_void_p

import numpy as np

from qinco.native.library import LEVELS, address, check_memory, compiled, level, run

_REMEDY = "fewer vectors at a time"
_BLOCK_ROWS = 4096
_OPERATIONS = 4.0  # that adding a number takes the time of


class _Rows(Structure):
    _fields_ = [
        ("codes", c_void_p), ("pairs", c_void_p), ("count", c_int64),
        *((name, c_int32) for name in ("num_codes", "num_rows", "codewords", "dim")),
    ]  # fmt: skip


def decode_rows(
    tables_TD: np.ndarray, codes_NW: np.ndarray, codebook_size: int, *, threads: int,
    pairs_P2: np.ndarray | None = None, scale: float = 1.0, add_to: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """`scale` times the sum of each vector's rows, float32 (N, D).

    Args:
        tables_TD: float32 or float16.
        codes_NW: int32, below K.
        pairs_P2: int32, positions of two codes each; None where rows are those of single codes.
        add_to: float32 (N, D), to which the result is added, and which is returned.
    """
    out_ND = np.empty((len(codes_NW), tables_TD.shape[1]), np.float32) if add_to is None else add_to
    rows = _rows(codes_NW, pairs_P2, codebook_size, tables_TD, out_ND)
    assert out_ND.dtype == np.float32 and tables_TD.dtype in (np.float32, np.float16)
    if compiled() is None:
        _decode_by_numpy(tables_TD, codes_NW, codebook_size, pairs_P2, scale, out_ND, add_to is not None)
        return out_ND
    failed = run(
        lambda: compiled().qinco_decode_rows(
            byref(rows), tables_TD.ctypes.data, tables_TD.dtype == np.float16, scale, threads, LEVELS.index(level()),
            add_to is not None, out_ND.ctypes.data,
        ),
        _OPERATIONS * rows.count * rows.num_rows * rows.dim,
    )  # fmt: skip
    check_memory(failed, _REMEDY)
    return out_ND


def sum_by_row(
    x_ND: np.ndarray, codes_NW: np.ndarray, codebook_size: int, sums_TD: np.ndarray, *, threads: int
) -> None:
    """Add each vector, float32, to its rows of `sums_TD`, float32 or float64; codes are int32, below K."""
    rows = _rows(codes_NW, None, codebook_size, sums_TD, x_ND)
    assert x_ND.dtype == np.float32 and sums_TD.dtype in (np.float32, np.float64)
    if compiled() is None:
        _sum_by_numpy(x_ND, codes_NW, codebook_size, sums_TD)
        return
    failed = run(
        lambda: compiled().qinco_sum_by_row(
            byref(rows), x_ND.ctypes.data, threads, LEVELS.index(level()), sums_TD.dtype == np.float64,
            sums_TD.ctypes.data,
        ),
        _OPERATIONS * rows.count * rows.num_rows * rows.dim,
    )  # fmt: skip
    check_memory(failed, _REMEDY)


def multiply(a_RI: np.ndarray, b_BIC: np.ndarray, *, threads: int) -> np.ndarray:
    """The products of one matrix with each of some others, float32 (B, R, C).

    numpy's own library would use a number of threads of its own, and they wait for each other in every small product.
    """
    (num_rows, inner), (count, _, columns) = a_RI.shape, b_BIC.shape
    assert a_RI.dtype == b_BIC.dtype == np.float32 and b_BIC.shape[1] == inner
    assert a_RI.flags.c_contiguous and b_BIC.flags.c_contiguous
    if compiled() is None:
        return a_RI @ b_BIC
    out_BRC = np.empty((count, num_rows, columns), np.float32)
    failed = run(
        lambda: compiled().qinco_multiply(
            a_RI.ctypes.data, b_BIC.ctypes.data, count, num_rows, inner, columns, threads, LEVELS.index(level()),
            out_BRC.ctypes.data,
        ),
        2.0 * num_rows * b_BIC.size,
    )  # fmt: skip
    check_memory(failed, _REMEDY)
    return out_BRC


def _rows(codes_NW, pairs_P2, codebook_size: int, tables_TD, x_ND) -> _Rows:
    num_rows = codes_NW.shape[1] if pairs_P2 is None else len(pairs_P2)
    each = codebook_size if pairs_P2 is None else codebook_size**2
    assert tables_TD.shape == (num_rows * each, x_ND.shape[1]) and len(codes_NW) == len(x_ND)
    assert codes_NW.dtype == np.int32 and (pairs_P2 is None or pairs_P2.dtype == np.int32)
    assert all(array is None or array.flags.c_contiguous for array in (codes_NW, pairs_P2, tables_TD, x_ND))
    sizes = len(codes_NW), codes_NW.shape[1], num_rows, codebook_size, x_ND.shape[1]
    return _Rows(codes_NW.ctypes.data, address(pairs_P2), *sizes)


@np.errstate(over="ignore", invalid="ignore")  # as compiled
def _decode_by_numpy(tables_TD, codes_NW, codebook_size: int, pairs_P2, scale: float, out_ND, adds: bool) -> None:
    for first in range(0, len(codes_NW), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        sums_nD = np.zeros(out_ND[block].shape, np.float32)
        for rows_n in _row_numbers(codes_NW[block], pairs_P2, codebook_size):
            sums_nD += tables_TD[rows_n]
        sums_nD *= np.float32(scale)
        out_ND[block] = out_ND[block] + sums_nD if adds else sums_nD


@np.errstate(over="ignore", invalid="ignore")
def _sum_by_numpy(x_ND, codes_NW, codebook_size: int, sums_TD) -> None:
    rows_WN = _row_numbers(codes_NW, None, codebook_size)
    for d, x_N in enumerate(x_ND.T.astype(np.float64)):
        for rows_N in rows_WN:
            sums_TD[:, d] += np.bincount(rows_N, x_N, len(sums_TD)).astype(sums_TD.dtype)


def _row_numbers(codes_NW, pairs_P2, codebook_size: int) -> np.ndarray:
    """Rows of the tables, int64 (P, N)."""
    codes_WN = codes_NW.T.astype(np.int64)
    if pairs_P2 is not None:
        codes_WN = codes_WN[pairs_P2[:, 0]] * codebook_size + codes_WN[pairs_P2[:, 1]]
        codebook_size **= 2
    return codes_WN + np.arange(len(codes_WN))[:, None] * codebook_size
