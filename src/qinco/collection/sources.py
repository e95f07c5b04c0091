"""Where the records of a collection come from: `open_rows` opens files, tables, arrays, lists and generators.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from qinco.collection.payloads import json_object
from qinco.collection.record_rows import JsonLines, ListedRecords, RecordRows
from qinco.collection.row_source import Asked, Block, RowSource, given_ids, require_dim
from qinco.collection.table_rows import TableRows
from qinco.collection.tables import ParquetTable, as_table
from qinco.config import require_bool, require_int
from qinco.errors import ConfigError, DataError
from qinco.search.metric import metric_name
from qinco.vectors.formats import find_files, stated_metric
from qinco.vectors.rows import VectorSource, as_source, fingerprint, open_vectors, spread_rows

_JSON_LINES = (".jsonl", ".ndjson")
_GATHERED_ROWS = 4096  # single dicts of a generator that are a batch


def open_rows(
    source, *, ids=None, payload=None, vector: str | None = None, dim: int | None = None, missing: bool = False
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
        vector: the name of the column of vectors; None: the only one, or that named embedding, vector or the like.
        dim: what D must be.
        missing: records may have no vector; else null vectors are an error.

    Raises:
        DataError: the source is empty, or columns are missing, ambiguous or hold something else.

    Example:
        >>> rows = open_rows({"id": ["a", "b"], "vector": vectors[:2], "year": [2009, 2012]})
        >>> rows.id_column, rows.payload_columns
        ('id', ['year'])
    """
    require_bool("missing", missing)
    if dim is not None:
        require_int("dim", dim)
    if isinstance(source, RowSource):
        return source
    return _open(source, Asked(ids, payload, vector, dim, missing), "source", 0)


def _open(source: Any, asked: Asked, name: str, first_row: int) -> RowSource:
    if _is_path(source) or (isinstance(source, list | tuple) and source and all(map(_is_path, source))):
        return _open_files(source, asked, first_row)
    if isinstance(source, VectorSource | np.ndarray) and not getattr(getattr(source, "dtype", None), "names", None):
        return ArrayRows(as_source(source, name), asked, first_row)
    if (table := as_table(source, name)) is not None:
        return TableRows(table, asked, first_row)
    if isinstance(source, list | tuple) and source and isinstance(source[0], Mapping):
        return RecordRows(ListedRecords(name, source), asked, first_row)
    is_array = any(hasattr(source, f"__{method}__") for method in ("getitem", "array", "dlpack", "len"))
    if hasattr(source, "__next__") or (hasattr(source, "__iter__") and not is_array):
        return StreamedRows(iter(source), asked, name, first_row)
    if isinstance(source, list | tuple) and not source:
        raise DataError(f"{name} holds no rows")
    return ArrayRows(as_source(source, name), asked, first_row)


def _is_path(source) -> bool:
    return isinstance(source, str | os.PathLike)


def _open_files(source, asked: Asked, first_row: int) -> RowSource:
    files = find_files(source)
    suffixes = {file.suffix.lower() for file, _ in files}
    if suffixes == {".parquet"}:
        named = {name for _, name in files if name is not None}
        if asked.vector is not None:
            named.add(asked.vector)
        if len(named) > 1:
            raise ConfigError(f"vector must be one column, not {' and '.join(map(repr, sorted(named)))}")
        name = str(files[0][0]) if len(files) == 1 else f"{_first(source)} ({len(files)} files)"
        asked = Asked(asked.ids, asked.payload, next(iter(named), None), asked.dim, asked.missing)
        return TableRows(ParquetTable(name, [file for file, _ in files]), asked, first_row)
    if suffixes <= set(_JSON_LINES):
        if len(files) > 1:
            raise ConfigError(f"{_first(source)} is {len(files)} files: give one .jsonl file, or write Parquet")
        return RecordRows(JsonLines(files[0][0]), asked, first_row)
    if asked.vector is not None and _is_path(source) and files[0][1] is None:
        source, asked = f"{source}:{asked.vector}", Asked(asked.ids, asked.payload, None, asked.dim, asked.missing)
    return ArrayRows(open_vectors(source), asked, first_row, str(_first(source)))


def _first(source):
    return source if _is_path(source) else source[0]


class ArrayRows(RowSource):
    """Vectors of an array or file, with ids and payloads that are given or none."""

    def __init__(self, source: VectorSource, asked: Asked, first_row: int = 0, path: str | None = None):
        if not len(source):
            raise DataError(f"{source.name} holds no rows")
        super().__init__(source.name, source.dim, len(source))
        for argument, value in (("ids", asked.ids), ("vector", asked.vector)):
            if isinstance(value, str):
                raise DataError(
                    f"{self.name} is vectors without columns, and {argument}={value!r} would be one: leave it out"
                )
        require_dim(asked.dim, self.dim, self.name)
        self._source, self._first_row = source, first_row
        self._ids = given_ids(asked.ids, len(source), self.name)
        if asked.ids is None:
            self.guesses.append("ids are row numbers")
        self.has_integer_ids = self._ids is None or isinstance(self._ids, np.ndarray)
        self._payloads = (
            None if asked.payload is None or isinstance(asked.payload, bool) else self._checked(asked.payload)
        )
        fields = [] if self._payloads is None else [one for one in self._payloads if one]
        self.payload_columns = list(dict.fromkeys(name for one in fields for name in one))
        word = None if path is None else stated_metric(path)
        if word is not None and (name := metric_name(word)) is not None:
            self.metric = name
            self.metric_guess = f"{self.name} states the distance {word!r}: metric={name}"
        else:
            self.guess_metric(source.limit(1000)[:] if not source.holds_integers else np.empty((0, self.dim), np.int8))

    def _checked(self, payloads: Any) -> list[dict | None]:
        payloads = [payloads] if isinstance(payloads, str | Mapping) else list(payloads)
        for one in payloads:
            if isinstance(one, str):
                raise DataError(
                    f"{self.name} is vectors without columns, and payload names {one!r}: give a dict for each"
                )
        if len(payloads) != len(self):
            raise DataError(f"there must be as many payloads as rows of {self.name}, {len(self)}, not {len(payloads)}")
        return payloads

    def _blocks(self, start: int, rows: int) -> Iterator[Block]:
        if start >= len(self):
            return
        for offset, vectors_nD in self._source.window(start, len(self)).blocks(rows):
            first, stop = start + offset, start + offset + len(vectors_nD)
            ids = np.arange(first, stop) + self._first_row if self._ids is None else self._ids[first:stop]
            yield ids, vectors_nD, None if self._payloads is None else self._some_payloads(first, stop)

    def _some_payloads(self, first: int, stop: int) -> list[dict | None]:
        assert self._payloads is not None
        found: list[dict | None] = []
        for row, payload in enumerate(self._payloads[first:stop], first):
            found.append(None if payload is None else json_object(payload, f"payload {row}"))
        return found

    def _mark(self) -> bytes:
        rows = spread_rows(len(self)).tolist()
        more = [None if of is None else [of[row] for row in rows] for of in (self._ids, self._payloads)]
        return fingerprint(self._source, repr(more).encode()).encode()


class StreamedRows(RowSource):
    """The rows of an iterator of batches, which is read once. The first batch decides which column is what."""

    def __init__(self, items: Iterable, asked: Asked, name: str, first_row: int = 0):
        if not (asked.ids is None or asked.ids is False or isinstance(asked.ids, str)):
            raise ConfigError(f"{name} is an iterator, whose ids are read with its batches: yield (ids, vectors), or "
                              "give ids= as the name of a column")  # fmt: skip
        super().__init__(name, 0, is_read_once=True)
        self._items, self._first_row, self._asked, self._number = _batches(items), first_row, asked, 0
        if (item := next(self._items, None)) is None:
            raise DataError(f"{name} holds no rows: an iterator can be read once only")
        first = self._first = self._opened(item, first_row)
        self.dim, self.metric, self.guesses = first.dim, first.metric, first.guesses
        self.metric_guess = first.metric_guess
        self.id_column, self.vector_column = first.id_column, first.vector_column
        self.payload_columns, self.has_integer_ids = first.payload_columns, first.has_integer_ids
        if first.vector_column is not None:
            takes_others = isinstance(first, RecordRows) and asked.payload in (None, True)
            payload = asked.payload if takes_others else first.payload_columns or False
            named = False if first.id_column is None else first.id_column
            self._asked = Asked(named, payload, first.vector_column, first.dim, asked.missing)
        else:
            self._asked = Asked(None, asked.payload, None, first.dim, asked.missing)
        self.guesses.append(f"{name} is an iterator, which is read once: work with it is not resumed, and of records "
                            "with one id the last counts")  # fmt: skip

    def _opened(self, item, first_row: int) -> RowSource:
        name, asked = f"batch {self._number} of {self.name}", self._asked
        self._number += 1
        if isinstance(item, tuple) and len(item) in (2, 3) and not all(map(np.isscalar, item)):
            ids, vectors, payloads = (*item, None)[:3]
            given = Asked(ids, payloads if asked.payload is not False else None, None, asked.dim)
            return ArrayRows(as_source(vectors, name), given, first_row)
        return _open(item, asked, name, first_row)

    def _blocks(self, start: int, rows: int) -> Iterator[Block]:
        if self._first is None:
            raise ConfigError(f"{self.name} is an iterator that was read already: give a new one")
        first, self._first = self._first, None
        row = self._first_row
        for batch in self._sources(first):
            for block in batch.blocks(rows=rows):
                yield block
                row += len(block[0])
            self._next_row = row
            self.missing_vectors += batch.missing_vectors

    def _sources(self, first: RowSource) -> Iterator[RowSource]:
        yield first
        for item in self._items:
            yield self._opened(item, self._next_row)

    def _mark(self) -> bytes:
        raise AssertionError("an iterator has no fingerprint")


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
        if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple | np.ndarray):
            return False
        if hasattr(value, "type") and hasattr(value, "to_pylist"):
            return False
    return True
