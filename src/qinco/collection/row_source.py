"""What all sources of records have in common: blocks of ids, vectors and payloads, and what was guessed of them.

Shape suffixes: N rows, n rows of a block, D dimension.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
Block = tuple[Ids, Vectors, Sequence[dict | None] | None]


@dataclass(frozen=True)
class Asked:
    """What a caller of `open_rows` wants of a source; see there."""

    ids: Any = None
    payload: Any = None
    vector: str | None = None
    dim: int | None = None
    missing: bool = False


@dataclass
class RowSource(ABC):
    """Records that are read block by block; see `open_rows`.

    Attributes:
        name: what messages call it.
        dim: D of the vectors.
        num_rows: None where it is not known before all is read.
        id_column, vector_column: names of columns, or None.
        payload_columns: names of columns, also of fields of records.
        has_integer_ids: whether all ids are integers.
        metric: "cosine" if 99 % of the first 1,000 vectors have length 1 within 1 %, what a file states, or else "l2".
        metric_guess: how the metric was chosen, a sentence.
        guesses: what else was guessed, a sentence each.
        is_read_once: whether `blocks` can be called once only, from the first row on.
        missing_vectors: records without a vector, up to now.
    """

    name: str
    dim: int
    num_rows: int | None = None
    id_column: str | None = None
    vector_column: str | None = None
    payload_columns: list[str] = field(default_factory=list)
    has_integer_ids: bool = True
    metric: str = "l2"
    metric_guess: str = ""
    guesses: list[str] = field(default_factory=list)
    is_read_once: bool = False
    missing_vectors: int = 0

    def __len__(self) -> int:
        if self.num_rows is None:
            raise TypeError(f"the number of rows of {self.name} is not known before all are read")
        return self.num_rows

    def __bool__(self) -> bool:
        return True

    def blocks(self, start: int = 0, rows: int | None = None) -> Iterator[Block]:
        """Yield (ids, vectors, payloads) of at most `rows` rows each, from the row `start` on.

        Ids are int64 (n,) or a list; vectors float32 (n, D), or where some records have none a list with None; payloads
        a list of JSON objects or None.
        """
        require_int("start", start, 0)
        rows = max(256, min(8192, BLOCK_BYTES // (4 * self.dim))) if rows is None else require_rows(rows)
        if self.is_read_once and start:
            raise ConfigError(f"{self.name} is read once, from its first row on: write it to a Parquet file, of which "
                              "any row can be the first")  # fmt: skip
        yield from gathered(self._blocks(start, rows), rows)

    def fingerprint(self) -> str | None:
        """SHA-256 of the choice of columns and of some vectors; None of what is read once. See `open_rows`."""
        if self.is_read_once:
            return None
        chosen = [self.num_rows, self.dim, self.id_column, self.vector_column, self.payload_columns]
        ids = getattr(self, "_ids", None)  # that were given as values
        given = ids.tobytes() if isinstance(ids, np.ndarray) else repr(ids).encode()
        return sha256(json.dumps(chosen).encode() + given + self._mark()).hexdigest()

    @abstractmethod
    def _blocks(self, start: int, rows: int) -> Iterator[Block]:
        """`blocks`, some of which may be small."""

    @abstractmethod
    def _mark(self) -> bytes:
        """What differs between sources of different values, as far as it is known without reading all."""

    def guess_metric(self, x_ND: np.ndarray) -> None:
        """Choose the metric by some vectors of the stored type."""
        self.metric, self.metric_guess = default_metric(VectorSource(x_ND, self.name), share=0.99, error=0.01)


def require_rows(rows: int) -> int:
    require_int("rows", rows)
    return rows


def gathered(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
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


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    ids, vectors, payloads = zip(*blocks, strict=True)
    are_arrays = [all(isinstance(one, np.ndarray) for one in each) for each in (ids, vectors)]
    joined_ids = np.concatenate(ids) if are_arrays[0] else [id for one in ids for id in _listed(one)]
    joined_vectors = np.concatenate(vectors) if are_arrays[1] else [x_D for one in vectors for x_D in one]
    none = all(one is None for one in payloads)
    joined = [
        one for each, own in zip(ids, payloads, strict=True) for one in ([None] * len(each) if own is None else own)
    ]
    return joined_ids, joined_vectors, None if none else joined


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
