"""The rows of tables: which column is what, and blocks of ids, vectors and payloads.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

from collections.abc import Iterator

import numpy as np

from qinco.collection.columns import MAX_BYTES, MAX_NUMBERS, SAMPLED_ROWS, Column, choose_columns, is_index
from qinco.collection.payloads import column_values, is_uuid, payloads_of, why_no_json
from qinco.collection.row_source import (
    Asked,
    Ids,
    NamedBlock,
    Part,
    RowSource,
    Vectors,
    given_ids,
    id_fault,
    require_dim,
)
from qinco.collection.tables import Table
from qinco.errors import DataError
from qinco.vectors.arrow import list_type, lists_to_array
from qinco.vectors.block_rows import library
from qinco.vectors.mapped import MAX_DIM
from qinco.vectors.rows import check_finite

_LOOKED_AT_ROWS = 100  # for the sizes of values
_ID_ROWS = 1 << 16


class TableRows(RowSource):
    """The rows of a table; `first_row` is the number of its first row, where ids are row numbers."""

    def __init__(self, table: Table, asked: Asked, first_row: int = 0):
        self._table, self._missing, self._first_row = table, asked.missing, first_row
        if table.num_rows == 0 or not (head := table.head(table.schema.names[:1], 1)) or not len(head[0]):
            raise DataError(f"{table.name} holds no rows")
        super().__init__(table.name, table.num_rows, is_read_once=table.is_read_once)
        named = asked.ids if asked.ids is None or asked.ids is False or isinstance(asked.ids, str) else False
        columns = [self._column(field) for field in table.schema]
        choice = choose_columns(columns, self.name, named, asked.columns, asked.payload, self._id_fault)
        self.id_column, self.parts = choice.id, {one: Part(column) for one, column in choice.vectors.items()}
        self.payload_columns, self.guesses = choice.payload, choice.guesses
        self._ids = None
        if named is False:
            if asked.ids is not False and self.num_rows is None:
                raise DataError(f"{self.name} is read once, and its length is not known: give ids= as a column of it")
            self._ids = given_ids(asked.ids, self.num_rows or 0, self.name)
        self.has_integer_ids = isinstance(self._ids, np.ndarray) if self._ids is not None else (
            choice.id is None or self._is_integer(choice.id))  # fmt: skip
        for one, part in self.parts.items():
            self._look_at_vectors(part, asked.dim_of(one), asked)

    def _is_integer(self, column: str) -> bool:
        from pyarrow import types

        return types.is_integer(self._table.schema.field(column).type)

    def _column(self, field) -> Column:
        """What a column could be, by its type and its first rows."""
        from pyarrow import types

        type, what = field.type, str(field.type)
        if (reason := why_no_json(type)) is not None:
            return Column(field.name, what=reason, left_out=reason, never=True)
        value = type.value_type if types.is_dictionary(type) else type
        texts = ("string", "large_string", "string_view")
        is_text = any(getattr(types, f"is_{kind}", lambda _: False)(value) for kind in texts)
        is_id = types.is_integer(type) or is_text or is_uuid(type)
        found = list_type(type)
        kind = None if found is None else "integers" if found[0].kind in "iu" else "floats"
        left_out = "the index of a frame, which has no name" if is_index(field.name) else self._size_fault(field, kind)
        return Column(field.name, kind, is_id, what, left_out, is_null=types.is_null(type))

    def _size_fault(self, field, kind: str | None) -> str | None:
        """Why a column's values are too large for payloads that nobody asked for, in words for what they are."""
        from pyarrow import types

        if not (types.is_nested(field.type) or types.is_string(field.type) or types.is_large_string(field.type)):
            return None
        arrays = [batch.column(field.name) for batch in self._table.head([field.name], _LOOKED_AT_ROWS)]
        arrays = [array.slice(0, _LOOKED_AT_ROWS) for array in arrays]
        count = max(1, sum(map(len, arrays)))
        with library("pyarrow", "parquet", self.name):
            size = (
                sum(array.get_total_buffer_size() if len(array) == count else array.nbytes for array in arrays) / count
            )
            if kind is not None:
                numbers = sum(len(getattr(array, "storage", array).flatten()) for array in arrays) / count
                return f"lists of {round(numbers)} numbers" if numbers > MAX_NUMBERS else None
        return f"values of {round(size / 1000)} kB on average" if size > MAX_BYTES else None

    def _id_fault(self, column: str) -> str | None:
        if self.is_read_once:
            batches = self._table.head([column], SAMPLED_ROWS)
            if any(batch.column(column).null_count for batch in batches):
                return "it has nulls"
            return id_fault(lambda: (_ids(batch.column(column)) for batch in batches))
        nulls = 0
        for batch in self._table.batches([column], 0, _ID_ROWS):
            if batch.column(column).null_count:
                row = nulls + int(np.argmax(batch.column(column).is_null().to_numpy(zero_copy_only=False)))
                return f"row {row} is null"
            nulls += len(batch)
        return id_fault(lambda: (_ids(batch.column(column)) for batch in self._table.batches([column], 0, _ID_ROWS)))

    def _look_at_vectors(self, part: Part, dim: int | None, asked: Asked) -> None:
        """Find the dimension, and of vectors without names the metric."""
        column = str(part.column)
        name, found = f"{self.name}:{column}", list_type(self._table.schema.field(column).type)
        if found is None:  # all are null
            part.dim = dim or 0
            return
        lists = [_lists(batch.column(column)).drop_null() for batch in self._table.head([column], SAMPLED_ROWS)]
        part.dim = next((found[1] or len(first[0]) for first in lists if len(first)), found[1] or dim or 0)
        if not part.dim and not any(map(len, lists)):
            if asked.has_names:
                return
            raise DataError(f"the first {SAMPLED_ROWS} rows of {name} have no vectors: choose another column")
        _check_dim(part.dim, name)
        require_dim(dim, part.dim, name)
        self._table.check_lists(column, part.dim, asked.missing)
        if not asked.has_names:
            empty = np.empty((0, part.dim), found[0])
            first = [lists_to_array(one, part.dim, found[0], 0, name) for one in lists if len(one)]
            self.guess_metric(np.concatenate([empty, *first])[:SAMPLED_ROWS])

    def _mark(self) -> bytes:
        columns = [str(part.column) for part in self.parts.values()]
        arrays = [_lists(batch.column(column)).drop_null() for column in columns
                  for batch in self._table.head([column], SAMPLED_ROWS)]  # fmt: skip
        pieces = [array.flatten().to_numpy(zero_copy_only=False).tobytes() for array in arrays if len(array)]
        return self._table.mark.encode() + b"".join(pieces)

    def _blocks(self, start: int, rows: int) -> Iterator[NamedBlock]:
        chosen = [*(part.column for part in self.parts.values()), *self.payload_columns]
        chosen += [] if self.id_column is None else [self.id_column]
        for batch in self._table.batches(list(dict.fromkeys(map(str, chosen))), start, rows):
            yield self._block(batch, start)
            start += len(batch)

    def _block(self, batch, start: int) -> NamedBlock:
        count, payloads = len(batch), None
        with library("pyarrow", "parquet", f"{self.name} (rows {start} to {start + count - 1})"):
            if self.id_column is not None:
                column = batch.column(self.id_column)
                if column.null_count:
                    row = start + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                    raise DataError(f"the id of row {row} of {self.name} is null, in the column {self.id_column!r}: "
                                    "remove or repair it")  # fmt: skip
                ids = _ids(column)
            elif self._ids is not None:
                ids = self._ids[start : start + count]
            else:
                ids = np.arange(start, start + count) + self._first_row
            if self.payload_columns:
                columns = [batch.column(name) for name in self.payload_columns]
                payloads = payloads_of(columns, self.payload_columns)
            vectors = {one: self._vectors(part, _lists(batch.column(part.column)), start)
                       for one, part in self.parts.items()}  # fmt: skip
            return ids, vectors, payloads

    def _vectors(self, part: Part, lists, start: int) -> Vectors:
        name = f"{self.name}:{part.column}"
        rows_n = None
        if lists.null_count:
            has_vector_n = lists.is_valid().to_numpy(zero_copy_only=False)
            if not self._missing:
                row = start + int(np.argmin(has_vector_n))
                raise DataError(f"row {row} of {name} is null: remove it, or fill it with a vector")
            rows_n, lists = start + np.flatnonzero(has_vector_n), lists.drop_null()
            found: list[np.ndarray | None] = [None] * len(has_vector_n)
            part.missing += len(found) - len(rows_n)
            if not len(rows_n):
                return found
        if not part.dim:
            part.dim = len(lists[0])
            _check_dim(part.dim, name)
        with np.errstate(over="ignore"):
            vectors_nD = lists_to_array(lists, part.dim, np.float32, start if rows_n is None else rows_n, name)
        check_finite(vectors_nD, start.__add__ if rows_n is None else lambda row: int(rows_n[row]), name)
        if rows_n is None:
            return vectors_nD
        for row, vector_D in zip((rows_n - start).tolist(), vectors_nD, strict=True):
            found[row] = vector_D
        return found


def _check_dim(dim: int, name: str) -> None:
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"vectors of {name} must have 1 to {MAX_DIM} values, not {dim}")


def _lists(array):
    return getattr(array, "storage", array)


def _ids(array) -> Ids:
    """The ids of an Arrow array without nulls."""
    from pyarrow import types

    if types.is_integer(array.type):
        ids_n = array.to_numpy(zero_copy_only=False)
        return ids_n if ids_n.dtype.kind == "u" and ids_n.dtype.itemsize == 8 and (ids_n >> 63).any() else ids_n.astype(
            np.int64, copy=False)  # fmt: skip
    return column_values(array)
