"""Rows that lie in several arrays, one after the other."""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np


class JoinedRows:
    """The rows of several arrays as one, loaded when they are asked for; the last array used is kept.

    load:   gives array number i
    starts: the first row of each array, and the number of rows at the end
    shape:  (N, columns)     dtype: of all arrays     name: what messages call them

    Slices and arrays of integers from 0 choose rows and give arrays (n, columns).
    """

    def __init__(self, load: Callable[[int], np.ndarray], starts: list[int], columns: int, dtype, name: str):
        self._load, self._starts = load, starts
        self.shape = (starts[-1], columns)
        self.dtype = np.dtype(dtype)
        self.name = name
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        if not isinstance(key, slice):
            return self._gather(np.asarray(key))
        start, stop, step = key.indices(len(self))
        if step != 1:
            return self._gather(np.arange(start, stop, step))
        pieces = []
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            begin, end = self._starts[number], self._starts[number + 1]
            pieces.append(self._array(number)[start - begin : min(stop, end) - begin])
            start = end
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        rows = np.array(self[:])
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def _gather(self, rows_N: np.ndarray) -> np.ndarray:
        if rows_N.ndim != 1 or (rows_N.size and rows_N.dtype.kind not in "iu"):
            raise IndexError(f"rows of {self.name} are chosen by a slice or an array of integers")
        if rows_N.size and not 0 <= rows_N.min() <= rows_N.max() < len(self):
            raise IndexError(f"rows {rows_N.min()} to {rows_N.max()} of {self.name} were asked for: it has {len(self)}")
        gathered = np.empty((len(rows_N), self.shape[1]), self.dtype)
        numbers_N = np.searchsorted(self._starts, rows_N, side="right") - 1
        for number in np.unique(numbers_N):
            here = numbers_N == number
            gathered[here] = self._array(int(number))[rows_N[here] - self._starts[number]]
        return gathered

    def _array(self, number: int) -> np.ndarray:
        last = self._last
        if last is None or last[0] != number:
            self._last = last = (number, self._load(number))
        return last[1]
