"""Rows that are read a block at a time, and what the readers of HDF5 and Parquet share."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from qinco.errors import DataError, QincoError, needs_extra
from qinco.forking import new_lock
from qinco.vectors.mapped import Rows, StoredRows, by_name

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

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None, "_start": 0, "_block": self._block[:0].copy()}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _lock=new_lock())

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
        def read(row: int) -> tuple[int, np.ndarray]:
            self._load_block(row)
            return self._start, self._block

        return gather(self, rows_N, read)

    def _load_block(self, row: int) -> None:
        if not self._start <= row < self._start + len(self._block):
            self._block = self._block[:0].copy()  # free its memory before the next block takes as much
            self._start, self._block = self._read_block(row)

    @abstractmethod
    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        """The number of the first row of the block that holds `row`, and the block, an array (n, D)."""


class ConcatRows(StoredRows):
    """The rows of several arrays as one: `load(i)` gives array i, which begins at row `starts[i]` and ends at the next.

    Arrays, or rows of files, are loaded when they are read, and the last one is kept. Rows of one part are a view.
    `name` is what messages call them.
    """

    def __init__(self, load: Callable[[int], Rows], starts: list[int], columns: int, dtype, name: str = ""):
        super().__init__((starts[-1], columns), dtype)
        self._load, self._starts, self.name = load, starts, name
        self._part = lru_cache(1)(load)

    def __reduce__(self):
        return ConcatRows, (self._load, self._starts, self.shape[1], self.dtype, self.name)

    def __getitem__(self, key) -> np.ndarray:
        wanted = range(len(self))[key] if isinstance(key, slice) else None
        if wanted is None or wanted.step != 1:
            rows_N = np.asarray(key, np.int64) if wanted is None else np.arange(wanted.start, wanted.stop, wanted.step)
            return gather(self, rows_N, self._find)
        row, pieces = wanted.start, []
        while row < wanted.stop:
            start, part = self._find(row)
            pieces.append(part[row - start : wanted.stop - start])
            row += len(pieces[-1])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty((0, self.shape[1]), self.dtype), *pieces], dtype=self.dtype)

    def _find(self, row: int) -> tuple[int, Rows]:
        number = bisect_right(self._starts, row) - 1
        return self._starts[number], self._part(number)


class SlicedRows(BlockRows):
    """The rows of an array that is read by slices, such as a data set of h5py, zarr or dask.

    They are read in blocks of whole chunks, of `chunk_rows`, where these are small enough.
    """

    def __init__(self, array, block_bytes: int = BLOCK_BYTES, chunk_rows: int = 1):
        super().__init__(array.shape, array.dtype)
        rows = max(1, block_bytes // (array.shape[1] * self.dtype.itemsize))
        self._array, self._rows = array, rows - rows % min(rows, chunk_rows)

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        start = row - row % self._rows
        return start, np.asarray(self._array[start : start + self._rows])


def concat_rows(parts: Iterable[Rows], names: Sequence[str], load: Callable[[int], Rows], name: str = "") -> ConcatRows:
    """Matrices of one dimension as one; raises DataError where they differ. `load(i)` gives part i again."""
    starts, dims, dtypes = [0], [], set()
    for part, other in zip(parts, names, strict=True):
        starts.append(starts[-1] + part.shape[0])
        dims.append(part.shape[1])
        dtypes.add(part[:0].dtype)
        if dims[-1] != dims[0]:
            dim = f"{dims[0]}, that of {names[0]}, not {dims[-1]}"
            raise DataError(f"{other} must have dimension {dim}: only vectors of one dimension can be joined")
    return ConcatRows(load, starts, dims[0], np.result_type(*dtypes), name)


class Parts(list):
    """Matrices in memory, which `ConcatRows` calls for; memory maps among them are pickled by name."""

    def __call__(self, number: int) -> Rows:
        return self[number]

    def __reduce__(self):
        return Parts, ([by_name(part) for part in self],)


def gather(rows: StoredRows, rows_N: np.ndarray, read: Callable[[int], tuple[int, Rows]]) -> np.ndarray:
    """Rows in any order; `read(row)` gives the block that holds a row, and the number of its first row."""
    outside = (rows_N < -len(rows)) | (rows_N >= len(rows))
    if outside.any():
        raise IndexError(f"row {rows_N[outside][0]} does not exist: N is {len(rows)}")
    rows_N = np.where(rows_N < 0, rows_N + len(rows), rows_N)
    order_N = np.argsort(rows_N, kind="stable")
    rows_N = rows_N[order_N]
    gathered_ND = np.empty((len(rows_N), rows.shape[1]), rows.dtype)
    done = 0
    while done < len(rows_N):
        start, block = read(int(rows_N[done]))
        end = done + int(np.searchsorted(rows_N[done:], start + block.shape[0]))
        gathered_ND[order_N[done:end]] = block[rows_N[done:end] - start]
        done = end
    return gathered_ND


@contextmanager
def library(package: str, extra: str, name) -> Iterator[None]:
    """Turn what a file library raises (nearly anything, where a file is damaged) into an error that names the file."""
    try:
        with needs_extra(str(name), package, extra):
            yield
    except QincoError:
        raise
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
