"""ctypes binding of the compiled iterations of Muon: matrices whose singular values are brought near to one."""

from ctypes import Structure, c_int32, c_void_p

import numpy as np

from qinco.native.library import LEVELS, address, check_memory, compiled, level


class _Matrix(Structure):
    _fields_ = [("values", c_void_p), ("rows", c_int32), ("columns", c_int32)]


def orthogonalize(matrices: list[np.ndarray], polynomials: np.ndarray, *, in_bf16: bool, threads: int) -> None:
    """Replace matrices by those of the same singular vectors, with singular values near one.

    Args:
        matrices: contiguous float32, of any two dimensions.
        polynomials: float32 (iterations, 3), the factors of x, x³ and x⁵ for singular values up to one.
        in_bf16: multiply in bf16, where the processor does; sums are float32.
    """
    assert polynomials.dtype == np.float32 and polynomials.shape[1:] == (3,) and polynomials.flags.c_contiguous
    given = (_Matrix * len(matrices))()
    for target, matrix in zip(given, matrices, strict=True):
        assert matrix.dtype == np.float32 and matrix.flags.c_contiguous
        target.values, (target.rows, target.columns) = address(matrix), matrix.shape
    # Not watched for signals: it takes a moment, and no step of an optimizer is left half done.
    failed = compiled().qinco_orthogonalize(
        given, len(given), address(polynomials), len(polynomials), threads, in_bf16, LEVELS.index(level())
    )
    check_memory(failed, "fewer threads")
