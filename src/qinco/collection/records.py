"""What goes into a collection and comes out of it: ids, payloads and vectors, checked before anything is written.

Shape suffixes: N records, n vectors, D dimension.
"""

import datetime
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from qinco.errors import ConfigError, DataError
from qinco.vectors.rows import as_source, check_dim

MAX_ID_BYTES = 512
_LAST = (1 << 63) - 1
_BLOCK_ROWS = 1 << 14
Id = int | str


@dataclass(frozen=True)
class Record:
    """A record of a collection.

    Attributes:
        id: an integer or a string.
        payload: a JSON object, or None.
        vector: float32 (D,), or (n, D) of several, if it was asked for and there is one. What is compressed is decoded;
            its error is that of `Collection.stats`, and with metric "cosine" its length is 1. Of a `NamedCollection`: a
            dict of vectors by name.
    """

    id: Id
    payload: dict | None = None
    vector: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Hit:
    """A record that a search found.

    Attributes:
        id, payload, vector: as in `Record`.
        score: cosine similarity or inner product, of which larger is nearer, or squared L2 distance, of which smaller
            is nearer: exact for fresh vectors, and an estimate for compressed ones.
    """

    id: Id
    score: float
    payload: dict | None = None
    vector: np.ndarray | None = field(default=None, compare=False)


def record_ids(ids: Any, *, many: bool = False) -> list[Id]:
    """Ids as a list of integers and strings; also one id, unless there must be `many`."""
    if isinstance(ids, str | bytes | Mapping) or (isinstance(ids, Integral) and not isinstance(ids, bool)):
        if many:
            raise DataError(f"ids must be a list, with an id for each vector, not {ids!r:.100}")
        ids = [ids]
    if many and isinstance(ids, Set):
        raise DataError("ids must be a list in the order of their vectors, not a set, which has no order")
    values = getattr(ids, "tolist", None) or getattr(ids, "to_list", None) or getattr(ids, "to_pylist", None)
    try:
        given = list(values() if values else ids)
    except TypeError:
        raise DataError(f"ids must be a list of integers and strings, not {ids!r:.100}") from None
    return [one if type(one) is int and 0 <= one <= _LAST else _checked(one) for one in given]


def _checked(one: Any) -> Id:
    """An id that is no plain integer from 0 on."""
    if isinstance(one, str):
        one = str(one)
        try:
            size = len(one.encode())
        except UnicodeEncodeError:
            raise DataError(f"the id {one!r:.100} is no text that UTF-8 can hold: give another") from None
        if size > MAX_ID_BYTES:
            raise DataError(f"the id {one[:40]!r}... has {size} bytes, more than {MAX_ID_BYTES}: give a shorter one, "
                            "such as its hash, and keep the long one in the payload")  # fmt: skip
        return one
    if isinstance(one, Integral) and not isinstance(one, bool | np.bool_):
        if 0 <= int(one) <= _LAST:
            return int(one)
        raise DataError(f"ids must be integers from 0 to 2^63 - 1, or strings, not {one}: write it as a string")
    raise DataError(
        f"ids must be integers or strings, not {type(one).__name__} ({one!r:.60}): write it as one of these"
    )


def payload_texts(payloads: Any, ids: Sequence[Id]) -> list[str | None]:
    """The payloads of records as JSON texts, None where there is none."""
    if payloads is None:
        return [None] * len(ids)
    if isinstance(payloads, Mapping | str):
        raise DataError(f"payloads must be a list with an object or None for each record, not {payloads!r:.60}")
    given = list(payloads)
    if len(given) != len(ids):
        raise DataError(f"there must be as many payloads as ids, {len(ids)}, not {len(given)}")
    pairs = zip(ids, given, strict=True)
    return [None if one is None else payload_text(one, f"the payload of the record {id!r:.60}") for id, one in pairs]


def payload_text(payload: Any, name: str = "a payload") -> str:
    """A payload as JSON; raises DataError, which begins with `name`, unless it is an object of JSON values."""
    if not isinstance(payload, Mapping):
        raise DataError(f"{name} must be an object, {{name: value}}, not {payload!r:.60}")
    try:
        text = json.dumps(_plain(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{name} must hold JSON values, and not {payload!r:.60} ({error!s:.100})") from None
    # Older SQLite (3.40) ends a string there and newer does not: filters and indexes would differ between machines
    if "\\u0000" in text and (found := _with_nul(json.loads(text))) is not None:
        raise DataError(f"{name} holds the character NUL in {found!r:.60}: replace it, or leave that field out")
    return text


def _with_nul(value: Any) -> str | None:
    """A string with NUL that is somewhere in a JSON value."""
    if isinstance(value, str):
        return value if "\0" in value else None
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for one in inside if (found := _with_nul(one)) is not None), None)


def _plain(value: Any) -> Any:
    """A value as JSON knows it: of numpy's scalars and arrays, and of dates, too."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"the name {wrong[0]!r:.40} is no string")
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        found = value.tolist()
        return found if found is None or isinstance(found, str | bool | int | float) else _plain(found)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def payload_of(text: str | None) -> dict | None:
    return None if text is None else json.loads(text)


def vector_rows(
    vectors: Any, count: int, dim: int | None, *, multi: bool = False, name: str = "vectors"
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Of which of `count` records each vector is, int64 (n,), ascending, and the vectors, float32 (n, D), all finite.

    Records have one vector or None each, or with `multi` several. Messages call them `name`.
    """
    if multi:
        return _rows_of_several(vectors, count, dim)
    rows_n = np.arange(count)
    if vectors is None:
        return rows_n[:0], np.empty((0, dim or 0), np.float32)
    if isinstance(vectors, list | tuple):
        if len(vectors) != count:
            raise DataError(f"there must be as many {name} as ids, {count}, not {len(vectors)}")
        rows_n = np.array([row for row, one in enumerate(vectors) if one is not None], np.int64)
        vectors = [vectors[row] for row in rows_n]
        count = len(vectors)
    if not count:
        return rows_n[:0], np.empty((0, dim or 0), np.float32)
    source = as_source(vectors, name)
    if len(source) != count:
        raise DataError(f"there must be as many {name} as ids, {count}, not {len(source)}")
    if dim is not None:
        check_dim(source, dim, "the collection")
    return rows_n, np.concatenate([block for _, block in source.blocks(_BLOCK_ROWS)])


def _rows_of_several(vectors: Any, count: int, dim: int | None) -> tuple[np.ndarray, np.ndarray]:
    """`vector_rows` of a (n, D) array or None for each record."""
    given = [None] * count if vectors is None else list(vectors)
    if len(given) != count:
        raise DataError(f"there must be as many arrays of vectors as ids, {count}, not {len(given)}")
    found = {row: as_source(one) for row, one in enumerate(given) if one is not None and len(one)}
    if not found:
        return np.empty(0, np.int64), np.empty((0, dim or 0), np.float32)
    dim = next(iter(found.values())).dim if dim is None else dim
    for source in found.values():
        check_dim(source, dim, "the collection")
    rows_n = np.repeat(list(found), [len(source) for source in found.values()])
    return rows_n, np.concatenate([block for source in found.values() for _, block in source.blocks(_BLOCK_ROWS)])


def require_one_of(ids: Any, where: Any, call: str) -> None:
    """Raise ConfigError unless exactly one of both is given."""
    if (ids is None) == (where is None):
        raise ConfigError(f"{call} takes either ids= or where=, {'not both' if ids is not None else 'give one'}")
