"""Files of vectors: opened without reading them, and written at once or block by block.

fvecs, bvecs, ivecs, npy, fbin, u8bin, i8bin and ibin are memory-mapped; HDF5 and Parquet are read when rows are asked
for. Opening a file reads no rows. A new format is a file with `FORMATS` beside those below, added to `FORMATS` here.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from qinco.atomic import write_atomically
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.vectors import binary, hdf5, parquet
from qinco.vectors.mapped import MAX_DIM, Format, Rows, as_matrix, file_size

FORMATS = {
    suffix: format for module in (binary, hdf5, parquet) for format in module.FORMATS for suffix in format.suffixes
}
SUFFIXES = tuple(FORMATS)
WRITTEN_SUFFIXES = tuple(suffix for suffix, format in FORMATS.items() if format.header is not None)
FLOAT_SUFFIXES = tuple(suffix for suffix in WRITTEN_SUFFIXES if FORMATS[suffix].dtype in (None, np.float32))
WRITE_ROWS = 65536
_WITH_PARTS = "|".join(re.escape(suffix) for suffix, format in FORMATS.items() if format.has_parts)
_NAMED_PART = re.compile(rf"(.*?(?:{_WITH_PARTS})):(.+)", re.IGNORECASE | re.DOTALL)


def open_array(path: str | os.PathLike, part: str = "train") -> Rows:
    """Open a file of vectors as rows (N, D) of the stored type, see `qinco.open_vectors`.

    They are a read-only memory map, or an object that reads rows when they are asked for. N may be 0.
    """
    path, name = split_part(path)
    size = file_size(path)
    format = _find_format(path, SUFFIXES)
    if size == 0:
        raise DataError(f"{path} holds no vectors: the file is empty")
    return format.open(path, size, name, part) if format.has_parts else format.open(path, size)


def describe_vectors(path: str | os.PathLike) -> dict:
    """What a file of vectors holds, as JSON values; codes and lists are integers in such files, too."""
    rows, kind = open_array(path), {"kind": "vectors"}
    if Path(path).suffix.lower() in (".npy", ".ivecs") and rows.dtype.kind in "iu":
        note = "vectors, codes, list numbers or neighbours: the file does not say which"
        kind = {"kind": "integers", "note": note}
    num_vectors, dim = rows.shape
    size = {"num_vectors": num_vectors, "dim": dim, "dtype": str(rows.dtype)}
    return kind | size | {"bytes_per_vector": dim * rows.dtype.itemsize}


def stated_metric(path: str | os.PathLike) -> str | None:
    """The metric of neighbours that a file states, in its own words ("angular"); None if it does not, or is no file."""
    file, part = split_part(path)
    format = FORMATS.get(file.suffix.lower())
    return format.read_metric(file, part) if format and format.read_metric and file.is_file() else None


def split_part(path: str | os.PathLike) -> tuple[Path, str | None]:
    """The file of a path, and the name after the colon or None; the name of an existing file is never split."""
    text = os.fspath(path)
    named = None if os.path.lexists(text) else _NAMED_PART.fullmatch(text)
    return (Path(text), None) if named is None else (Path(named[1]), named[2])


def read_integers(path: str | os.PathLike, part: str = "neighbors") -> np.ndarray:
    """Read a whole file of integers, such as a ground truth, as int64 (N, k); DataError for other numbers."""
    array = open_array(path, part)
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype} values: integers are expected")
    stored = array[:]
    if len(stored) == 0:
        raise DataError(f"{path} holds no rows")
    if stored.dtype.kind == "u" and int(stored.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path} holds {stored.max()}, which int64 cannot hold")
    return stored.astype(np.int64, order="C")


def write_vectors(path: str | os.PathLike, array, block_rows: int = WRITE_ROWS) -> None:
    """Write an array (N, D) of integers or floats in the format of the path's suffix.

    Args:
        path: ends in .fvecs, .bvecs, .ivecs, .npy, .fbin, .u8bin, .i8bin or .ibin; npy keeps the type of `array`, the
            others store their own.
        array: anything that numpy takes for a matrix.
        block_rows: rows that are converted at once.

    Raises:
        DataError: the format cannot hold the values (fractions in a bvecs file). An existing file is then as it was.

    Example:
        >>> write_vectors("x.fvecs", numpy.zeros((10, 128)))
    """
    matrix = as_matrix(array, "the array to write")
    with VectorWriter(path, matrix.shape[1], matrix.dtype, len(matrix)) as writer:
        for start in range(0, len(matrix), block_rows):
            writer.append(matrix[start : start + block_rows])


class VectorWriter:
    """Writes a file of vectors block by block; the file appears when the `with` block ends without an exception.

    Args:
        path: its suffix is the format, one of WRITTEN_SUFFIXES.
        dim: D, at least 1.
        dtype: the stored type of an npy file, any integer or float type; the other formats have their own.
        num_rows: how many rows will come, if known: any other number is then an error.
    """

    def __init__(self, path: str | os.PathLike, dim: int, dtype: DTypeLike = np.float32, num_rows: int | None = None):
        self.path, self.dim, self.num_rows, self.rows_written = Path(path), dim, num_rows, 0
        self._format = _find_format(self.path, WRITTEN_SUFFIXES)
        self.dtype: np.dtype = np.dtype(dtype) if self._format.dtype is None else self._format.dtype
        require_int("dim", dim, 1, MAX_DIM)

    def __enter__(self) -> "VectorWriter":
        self._context = self._open()
        return self._context.__enter__()

    def __exit__(self, *error) -> bool | None:
        return self._context.__exit__(*error)

    def append(self, block) -> None:
        """Write the rows of `block` (n, dim). Raises DataError where the format cannot hold one of its values."""
        matrix = as_matrix(block, f"the block for {self.path}")
        if matrix.shape[1] != self.dim:
            raise DataError(f"the block for {self.path} has dimension {matrix.shape[1]}, the file {self.dim}")
        self._file.write(self._format.frame(self._convert(matrix)))  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.rows_written += len(matrix)

    def size(self, num_rows: int) -> int:
        """Bytes of a file of `num_rows` rows."""
        return len(self._header(0)) + num_rows * self._format.frame(np.empty((1, self.dim), self.dtype)).nbytes

    def attach(self, file: BinaryIO, rows: int = 0) -> None:
        """Append to an open file of the caller after its first `rows` rows, instead of `with`; the rest is cut off.

        With rows=0 the header is written; it states `num_rows`.
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
            file.seek(0)
            file.write(self._header(self.rows_written))  # as long as the first: numpy pads for 21 digits of rows
            if self.num_rows not in (None, self.rows_written):
                raise DataError(f"{self.path} needs {self.num_rows} rows, but {self.rows_written} were written")

    def _header(self, num_rows: int) -> bytes:
        return self._format.header((num_rows, self.dim), self.dtype)  # pyright: ignore[reportOptionalCall]

    def _convert(self, matrix: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = matrix.astype(self.dtype, order="C", copy=False)
        if np.can_cast(matrix.dtype, self.dtype):
            return stored
        wrong = np.isinf(stored) & np.isfinite(matrix) if self.dtype.kind == "f" else stored != matrix
        if wrong.any():
            row, column = np.unravel_index(np.argmax(wrong), wrong.shape)
            limits = np.finfo(self.dtype) if self.dtype.kind == "f" else np.iinfo(self.dtype)
            where = f"{matrix[row, column]} in row {self.rows_written + row}"
            raise DataError(f"{self.path} cannot hold {where}: {self.dtype} is between {limits.min} and {limits.max}")
        return stored


def _find_format(path: Path, suffixes: tuple[str, ...]) -> Format:
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise ConfigError(f"{path} has the suffix {path.suffix!r}: use one of {', '.join(suffixes)}")
    return FORMATS[suffix]
