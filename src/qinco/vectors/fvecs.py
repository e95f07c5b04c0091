"""fvecs, bvecs and ivecs: a row is its dimension (little-endian int32) and as many float32, uint8 or int32."""

from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.mapped import MAX_DIM, StoredRows, map_file, read_start

FRAMED_TYPES = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


class FramedRows(StoredRows):
    """The rows of an fvecs, bvecs or ivecs file; each row's dimension field is verified when the row is read.

    What is read are views of the file where that is possible, which cannot be written.
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
                f"{self.path} is damaged at row {rows[wrong[0]]}: the row claims dimension {found}, "
                f"the first one {self.shape[1]}"
            )
        return records["values"]


def frame(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) of a stored type as they lie in the file: records of a dimension and values."""
    records = np.empty(len(rows), _record_type(rows.shape[1], rows.dtype))
    records["dim"] = rows.shape[1]
    records["values"] = rows
    return records


def open_framed(path: Path, size: int) -> FramedRows:
    """Open a file of `size` bytes in the format of its suffix; raises DataError unless it can be whole rows."""
    suffix = path.suffix.lower()
    start = read_start(path, 4)
    dim = int.from_bytes(start, "little", signed=True)
    if len(start) == 4 and not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path} is not a {suffix} file: its first row claims dimension {dim}")
    row_size = 4 + dim * FRAMED_TYPES[suffix].itemsize
    if len(start) < 4 or size % row_size:
        raise DataError(
            f"{path} is truncated or no {suffix} file: its {size} bytes are not a whole number of rows"
            + (f" of {row_size} bytes (dimension {dim})" if len(start) == 4 else "")
        )
    return FramedRows(path, dim, FRAMED_TYPES[suffix], size // row_size)


def _record_type(dim: int, dtype: np.dtype) -> np.dtype:
    return np.dtype([("dim", "<i4"), ("values", dtype, (dim,))])
