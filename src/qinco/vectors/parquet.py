"""Parquet files with a column of lists of numbers, one list per vector, read by pyarrow in batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.arrow import check_length, choose_column, first_length, lists_to_array
from qinco.vectors.block_rows import BlockRows, library
from qinco.vectors.mapped import Format

_BATCH_BYTES = 1 << 24  # decoding takes several times as much


class ParquetRows(BlockRows):
    """The rows of a column of lists. A row group is decoded from its start: going back decodes it again."""

    def __init__(self, name: str, column: str, file, sizes: list[int], dim: int, dtype, batch_bytes: int):
        super().__init__((sum(sizes), dim), dtype)
        self._name, self._column, self._file = name, column, file
        self._batch_rows = max(1, batch_bytes // (dim * self.dtype.itemsize + 4))
        self._first_rows = np.cumsum([0, *sizes])
        self._next_row, self._end, self._blocks = 0, -1, iter(())  # of the row group that is being decoded

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        if not self._next_row <= row < self._end:
            group = int(np.searchsorted(self._first_rows, row, "right")) - 1
            self._next_row, self._end = map(int, self._first_rows[group : group + 2])
            self._blocks = self._decode(group)
        end, self._end = self._end, -1  # after an exception the next call begins again
        for start, block in self._blocks:
            self._next_row = start + len(block)
            if row < self._next_row <= end:
                self._end = end
                return start, block
        raise DataError(f"{self._name} is damaged: row {row} is missing")

    def _decode(self, group: int) -> Iterator[tuple[int, np.ndarray]]:
        start = int(self._first_rows[group])
        with library("pyarrow", "parquet", f"{self._name} (row group {group})"):
            for batch in self._file.iter_batches(self._batch_rows, [group], [self._column], use_threads=False):
                lists = batch.column(self._column)
                lists.validate(full=True)
                yield start, lists_to_array(lists, self.shape[1], self.dtype, start, self._name)
                start += len(lists)


def open_parquet(path: Path, size: int, name: str | None, part: str, batch_bytes: int = _BATCH_BYTES) -> ParquetRows:
    """A column of lists of integers or floats of a Parquet file of `size` bytes, decoded `batch_bytes` at a time.

    Without a `name` it is the column `part`, or else the only one of its kind.
    """
    with library("pyarrow", "parquet", path):
        import pyarrow.parquet

        opened = path if isinstance(path, Path) else path.open()
        file = pyarrow.parquet.ParquetFile(
            opened, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        )
        name, dtype, dim = choose_column(path, file.schema_arrow, name, part)
        where = f"{path}:{name}"
        leaves = [leaf for leaf in range(len(file.schema)) if file.schema.column(leaf).path.startswith(f"{name}.")]
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        chunks, sizes = [group.column(leaves[0]) for group in groups], [group.num_rows for group in groups]
        if len(leaves) != 1 or sum(chunk.total_compressed_size for chunk in chunks) > size or min(sizes, default=0) < 0:
            raise DataError(f"{where} is damaged, or the name of several columns")
        if not sum(sizes):
            raise DataError(f"{where} holds no rows")
        if dim is None:  # the length of the first list
            dim = first_length(next(file.iter_batches(1, columns=[name], use_threads=False)).column(0))
        check_length(dim, where)
        for group, (chunk, count) in enumerate(zip(chunks, sizes, strict=True)):
            if chunk.num_values != count * dim:
                row = sum(sizes[:group])
                raise DataError(f"{where}: row {row} or one of the next {count} is not of dimension {dim}")
        return ParquetRows(where, name, file, sizes, dim, dtype, batch_bytes)


FORMATS = (Format((".parquet",), open_parquet, has_parts=True),)
