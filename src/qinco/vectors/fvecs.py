"""fvecs, bvecs and ivecs: each row is its dimension (little-endian int32), then that many float32, uint8 or int32."""

from functools import partial
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.mapped import MAX_DIM, Format, StoredRows, map_file, read_start

_TYPES = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


class FramedRows(StoredRows):
    """The rows of an fvecs, bvecs or ivecs file; each row's dimension field is verified when the row is read."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype, num_rows: int):
        super().__init__((num_rows, dim), dtype)
        self._path, self._records = path, map_file(path, _record_type(dim, dtype), (num_rows,))

    def __getitem__(self, key) -> np.ndarray:
        records = self._records[key]
        wrong = np.flatnonzero(records["dim"] != self.shape[1])
        if wrong.size:
            rows = range(len(self))[key] if isinstance(key, slice) else np.atleast_1d(key) % len(self)
            found = np.atleast_1d(records["dim"])[wrong[0]]
            what = f"its dimension field is {found}, not {self.shape[1]}"
            raise DataError(f"{self._path} is damaged at row {rows[wrong[0]]}: {what}")
        return records["values"]


def frame(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) as they lie in the file."""
    records = np.empty(len(rows), _record_type(rows.shape[1], rows.dtype))
    records["dim"], records["values"] = rows.shape[1], rows
    return records


def open_framed(path: Path, size: int, suffix: str) -> FramedRows:
    """Open a file of `size` bytes; raises DataError unless it consists of whole rows of the first row's dimension."""
    dtype, dim = _TYPES[suffix], int.from_bytes(read_start(path, 4), "little", signed=True)
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path} is not a {suffix} file: the dimension field of its first row is {dim}")
    row_size = 4 + dim * dtype.itemsize
    if size % row_size:
        what = f"{size} bytes are not a multiple of a row's {row_size} (dimension {dim})"
        raise DataError(f"{path} is truncated or not a {suffix} file: {what}")
    return FramedRows(path, dim, dtype, size // row_size)


def _record_type(dim: int, dtype: np.dtype) -> np.dtype:
    return np.dtype([("dim", "<i4"), ("values", dtype, (dim,))])


FORMATS = tuple(
    Format((suffix,), partial(open_framed, suffix=suffix), False, dtype, lambda shape, dtype: b"", frame)
    for suffix, dtype in _TYPES.items()
)
