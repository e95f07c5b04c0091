"""Rows that are read a block at a time, and what the readers of HDF5 and Parquet share."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from qinco.errors import ConfigError, DataError, QincoError
from qinco.forking import new_lock
from qinco.vectors.mapped import StoredRows

BLOCK_BYTES = 1 << 26  # read or decompressed at once, and kept for the next read
_MAX_NAMES, _MAX_NAME_LENGTH, _MAX_REASON_LENGTH = 12, 40, 200


class BlockRows(StoredRows):
    """Rows that are stored in blocks. The last block is kept, so that sequential reads load each block once.

    A slice of consecutive rows of one block is a view of it. Memory: the result and two blocks.
    """

    def __init__(self, shape: tuple[int, int], dtype):
        super().__init__(shape, dtype)
        self._start, self._block = 0, np.empty((0, shape[1]), self.dtype)
        self._lock = new_lock()

    def __getitem__(self, key) -> np.ndarray:
        with self._lock:
            if not isinstance(key, slice):
                return self._gather(np.asarray(key, np.int64))
            wanted = range(len(self))[key]
            if wanted.step == 1 and wanted:
                self._load_block(wanted.start)
                if wanted.stop <= self._start + len(self._block):
                    return self._block[wanted.start - self._start : wanted.stop - self._start]
            return self._gather(np.arange(wanted.start, wanted.stop, wanted.step))

    def _gather(self, rows_N: np.ndarray) -> np.ndarray:
        outside = (rows_N < -len(self)) | (rows_N >= len(self))
        if outside.any():
            raise IndexError(f"row {rows_N[outside][0]} does not exist: there are {len(self)} rows")
        rows_N = np.where(rows_N < 0, rows_N + len(self), rows_N)
        order_N = np.argsort(rows_N, kind="stable")
        rows_N = rows_N[order_N]
        gathered_ND = np.empty((len(rows_N), self.shape[1]), self.dtype)
        done = 0
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


class ConcatRows(BlockRows):
    """The rows of several arrays as one: `load(i)` gives array i, which begins at row `starts[i]` and ends at the next.

    Arrays are loaded when they are read. `name` is what messages call them.
    """

    def __init__(self, load: Callable[[int], np.ndarray], starts: list[int], columns: int, dtype, name: str):
        super().__init__((starts[-1], columns), dtype)
        self._load, self._starts, self.name = load, starts, name

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        number = bisect_right(self._starts, row) - 1
        return self._starts[number], self._load(number)


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
        message = " ".join(ascii(str(error))[1:-1].split())[:_MAX_REASON_LENGTH]  # it may quote the file
        raise DataError(f"{name} cannot be read by {package}, it may be damaged: {message}") from error


def choose_part(path: Path, names: Collection[str], part: str, kind: str) -> str:
    """The default matrix of a file: `part` if present, otherwise the only one; `kind` is what messages call them."""
    if part not in names and len(names) > 1:
        raise DataError(f"{path} holds more than one {kind}: choose {list_names(names)}, as in {path}:NAME")
    if not names:
        raise DataError(f"{path} holds no {kind}")
    return part if part in names else next(iter(names))


def list_names(names: Collection[str]) -> str:
    """The first few of a file's names, quoted and cut: a file may hold any names."""
    listed = [repr(name[:_MAX_NAME_LENGTH]) for name in islice(names, _MAX_NAMES)]
    return ", ".join(listed) + ", ..." * (len(names) > _MAX_NAMES)
