"""Rows of vectors in arrays or files without columns, with ids and payloads that are given or none.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qinco.collection.payloads import json_object
from qinco.collection.row_source import Asked, NamedBlock, Part, RowSource, Vectors, given_ids, require_dim
from qinco.errors import DataError
from qinco.search.metric import metric_name
from qinco.vectors.formats import stated_metric
from qinco.vectors.rows import VectorSource, as_source, fingerprint, spread_rows


class ArrayRows(RowSource):
    """The rows of an array or file, or of one by name, all of which are equally long."""

    def __init__(
        self, sources: Mapping[str | None, "Vectored"], name: str, asked: Asked, first_row: int = 0,
        path: str | None = None,
    ):  # fmt: skip
        self._sources = dict(sources)
        counts = {one: len(source) for one, source in self._sources.items()}
        if len(set(counts.values())) > 1:
            lengths = ", ".join(f"{one!r} {count}" for one, count in counts.items())
            raise DataError(f"the vectors of all names must be equally many, one or None a record, not {lengths}")
        count = next(iter(counts.values()))
        if not count:
            raise DataError(f"{name} holds no rows")
        super().__init__(name, count, {one: Part(dim=source.dim) for one, source in self._sources.items()})
        for argument, value in (("ids", asked.ids), ("vector", asked.vector)):
            if isinstance(value, str):
                raise DataError(
                    f"{self.name} is vectors without columns, and {argument}={value!r} would be one: leave it out"
                )
        for one, part in self.parts.items():
            if part.dim or one is None:  # 0: none of them has a vector
                require_dim(asked.dim_of(one), part.dim, self.name if one is None else f"{self.name}[{one!r}]")
        self._first_row, self._ids = first_row, given_ids(asked.ids, count, self.name)
        if asked.ids is None:
            self.guesses.append("ids are row numbers")
        self.has_integer_ids = self._ids is None or isinstance(self._ids, np.ndarray)
        self._payloads = (
            None if asked.payload is None or isinstance(asked.payload, bool) else self._checked(asked.payload)
        )
        fields = [] if self._payloads is None else [one for one in self._payloads if one]
        self.payload_columns = list(dict.fromkeys(name for one in fields for name in one))
        if None in self._sources:
            self._choose_metric(self._sources[None].source, path)

    def _choose_metric(self, source: VectorSource, path: str | None) -> None:
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

    def _blocks(self, start: int, rows: int) -> Iterator[NamedBlock]:
        for first in range(start, len(self), rows):
            stop = min(first + rows, len(self))
            ids = np.arange(first, stop) + self._first_row if self._ids is None else self._ids[first:stop]
            vectors = {one: source.read(first, stop) for one, source in self._sources.items()}
            for one, some in vectors.items():
                self.parts[one].missing += 0 if isinstance(some, np.ndarray) else sum(x_D is None for x_D in some)
            yield ids, vectors, None if self._payloads is None else self._some_payloads(first, stop)

    def _some_payloads(self, first: int, stop: int) -> list[dict | None]:
        assert self._payloads is not None
        found: list[dict | None] = []
        for row, payload in enumerate(self._payloads[first:stop], first):
            found.append(None if payload is None else json_object(payload, f"payload {row}"))
        return found

    def _mark(self) -> bytes:
        rows = spread_rows(len(self)).tolist()
        more = [None if of is None else [of[row] for row in rows] for of in (self._ids, self._payloads)]
        marks = [fingerprint(one.source, repr(more).encode()) for one in self._sources.values()]
        return "".join(marks).encode()


class Vectored:
    """Vectors of all rows, or of some: the others have none.

    Example:
        >>> Vectored.of([None, [1, 2]], "text").read(0, 2)
        [None, array([1., 2.], dtype=float32)]
    """

    def __init__(self, source: VectorSource, rows_n: np.ndarray | None = None, count: int = 0):
        self.source, self._rows_n, self._count, self.dim = source, rows_n, count, source.dim

    @classmethod
    def of(cls, vectors: Any, name: str) -> "Vectored":
        """Those of an array, path or source, or of a list in which some are None."""
        if not isinstance(vectors, list | tuple) or not any(one is None for one in vectors):
            return cls(as_source(vectors, name))
        rows = [row for row, one in enumerate(vectors) if one is not None]
        some = [vectors[row] for row in rows]
        source = as_source(some, name) if some else VectorSource(np.empty((0, 0), np.float32), name)
        return cls(source, np.array(rows, np.int64), len(vectors))

    def __len__(self) -> int:
        return len(self.source) if self._rows_n is None else self._count

    def read(self, first: int, stop: int) -> Vectors:
        """The vectors of rows, from one to before another, all finite."""
        begin, end = (first, stop) if self._rows_n is None else np.searchsorted(self._rows_n, [first, stop]).tolist()
        blocks = self.source.window(begin, end).blocks(max(1, end - begin))
        x_nD = next((block for _, block in blocks), np.empty((0, self.dim), np.float32))
        if self._rows_n is None:
            return x_nD
        found: list[np.ndarray | None] = [None] * (stop - first)
        for row, x_D in zip(self._rows_n[begin:end].tolist(), x_nD, strict=True):
            found[row - first] = x_D
        return found
