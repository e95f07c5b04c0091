"""What the readers of every format share: what counts as a matrix of vectors, and files as memory maps."""

import mmap
import stat
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from qinco.errors import DataError

MAX_DIM = 1_000_000


class StoredRows(ABC):
    """Rows that lie in a file and are read when they are asked for, in a form that numpy cannot map.

    shape: (N, D)     dtype: the stored type

    Slices and integer arrays choose rows and give arrays (n, D) of the stored type. Reading raises DataError where
    the file is damaged.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype):
        self.shape = shape
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, key) -> np.ndarray:
        """The rows of a slice or of an integer array: (n, D) of the stored type."""

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        rows = self[:]
        if copy or (dtype is not None and dtype != self.dtype):
            return rows.astype(dtype or self.dtype)
        return rows


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


def check_size(path: Path, size: int, expected: int, promise: str) -> None:
    """Raise DataError unless a file of `size` bytes has the `expected` ones; `promise` is what its header says."""
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise DataError(f"{path} is {state}: it has {size} bytes, its header ({promise}) needs {expected}")


def file_size(path: Path) -> int:
    """Size in bytes of a regular file; DataError for anything else (opening a pipe would wait for ever)."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder: give a file")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file: files are memory-mapped, so save it to one first")
    return status.st_size


def read_start(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file, or all where there are fewer."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def map_file(path: Path, dtype: np.dtype, shape: tuple, offset: int = 0, order: str = "C") -> np.ndarray:
    """An array in a file, as a memory map that cannot be written."""
    try:
        return np.asarray(np.memmap(path, dtype, "r", offset, shape, order))
    except (OSError, ValueError) as error:  # ValueError: the file shrank since its size was taken
        raise DataError(f"cannot map {path}: {getattr(error, 'strerror', None) or error}") from error


def release_pages(rows: np.ndarray) -> None:
    """Stop counting consecutive rows of a memory map as memory of this process, after they have been copied.

    They can be read again, from the system's cache of the file where they still are. Other arrays are left alone.
    """
    mapped = rows
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    is_map = isinstance(mapped, np.memmap) and isinstance(mapped.base, mmap.mmap) and mapped.mode == "r"
    if not is_map or rows.size == 0 or rows.strides[0] < rows[0].nbytes:
        return
    begin = rows.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
    begin += mapped.offset % mmap.ALLOCATIONGRANULARITY
    start = begin - begin % mmap.PAGESIZE
    mapped.base.madvise(mmap.MADV_DONTNEED, start, begin + rows.strides[0] * len(rows) - start)
