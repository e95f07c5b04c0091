"""Arrays as bodies: the .npy format of numpy, never pickle."""

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy

from qinco.errors import DataError
from qinco.server.envelope import MalformedError

TYPE = "application/x-npy"
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_MAX_HEADER = 4096


def read_array(body: bytes, what: str, kinds: str, dims: int = 2) -> np.ndarray:
    """An array of a body, which shares its memory.

    `kinds` are letters of numpy's kinds of types, such as "f" and "iu"; one row may come without its first axis.
    """
    stream: Any = io.BytesIO(body)
    try:
        shape, is_fortran, dtype = _READERS[npy.read_magic(stream)](stream, _MAX_HEADER)
    except (ValueError, KeyError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError) as error:
        raise MalformedError(f"the body is no .npy file ({error!s:.80}): send what numpy.save writes") from None
    if dtype.kind not in kinds or dtype.names is not None or dtype.hasobject:
        raise DataError(f"{what} must be an array of {_named(kinds)}, not {dtype!s:.40}")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    start = stream.tell()
    if len(body) - start != count * dtype.itemsize:
        raise MalformedError(f"the body has {len(body) - start:,} bytes of data, and an array {shape} of {dtype} has "
                             f"{count * dtype.itemsize:,}: send it again")  # fmt: skip
    values = np.frombuffer(body, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")
    if values.ndim == dims - 1:
        values = values[None]
    if values.ndim != dims or not values.shape[-1]:
        raise DataError(f"{what} must be an array of {dims} axes, (rows, columns), not of shape {shape!s:.60}")
    return values


def array_bytes(values: np.ndarray) -> bytes:
    """A body that holds an array."""
    stream = io.BytesIO()
    npy.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)
    return stream.getvalue()


def _named(kinds: str) -> str:
    return " or ".join({"f": "floats", "i": "integers", "u": "unsigned integers"}[kind] for kind in kinds)
