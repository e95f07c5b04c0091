"""Files of vectors: opened without reading them, and written in one piece or block by block.

fvecs, bvecs, ivecs, npy, fbin, u8bin, i8bin and ibin are memory maps, and what HDF5 and Parquet files hold is read when
rows are asked for. Opening a file reads its header and compares sizes, whatever the number of rows.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.atomic import write_atomically
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import split_table
from qinco.vectors.fvecs import FRAMED_TYPES, FramedRows, frame, open_framed
from qinco.vectors.hdf5 import open_hdf5
from qinco.vectors.mapped import MAX_DIM, StoredRows, check_matrix, check_shape, file_size
from qinco.vectors.npy_bin import BIN_TYPES, MAX_BIN_ROWS, bin_header, npy_header, open_bin, open_npy
from qinco.vectors.parquet import open_parquet

__all__ = [
    "MAX_DIM", "SUFFIXES", "WRITE_ROWS", "FramedRows", "StoredRows", "VectorWriter", "check_matrix", "check_shape",
    "open_array", "read_integers", "write_vectors",
]  # fmt: skip

WRITE_ROWS = 65536


def open_array(path: str | os.PathLike, part: str = "train") -> np.ndarray | StoredRows:
    """Open a file as what is stored in it: an (N, D) memory map that cannot be written, or StoredRows.

    path: its suffix is the format, one of SUFFIXES. `FILE.hdf5:NAME` is a data set of an HDF5 file, `FILE.parquet:NAME`
          a column of a Parquet file, unless a file is called that
    part: the data set or column where the path names none; where the file has no such one, it is its only matrix

    There may be zero rows in a npy, `bin` or HDF5 file. Raises DataError where the file is missing, truncated, damaged
    or no matrix of integers or floats, and ConfigError where its suffix is none of those known or the package that
    reads it is missing.
    """
    path, name = split_table(path)
    size = file_size(path)
    reader = _find_suffix(path, _READERS)
    if size == 0:
        raise DataError(f"{path} holds no vectors: the file is empty")
    return reader(path, size, name, part) if path.suffix.lower() in _TABLE_READERS else reader(path, size)


def read_integers(path: str | os.PathLike, part: str = "neighbors") -> np.ndarray:
    """Read a whole file of integers, such as a ground truth, as int64 (N, d).

    path, part: as for `open_array`

    Raises DataError where it does not hold integers that int64 can express, or holds no rows.
    """
    array = open_array(path, part)
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype}: integers are expected here")
    if len(array) == 0:
        raise DataError(f"{path} holds no rows")
    stored = array[:]
    if stored.dtype.kind == "u" and int(stored.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path} holds {stored.max()}, which int64 cannot express")
    return stored.astype(np.int64, order="C")


def write_vectors(path: str | os.PathLike, array) -> None:
    """Write an (N, D) array in the format of the path's suffix; npy keeps the type of `array`.

    Raises DataError where the format cannot hold the values (fractions in a bvecs file), ConfigError where the suffix
    is unknown, and ResourceError where the disk refuses; the file is then as it was before.
    """
    matrix = _as_matrix(array, "the array to write")
    dtype = matrix.dtype if Path(path).suffix.lower() == ".npy" else None
    with VectorWriter(path, matrix.shape[1], dtype, len(matrix)) as writer:
        for start in range(0, len(matrix), WRITE_ROWS):
            writer.append(matrix[start : start + WRITE_ROWS])


class VectorWriter:
    """Writes a file of vectors block by block; the file appears when the `with` block ends without an exception.

    path:     its suffix is the format: .fvecs, .bvecs, .ivecs, .npy, .fbin, .u8bin, .i8bin or .ibin
    dim:      D, at least 1
    dtype:    the stored type: any integer or float type for npy (float32 by default), the format's own for the others
    num_rows: how many rows will come, where that is known: any other number is then an error

    Raises ConfigError for a wrong setting, before anything is written.
    """

    def __init__(self, path: str | os.PathLike, dim: int, dtype=None, num_rows: int | None = None):
        self.path = Path(path)
        require_int("dim", dim, 1, MAX_DIM)
        self.dim = dim
        self.dtype = _stored_type(self.path, dtype)
        self._suffix = self.path.suffix.lower()
        self._max_rows = MAX_BIN_ROWS if self._suffix in BIN_TYPES else None
        if num_rows is not None:
            require_int(f"the number of rows of {self.path}", num_rows, 0, self._max_rows)
        self.num_rows = num_rows
        self.rows_written = 0
        self._context = None
        self._file = None

    def __enter__(self) -> "VectorWriter":
        self._context = self._open()
        return self._context.__enter__()

    def __exit__(self, *error) -> bool | None:
        return self._context.__exit__(*error)

    def append(self, block) -> None:
        """Write the rows of `block` (n, dim). Raises DataError where the format cannot hold one of its values."""
        if self._file is None or self._file.closed:
            raise ConfigError(f"{self.path} is not open: append inside `with VectorWriter(...) as writer`")
        matrix = _as_matrix(block, f"the block for {self.path}")
        if matrix.shape[1] != self.dim:
            raise DataError(f"the block for {self.path} has dimension {matrix.shape[1]}, the file {self.dim}")
        stored = self._convert(matrix)
        if self._max_rows is not None and self.rows_written + len(matrix) > self._max_rows:
            raise DataError(f"{self.path} cannot hold more than {self._max_rows} rows: choose .npy")
        self._file.write(frame(stored) if self._suffix in FRAMED_TYPES else stored)
        self.rows_written += len(matrix)

    def size(self, num_rows: int) -> int:
        """Bytes of a file of so many rows."""
        framing = 4 if self._suffix in FRAMED_TYPES else 0
        return len(self._header(0)) + num_rows * (framing + self.dim * self.dtype.itemsize)

    def attach(self, file: BinaryIO, rows: int = 0) -> None:
        """Append after the first `rows` rows of an open file, and cut off what follows them, instead of with `with`.

        The header is written where there are no rows yet, and says `num_rows`. The file is the caller's: this class
        neither closes it nor gives it its name.
        """
        if rows == 0:
            file.seek(0)
            file.write(self._header(self.num_rows or 0))
        file.seek(self.size(rows))
        file.truncate()
        self._file, self.rows_written = file, rows

    @contextmanager
    def _open(self) -> Iterator["VectorWriter"]:
        with write_atomically(self.path) as temporary, temporary.open("wb") as file:
            self.attach(file)
            yield self
            final_header = self._header(self.rows_written)
            assert len(final_header) == self.size(0)  # numpy pads for 21 digits of rows
            file.seek(0)
            file.write(final_header)
            if self.num_rows not in (None, self.rows_written):
                raise DataError(f"{self.path} was to have {self.num_rows} rows and was given {self.rows_written}")

    def _header(self, num_rows: int) -> bytes:
        if self._suffix in FRAMED_TYPES:
            return b""
        shape = (num_rows, self.dim)
        return npy_header(shape, self.dtype) if self._suffix == ".npy" else bin_header(shape)

    def _convert(self, matrix: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = matrix.astype(self.dtype, order="C", copy=False)
        if np.can_cast(matrix.dtype, self.dtype):
            return stored
        if self.dtype.kind == "f":
            limits = f"a number in the range of {self.dtype}"
            wrong = np.isinf(stored) & np.isfinite(matrix)
        else:
            limits = f"an integer between {np.iinfo(self.dtype).min} and {np.iinfo(self.dtype).max}"
            wrong = stored != matrix
        if wrong.any():
            row, column = np.unravel_index(np.argmax(wrong), wrong.shape)
            raise DataError(
                f"{self.path} cannot hold {matrix[row, column]} in row {self.rows_written + row}: it must be {limits}"
            )
        return stored


def _as_matrix(array, name: str) -> np.ndarray:
    try:
        matrix = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a tensor that requires a gradient
        raise DataError(f"{name} is not an array of numbers: {error}") from error
    check_matrix(matrix.shape, matrix.dtype, name)
    return matrix


def _find_suffix(path: Path, table: Mapping):
    suffix = path.suffix.lower()
    if suffix not in table:
        state = "is only read" if suffix in _READERS else "names no known format"
        raise ConfigError(f"{path} has the suffix {path.suffix!r}, which {state}: use one of {', '.join(table)}")
    return table[suffix]


def _stored_type(path: Path, dtype) -> np.dtype:
    own = _find_suffix(path, _WRITTEN_TYPES)
    if dtype is None:
        return np.dtype(np.float32) if own is None else own
    try:
        stored = np.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"{path} cannot store {dtype!r}, which is no numpy type") from error
    if stored.kind not in "fiu":
        raise ConfigError(f"{path} cannot store {stored}: vectors are integers or floats")
    if own is not None and stored != own:
        raise ConfigError(f"{path} stores {own}, not {stored}: choose .npy for other types")
    return stored


# A reader takes the path and the size in bytes, a table's reader the name of the matrix and the part too. They give
# rows: `shape` (N, D), `dtype`, and `[key]` for a slice or an array of integers.
_TABLE_READERS = {".hdf5": open_hdf5, ".h5": open_hdf5, ".parquet": open_parquet}
_READERS = {
    **dict.fromkeys(FRAMED_TYPES, open_framed),
    ".npy": open_npy,
    **dict.fromkeys(BIN_TYPES, open_bin),
    **_TABLE_READERS,
}
SUFFIXES = tuple(_READERS)
# The type that a format stores, None for any.
_WRITTEN_TYPES = {**FRAMED_TYPES, ".npy": None, **BIN_TYPES}
