"""Rows that lie in several arrays, one after the other."""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from qinco.vectors.block_rows import BlockRows


class JoinedRows(BlockRows):
    """The rows of several arrays as one. Arrays are loaded when they are read; the last one is kept.

    Args:
        load: gives array number i.
        starts: the first row of each array, and the number of rows at the end.
        columns: number of columns.
        dtype: of all arrays.
        name: what messages call them.
    """

    def __init__(self, load: Callable[[int], np.ndarray], starts: list[int], columns: int, dtype, name: str):
        super().__init__((starts[-1], columns), dtype)
        self._load, self._starts = load, starts
        self.name = name

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        number = bisect_right(self._starts, row) - 1
        return self._starts[number], self._load(number)
