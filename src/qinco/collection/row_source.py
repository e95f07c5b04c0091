"""What all sources of records have in common: blocks of ids, vectors and payloads, and what was guessed of them.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np

from qinco.collection.columns import repeated_id
from qinco.collection.records import Id, record_ids
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.search.metric import default_metric
from qinco.vectors.rows import VectorSource

BLOCK_BYTES = 1 << 24  # of the vectors of a block, unless its rows are given
_LAST = (1 << 63) - 1
Ids = np.ndarray | list[Id]  # int64 (n,), or strings and integers
Vectors = np.ndarray | list[np.ndarray | None]  # float32 (n, D); a list where some records have none
NamedVectors = Mapping[str | None, Vectors]  # by name, or of None those without one
Payloads = Sequence[dict | None] | None
NamedBlock = tuple[Ids, NamedVectors, Payloads]
Block = tuple[Ids, Any, Payloads]  # Vectors, or by name a dict of them


@dataclass(frozen=True)
class Asked:
    """What a caller of `open_rows` wants of a source; see there.

    `has_begun`: a batch before had these columns, so that of vectors with names one may be missing.
    """

    ids: Any = None
    payload: Any = None
    vector: str | Mapping[Any, str | None] | None = None
    dim: int | Mapping[Any, int | None] | None = None
    missing: bool = False
    has_begun: bool = False

    @property
    def has_names(self) -> bool:
        return isinstance(self.vector, Mapping)

    @property
    def columns(self) -> dict[str | None, str | None]:
        """The columns of vectors by name; None where they are to be found."""
        return {**self.vector} if isinstance(self.vector, Mapping) else {None: self.vector}

    def dim_of(self, name: str | None) -> int | None:
        return self.dim.get(name) if isinstance(self.dim, Mapping) else self.dim


@dataclass
class Part:
    """The vectors of a name in a source, or those that have none.

    Attributes:
        column: None where a source has no columns.
        dim: D; 0 of a name of which no vector has been seen.
        missing: records without one, up to now.
    """

    column: str | None = None
    dim: int = 0
    missing: int = 0


@dataclass
class RowSource(ABC):
    """Records that are read block by block; see `open_rows`.

    Attributes:
        name: what messages call it.
        num_rows: None where it is not known before all is read.
        parts: where the vectors are, by name, or of None those without one.
        id_column: name of the column, or None.
        payload_columns: names of columns, also of fields of records.
        has_integer_ids: whether all ids are integers.
        metric: "cosine" if 99 % of the first 1,000 vectors have length 1 within 1 %, what a file states, or else "l2".
        metric_guess: how the metric was chosen, a sentence.
        guesses: what else was guessed, a sentence each.
        is_read_once: whether `blocks` can be called once only, from the first row on.
    """

    name: str
    num_rows: int | None = None
    parts: dict[str | None, Part] = field(default_factory=dict)
    id_column: str | None = None
    payload_columns: list[str] = field(default_factory=list)
    has_integer_ids: bool = True
    metric: str = "l2"
    metric_guess: str = ""
    guesses: list[str] = field(default_factory=list)
    is_read_once: bool = False

    @property
    def dim(self) -> int:
        """D of the vectors; of several names, the sum of theirs."""
        return sum(part.dim for part in self.parts.values())

    @property
    def vector_column(self) -> str | None:
        """The column of vectors without a name, or None."""
        return self.parts[None].column if None in self.parts else None

    @property
    def missing_vectors(self) -> int:
        """Records without a vector, up to now; of several names, those of each."""
        return sum(part.missing for part in self.parts.values())

    def __len__(self) -> int:
        if self.num_rows is None:
            raise TypeError(f"the number of rows of {self.name} is not known before all are read")
        return self.num_rows

    def __bool__(self) -> bool:
        return True

    def blocks(self, start: int = 0, rows: int | None = None) -> Iterator[Block]:
        """Yield (ids, vectors, payloads) of at most `rows` rows each, from the row `start` on.

        Ids are int64 (n,) or a list; vectors float32 (n, D), or where some records have none a list with None, and by
        name a dict of these; payloads a list of JSON objects or None.
        """
        for ids, vectors, payloads in self.named_blocks(start, rows):
            yield ids, vectors.get(None, vectors), payloads

    def named_blocks(self, start: int = 0, rows: int | None = None) -> Iterator[NamedBlock]:
        """`blocks`, whose vectors are always by name, which is None where they have none."""
        require_int("start", start, 0)
        rows = max(256, min(8192, BLOCK_BYTES // (4 * self.dim or 1))) if rows is None else require_rows(rows)
        if self.is_read_once and start:
            raise ConfigError(f"{self.name} is read once, from its first row on: write it to a Parquet file, of which "
                              "any row can be the first")  # fmt: skip
        yield from gathered(self._blocks(start, rows), rows)

    def fingerprint(self) -> str | None:
        """SHA-256 of the choice of columns and of some vectors; None of what is read once. See `open_rows`."""
        if self.is_read_once:
            return None
        # The dimension of a name may become known by what is stored
        parts = [[name, part.column, part.dim if name is None else None] for name, part in self.parts.items()]
        chosen = [self.num_rows, parts, self.id_column, self.payload_columns]
        ids = getattr(self, "_ids", None)  # that were given as values
        given = ids.tobytes() if isinstance(ids, np.ndarray) else repr(ids).encode()
        return sha256(json.dumps(chosen).encode() + given + self._mark()).hexdigest()

    @abstractmethod
    def _blocks(self, start: int, rows: int) -> Iterator[NamedBlock]:
        """`named_blocks`, some of which may be small."""

    @abstractmethod
    def _mark(self) -> bytes:
        """What differs between sources of different values, as far as it is known without reading all."""

    def guess_metric(self, x_ND: np.ndarray) -> None:
        """Choose the metric by some vectors of the stored type."""
        self.metric, self.metric_guess = default_metric(VectorSource(x_ND, self.name), share=0.99, error=0.01)


class OneName(RowSource):
    """The ids and the vectors of one name of a source, as if they had none."""

    def __init__(self, rows: RowSource, one: str):
        part, has_integers = replace(rows.parts[one]), rows.has_integer_ids
        super().__init__(f"{rows.name}[{one!r}]", rows.num_rows, {None: part}, rows.id_column,
                         has_integer_ids=has_integers, is_read_once=rows.is_read_once)  # fmt: skip
        self._rows, self._one, self.guesses = rows, one, rows.guesses

    def _blocks(self, start: int, rows: int) -> Iterator[NamedBlock]:
        for ids, vectors, _ in self._rows.named_blocks(start, rows):
            yield ids, {None: vectors[self._one]}, None

    def _mark(self) -> bytes:
        return str(self._rows.fingerprint()).encode()


def require_rows(rows: int) -> int:
    require_int("rows", rows)
    return rows


def gathered(blocks: Iterator[NamedBlock], rows: int) -> Iterator[NamedBlock]:
    """The same rows, with small blocks joined to some of at most `rows` rows."""
    waiting, count = [], 0
    for block in blocks:
        number = len(block[0])
        if waiting and count + number > rows:
            yield _joined(waiting)
            waiting, count = [], 0
        if number:
            waiting.append(block)
            count += number
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[NamedBlock]) -> NamedBlock:
    if len(blocks) == 1:
        return blocks[0]
    ids, vectors, payloads = zip(*blocks, strict=True)
    are_arrays = all(isinstance(one, np.ndarray) for one in ids)
    joined_ids = np.concatenate(ids) if are_arrays else [id for one in ids for id in _listed(one)]
    joined_vectors = {name: _joined_vectors([one[name] for one in vectors]) for name in vectors[0]}
    none = all(one is None for one in payloads)
    joined = [
        one for each, own in zip(ids, payloads, strict=True) for one in ([None] * len(each) if own is None else own)
    ]
    return joined_ids, joined_vectors, None if none else joined


def _joined_vectors(several: list[Vectors]) -> Vectors:
    arrays = [one for one in several if isinstance(one, np.ndarray)]
    return np.concatenate(arrays) if len(arrays) == len(several) else [x_D for one in several for x_D in one]


def _listed(ids: Ids) -> list[Id]:
    return ids.tolist() if isinstance(ids, np.ndarray) else ids


def given_ids(ids: Any, count: int, name: str) -> Ids | None:
    """Ids that were given as values, checked; None where they are row numbers."""
    if ids is None or ids is False:
        return None
    ids = np.arange(ids.start, ids.stop, ids.step) if isinstance(ids, range) else ids
    if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"):
        ids = record_ids(ids, many=True)
        if all(isinstance(id, int) for id in ids):
            ids = np.array(ids, np.int64)
    if len(ids) != count:
        raise DataError(f"there must be as many ids as rows of {name}, {count}, not {len(ids)}")
    reason = id_fault(lambda: iter([ids]))
    if reason is not None:
        raise DataError(f"ids of {name} must be different, and integers from 0 on or strings: {reason}")
    return ids.astype(np.int64, copy=False) if isinstance(ids, np.ndarray) else ids


def id_fault(read) -> str | None:
    """Why ids, which `read` gives in blocks, are none, as a clause; None if they can be. Strings are checked before."""
    row = 0
    for block in read():
        if isinstance(block, np.ndarray):
            wrong_n = (block < 0) | (block > _LAST)
            if wrong_n.any():
                place = int(np.argmax(wrong_n))
                return f"row {row + place} has {block[place]}, which is not from 0 to 2^63 - 1"
        else:
            try:
                record_ids(block)
            except DataError as error:
                return str(error)
        row += len(block)
    return repeated_id(read)


def require_dim(asked: int | None, dim: int, name: str) -> None:
    if asked not in (None, dim):
        raise DataError(f"{name} must have vectors of dimension {asked}, and has them of {dim}")
