"""Filters as values; `matches` (`qinco.collection.matching`) is what they mean.

A condition on a field is true or false, never unknown: it is false where the field is missing, and `Not` is the
complement. Types are those of JSON: 1, "1" and true differ, 1 and 1.0 do not. On an array a condition on a value is
true if it is for one element. `where` (`qinco.collection.where`) is how users write filters.
"""

import datetime
import math
from dataclasses import dataclass, fields
from functools import cached_property

from qinco.collection.geo import Area
from qinco.collection.instants import instant, microseconds
from qinco.collection.paths import path_steps
from qinco.collection.words import MATCHES
from qinco.errors import ConfigError

MAX_DEPTH = 16  # of conditions in each other; SQLite's parser and its trees of expressions are limited
MAX_CONDITIONS = 2_000  # SQLite plans more in a time that grows with their square
MAX_NESTED = 3  # of Element in each other
Scalar = str | int | float | bool | datetime.datetime


@dataclass(frozen=True)
class And:
    """All of the parts; everything if there are none."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Or:
    """One of the parts at least; nothing if there are none."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class AtLeast:
    """So many of the parts."""

    count: int
    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    """The complement, with the points that lack the field."""

    part: "Filter"


@dataclass(frozen=True)
class _OfField:
    path: str

    def __post_init__(self):
        path_steps(self.path)
        for field in fields(self):
            value = getattr(self, field.name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, str | float | int | datetime.datetime):
                    check_value(one, self.path)


@dataclass(frozen=True)
class Eq(_OfField):
    """The value, or one of an array's, is this one. A datetime is compared as an instant with RFC 3339 text."""

    value: Scalar


@dataclass(frozen=True)
class In(_OfField):
    """The value, or one of an array's, is one of these; nothing if there are none."""

    values: tuple[Scalar, ...]

    @cached_property
    def _typed(self) -> frozenset:
        return frozenset(typed(value) for value in self.values)

    @cached_property
    def _has_instants(self) -> bool:
        return any(isinstance(value, datetime.datetime) for value in self.values)

    def holds(self, value) -> bool:
        if typed(value) in self._typed:
            return True
        return self._has_instants and isinstance(value, str) and ("instant", instant(value)) in self._typed


@dataclass(frozen=True)
class Except(In):
    """There is a value, or one of an array's, that is not null and none of these."""

    def __post_init__(self):
        super().__post_init__()
        if self._has_instants:
            raise ConfigError(f"{self.path}: datetimes cannot be excepted: use nin, or the text that the payload holds")


@dataclass(frozen=True)
class Range(_OfField):
    """The value lies within bounds of one kind: numbers, text (by code point), or datetimes against RFC 3339 text."""

    gt: int | float | str | datetime.datetime | None = None
    gte: int | float | str | datetime.datetime | None = None
    lt: int | float | str | datetime.datetime | None = None
    lte: int | float | str | datetime.datetime | None = None

    def __post_init__(self):
        super().__post_init__()
        kinds = {typed(bound)[0] for bound in self.bounds().values()}
        if len(kinds) != 1 or not kinds <= {"number", "text", "instant"}:
            raise ConfigError(f"a range of {self.path} has bounds of one kind, numbers, text or datetimes, not "
                              f"{self.bounds() or 'none'}: give gt, gte, lt or lte")  # fmt: skip

    def bounds(self) -> dict[str, int | float | str | datetime.datetime]:
        given = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {name: bound for name, bound in given.items() if bound is not None}

    @property
    def kind(self) -> str:
        """number, text or instant."""
        return typed(next(iter(self.bounds().values())))[0]


@dataclass(frozen=True)
class Count(_OfField):
    """How many values there are: an array's length, none for null and missing fields, else one."""

    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None

    def bounds(self) -> dict[str, int]:
        given = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {name: bound for name, bound in given.items() if bound is not None}


@dataclass(frozen=True)
class Null(_OfField):
    """The field is missing or null."""


@dataclass(frozen=True)
class Exists(_OfField):
    """The field is there, be it null."""


@dataclass(frozen=True)
class Empty(_OfField):
    """The field is missing, null, or an array without elements."""


@dataclass(frozen=True)
class Text(_OfField):
    """The value, or one of an array's, is text that holds this text, case and all."""

    text: str


@dataclass(frozen=True)
class Prefix(_OfField):
    """The value, or one of an array's, is text that begins with this text, case and all."""

    text: str


@dataclass(frozen=True)
class Words(_OfField):
    """The value, or one of an array's, is text with the words of a query, whatever their case; see `words.MATCHES`."""

    query: str
    match: str = "all"

    def __post_init__(self):
        super().__post_init__()
        if self.match not in MATCHES:
            raise ConfigError(f"words match in one of the ways {', '.join(MATCHES)}, not {self.match!r:.40}")


@dataclass(frozen=True)
class Within(_OfField):
    """The value, or one of an array's, is an object with numbers `lat` and `lon` that lie in an area."""

    area: Area


@dataclass(frozen=True)
class Element(_OfField):
    """One element of the array is an object for which a filter is true."""

    part: "Filter"


@dataclass(frozen=True)
class Has:
    """The point's id is one of these."""

    ids: tuple[int | str, ...]

    def __post_init__(self):
        for one in self.ids:
            if isinstance(one, bool) or not isinstance(one, int | str):
                raise ConfigError(f"an id is an integer or text, not {one!r:.40} of type {type(one).__name__}")
            check_value(one, "an id")

    @cached_property
    def _ids(self) -> frozenset:
        return frozenset(self.ids)


@dataclass(frozen=True)
class HasVector:
    """The point has the vector of this name, which is "" where vectors have none; None: any vector."""

    name: str | None = None


_OfValue = Eq | In | Except | Range | Text | Prefix | Words | Within
Filter = And | Or | AtLeast | Not | _OfValue | Count | Null | Exists | Empty | Element | Has | HasVector


def parts_of(filter: Filter) -> tuple[Filter, ...]:
    """The filters that a filter is made of; none for a condition."""
    if isinstance(filter, And | Or | AtLeast):
        return filter.parts
    return (filter.part,) if isinstance(filter, Not | Element) else ()


def check_size(filter: Filter) -> None:
    """Raises ConfigError if a filter is nested deeper, or has more conditions, than SQLite takes."""
    level, depth, count, nested = [(filter, 0)], 0, 0, 0
    while level:
        depth, count, nested = depth + 1, count + len(level), max(nested, max(inside for _, inside in level))
        if depth > MAX_DEPTH or nested > MAX_NESTED:
            what = f"{MAX_NESTED} conditions on elements" if depth <= MAX_DEPTH else f"{MAX_DEPTH} levels"
            raise ConfigError(f"the filter nests more than {what} in each other: write it flatter, with lists")
        if count > MAX_CONDITIONS:
            raise ConfigError(
                f"the filter has more than {MAX_CONDITIONS:,} conditions: give a field's values as a list"
            )
        level = [(part, inside + isinstance(whole, Element)) for whole, inside in level for part in parts_of(whole)]


def check_value(value: Scalar, place: str) -> None:
    """Raises ConfigError for NaN, and for text that is no valid Unicode."""
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{place}: nothing equals NaN, and JSON has none: ask for null instead")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{place}: {value!r:.40} holds half of a surrogate pair: give valid Unicode") from None


def typed(value) -> tuple:
    """The type that values are compared in, and what is compared."""
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, int | float):
        return "number", number(value)
    if isinstance(value, str):
        return "text", value
    if isinstance(value, datetime.datetime):
        return "instant", microseconds(value)
    return type(value).__name__, None  # null, an array or an object, which equal nothing


def as_kind(value, kind: str) -> tuple:
    """As `_typed`, but text as an instant where that is what is asked for."""
    if kind == "instant":
        return kind, instant(value) if isinstance(value, str) else None
    return typed(value)


def number(value: int | float) -> int | float:
    """A number as SQLite has it: an integer of 64 bits, else a float."""
    if isinstance(value, float) or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
