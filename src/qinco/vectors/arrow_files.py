"""Arrow's files (Feather) and streams, as Hugging Face's datasets write them, with a column of lists of numbers."""

from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.arrow import check_length, choose_column, first_length, lists_to_array
from qinco.vectors.block_rows import BlockRows, library
from qinco.vectors.mapped import Format


class ArrowRows(BlockRows):
    """The rows of a column of lists, in record batches that are memory-mapped, or read when they are asked for."""

    def __init__(self, name: str, column: str, batches, sizes: list[int], dim: int, dtype: np.dtype):
        super().__init__((sum(sizes), dim), dtype)
        self._name, self._column, self._batches = name, column, batches
        self._first_rows = np.cumsum([0, *sizes])

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        number = int(np.searchsorted(self._first_rows, row, "right")) - 1
        start = int(self._first_rows[number])
        with library("pyarrow", "parquet", f"{self._name} (batch {number})"):
            lists = self._batches(number).column(self._column)
            lists.validate(full=True)
            return start, lists_to_array(lists, self.shape[1], self.dtype, start, self._name)


def open_arrow(path: Path, size: int, name: str | None, part: str) -> ArrowRows:
    """A column of lists of integers or floats of an Arrow file or stream, chosen as of a Parquet file."""
    with library("pyarrow", "parquet", path):
        import pyarrow
        import pyarrow.ipc

        source = pyarrow.memory_map(str(path)) if isinstance(path, Path) else path.open()
        try:
            reader = pyarrow.ipc.open_file(source)
            batches, sizes = reader.get_batch, [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_stream(source)
            several = list(reader)
            batches, sizes = several.__getitem__, [batch.num_rows for batch in several]
        name, dtype, dim = choose_column(path, reader.schema, name, part)
        where = f"{path}:{name}"
        if not sum(sizes):
            raise DataError(f"{where} holds no rows")
        if dim is None:
            dim = first_length(batches(next(number for number, count in enumerate(sizes) if count)).column(name))
        check_length(dim, where)
        return ArrowRows(where, name, batches, sizes, dim, dtype)


FORMATS = (Format((".arrow", ".feather"), open_arrow, has_parts=True),)
