"""Files of vectors: fvecs, bvecs, ivecs and npy, opened as memory maps and written in one piece or block by block.

A row of an fvecs, bvecs or ivecs file is its dimension (little-endian int32) and as many float32, uint8 or int32.
Opening a file reads its header and compares sizes, whatever the number of rows.
"""

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.files import write_atomically

MAX_DIM = 1_000_000
WRITE_ROWS = 65536
_NPY_HEADER_BYTES = 65536
_VECS_TYPES = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


class FramedRows:
    """The rows of an fvecs, bvecs or ivecs file; each row's dimension field is verified when the row is read.

    shape: (N, D)     dtype: the stored type, little-endian float32, uint8 or int32

    Slices and integer arrays choose rows and give arrays (n, D) of the stored type, which cannot be written where
    they are views of the file. Reading raises DataError where a row claims another dimension than the first.
    """

    def __init__(self, path: Path, dim: int, dtype: np.dtype, num_rows: int):
        self.path = path
        self.shape = (num_rows, dim)
        self.dtype = dtype
        self._records = _map_file(path, _framed_type(dim, dtype), (num_rows,), 0)

    def __len__(self) -> int:
        return self.shape[0]

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

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        rows = self[:]
        if copy or (dtype is not None and dtype != self.dtype):
            return rows.astype(dtype or self.dtype)
        return rows


def open_array(path: str | os.PathLike) -> np.ndarray | FramedRows:
    """Open a file as what is stored in it: an (N, D) memory map that cannot be written, or FramedRows.

    An npy file may have zero rows. Raises DataError where the file is missing, truncated, damaged or no matrix of
    integers or floats, and ConfigError where its suffix is none of those known.
    """
    path = Path(path)
    size = _file_size(path)
    return _find_suffix(path, _READERS)(path, size)


def read_integers(path: str | os.PathLike) -> np.ndarray:
    """Read a whole file of integers, such as a ground truth, as int64 (N, d).

    Raises DataError where it does not hold integers that int64 can express, or holds no rows.
    """
    array = open_array(path)
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype}: integers are expected here")
    if len(array) == 0:
        raise DataError(f"{path} holds no rows")
    stored = array[:]
    if stored.dtype.kind == "u" and int(stored.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path} holds {stored.max()}, which int64 cannot express")
    return stored.astype(np.int64, order="C")


def check_matrix(shape: tuple, dtype, name: str) -> None:
    """Raise DataError, about `name`, unless a numpy array of this shape and dtype is a matrix (N, D) of numbers."""
    check_shape(shape, name)
    if dtype.kind not in "fiu":
        raise DataError(f"{name} holds {dtype} values: vectors are integers or floats")


def check_shape(shape: tuple, name: str) -> None:
    """Raise DataError, about `name`, unless `shape` is (N, D) with D at least 1."""
    if len(shape) == 1:
        raise DataError(
            f"{name} has 1 axis, shape {tuple(shape)}, where vectors are the rows of a matrix (N, D): "
            "for a single vector give x[None]"
        )
    if len(shape) != 2:
        raise DataError(f"{name} has {len(shape)} axes, shape {tuple(shape)}: vectors are the rows of a matrix (N, D)")
    if shape[1] < 1:
        raise DataError(f"{name} has zero columns: a vector needs at least one dimension")


def write_vectors(path: str | os.PathLike, array) -> None:
    """Write an (N, D) array in the format of the path's suffix; npy keeps the type of `array`.

    Raises DataError where the format cannot hold the values (fractions in a bvecs file), ConfigError where the suffix
    is unknown, and ResourceError where the disk refuses; the file is then as it was before.
    """
    matrix = _as_matrix(array, "the array to write")
    dtype = None if Path(path).suffix.lower() in _VECS_TYPES else matrix.dtype
    with VectorWriter(path, matrix.shape[1], dtype, len(matrix)) as writer:
        for start in range(0, len(matrix), WRITE_ROWS):
            writer.append(matrix[start : start + WRITE_ROWS])


class VectorWriter:
    """Writes a file of vectors block by block; the file appears when the `with` block ends without an exception.

    path:     its suffix is the format: .fvecs, .bvecs, .ivecs or .npy
    dim:      D, at least 1
    dtype:    the stored type: any integer or float type for npy (float32 by default), the format's own for the others
    num_rows: how many rows will come, where that is known: any other number is then an error

    Raises ConfigError for a wrong setting, before anything is written.
    """

    def __init__(self, path: str | os.PathLike, dim: int, dtype=None, num_rows: int | None = None):
        self.path = Path(path)
        require_int("dim", dim, 1, MAX_DIM)
        if num_rows is not None:
            require_int("num_rows", num_rows, 0)
        self.dim = dim
        self.dtype = _find_suffix(self.path, _STORED_TYPES)(self.path, dtype)
        self.num_rows = num_rows
        self.rows_written = 0
        self._is_framed = self.path.suffix.lower() in _VECS_TYPES
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
        if self._is_framed:
            records = np.empty(len(stored), _framed_type(self.dim, self.dtype))
            records["dim"] = self.dim
            records["values"] = stored
            stored = records
        self._file.write(stored)
        self.rows_written += len(matrix)

    @contextmanager
    def _open(self) -> Iterator["VectorWriter"]:
        self.rows_written = 0
        with write_atomically(self.path) as temporary, temporary.open("wb") as self._file:
            if self._is_framed:
                yield self
            else:
                header = _npy_header((self.num_rows or 0, self.dim), self.dtype)
                self._file.write(header)
                yield self
                final_header = _npy_header((self.rows_written, self.dim), self.dtype)
                assert len(final_header) == len(header)  # numpy pads for 21 digits of rows
                self._file.seek(0)
                self._file.write(final_header)
            if self.num_rows not in (None, self.rows_written):
                raise DataError(f"{self.path} was to have {self.num_rows} rows and was given {self.rows_written}")

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


def _find_suffix(path: Path, table: dict[str, Callable]) -> Callable:
    try:
        return table[path.suffix.lower()]
    except KeyError:
        raise ConfigError(
            f"{path} has the suffix {path.suffix!r}, which names no known format: use one of {', '.join(table)}"
        ) from None


def _file_size(path: Path) -> int:
    """Size in bytes of a regular file; DataError for anything else (opening a pipe would wait for ever)."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder: give a file of vectors")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file: vectors are memory-mapped, so save them to one first")
    return status.st_size


def _read_start(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _map_file(path: Path, dtype: np.dtype, shape: tuple, offset: int, order: str = "C") -> np.ndarray:
    try:
        return np.asarray(np.memmap(path, dtype, "r", offset, shape, order))
    except (OSError, ValueError) as error:  # ValueError: the file shrank since its size was taken
        raise DataError(f"cannot map {path}: {getattr(error, 'strerror', None) or error}") from error


def _framed_type(dim: int, dtype: np.dtype) -> np.dtype:
    return np.dtype([("dim", "<i4"), ("values", dtype, (dim,))])


def _open_vecs(path: Path, size: int) -> FramedRows:
    if size == 0:
        raise DataError(f"{path} holds no vectors: the file is empty")
    suffix = path.suffix.lower()
    start = _read_start(path, 4)
    dim = int.from_bytes(start, "little", signed=True)
    if len(start) == 4 and not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path} is not a {suffix} file: its first row claims dimension {dim}")
    row_size = 4 + dim * _VECS_TYPES[suffix].itemsize
    if len(start) < 4 or size % row_size:
        raise DataError(
            f"{path} is truncated or no {suffix} file: its {size} bytes are not a whole number of rows"
            + (f" of {row_size} bytes (dimension {dim})" if len(start) == 4 else "")
        )
    return FramedRows(path, dim, _VECS_TYPES[suffix], size // row_size)


def _open_npy(path: Path, size: int) -> np.ndarray:
    if size == 0:
        raise DataError(f"{path} holds no vectors: the file is empty")
    shape, is_fortran, dtype, offset = _parse_npy_header(path)
    if dtype.hasobject:
        raise DataError(f"{path} holds pickled Python objects, which are never loaded: save an array of numbers")
    check_matrix(shape, dtype, str(path))
    num_rows, dim = shape
    if num_rows < 0 or dim > MAX_DIM:
        raise DataError(f"{path} is damaged: its header claims the shape {shape}")
    expected = offset + num_rows * dim * dtype.itemsize
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise DataError(f"{path} is {state}: it has {size} bytes, its header ({shape}, {dtype}) needs {expected}")
    if num_rows == 0:  # nothing that could be mapped
        return np.empty(shape, dtype)
    return _map_file(path, dtype, shape, offset, "F" if is_fortran else "C")


def _parse_npy_header(path: Path) -> tuple[tuple, bool, np.dtype, int]:
    """Shape, Fortran order, dtype and the offset of the values."""
    # From a bounded piece of the file: a damaged length field would have numpy read gigabytes.
    start = io.BytesIO(_read_start(path, _NPY_HEADER_BYTES))
    try:
        major, _ = npy_format.read_magic(start)
        # Version 3 differs from 2 in the encoding of field names, and arrays with fields are refused.
        read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
        shape, is_fortran, dtype = read(start)
    except Exception as error:  # it parses a Python literal: damage can raise nearly anything
        raise DataError(f"{path} is not a npy file, or a damaged one: its header cannot be read") from error
    return tuple(map(int, shape)), is_fortran, dtype, start.tell()


def _npy_header(shape: tuple[int, int], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    description = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(header, description)
    return header.getvalue()


def _vecs_stored_type(path: Path, dtype) -> np.dtype:
    own = _VECS_TYPES[path.suffix.lower()]
    if dtype is not None and _npy_stored_type(path, dtype) != own:
        raise ConfigError(f"{path} stores {own}, not {np.dtype(dtype)}: choose .npy for other types")
    return own


def _npy_stored_type(path: Path, dtype) -> np.dtype:
    try:
        stored = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError as error:
        raise ConfigError(f"{path} cannot store {dtype!r}, which is no numpy type") from error
    if stored.kind not in "fiu":
        raise ConfigError(f"{path} cannot store {stored}: vectors are integers or floats")
    return stored


# One line for each format. A reader takes the path and the size in bytes and gives rows: `shape` (N, D), `dtype`,
# and `[key]` for a slice or an array of integers. A stored type takes the path and the wanted type or None.
_READERS = {**dict.fromkeys(_VECS_TYPES, _open_vecs), ".npy": _open_npy}
_STORED_TYPES = {**dict.fromkeys(_VECS_TYPES, _vecs_stored_type), ".npy": _npy_stored_type}
