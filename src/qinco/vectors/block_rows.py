"""What the readers of HDF5 and Parquet share: which matrix of a file is meant, and rows that come in blocks.

A path may name the matrix after a colon, as in `glove.hdf5:train` or `wiki.parquet:embedding`.
"""

import os
import re
import threading
from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.mapped import StoredRows

BLOCK_BYTES = 1 << 26  # what is unpacked at once, and kept for the next read
TABLE_SUFFIXES = (".hdf5", ".h5", ".parquet")
_LISTED_NAMES, _LISTED_LETTERS, _REASON_LETTERS = 12, 40, 200
_NAMED_TABLE = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, TABLE_SUFFIXES))})):(.+)", re.IGNORECASE | re.DOTALL)


class BlockRows(StoredRows):
    """Rows that are stored in blocks, packed; the block read last is kept, so that reading on unpacks nothing twice.

    Slices and integer arrays, in any order and with repetitions, give fresh arrays. Memory: theirs and two blocks.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype):
        super().__init__(shape, dtype)
        self._start, self._block = 0, np.empty((0, shape[1]), dtype)
        self._lock = threading.Lock()

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            rows = np.arange(*key.indices(len(self)))
        else:
            rows = np.asarray(key, np.int64)
            if ((rows < -len(self)) | (rows >= len(self))).any():
                raise IndexError(f"of the rows {rows} some are not there: there are {len(self)}")
            rows = np.where(rows < 0, rows + len(self), rows)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        chosen = np.empty((len(rows), self.shape[1]), self.dtype)
        done = 0
        with self._lock:
            while done < len(rows):
                self._keep_block(int(rows[done]))
                after = done + int(np.searchsorted(rows[done:], self._start + len(self._block)))
                chosen[order[done:after]] = self._block[rows[done:after] - self._start]
                done = after
        return chosen

    def _keep_block(self, row: int) -> None:
        if not self._start <= row < self._start + len(self._block):
            self._block = self._block[:0].copy()  # its memory is free before the next block takes as much
            self._start, self._block = self._read_block(row)

    @abstractmethod
    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        """The number of the first row of the block that holds `row`, and the block, an array (n, D)."""


def split_table(path: str | os.PathLike) -> tuple[Path, str | None]:
    """The file of a path, and the name after the colon or None; the name of an existing file is never split."""
    text = os.fspath(path)
    named = None if os.path.lexists(text) else _NAMED_TABLE.fullmatch(text)
    return (Path(text), None) if named is None else (Path(named[1]), named[2])


def choose_table(path: Path, names: Collection[str], part: str, kind: str) -> str:
    """The one of a file's matrices (`kind` in messages) to read where none is named: `part`, or else the only one."""
    if part in names:
        return part
    if len(names) == 1:
        return next(iter(names))
    if not names:
        raise DataError(f"{path} holds no {kind}")
    raise DataError(f"{path} holds more than one {kind}: name one of {list_names(names)}, as in {path}:NAME")


def reason(error: Exception) -> str:
    """What a library says is wrong with a file, on one line: its words may come out of the file."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(error)).split()
    return " ".join(words)[:_REASON_LETTERS] or type(error).__name__


def list_names(names: Collection[str]) -> str:
    """The first of some names out of a file, quoted and cut: a file may name things with anything."""
    listed = [repr(name[:_LISTED_LETTERS]) for _, name in zip(range(_LISTED_NAMES), names, strict=False)]
    return ", ".join(listed + ["..."] * (len(names) > _LISTED_NAMES)) or "nothing"
