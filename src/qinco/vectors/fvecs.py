"""fvecs, bvecs and ivecs: each row is its dimension (little-endian int32), then that many float32, uint8 or int32."""

from functools import partial
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.mapped import MAX_DIM, Format, StoredRows, map_file, read_start

_TYPES = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


class FramedRows(StoredRows):
    """The rows of an fvecs, bvecs or ivecs file; each row's dimension field is verified when the row is read.

    Slices are read-only views of the memory map.
    """

    def __init__(self, path: Path, dim: int, dtype: np.dtype, num_rows: int):
        super().__init__((num_rows, dim), dtype)
        self.path = path
        self._records = map_file(path, _record_type(dim, dtype), (num_rows,))

    def __getitem__(self, key) -> np.ndarray:
        records = self._records[key]
        wrong = np.flatnonzero(records["dim"] != self.shape[1])
        if wrong.size:
            rows = range(len(self))[key] if isinstance(key, slice) else np.atleast_1d(key) % len(self)
            found = np.atleast_1d(records["dim"])[wrong[0]]
            raise DataError(
                f"{self.path} is damaged at row {rows[wrong[0]]}: its dimension field is {found}, not {self.shape[1]}"
            )
        return records["values"]


def frame(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) of a stored type as they lie in the file: records of a dimension and values."""
    records = np.empty(len(rows), _record_type(rows.shape[1], rows.dtype))
    records["dim"] = rows.shape[1]
    records["values"] = rows
    return records


def open_framed(path: Path, size: int, suffix: str) -> FramedRows:
    """Open a file of `size` bytes; raises DataError unless it consists of whole rows of the first row's dimension."""
    dtype, start = _TYPES[suffix], read_start(path, 4)
    if len(start) < 4:
        raise DataError(f"{path} is truncated: {size} bytes are shorter than one row")
    dim = int.from_bytes(start, "little", signed=True)
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path} is not a {suffix} file: the dimension field of its first row is {dim}")
    row_size = 4 + dim * dtype.itemsize
    if size % row_size:
        raise DataError(
            f"{path} is truncated or not a {suffix} file: {size} bytes are not a multiple of a row's {row_size} "
            f"(dimension {dim})"
        )
    return FramedRows(path, dim, dtype, size // row_size)


def _record_type(dim: int, dtype: np.dtype) -> np.dtype:
    return np.dtype([("dim", "<i4"), ("values", dtype, (dim,))])


FORMATS = tuple(
    Format((suffix,), partial(open_framed, suffix=suffix), False, dtype, lambda shape, dtype: b"", frame, 4)
    for suffix, dtype in _TYPES.items()
)
