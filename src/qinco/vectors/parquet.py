"""Parquet files with a column of lists of numbers, one list per vector, read by pyarrow in batches."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import BlockRows, choose_part, list_names, reason
from qinco.vectors.mapped import MAX_DIM, Format

_BATCH_BYTES = 1 << 24  # decoding takes several times as much


class ParquetRows(BlockRows):
    """The rows of a column of lists; a list of another length and a null raise DataError when they are read.

    A row group is decoded from its start: sequential reads decode nothing twice, going back decodes the group again.
    `name` is for messages, `file` an open ParquetFile, `sizes` the rows of each row group.
    """

    def __init__(self, name: str, column: str, file, sizes: list[int], dim: int, dtype, batch_bytes: int):
        super().__init__((sum(sizes), dim), dtype)
        self._name, self._column, self._file = name, column, file
        self._batch_rows = max(1, batch_bytes // (dim * self.dtype.itemsize + 4))
        self._first_rows = np.array([0, *itertools.accumulate(sizes)], np.int64)
        self._group, self._next_row, self._batches = -1, 0, iter(())

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        group = int(np.searchsorted(self._first_rows, row, "right")) - 1
        if group != self._group or row < self._next_row:
            self._group, self._next_row = group, int(self._first_rows[group])
            self._batches = self._read_batches(group)
        try:
            while True:
                start, lists = self._next_row, next(self._batches, None)
                if lists is None or start + len(lists) > self._first_rows[group + 1]:
                    raise DataError(f"{self._name} is damaged: row group {group} has not as many rows as it states")
                self._next_row += len(lists)
                if row < self._next_row:
                    return start, self._to_array(lists, start)
        except DataError:
            self._group = -1  # the next call begins again
            raise

    def _read_batches(self, group: int) -> Iterator:
        try:
            for batch in self._file.iter_batches(self._batch_rows, [group], [self._column], use_threads=False):
                lists = batch.column(self._column)
                lists.validate(full=True)
                yield lists
        except Exception as error:  # pyarrow raises nearly anything where a file is damaged
            raise DataError(f"{self._name} is damaged in row group {group}: {reason(error)}") from error

    def _to_array(self, lists, start: int) -> np.ndarray:
        """Lists of numbers as an array (n, D); `start` is the row of the first one."""
        if lists.null_count:
            raise DataError(f"row {start + _first_null(lists)} of {self._name} is null: remove it")
        lengths, dim = np.asarray(lists.value_lengths()), self.shape[1]
        if (lengths != dim).any():
            row = np.argmax(lengths != dim)
            raise DataError(f"row {start + row} of {self._name} has {lengths[row]} values, others have {dim}")
        values = lists.flatten()
        if values.null_count:
            row, position = divmod(_first_null(values), dim)
            raise DataError(f"row {start + row} of {self._name} holds a null in column {position}: remove or repair it")
        return values.to_numpy().reshape(-1, dim).astype(self.dtype, copy=False)


def open_parquet(path: Path, size: int, name: str | None, part: str, batch_bytes: int = _BATCH_BYTES) -> ParquetRows:
    """Open a column of lists of integers or floats of a Parquet file of `size` bytes, read `batch_bytes` at a time.

    Without a `name` it is the column `part`, or else the only one of its kind. Raises DataError where the file is
    damaged, has no such column, or lists of differing lengths as far as its footer tells; ConfigError without pyarrow.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path} needs the package pyarrow: pip install 'qinco[parquet]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
        columns, metadata = _list_columns(file.schema_arrow), file.metadata
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    except Exception as error:
        raise DataError(f"{path} is not a Parquet file, or is damaged: {reason(error)}") from error
    if name is None:
        name = choose_part(path, columns, part, "column of lists of numbers")
    elif name not in columns:
        raise DataError(f"{path} holds no column {name!r} of lists of numbers, but {list_names(columns) or 'none'}")
    own = [number for number, leaf in enumerate(leaves) if leaf.startswith(f"{name}.")]
    chunks, sizes = [group.column(own[0]) for group in groups], [group.num_rows for group in groups]
    stored_bytes = sum(chunk.total_compressed_size for chunk in chunks)
    where, (dtype, dim) = f"{path}:{name}", columns[name]
    if len(own) != 1 or stored_bytes > size or min(sizes, default=0) < 0:
        raise DataError(f"{where} is damaged, or the name of several columns")
    if not sum(sizes):
        raise DataError(f"{where} holds no rows")
    try:
        if dim is None:  # the length of the first list
            first = next(file.iter_batches(1, columns=[name], use_threads=False)).column(0)
            dim = first.value_lengths()[0].as_py() or 0
    except Exception as error:
        raise DataError(f"{where} is damaged: {reason(error)}") from error
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"row 0 of {where} has {dim} values: it must have between 1 and {MAX_DIM}")
    for group, (chunk, count) in enumerate(zip(chunks, sizes, strict=True)):
        if chunk.num_values != count * dim:
            first = sum(sizes[:group])
            raise DataError(
                f"{where} has vectors of other dimensions than {dim} in rows {first} to {first + count - 1}"
            )
    return ParquetRows(where, name, file, sizes, dim, dtype, batch_bytes)


def _list_columns(schema) -> dict[str, tuple[np.dtype, int | None]]:
    """The type of the numbers, and D where the schema says it, of each column of lists of numbers."""
    from pyarrow import types

    columns = {}
    for field in schema:
        kind = field.type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if is_list and (types.is_integer(kind.value_type) or types.is_floating(kind.value_type)):
            dim = kind.list_size if types.is_fixed_size_list(kind) else None
            columns[field.name] = np.dtype(kind.value_type.to_pandas_dtype()), dim
    return columns


def _first_null(array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))


FORMATS = (Format((".parquet",), open_parquet, has_parts=True),)
