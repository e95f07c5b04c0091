"""Ids that are strings. Lists and searches hold row numbers, and an index keeps the string of each row beside them.

In a folder they are two arrays, which are mapped: the UTF-8 bytes of all strings, and where each of them ends.
Shape suffixes: N strings, B bytes of all of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qinco.errors import DataError
from qinco.progress import Progress, silent
from qinco.store.folder import FolderWriter
from qinco.vectors.id_columns import IdColumn

_TEXT, _ENDS, _BLOCK_ROWS = "name_text", "name_ends", 1 << 16


class Names:
    """The strings of an index by row number.

    Args:
        text_B: uint8 (B,).
        ends_N: int64 (N,), ascending.

    Example:
        >>> distances, ids = index.search(queries, k=10)
        >>> index.names[ids]  # objects (Q, 10): strings, and None where ids are -1
    """

    def __init__(self, text_B: np.ndarray, ends_N: np.ndarray):
        self._text_B, self._ends_N = text_B, ends_N
        self.nbytes = text_B.nbytes + ends_N.nbytes

    def __len__(self) -> int:
        return len(self._ends_N)

    def __getitem__(self, rows) -> Any:
        """The string of a row, or strings of a slice or of row numbers of any shape; None for -1."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        found = np.empty(rows.shape, object)
        for place, row in np.ndenumerate(rows):
            found[place] = self._name(int(row))
        return found if rows.ndim else found[()]

    def _name(self, row: int) -> str | None:
        if row == -1:
            return None
        if not 0 <= row < len(self):
            raise DataError(f"row {row} has no string: there are {len(self):,}")
        begin, end = int(self._ends_N[row - 1]) if row else 0, int(self._ends_N[row])
        try:
            return self._text_B[begin:end].tobytes().decode()
        except UnicodeDecodeError:
            raise DataError(f"the string of row {row} is damaged") from None


def put_names(writer: FolderWriter, names: Names | IdColumn, report: Progress = silent) -> None:
    """Write strings to the folder of an index, in 8 bytes of memory each."""
    ends_N = np.empty(len(names), np.int64)
    for first, encoded in _blocks(names):
        ends_N[first : first + len(encoded)] = [len(one) for one in encoded]
        report("writing ids", first + len(encoded), 2 * len(names), "id")
    np.cumsum(ends_N, out=ends_N)
    writer.put(_ENDS, ends_N)
    with writer.stream(_TEXT, np.uint8, (int(ends_N[-1]) if len(ends_N) else 0,)) as file:
        for first, encoded in _blocks(names):
            file.write(b"".join(encoded))
            report("writing ids", len(names) + first + len(encoded), 2 * len(names), "id")


def read_names(arrays: dict[str, np.ndarray], count: int, path: Path) -> Names | None:
    """The strings in the arrays of an index whose row numbers are below `count`; None if it has none."""
    if _ENDS not in arrays:
        return None
    ends_N, text_B = arrays[_ENDS], arrays.get(_TEXT, np.empty((0, 0), np.uint8))
    is_whole = ends_N.ndim == 1 and ends_N.dtype == np.int64 and text_B.ndim == 1 and text_B.dtype == np.uint8
    if not is_whole or len(ends_N) < count or (len(ends_N) and ends_N[-1] != len(text_B)):
        raise DataError(f"{path} is damaged: its {_TEXT} and {_ENDS} are not strings of {count:,} rows")
    return Names(text_B, ends_N)


def _blocks(names: Names | IdColumn) -> Iterator[tuple[int, list[bytes]]]:
    for first in range(0, len(names), _BLOCK_ROWS):
        yield first, [one.encode() for one in names[first : first + _BLOCK_ROWS]]
