"""What the readers of all formats share: the form of rows, checks of a matrix, and files as memory maps."""

import mmap
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from qinco.config import suggest
from qinco.errors import DataError

MAX_DIM = 1_000_000
_MAX_NAMES = 10_000  # entries of a folder that are searched for a similar name


class Rows(Protocol):
    """Rows (N, D): a slice or an int64 array of row numbers gives (n, D) of the stored type. Numpy arrays are Rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> np.ndarray: ...


class StoredRows(ABC):
    """Rows (N, D) in a file that numpy cannot map; reading them raises DataError where the file is damaged."""

    def __init__(self, shape: tuple[int, int], dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, key) -> np.ndarray: ...

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=bool(copy))


@dataclass(frozen=True)
class Format:
    """A file format of vectors."""

    suffixes: tuple[str, ...]  # of file names, in lower case
    # Takes a path and its size; with `has_parts` also the matrix's name or None, and a default.
    open: Callable[..., Rows]
    has_parts: bool = False  # a file may hold several matrices; `FILE:NAME` chooses one
    dtype: np.dtype | None = None  # the stored type; None for any
    header: Callable[[tuple[int, int], np.dtype], bytes] | None = None  # as many bytes for any shape; None: only read
    frame: Callable[[np.ndarray], np.ndarray] = np.asarray  # gives the array whose bytes are written for rows (n, D)
    read_metric: Callable[[Path, str | None], str | None] | None = None  # what a path and a part state of distances


def as_matrix(array, name: str) -> np.ndarray:
    """What numpy makes of `array`; raises DataError unless it is a matrix (N, D) of numbers."""
    try:
        matrix = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a tensor that requires a gradient
        raise DataError(f"{name} is not a matrix of numbers: {error}") from error
    check_matrix(matrix.shape, matrix.dtype, name)
    return matrix


def check_matrix(shape: tuple, dtype, name: str) -> None:
    """Raise DataError unless the shape is (N, D), with D at least 1, and a dtype of numpy is one of numbers."""
    if len(shape) != 2:
        hint = ": for a single vector give x[None]" if len(shape) == 1 else ""
        raise DataError(f"{name} must be a matrix (N, D), not an array of shape {tuple(shape)}{hint}")
    if shape[1] < 1:
        raise DataError(f"{name} has zero columns: vectors need at least one dimension")
    if isinstance(dtype, np.dtype) and dtype.kind not in "fiu":
        raise DataError(f"{name} holds {dtype} values: vectors are integers or floats")


def check_size(path: Path, size: int, expected: int, promise: str) -> None:
    """Raise DataError unless a file's `size` in bytes is as `expected` by its header, which says `promise`."""
    if size != expected:
        raise DataError(f"{path} is truncated or damaged: it has {size} bytes, its header ({promise}) needs {expected}")


def missing_file(path: str | os.PathLike) -> DataError:
    """The error for a file that does not exist; suggests a file of a similar name in the same folder."""
    folder, name = os.path.split(path)
    names = {}
    with suppress(OSError, ValueError), os.scandir(folder or os.curdir) as entries:
        names = {entry.name: str(Path(folder, entry.name)) for entry in islice(entries, _MAX_NAMES)}
    hint = suggest(name, names, 0.75)
    return DataError(f"No such file: {path}" + (f". {hint.strip()}" if hint else ""))


def file_size(path: Path) -> int:
    """Size in bytes of a regular file; DataError for anything else (opening a pipe would block)."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DataError(f"{path} is {kind}: give a file that can be memory-mapped")
    return status.st_size


def read_start(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file, or all where there are fewer."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def map_file(path: Path, dtype: np.dtype, shape: tuple, offset: int = 0, order: Literal["C", "F"] = "C") -> np.ndarray:
    """A read-only memory map of an array in a file; without rows, which cannot be mapped, an empty array."""
    if shape[0] == 0:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", offset, shape, order))


def release_pages(rows: np.ndarray) -> None:
    """Release the memory of consecutive rows of a memory map, which can be read again; nothing for other arrays."""
    mapped = rows
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    if not (isinstance(mapped, np.memmap) and isinstance(mapped.base, mmap.mmap) and mapped.mode == "r"):
        return
    if rows.size == 0 or rows.strides[0] < rows[0].nbytes:
        return
    begin = rows.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
    begin += mapped.offset % mmap.ALLOCATIONGRANULARITY
    start = begin - begin % mmap.PAGESIZE
    mapped.base.madvise(mmap.MADV_DONTNEED, start, begin + rows.strides[0] * len(rows) - start)
