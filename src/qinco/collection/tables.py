"""Tables of any kind as batches of Arrow, from any row on: Parquet files, tables in memory, data sets, streams."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from qinco.collection.columns import check_names
from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import library
from qinco.vectors.mapped import file_stamp


class Table(ABC):
    """Rows in columns.

    `num_rows` is None where it is not known; `mark` tells files of different values apart, by their sizes. A table that
    `is_read_once` gives its batches once.
    """

    num_rows: int | None = None
    is_read_once = False
    mark = ""

    def __init__(self, name: str, schema):
        self.name, self.schema = name, schema
        check_names(schema.names, name)

    @abstractmethod
    def batches(self, columns: Sequence[str], start: int, rows: int) -> Iterator:
        """Arrow's record batches of at most `rows` rows, with at least these columns, from the row `start` on."""

    def head(self, columns: Sequence[str], rows: int) -> list:
        """The first rows in batches: at least one row, if there are any, and about `rows`."""
        found = []
        for batch in self.batches(columns, 0, rows):
            found.append(batch)
            if sum(map(len, found)) >= rows:
                break
        return found

    def check_lists(self, column: str, dim: int, missing: bool) -> None:  # noqa: B027 (only files know it before)
        """Raise DataError where lists of a column are known to be of another length, or null unless they may be."""


class MemoryTable(Table):
    """A pyarrow.Table, or the rows of it that `indices` chooses."""

    def __init__(self, name: str, table, indices=None):
        super().__init__(name, table.schema)
        self._table, self._indices = table, indices
        self.num_rows = len(table if indices is None else indices)

    def batches(self, columns: Sequence[str], start: int, rows: int) -> Iterator:
        table = self._table.select(list(columns))
        if self._indices is None:
            yield from table.slice(start).to_batches(max_chunksize=rows)
            return
        for first in range(start, len(self._indices), rows):
            yield from table.take(self._indices.slice(first, rows)).combine_chunks().to_batches()


class ParquetTable(Table):
    """Parquet files of the same columns. One row group is decoded at a time, `rows` rows of it."""

    def __init__(self, name: str, paths: Sequence[Path]):
        self._paths, self._stamps, self._metadata, self._schemas = list(paths), [], [], []
        for path in self._paths:
            self._stamps.append(file_stamp(path))
            if self._stamps[-1][0] == 0:
                raise DataError(f"{path} holds no rows: the file is empty")
            file = self._open(path)
            schema = file.schema_arrow
            is_same = bool(self._schemas) and schema.equals(self._schemas[0])
            self._schemas.append(self._schemas[0] if is_same else schema)
            self._metadata.append(file.metadata)
        super().__init__(name, self._schemas[0])
        self.num_rows = sum(metadata.num_rows for metadata in self._metadata)
        self.mark = str(
            [(size, metadata.num_rows) for (size, _), metadata in zip(self._stamps, self._metadata, strict=True)]
        )

    def _open(self, path: Path) -> Any:
        with library("pyarrow", "parquet", path):
            import pyarrow.parquet

            options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
            return pyarrow.parquet.ParquetFile(path, **options)

    def batches(self, columns: Sequence[str], start: int, rows: int) -> Iterator:
        for path, schema in zip(self._paths, self._schemas, strict=True):
            if missing := [column for column in columns if column not in schema.names]:
                raise DataError(f"{path} has no column {missing[0]!r}, which {self._paths[0]} has: give files of the "
                                "same columns")  # fmt: skip
        for path, metadata, stamp in zip(self._paths, self._metadata, self._stamps, strict=True):
            if start >= metadata.num_rows:
                start -= metadata.num_rows
                continue
            file_stamp(path, stamp)
            file = self._open(path)
            for group in range(metadata.num_row_groups):
                count = metadata.row_group(group).num_rows
                if start < count:
                    with library("pyarrow", "parquet", f"{path} (row group {group})"):
                        yield from _skip(file.iter_batches(rows, [group], list(columns), use_threads=False), start)
                start = max(0, start - count)

    def check_lists(self, column: str, dim: int, missing: bool) -> None:
        first = 0
        for metadata in self._metadata:
            leaves = [leaf for leaf in range(metadata.num_columns)
                      if metadata.schema.column(leaf).path.startswith(f"{column}.")]  # fmt: skip
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                count = group.num_rows
                if len(leaves) != 1:
                    continue
                chunk, nulls = group.column(leaves[0]), 0
                if missing:  # a null list is stored as one null
                    known = chunk.statistics
                    if known is None or not known.has_null_count:
                        continue
                    nulls = known.null_count
                if chunk.num_values != (count - nulls) * dim + nulls:
                    null = "" if missing else "is null, or "
                    where = f"{self.name}: row {first} or one of the next {count}"
                    raise DataError(f"{where} {null}is not of dimension {dim} in the column {column!r}: remove or "
                                    "repair it")  # fmt: skip
                first += count


class DatasetTable(Table):
    """A pyarrow.dataset.Dataset, read fragment by fragment."""

    def __init__(self, name: str, data):
        super().__init__(name, data.schema)
        self._fragments = list(data.get_fragments())
        with library("pyarrow", "parquet", name):
            self._counts = [fragment.count_rows() for fragment in self._fragments]
        self.num_rows = sum(self._counts)
        self.mark = str(self._counts)

    def batches(self, columns: Sequence[str], start: int, rows: int) -> Iterator:
        options: dict = {"use_threads": False, "batch_readahead": 0, "fragment_readahead": 0}
        for fragment, count in zip(self._fragments, self._counts, strict=True):
            if start < count:
                with library("pyarrow", "parquet", self.name):
                    batches = fragment.to_batches(self.schema, columns=list(columns), batch_size=rows, **options)
                    yield from _skip(batches, start)
            start = max(0, start - count)


class StreamTable(Table):
    """Arrow's record batches as they come, once."""

    is_read_once = True

    def __init__(self, name: str, reader):
        super().__init__(name, reader.schema)
        self._reader, self._held = reader, []

    def batches(self, columns: Sequence[str], start: int, rows: int) -> Iterator:
        held, self._held = self._held, []
        for batch in _skip(chain(held, self._read()), start):
            for first in range(0, len(batch), rows):
                yield batch.slice(first, rows)

    def head(self, columns: Sequence[str], rows: int) -> list:
        while sum(map(len, self._held)) < rows and (batch := next(self._read(), None)) is not None:
            self._held.append(batch)
        return self._held

    def _read(self) -> Iterator:
        with library("pyarrow", "parquet", self.name):
            yield from self._reader


def _skip(batches, rows: int) -> Iterator:
    for batch in batches:
        if len(batch) > rows:
            yield batch.slice(rows)
        rows = max(0, rows - len(batch))


def as_table(x, name: str) -> Table | None:
    """A table in memory or a stream of one, of any library; None for anything else."""
    pyarrow = sys.modules.get("pyarrow")  # imported already if x is one of its objects
    if _is_hugging_face(x):
        return MemoryTable(name, x.data.table, None if x._indices is None else x._indices.column(0))
    if pyarrow is not None and isinstance(x, pyarrow.RecordBatch):
        return MemoryTable(name, pyarrow.Table.from_batches([x]))
    if hasattr(x, "get_fragments"):
        return DatasetTable(name, x)
    is_frame = hasattr(x, "columns") and hasattr(x, "__len__")
    if hasattr(x, "iloc") and is_frame:
        check_names(x.columns, name)  # pyarrow would make strings of them
        with library("pyarrow", "parquet", name):
            import pyarrow as arrow

            return MemoryTable(name, arrow.Table.from_pandas(x))
    if isinstance(x, Mapping):
        return MemoryTable(name, _table_of_columns(x, name))
    if hasattr(x, "to_frame") and not is_frame:  # a column
        return None
    if hasattr(x, "__arrow_c_stream__"):
        with library("pyarrow", "parquet", name):
            import pyarrow as arrow

            if isinstance(x, arrow.ChunkedArray):
                return None
            return MemoryTable(name, arrow.table(x)) if is_frame else StreamTable(name, _reader(x, arrow))
    if hasattr(x, "to_reader") or hasattr(x, "__dataframe__"):
        with library("pyarrow", "parquet", name):
            from pyarrow.interchange import from_dataframe

            return StreamTable(name, x.to_reader()) if hasattr(x, "to_reader") else MemoryTable(name, from_dataframe(x))
    return None


def _reader(x, arrow):
    return x if isinstance(x, arrow.RecordBatchReader) else arrow.RecordBatchReader.from_stream(x)


def _is_hugging_face(x) -> bool:
    """Whether x is a datasets.Dataset, told by what it has: the library need not be there."""
    return hasattr(x, "_indices") and hasattr(getattr(x, "data", None), "table")


def _table_of_columns(columns: Mapping, name: str):
    """A batch as a mapping of names to columns, of which some may be matrices of numbers."""
    check_names(columns, name)
    with library("pyarrow", "parquet", name):
        import pyarrow

        arrays = {}
        for label, column in columns.items():
            column = column.numpy(force=True) if hasattr(column, "is_cuda") else column
            if isinstance(column, np.ndarray) and column.ndim == 2:
                values = pyarrow.array(np.ascontiguousarray(column).ravel())
                arrays[label] = pyarrow.FixedSizeListArray.from_arrays(values, column.shape[1])
            else:
                arrays[label] = pyarrow.array(column)
        if len({len(array) for array in arrays.values()}) > 1:
            lengths = ", ".join(f"{label!r} {len(array)}" for label, array in arrays.items())
            raise ConfigError(f"the columns of {name} must be equally long, not {lengths}")
        return pyarrow.table(arrays)
