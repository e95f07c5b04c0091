"""Parquet files with a column of lists of numbers, one list a vector, read by pyarrow a piece at a time."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import BlockRows, choose_table, list_names, reason
from qinco.vectors.mapped import MAX_DIM
from qinco.vectors.parquet_layout import ColumnChunk, check_chunks, check_pages, read_layout

_BATCH_BYTES = 1 << 24  # unpacking takes several times as much


class ParquetRows(BlockRows):
    """The rows of a column of lists; those of other lengths than the first, and nulls, raise DataError when read.

    path, column, dim: the file, the column, and D
    dtype:   of the values
    file:    an open pyarrow ParquetFile
    chunks:  the column's, one for each row group

    A row group is unpacked from its start: reading forward costs nothing twice, going back begins the group again.
    """

    def __init__(self, path: Path, column: str, dim: int, dtype, file, chunks: list[ColumnChunk]):
        counts = [chunk.num_rows for chunk in chunks]
        super().__init__((sum(counts), dim), dtype)
        self.path = path
        self._name, self._column, self._file, self._chunks = f"{path}:{column}", column, file, chunks
        self._first_rows = np.array([0, *itertools.accumulate(counts)], np.int64)
        self._group, self._next_row, self._batches = None, 0, iter(())

    def check_lengths(self) -> None:
        """Raise DataError for a row of another length that the footer betrays, without reading the others."""
        for group, chunk in enumerate(self._chunks):
            if chunk.num_values != chunk.num_rows * self.shape[1]:
                row = self._first_rows[group]
                while row < self._first_rows[group + 1]:
                    self._keep_block(row)
                    row = self._start + len(self._block)
                raise DataError(f"{self._name} is damaged: the footer contradicts row group {group}")

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        group = int(np.searchsorted(self._first_rows, row, "right")) - 1
        if group != self._group or row < self._next_row:
            self._begin(group)
        while True:
            start = self._next_row
            lists = next(self._batches, None)
            if lists is None or start + len(lists) > self._first_rows[group + 1]:
                self._group = None
                raise DataError(f"{self._name} is damaged: row group {group} has not the rows that it promises")
            self._next_row += len(lists)
            if row < self._next_row:
                return start, self._to_array(lists, start)

    def _begin(self, group: int) -> None:
        self._group = None  # where the rest fails, the next call begins again
        check_pages(self.path, self._chunks[group])
        at_once = max(1, _BATCH_BYTES // (self.shape[1] * self.dtype.itemsize + 4))
        self._batches = self._read_batches(group, min(at_once, self._chunks[group].num_rows))
        self._group, self._next_row = group, int(self._first_rows[group])

    def _read_batches(self, group: int, size: int) -> Iterator:
        try:
            for batch in self._file.iter_batches(size, [group], [self._column], use_threads=False):
                lists = batch.column(self._column)
                lists.validate(full=True)
                yield lists
        except Exception as error:  # pyarrow raises nearly anything where a file is damaged
            raise DataError(f"{self._name} is damaged in row group {group}: {reason(error)}") from error

    def _to_array(self, lists, start: int) -> np.ndarray:
        """Lists of numbers as an array (n, D); `start` is the row of the first one."""
        if lists.null_count:
            raise DataError(f"row {start + _first_null(lists)} of {self._name} is null: remove it")
        lengths = np.asarray(lists.value_lengths())
        wrong = lengths != self.shape[1]
        if wrong.any():
            # D is the footer's mean where nothing else says it: all are wrong where it is not the usual length.
            expected = lengths[0] if wrong.all() and (lengths != lengths[0]).any() else self.shape[1]
            row = np.argmax(lengths != expected)
            raise DataError(
                f"row {start + row} of {self._name} has {lengths[row]} values where {expected} are expected: the "
                "vectors of a file have one dimension"
            )
        values = lists.flatten()
        if values.null_count:
            row, position = divmod(_first_null(values), self.shape[1])
            raise DataError(f"row {start + row} of {self._name} holds a null in column {position}: remove or repair it")
        array = values.to_numpy()
        if array.dtype != self.dtype:
            raise DataError(f"{self._name} is damaged: its values are {array.dtype} and not {self.dtype}")
        return array.reshape(-1, self.shape[1])


def open_parquet(path: Path, size: int, name: str | None, part: str) -> ParquetRows | np.ndarray:
    """Open a column of lists of integers or floats of a Parquet file of `size` bytes.

    name: of the column; None for `part`, or else the only such column of the file

    Raises DataError where the file is damaged, has no such column or no one, or holds lists of differing lengths as
    far as its footer tells; ConfigError without the package pyarrow.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path} needs the package pyarrow: pip install 'qinco[parquet]'") from error
    groups = read_layout(path, size)  # before pyarrow sees it
    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
        columns = _list_columns(file.schema_arrow)
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    except Exception as error:
        raise DataError(f"{path} is not a Parquet file, or a damaged one: {reason(error)}") from error
    if name is None:
        name = choose_table(path, columns, part, "column of lists of numbers")
    elif name not in columns:
        raise DataError(f"{path} holds no column {name!r} of lists of numbers, but {list_names(columns)}")
    mine = [number for number, leaf in enumerate(leaves) if leaf.startswith(f"{name}.")]
    if len(mine) != 1 or any(len(group) != len(leaves) for group in groups):
        raise DataError(f"{path} is damaged, or has more than one column of the name {name!r}")
    where, chunks = f"{path}:{name}", [group[mine[0]] for group in groups]
    check_chunks(path, size, chunks)
    dtype, dim = columns[name]
    if dim is None:
        dim = next((round(chunk.num_values / chunk.num_rows) for chunk in chunks if chunk.num_rows), 0)
    if not any(chunk.num_rows for chunk in chunks):
        raise DataError(f"{where} holds no rows")
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"{where} is damaged: its footer claims dimension {dim}")
    rows = ParquetRows(path, name, dim, dtype, file, chunks)
    rows.check_lengths()
    return rows


def _list_columns(schema) -> dict[str, tuple[np.dtype, int | None]]:
    """The type of the numbers, and D where the type says it, of each column of lists of numbers."""
    from pyarrow import types

    columns = {}
    for field in schema:
        kind, dim = field.type, None
        if types.is_fixed_size_list(kind):
            dim = kind.list_size
        elif not (types.is_list(kind) or types.is_large_list(kind)):
            continue
        if types.is_integer(kind.value_type) or types.is_floating(kind.value_type):
            columns[field.name] = np.dtype(kind.value_type.to_pandas_dtype()), dim
    return columns


def _first_null(array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
