"""Filters as SQL over the table `points(key, id, payload)`, and the indexes that make them fast.

An index on the value of a field (`places.Place`) holds all that a condition on a scalar needs, and the rows whose value
is an array, the only ones whose payload is read.
SQLite uses such an index only for the same expression with the path written out: paths are quoted literals, and all
values are bound. No text of a payload holds an escaped NUL (`records.payload_text`).
"""

import datetime
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from qinco.collection import filters
from qinco.collection.filters import (
    And,
    AtLeast,
    Count,
    Element,
    Empty,
    Eq,
    Except,
    Exists,
    Filter,
    Has,
    HasVector,
    In,
    Not,
    Null,
    Or,
    Prefix,
    Range,
    Text,
    Within,
    Words,
)
from qinco.collection.instants import microseconds
from qinco.collection.paths import path_steps
from qinco.collection.places import ARRAY, FALSE, NULL, TRUE, Place, Sql, place_of
from qinco.errors import ConfigError

KINDS = "keyword", "integer", "float", "bool", "datetime"  # of declared fields
PLAIN_VECTORS: Mapping[str | None, str] = dict.fromkeys((None, ""), "points.vectors > 0")
_GROUP = 16  # parts beside each other: SQLite's trees of expressions are 1000 deep at most
_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def to_sql(filter: Filter, vectors: Mapping[str | None, str] = PLAIN_VECTORS) -> Sql:
    """A filter as an expression over `points` that is 1 or 0, never NULL, with its parameters.

    `vectors` are expressions that are 1 where a point has the vector of a name, and with the name None any vector. The
    connection has the functions of `add_functions`.

    Example:
        >>> expression, parameters = to_sql(Eq("lang", "de"))
        >>> database.execute(f"SELECT key FROM points WHERE {expression}", parameters)
    """
    filters.check_size(filter)
    return _sql(filter, "payload", 0, vectors)[0]


def find_keys(connection: sqlite3.Connection, expression: str, parameters: Sequence) -> np.ndarray:
    """The keys of the points for which an expression is true, ascending, int64 (N,)."""
    # One text with all keys takes a third of the time of a row for each
    (text,) = connection.execute(f"SELECT group_concat(key) FROM points WHERE {expression}", parameters).fetchone()
    keys_N = np.fromstring(text, np.int64, sep=",") if text else np.empty(0, np.int64)
    keys_N.sort()
    return keys_N


def index_sql(path: str, kind: str) -> str:
    """The expression of an index on a declared field, which `to_sql` finds: CREATE INDEX field_1 ON points(HERE)."""
    if kind not in KINDS:
        raise ConfigError(f"a field has one of the kinds {', '.join(KINDS)}, not {kind!r}")
    place = place_of(path_steps(path), "payload", 0)
    if place.tables:
        raise ConfigError(f"{path} cannot be indexed: declare a field without [] and without quotes and backslashes in "
                          "its keys; an array's field is declared without [], as tags")  # fmt: skip
    return place.instant if kind == "datetime" else place.value


def _sql(filter: Filter, source: str, level: int, vectors: Mapping[str | None, str]) -> tuple[Sql, int]:
    """A filter as SQL, in brackets where it needs any, and how deep it is."""
    if isinstance(filter, Has):
        return _has(filter), 1
    if isinstance(filter, HasVector):
        return Sql(f"({vectors.get(filter.name, 0)})"), 1
    if isinstance(filter, Not):
        part, depth = _sql(filter.part, source, level, vectors)
        return Sql(f"({part.text} = 0)", part.parameters), depth + 1
    if isinstance(filter, And | Or | AtLeast):
        parts = [_sql(part, source, level, vectors) for part in filter.parts]
        return _combined(filter, parts), 1 + max((depth for _, depth in parts), default=0)
    place = place_of(path_steps(filter.path), source, level)
    if isinstance(filter, Element):
        alias = f"o{level}"
        inner, depth = _sql(filter.part, f"CASE {alias}.type WHEN 'object' THEN {alias}.value END", level + 1, vectors)
        test = Sql(f"{inner.text} AND {alias}.type = 'object' AND {place.type} = 'array'", inner.parameters)
        return _anywhere(place, _exists((f"json_each({place.each}) AS {alias}",), test)), depth + 1
    if isinstance(filter, Null | Exists | Empty | Count):
        return _of_field(filter, place), 1
    if isinstance(filter, Within):
        return _anywhere(place, _within(place, filter)), 1
    return _anywhere(place, _of_elements(place, filter)), 1


def _combined(filter: And | Or | AtLeast, parts: list[tuple[Sql, int]]) -> Sql:
    # The deepest first: SQLite's parser, which takes 100 symbols at once, has then the least to keep
    ordered = [part for part, _ in sorted(parts, key=lambda part: -part[1])]
    if isinstance(filter, And):
        return _joined(ordered, " AND ") if ordered else Sql("1")
    if isinstance(filter, Or):
        return _joined(ordered, " OR ") if ordered else Sql("0")
    total = _joined(ordered, " + ") if ordered else Sql("0")
    return Sql(f"({total.text} >= ?)", (*total.parameters, filter.count))


def _joined(parts: list[Sql], word: str) -> Sql:
    while len(parts) > _GROUP:
        parts = [_joined(parts[start : start + _GROUP], word) for start in range(0, len(parts), _GROUP)]
    text = word.join(part.text for part in parts)
    return Sql(f"({text})" if len(parts) > 1 else text, sum((part.parameters for part in parts), ()))


def _exists(tables: Iterable[str], test: Sql) -> Sql:
    return Sql(f"EXISTS (SELECT 1 FROM {', '.join(tables)} WHERE {test.text})", test.parameters)


def _anywhere(place: Place, test: Sql) -> Sql:
    """Whether a test holds at one of the places."""
    if not place.tables:
        return test
    return _exists(place.tables, Sql(f"{place.holds.text} AND {test.text}", place.holds.parameters + test.parameters))


def _of_elements(place: Place, filter: Filter) -> Sql:
    """A condition on a scalar, or on one element of an array."""
    alternatives = []
    element = Place("e.type", "e.atom", "")
    for kind, test in _tests(filter):
        own, array = getattr(place, kind), getattr(element, kind)
        found, inside = test(own), test(array)
        if isinstance(filter, Except):  # an array is no value itself
            found = Sql(f"{own} <> {ARRAY} AND {found.text}", found.parameters)
        within = _exists((f"json_each({place.each}) AS e",), inside)
        either = f"({found.text}) OR ({own} = {ARRAY} AND {within.text})"
        alternatives.append(Sql(either, found.parameters + within.parameters))
    text = " OR ".join(one.text for one in alternatives) or "0"
    return Sql(f"({text})", sum((one.parameters for one in alternatives), ()))


def _within(place: Place, filter: Within) -> Sql:
    """Whether the object at a place, or one in the array there, lies in an area."""
    inside = "EXISTS (SELECT 1 FROM json_each({}) AS e WHERE e.type = 'object' AND qinco_within(?, e.value))"
    text = (f"(CASE {place.type} WHEN 'object' THEN qinco_within(?, {place.json}) WHEN 'array' THEN "
            f"{inside.format(place.each)} ELSE 0 END)")  # fmt: skip
    return Sql(text, (filter.area.text,) * 2)


def _tests(filter: Filter) -> list[tuple[str, Callable[[str], Sql]]]:
    """The kinds of expression that a condition compares, and its SQL for such an expression."""
    if isinstance(filter, Text):
        return [("value", lambda value: Sql(f"typeof({value}) = 'text' AND instr({value}, ?) > 0", (filter.text,)))]
    if isinstance(filter, Prefix):
        start = "typeof({0}) = 'text' AND substr({0}, 1, length(?)) = ?"
        return [("value", lambda value: Sql(start.format(value), (filter.text,) * 2))]
    if isinstance(filter, Words):
        test = "typeof({0}) = 'text' AND qinco_words(?, ?, {0})"
        return [("value", lambda value: Sql(test.format(value), (filter.match, filter.query)))]
    if isinstance(filter, Eq):
        wanted = _bound(filter.value)
        kind = "instant" if isinstance(filter.value, datetime.datetime) else "value"
        return [(kind, lambda value: Sql(f"{value} = {wanted.text}", wanted.parameters))]
    if isinstance(filter, In):  # or Except, which is one
        lists = [(kind, _list(values)) for kind, values in _by_kind(filter.values)]
        if isinstance(filter, Except):
            known = lists[0][1] if lists else Sql(NULL)
            return [("value", partial(_is_none_of, known))]
        return [(kind, partial(_is_in, known)) for kind, known in lists]
    assert isinstance(filter, Range)
    return [("instant" if filter.kind == "instant" else "value", lambda value: _range(filter, value))]


def _is_in(known: Sql, value: str) -> Sql:
    return Sql(f"{value} IN ({known.text})", known.parameters)


def _is_none_of(known: Sql, value: str) -> Sql:
    return Sql(f"{value} <> {NULL} AND {value} NOT IN ({known.text})", known.parameters)


def _range(filter: Range, value: str) -> Sql:
    tests, parameters = [], ()
    bounds = filter.bounds()
    for name, bound in bounds.items():
        wanted = _bound(bound)
        tests.append(f"{value} {_SIGNS[name]} {wanted.text}")
        parameters += wanted.parameters
    # Beyond the last number come texts, and beyond the last text blobs
    if not bounds.keys() & {"lt", "lte"}:
        tests.append(f"{value} < {NULL if filter.kind == 'text' else repr('')}")
    if filter.kind == "text" and not bounds.keys() & {"gt", "gte"}:
        tests.append(f"{value} >= ''")
    return Sql(" AND ".join(tests), parameters)


def _bound(value) -> Sql:
    """A value that an expression of a field can be compared with."""
    if isinstance(value, bool):
        return Sql(TRUE if value else FALSE)
    if isinstance(value, datetime.datetime):
        return Sql("?", (microseconds(value),))
    if isinstance(value, int):
        value = filters.number(value)
    if isinstance(value, float) and math.isfinite(value):
        return Sql("json_extract(?, '$')", (repr(value),))  # read like the payload's: SQLite rounds by its own rule
    return Sql("?", (value,))


def _by_kind(values: tuple) -> list[tuple[str, list]]:
    instants = [value for value in values if isinstance(value, datetime.datetime)]
    others = [value for value in values if not isinstance(value, datetime.datetime)]
    return [(kind, found) for kind, found in (("value", others), ("instant", instants)) if found]


def _list(values: list) -> Sql:
    """What stands between the brackets of IN: a few values, or one parameter that holds them all."""
    if len(values) <= _GROUP:
        bound = [_bound(value) for value in values]
        return Sql(", ".join(one.text for one in bound), sum((one.parameters for one in bound), ()))
    truths = {_bound(value).text for value in values if isinstance(value, bool)}
    rest = [_plain(value) for value in values if not isinstance(value, bool)]
    # No payload holds NUL, which ends strings in json_each, or an infinite number, which JSON has not
    found = [one for one in rest if ("\0" not in one if isinstance(one, str) else math.isfinite(one))]
    text = "SELECT value FROM json_each(?)" + "".join(f" UNION ALL SELECT {truth}" for truth in sorted(truths))
    return Sql(text, (json.dumps(found, ensure_ascii=False),))


def _plain(value):
    if isinstance(value, datetime.datetime):
        return microseconds(value)
    return filters.number(value) if isinstance(value, int) else value


def _has(filter: Has) -> Sql:
    ids = [one for one in filter.ids if isinstance(one, str) or -(2**63) <= one < 2**63]
    bound = [one for one in ids if isinstance(one, str) and "\0" in one] if len(ids) > _GROUP else ids
    listed = [] if bound is ids else [one for one in ids if not (isinstance(one, str) and "\0" in one)]
    tests = []
    if bound:
        tests.append(Sql(f"points.id IN ({', '.join('?' * len(bound))})", tuple(bound)))
    if listed:
        tests.append(Sql("points.id IN (SELECT value FROM json_each(?))", (json.dumps(listed, ensure_ascii=False),)))
    found = _joined(tests, " OR ")
    return Sql(f"({found.text or 0})", found.parameters)


def _of_field(filter: Null | Exists | Empty | Count, place: Place) -> Sql:
    """Conditions on the field itself, not on an array's elements."""
    there = _anywhere(place, Sql(f"{place.type} IS NOT NULL"))
    if isinstance(filter, Exists):
        return Sql(f"({there.text})", there.parameters)
    if isinstance(filter, Null):
        null = _anywhere(place, Sql(f"{place.value} = {NULL}"))
        if not place.tables:
            return Sql(f"({null.text})", null.parameters)
        return Sql(f"(NOT {there.text} OR {null.text})", there.parameters + null.parameters)
    length = f"CASE {place.type} WHEN 'array' THEN json_array_length({place.each}) WHEN 'null' THEN 0 ELSE 1 END"
    if isinstance(filter, Empty):
        full = _anywhere(place, Sql(f"({place.type} IS NOT NULL AND {length} > 0)"))
        return Sql(f"({full.text} = 0)", full.parameters)
    bounds = filter.bounds()
    within = " AND ".join(f"{length} {_SIGNS[name]} ?" for name in bounds) or "1"
    found = _anywhere(place, Sql(f"({place.type} IS NOT NULL AND {within})", tuple(bounds.values())))
    of_none = " AND ".join(f"0 {_SIGNS[name]} ?" for name in bounds) or "1"
    text = f"({found.text} OR (NOT {there.text} AND {of_none}))"
    return Sql(text, found.parameters + there.parameters + tuple(bounds.values()))
