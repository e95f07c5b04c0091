"""Where the records of a collection come from: `open_rows` opens files, tables, arrays, lists and generators.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qinco.collection.array_rows import ArrayRows, Vectored
from qinco.collection.record_rows import JsonLines, ListedRecords, RecordRows
from qinco.collection.row_source import Asked, NamedBlock, RowSource
from qinco.collection.table_rows import TableRows
from qinco.collection.tables import ParquetTable, as_table
from qinco.config import require_bool, require_int
from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import FORMATS, find_files
from qinco.vectors.rows import VectorSource, as_source, open_vectors

_JSON_LINES = (".jsonl", ".ndjson")
_WITH_PARTS = tuple(suffix for suffix, format in FORMATS.items() if format.has_parts)
_GATHERED_ROWS = 4096  # single dicts of a generator that are a batch


def open_rows(
    source, *, ids=None, payload=None, vector: str | Mapping[str, str | None] | None = None,
    dim: int | Mapping[str, int | None] | None = None, missing: bool = False,
) -> RowSource:  # fmt: skip
    """Open what holds records, and find out which columns are their ids, vectors and payloads.

    Args:
        source: a path, folder, pattern or list of paths of files of vectors (`qinco.open_vectors`), Parquet files
            (`"text.parquet:embedding"`, `"parts/*.parquet"`) or a .jsonl file of an object a line; a table of pyarrow,
            pandas, Polars, Hugging Face datasets, or any other of Arrow's or the data frame interface; a dict of
            columns; a list of dicts; an array, tensor or VectorSource (N, D); or an iterator of batches, each any of
            these, or (ids, vectors) or (ids, vectors, payloads). Iterators are read once, so that work with them cannot
            be resumed.
        ids: the name of the column of ids, different integers from 0 on or strings; or N ids themselves; False: row
            numbers. None: the first that can be of columns named id, _id, ids, uuid, doc_id, document_id, key and pk,
            else row numbers.
        payload: names of columns; or of arrays N dicts; False: none. None: all other columns, without those of bytes
            and large ones, which `guesses` name. Values become JSON: NaN and infinity null, dates and times RFC 3339
            text, decimals floats; fields that are null are left out, and NUL characters of strings removed.
        vector: the name of the column of vectors; None: the only one, or that named embedding, vector or the like. Or,
            for vectors with names, their columns by name, of which None is that of this name, or such as
            name_embedding; then the source may also be arrays or paths by name, and a batch (ids, {name: vectors}).
        dim: what D must be, with names by name.
        missing: records may have no vector; else null vectors are an error.

    Raises:
        DataError: the source is empty, or columns are missing, ambiguous or hold something else.

    Example:
        >>> rows = open_rows({"id": ["a", "b"], "vector": vectors[:2], "year": [2009, 2012]})
        >>> rows.id_column, rows.payload_columns
        ('id', ['year'])
    """
    require_bool("missing", missing)
    for one in dim.values() if isinstance(dim, Mapping) else [dim]:
        if one is not None:
            require_int("dim", one)
    if isinstance(source, RowSource):
        return source
    return _open(source, Asked(ids, payload, vector, dim, missing), "source", 0)


def check_column(vector: Any) -> None:
    """Raise ConfigError unless `vector` names one column, or is None."""
    if not isinstance(vector, str | None):
        raise ConfigError(
            f"vector must be one column, as the vectors of this collection have no names, not {vector!r:.60}"
        )


def _open(source: Any, asked: Asked, name: str, first_row: int) -> RowSource:
    if _is_path(source) or (isinstance(source, list | tuple) and source and all(map(_is_path, source))):
        return _open_files(source, asked, first_row)
    if isinstance(source, Mapping) and asked.has_names and (given := _arrays_by_name(source, asked)):
        return ArrayRows({one: Vectored.of(x, f"{name}[{one!r}]") for one, x in given.items()}, name, asked, first_row)
    if isinstance(source, VectorSource | np.ndarray) and not getattr(getattr(source, "dtype", None), "names", None):
        return _array(source, asked, name, first_row)
    if (table := as_table(source, name)) is not None:
        return TableRows(table, asked, first_row)
    if isinstance(source, list | tuple) and source and isinstance(source[0], Mapping):
        return RecordRows(ListedRecords(name, source), asked, first_row)
    is_array = any(hasattr(source, f"__{method}__") for method in ("getitem", "array", "dlpack", "len"))
    if hasattr(source, "__next__") or (hasattr(source, "__iter__") and not is_array):
        return StreamedRows(iter(source), asked, name, first_row)
    if isinstance(source, list | tuple) and not source:
        raise DataError(f"{name} holds no rows")
    return _array(source, asked, name, first_row)


def _array(source: Any, asked: Asked, name: str, first_row: int, path: str | None = None) -> ArrayRows:
    """Vectors without columns: those without a name, or of the only one."""
    source = as_source(source, name)
    if len(asked.columns) > 1:
        each = ", ".join(f"{one!r}: ..." for one in asked.columns)
        raise DataError(f"{name} is vectors of one kind, and there are {len(asked.columns)} names: give {{{each}}}")
    one, column = next(iter(asked.columns.items()))
    if one is not None and column is not None:
        raise DataError(f"{source.name} is vectors without columns, and vector={column!r} would be one: leave it out")
    return ArrayRows({one: Vectored(source)}, source.name, asked, first_row, path)


def _arrays_by_name(source: Mapping, asked: Asked) -> dict[str | None, Any]:
    """The arrays or paths of all names; empty where the source is another mapping, such as one of columns."""
    columns = {one: column or one for one, column in asked.columns.items()}
    is_array = all(_is_path(x) or isinstance(x, VectorSource) or np.ndim(x) == 2 for x in source.values()
                   if not isinstance(x, list | tuple))  # fmt: skip
    are_lists = all(isinstance(x, list | tuple) for x in source.values())
    if not is_array or are_lists or set(columns.values()) != set(source):
        return {}
    return {one: source[column] for one, column in columns.items()}


def _is_path(source) -> bool:
    return isinstance(source, str | os.PathLike)


def _open_files(source, asked: Asked, first_row: int) -> RowSource:
    files = find_files(source)
    suffixes = {file.suffix.lower() for file, _ in files}
    if suffixes == {".parquet"}:
        name = str(files[0][0]) if len(files) == 1 else f"{_first(source)} ({len(files)} files)"
        asked = _with_column(asked, {name for _, name in files if name is not None}, _first(source))
        return TableRows(ParquetTable(name, [file for file, _ in files]), asked, first_row)
    if suffixes <= set(_JSON_LINES):
        if len(files) > 1:
            raise ConfigError(f"{_first(source)} is {len(files)} files: give one .jsonl file, or write Parquet")
        return RecordRows(JsonLines(files[0][0]), asked, first_row)
    has_parts = _is_path(source) and files[0][1] is None and suffixes <= {*_WITH_PARTS}
    if has_parts and (any(asked.columns.values()) or len(asked.columns) > 1):
        paths = {one: f"{source}:{column or one}" for one, column in asked.columns.items()}
        asked = replace(asked, vector=dict.fromkeys(paths) if asked.has_names else None)
        given = {one: Vectored(open_vectors(path)) for one, path in paths.items()}
        return ArrayRows(given, str(source), asked, first_row, str(source))
    return _array(open_vectors(source), asked, str(_first(source)), first_row, str(_first(source)))


def _with_column(asked: Asked, named: set[str], source) -> Asked:
    """With the column that paths name, as in text.parquet:embedding."""
    if not named:
        return asked
    (one, column), *more = asked.columns.items()
    named |= set() if column is None else {column}
    if more:
        raise ConfigError(f"{source} names one column, and vectors have {1 + len(more)} names: leave it out of the "
                          f"path, and give vector={{{one!r}: {min(named)!r}, ...}}")  # fmt: skip
    if len(named) > 1:
        raise ConfigError(f"vector must be one column, not {' and '.join(map(repr, sorted(named)))}")
    return replace(asked, vector=named.pop() if one is None else {one: named.pop()})


def _first(source):
    return source if _is_path(source) else source[0]


class StreamedRows(RowSource):
    """The rows of an iterator of batches, which is read once. The first batch decides which column is what."""

    def __init__(self, items: Iterable, asked: Asked, name: str, first_row: int = 0):
        if not (asked.ids is None or asked.ids is False or isinstance(asked.ids, str)):
            raise ConfigError(f"{name} is an iterator, whose ids are read with its batches: yield (ids, vectors), or "
                              "give ids= as the name of a column")  # fmt: skip
        super().__init__(name, is_read_once=True)
        self._items, self._first_row, self._asked, self._number = _batches(items), first_row, asked, 0
        if (item := next(self._items, None)) is None:
            raise DataError(f"{name} holds no rows: an iterator can be read once only")
        first = self._first = self._opened(item, first_row)
        self.parts = {one: replace(part) for one, part in first.parts.items()}
        self.metric, self.guesses, self.metric_guess = first.metric, first.guesses, first.metric_guess
        self.id_column, self.payload_columns = first.id_column, first.payload_columns
        self.has_integer_ids = first.has_integer_ids
        columns = {one: part.column for one, part in first.parts.items()}
        ids, payload = None, asked.payload
        if any(columns.values()):
            takes_others = isinstance(first, RecordRows) and asked.payload in (None, True)
            ids = False if first.id_column is None else first.id_column
            payload = asked.payload if takes_others else first.payload_columns or False
        vector, dim = columns.get(None), first.dim
        if asked.has_names:
            vector, dim = columns, {one: part.dim or None for one, part in first.parts.items()}
        self._asked = Asked(ids, payload, vector, dim, asked.missing, has_begun=True)
        self.guesses.append(f"{name} is an iterator, which is read once: work with it is not resumed, and of records "
                            "with one id the last counts")  # fmt: skip

    def _opened(self, item, first_row: int) -> RowSource:
        name, asked = f"batch {self._number} of {self.name}", self._asked
        self._number += 1
        if isinstance(item, tuple) and len(item) in (2, 3) and not all(map(np.isscalar, item)):
            ids, vectors, payloads = (*item, None)[:3]
            given = replace(asked, ids=ids, payload=payloads if asked.payload is not False else None)
            if not asked.has_names:
                return _array(vectors, replace(given, vector=None), name, first_row)
            return ArrayRows(_by_name(ids, vectors, given, name), name, given, first_row)
        return _open(item, asked, name, first_row)

    def _blocks(self, start: int, rows: int) -> Iterator[NamedBlock]:
        if self._first is None:
            raise ConfigError(f"{self.name} is an iterator that was read already: give a new one")
        first, self._first = self._first, None
        row = self._first_row
        for batch in self._sources(first):
            for block in batch.named_blocks(rows=rows):
                yield block
                row += len(block[0])
            self._next_row = row
            for one, part in batch.parts.items():
                self.parts[one].missing += part.missing

    def _sources(self, first: RowSource) -> Iterator[RowSource]:
        yield first
        for item in self._items:
            yield self._opened(item, self._next_row)

    def _mark(self) -> bytes:
        raise AssertionError("an iterator has no fingerprint")


def _by_name(ids: Any, vectors: Any, asked: Asked, name: str) -> dict[str | None, Vectored]:
    """The vectors by name of a batch (ids, vectors, payloads), which may leave names out."""
    if not isinstance(vectors, Mapping):
        raise DataError(f"the vectors of {name} must be a dict by name, {', '.join(map(repr, asked.columns))}, "
                        f"not {vectors!r:.40}")  # fmt: skip
    if unknown := [one for one in vectors if one not in asked.columns]:
        raise DataError(f"{name} has vectors {unknown[0]!r:.40}, and asked for are those of "
                        f"{', '.join(map(repr, asked.columns))}")  # fmt: skip
    there = {one: some for one, some in vectors.items() if some is not None}
    count = next(map(len, there.values()), 0 if ids is None else len(ids))
    given = dict.fromkeys(asked.columns, [None] * count) | there
    return {one: Vectored.of(some, f"{name}[{one!r}]") for one, some in given.items()}


def _batches(items: Iterable) -> Iterator:
    """Batches as they come; single dicts are gathered to lists."""
    waiting: list[Mapping] = []
    for item in items:
        if isinstance(item, Mapping) and _is_record(item):
            waiting.append(item)
            if len(waiting) == _GATHERED_ROWS:
                yield waiting
                waiting = []
            continue
        if waiting:
            yield waiting
            waiting = []
        yield item
    if waiting:
        yield waiting


def _is_record(item: Mapping) -> bool:
    """Whether a dict is one record, and not a batch of columns, of which one would be a matrix or a list of lists."""
    for value in item.values():
        if len(getattr(value, "shape", ())) == 2:
            return False
        first = next((one for one in value if one is not None), None) if isinstance(value, list | tuple) else None
        if isinstance(first, list | tuple | np.ndarray):
            return False
        if hasattr(value, "type") and hasattr(value, "to_pylist"):
            return False
    return True
