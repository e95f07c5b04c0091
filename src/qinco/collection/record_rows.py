"""Rows that are dicts: of a list, or of the lines of a JSON Lines file.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from qinco.collection.columns import MAX_NUMBERS, SAMPLED_ROWS, Column, choose_columns
from qinco.collection.payloads import json_object
from qinco.collection.records import record_ids
from qinco.collection.row_source import (
    Asked,
    NamedBlock,
    Part,
    RowSource,
    Vectors,
    given_ids,
    id_fault,
    require_dim,
)
from qinco.errors import DataError
from qinco.vectors.mapped import MAX_DIM, file_stamp
from qinco.vectors.rows import check_finite

_BLOCK_ROWS = 4096
_CHUNK_BYTES = 1 << 20


class Records(ABC):
    """Dicts that can be read from any row on; `num_rows` is None where it is not known."""

    name: str
    num_rows: int | None = None
    mark = ""

    @abstractmethod
    def read(self, start: int) -> Iterator[Mapping]:
        """The dicts from a row on."""


class ListedRecords(Records):
    """Dicts in a list."""

    def __init__(self, name: str, records: Sequence[Mapping]):
        self.name, self._records, self.num_rows = name, records, len(records)

    def read(self, start: int) -> Iterator[Mapping]:
        return (self._records[row] for row in range(start, len(self._records)))


class JsonLines(Records):
    """A file with a JSON object a line."""

    def __init__(self, path: Path):
        self.name, self._path, self._stamp = str(path), path, file_stamp(path)
        self.num_rows, self.mark = None, str(self._stamp[0])
        if self._stamp[0] == 0:
            raise DataError(f"{path} holds no rows: the file is empty")

    def read(self, start: int) -> Iterator[Mapping]:
        file_stamp(self._path, self._stamp)
        with self._path.open("rb", _CHUNK_BYTES) as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            for number, line in islice(lines, start, None):
                try:
                    found = json.loads(line)
                except ValueError as error:
                    raise DataError(f"line {number} of {self.name} is no JSON: {error}") from None
                if not isinstance(found, dict):
                    raise DataError(f"line {number} of {self.name} is {found!r:.40}: each line must be an object")
                yield found


class RecordRows(RowSource):
    """The rows of records. Fields that only some of them have are part of the payload, too."""

    def __init__(self, records: Records, asked: Asked, first_row: int = 0):
        self._records, self._missing, self._first_row = records, asked.missing, first_row
        head = list(islice(records.read(0), SAMPLED_ROWS))
        if not head:
            raise DataError(f"{records.name} holds no rows")
        super().__init__(records.name, records.num_rows)
        for row, record in enumerate(head):
            self._check(record, row)
        columns = [_column(name, [record[name] for record in head if record.get(name) is not None])
                   for name in dict.fromkeys(name for record in head for name in record)]  # fmt: skip
        if asked.has_begun and asked.has_names:
            there = {column.name for column in columns}
            columns += [Column(str(one), is_null=True) for one in asked.columns.values() if one not in there]
        named = asked.ids if asked.ids is None or asked.ids is False or isinstance(asked.ids, str) else False
        self._head = head
        choice = choose_columns(columns, self.name, named, asked.columns, asked.payload, self._id_fault)
        self.id_column, self.parts = choice.id, {one: Part(column) for one, column in choice.vectors.items()}
        self.payload_columns, self.guesses = choice.payload, choice.guesses
        self._ids = None if named is not False else given_ids(asked.ids, self.num_rows or 0, self.name)
        self._left_out = {column.name for column in columns} - set(choice.payload)
        self._takes_others = asked.payload is None or asked.payload is True  # names that the first rows have not
        self.has_integer_ids = isinstance(self._ids, np.ndarray) if self._ids is not None else (
            choice.id is None or all(isinstance(record[choice.id], Integral) for record in head))  # fmt: skip
        for one, part in self.parts.items():
            self._look_at_vectors(part, asked.dim_of(one))
        if not asked.has_names:
            found = self._found(self.parts[None], head, 0, keep=True)[0]
            kinds = [column.vectors for column in columns if column.name == self.vector_column]
            self.guess_metric(found.astype(np.int64) if kinds == ["integers"] else found)
        del self._head

    def _look_at_vectors(self, part: Part, dim: int | None) -> None:
        """Find the dimension, and see that the first vectors have it."""
        first = next((record[part.column] for record in self._head if record.get(part.column) is not None), None)
        part.dim = dim or 0
        if first is not None:
            self._check_first(part, first)
            require_dim(dim, part.dim, self._name_of(part))
            self._found(part, self._head, 0, keep=True)

    def _name_of(self, part: Part) -> str:
        return self.name if None in self.parts else f"{self.name}:{part.column}"

    def _check_first(self, part: Part, vector) -> None:
        part.dim = len(vector)
        if not 1 <= part.dim <= MAX_DIM:
            raise DataError(f"the vectors of {self.name} must have 1 to {MAX_DIM} values, not {part.dim}")

    def _check(self, record: Mapping, row: int) -> None:
        if not isinstance(record, Mapping):
            raise DataError(f"row {row} of {self.name} is {record!r:.40} of type {type(record).__name__}: each "
                            "must be a dict, as others are")  # fmt: skip
        if wrong := [name for name in record if not isinstance(name, str)]:
            raise DataError(f"row {row} of {self.name} has a field named {wrong[0]!r:.40}: names are strings")

    def _id_fault(self, column: str) -> str | None:
        """Of a list all rows are looked at, of a file the first ones."""
        records = self._head if self.num_rows is None else list(self._records.read(0))
        for row, record in enumerate(records):
            if record.get(column) is None:
                return f"row {row} has none"
        try:
            ids = record_ids([_plain_id(record[column]) for record in records], many=True)
        except DataError as error:
            return str(error)
        return id_fault(lambda: iter([ids]))

    def _mark(self) -> bytes:
        head = list(islice(self._records.read(0), SAMPLED_ROWS))
        return self._records.mark.encode() + b"".join(
            self._found(part, head, 0, keep=True)[0].tobytes() for part in self.parts.values()
        )

    def _blocks(self, start: int, rows: int) -> Iterator[NamedBlock]:
        records = self._records.read(start)
        while block := list(islice(records, min(rows, _BLOCK_ROWS))):
            yield self._block(block, start)
            start += len(block)

    def _block(self, records: list[Mapping], start: int) -> NamedBlock:
        for row, record in enumerate(records, start):
            self._check(record, row)
        if self.id_column is not None:
            for row, record in enumerate(records, start):
                if record.get(self.id_column) is None:
                    raise DataError(f"row {row} of {self.name} has no id, {self.id_column!r}: give it one")
            ids = record_ids([_plain_id(record[self.id_column]) for record in records], many=True)
            ids = np.array(ids, np.int64) if self.has_integer_ids and all(type(one) is int for one in ids) else ids
        elif self._ids is not None:
            ids = self._ids[start : start + len(records)]
        else:
            ids = np.arange(start, start + len(records)) + self._first_row
        vectors = {one: self._vectors(part, records, start) for one, part in self.parts.items()}
        return ids, vectors, self._payloads(records, start) if self.payload_columns or self._takes_others else None

    def _vectors(self, part: Part, records: list[Mapping], start: int) -> Vectors:
        found, missing = self._found(part, records, start, self._missing)
        if not missing:
            return found
        left = iter(found)
        part.missing += missing
        return [None if record.get(part.column) is None else next(left) for record in records]

    def _found(self, part: Part, records: list[Mapping], start: int, keep: bool) -> tuple[np.ndarray, int]:
        """Vectors float32 (n, D), and the number of records that have none, which is an error unless they are kept."""
        found, rows = [], []
        for row, record in enumerate(records, start):
            vector = record.get(part.column)
            if vector is None:
                if not keep:
                    raise DataError(f"row {row} of {self.name} has no {part.column!r}: remove it, or give it a vector")
                continue
            is_list = hasattr(vector, "__len__") and not isinstance(vector, str)
            if is_list and not part.dim:
                self._check_first(part, vector)
            if not is_list or len(vector) != part.dim:
                what = f"{len(vector)} values" if is_list else "no list"
                raise DataError(f"{part.column!r} of row {row} of {self.name} is {what}, and that of others has "
                                f"{part.dim}: remove or repair it")  # fmt: skip
            found.append(vector)
            rows.append(row)
        try:
            with np.errstate(over="ignore"):
                vectors_nD = np.asarray(found, np.float32).reshape(len(found), part.dim)
        except (ValueError, TypeError) as error:
            raise DataError(f"{part.column!r} of one of the rows {start} to {start + len(records) - 1} of "
                            f"{self.name} holds something else than numbers: {error}") from None  # fmt: skip
        check_finite(vectors_nD, rows.__getitem__, self._name_of(part))
        return vectors_nD, len(records) - len(found)

    def _payloads(self, records: list[Mapping], start: int) -> list[dict[str, Any] | None]:
        payloads = []
        for row, record in enumerate(records, start):
            names = self.payload_columns
            if self._takes_others:
                names = [name for name in record if name not in self._left_out]
            fields = {name: record[name] for name in names if name in record}
            payloads.append(json_object(fields, f"row {row} of {self.name}"))
        return payloads


def _plain_id(value):
    return str(value) if isinstance(value, UUID) else value


def _column(name: str, values: list) -> Column:
    """What a field could be, by its values in the first rows."""
    first = values[0] if values else None
    if isinstance(first, bytes | bytearray | memoryview):
        return Column(name, what="bytes", left_out="bytes", never=True)
    is_id = bool(values) and (all(isinstance(one, Integral) and not isinstance(one, bool) for one in values)
                              or all(isinstance(one, str | UUID) for one in values))  # fmt: skip
    numbers = _numbers(first)
    if numbers is None:
        return Column(name, None, is_id, f"values such as {first!r:.40}", is_null=not values)
    is_integer = all(isinstance(one, Integral) for value in values[:10] for one in (_numbers(value) or [0.5])[:100])
    large = f"lists of {len(numbers)} numbers" if len(numbers) > MAX_NUMBERS else None
    return Column(name, "integers" if is_integer else "floats", False, "lists of numbers", large)


def _numbers(value) -> list | None:
    """A list, array or tensor of one axis that holds numbers, as a list; None for other values."""
    if hasattr(value, "tolist") and len(getattr(value, "shape", ())) == 1:
        value = value.tolist()
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return (
        list(value) if is_list and all(isinstance(one, Real) and not isinstance(one, bool) for one in value) else None
    )
