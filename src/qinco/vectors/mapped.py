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

    reopen: tuple[Callable, tuple] | None = None  # a function and its arguments, as which the rows are pickled

    def __init__(self, shape: tuple[int, int], dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce_ex__(self, protocol):
        return self.reopen or super().__reduce_ex__(protocol)

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


def check_matrix(shape: tuple, dtype, name: str, how: str = "") -> None:
    """Raise DataError unless the shape is (N, D), with D at least 1, and a dtype of numpy is one of numbers."""
    if isinstance(dtype, np.dtype) and dtype.kind not in "fiu":
        hint = ": give numpy.asarray(x, numpy.float32) if they are numbers" if how else ""
        raise DataError(f"{name} must hold integers or floats, not {dtype}{hint}")
    if len(shape) != 2:
        hint = f": a single vector is a matrix of shape (1, {shape[0]}){how}" if len(shape) == 1 else ""
        raise DataError(f"{name} must be a matrix (N, D), not an array of shape {tuple(shape)}{hint}")
    if shape[1] < 1:
        raise DataError(f"{name} must have at least one column, not the shape {tuple(shape)}")


def check_size(path: Path, size: int, expected: int, promise: str) -> None:
    """Raise DataError unless a file's `size` in bytes is as `expected` by its header, which says `promise`."""
    if size != expected:
        raise DataError(f"{path} is truncated or damaged: it has {size} bytes, its header ({promise}) needs {expected}")


def missing_file(path: str | os.PathLike) -> DataError:
    """The error for a file that does not exist; suggests a file of a similar name in the same folder."""
    hint = suggest_file(path)
    return DataError(f"No such file: {path}" + (f". {hint}" if hint else ""))


def suggest_file(path: str | os.PathLike) -> str:
    """ "Did you mean X?" for a file or folder of a similar name in the same folder, or nothing."""
    wanted, found = Path(str(path)), []
    with suppress(OSError, ValueError), os.scandir(wanted.parent) as entries:
        found = [wanted.parent / entry.name for entry in islice(entries, _MAX_NAMES) if entry.name != wanted.name]
    # Equal suffixes say nothing about the names; but of files that have the same name otherwise, the last is suggested.
    found.sort(key=lambda file: file.suffix == wanted.suffix)
    return suggest(wanted.stem, {file.stem: str(file) for file in found}, 0.75).strip()


def file_size(path: Path, wanted: str = "a file") -> int:
    """Size in bytes of a regular file; DataError for anything else (opening a pipe would block), for `wanted`."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DataError(f"{path} is {kind}: give {wanted}")
    return status.st_size


def read_start(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file, or all where there are fewer."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def map_file(path: Path, dtype: np.dtype, shape: tuple, offset: int = 0, order: Literal["C", "F"] = "C") -> np.ndarray:
    """A read-only memory map of an array in a file; without rows, which cannot be mapped, an empty array.

    Of a remote file what reads rows when they are asked for.
    """
    if shape[0] == 0:
        return np.empty(shape, dtype)
    if not isinstance(path, Path):
        return path.map(dtype, shape, offset, order)
    return np.asarray(np.memmap(path, dtype, "r", offset, shape, order))


class ByName:
    """Stands for a view of a memory map in a pickle: it is pickled as file and place, and unpickled as the view."""

    def __init__(self, view: np.ndarray, mapped: np.memmap):
        path, offset = Path(str(mapped.filename)), mapped.offset + _address(view) - _address(mapped)
        self._arguments = path, file_stamp(path), view.dtype, view.shape, view.strides, offset

    def __reduce__(self):
        return _map_again, self._arguments


def by_name(rows):
    """What to pickle for rows: a ByName for a memory map of a file, also the user's own; else the rows."""
    mapped = _mapped_by(rows) if isinstance(rows, np.ndarray) else None
    if mapped is None or mapped.filename is None or mapped.mode == "c":  # "c": changes are private
        return rows
    return ByName(rows, mapped)


def file_stamp(path: Path, known: tuple[int, int] | None = None) -> tuple[int, int]:
    """Size and time of the last change of a file; DataError where they are not the `known` ones any more."""
    stamp = file_size(path, "a file of vectors"), path.stat().st_mtime_ns
    if known not in (None, stamp):
        raise DataError(f"{path} has changed since it was opened: open it again")
    return stamp


def _map_again(path: Path, stamp: tuple[int, int], dtype: np.dtype, shape: tuple, strides: tuple, offset: int):
    file_stamp(path, stamp)
    return np.ndarray(shape, dtype, map_file(path, np.dtype(np.uint8), stamp[:1]), offset, strides)


def _mapped_by(rows: np.ndarray) -> np.memmap | None:
    """The memory map that an array is a view of, if any."""
    mapped = rows
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    return mapped if isinstance(mapped, np.memmap) and isinstance(mapped.base, mmap.mmap) else None


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def release_pages(rows: np.ndarray) -> None:
    """Release the memory of consecutive rows of a memory map, which can be read again; nothing for other arrays."""
    mapped = _mapped_by(rows)
    if mapped is None or mapped.mode != "r" or rows.size == 0 or rows.strides[0] < rows[0].nbytes:
        return
    assert isinstance(mapped.base, mmap.mmap)
    if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
        return
    begin = _address(rows) - _address(mapped) + mapped.offset % mmap.ALLOCATIONGRANULARITY
    start = begin - begin % mmap.PAGESIZE
    mapped.base.madvise(mmap.MADV_DONTNEED, start, begin + rows.strides[0] * len(rows) - start)
