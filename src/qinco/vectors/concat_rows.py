"""Rows that lie in several arrays, one after the other."""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from qinco.vectors.block_rows import BlockRows


class ConcatRows(BlockRows):
    """The rows of several arrays as one: `load(i)` gives array i, which begins at row `starts[i]` and ends at the next.

    Arrays are loaded when they are read; the last one is kept. `name` is what messages call them.
    """

    def __init__(self, load: Callable[[int], np.ndarray], starts: list[int], columns: int, dtype, name: str):
        super().__init__((starts[-1], columns), dtype)
        self._load, self._starts, self.name = load, starts, name

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        number = bisect_right(self._starts, row) - 1
        return self._starts[number], self._load(number)
