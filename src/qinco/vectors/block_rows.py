"""Rows that are read a block at a time, and what the readers of HDF5 and Parquet share."""

import threading
from abc import abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qinco.errors import ConfigError, DataError, QincoError
from qinco.vectors.mapped import StoredRows

BLOCK_BYTES = 1 << 26  # read or decompressed at once, and kept for the next read
_LISTED_NAMES, _LISTED_LETTERS, _REASON_LETTERS = 12, 40, 200


class BlockRows(StoredRows):
    """Rows that are stored in blocks. The last block is kept, so that sequential reads load each block once.

    A slice of consecutive rows of one block is a view of it; other keys give fresh arrays. Memory: the result and two
    blocks.
    """

    def __init__(self, shape: tuple[int, int], dtype):
        super().__init__(shape, dtype)
        self._start, self._block = 0, np.empty((0, shape[1]), self.dtype)
        self._lock = threading.Lock()

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            bounds = key.indices(len(self))
            if bounds[2] == 1:
                return self._read_slice(*bounds[:2])
            return self._gather(np.arange(*bounds))
        rows_N = np.asarray(key)
        if rows_N.ndim != 1 or (rows_N.size and rows_N.dtype.kind not in "iu"):
            raise IndexError("rows are chosen by a slice or an array of integers")
        outside = (rows_N < -len(self)) | (rows_N >= len(self))
        if outside.any():
            raise IndexError(f"row {rows_N[outside][0]} does not exist: there are {len(self)} rows")
        rows_N = rows_N.astype(np.int64)
        return self._gather(np.where(rows_N < 0, rows_N + len(self), rows_N))

    def _read_slice(self, start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.empty((0, self.shape[1]), self.dtype)
        with self._lock:
            self._load_block(start)
            if stop <= self._start + len(self._block):
                return self._block[start - self._start : stop - self._start]
        return self._gather(np.arange(start, stop))

    def _gather(self, rows_N: np.ndarray) -> np.ndarray:
        order_N = np.argsort(rows_N, kind="stable")
        rows_N = rows_N[order_N]
        gathered_ND = np.empty((len(rows_N), self.shape[1]), self.dtype)
        done = 0
        with self._lock:
            while done < len(rows_N):
                self._load_block(int(rows_N[done]))
                end = done + int(np.searchsorted(rows_N[done:], self._start + len(self._block)))
                gathered_ND[order_N[done:end]] = self._block[rows_N[done:end] - self._start]
                done = end
        return gathered_ND

    def _load_block(self, row: int) -> None:
        if not self._start <= row < self._start + len(self._block):
            self._block = self._block[:0].copy()  # free its memory before the next block takes as much
            self._start, self._block = self._read_block(row)

    @abstractmethod
    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        """The number of the first row of the block that holds `row`, and the block, an array (n, D)."""


@contextmanager
def library(package: str, extra: str, name) -> Iterator[None]:
    """Turn what a file library raises (nearly anything, where a file is damaged) into an error that names the file."""
    try:
        yield
    except QincoError:
        raise
    except ImportError as error:
        raise ConfigError(f"{name} needs the package {package}: pip install 'qinco[{extra}]'") from error
    except Exception as error:
        raise DataError(f"{name} cannot be read by {package}, it may be damaged: {reason(error)}") from error


def choose_part(path: Path, names: Collection[str], part: str, kind: str) -> str:
    """The default matrix of a file: `part` if present, otherwise the only one; `kind` is what messages call them."""
    if part in names:
        return part
    if len(names) == 1:
        return next(iter(names))
    if not names:
        raise DataError(f"{path} holds no {kind}")
    raise DataError(f"{path} holds more than one {kind}: choose {list_names(names)}, as in {path}:NAME")


def reason(error: Exception) -> str:
    """A library's message about a file, on one line and of bounded length: it may quote the file."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(error)).split()
    return " ".join(words)[:_REASON_LETTERS] or type(error).__name__


def list_names(names: Collection[str]) -> str:
    """The first few of a file's names, quoted and cut: a file may hold any names."""
    listed = [repr(name[:_LISTED_LETTERS]) for _, name in zip(range(_LISTED_NAMES), names, strict=False)]
    return " or ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]])) + ", ..." * (len(names) > _LISTED_NAMES)
