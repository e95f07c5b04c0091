"""Filters of Qdrant, as dicts: must, should, must_not and min_should of conditions."""

from collections.abc import Mapping

from qinco.collection import operands
from qinco.collection.filters import (
    And,
    AtLeast,
    Element,
    Empty,
    Eq,
    Except,
    Exists,
    Filter,
    HasVector,
    In,
    Not,
    Null,
    Or,
    Prefix,
    Text,
    Within,
    Words,
)
from qinco.collection.instants import parsed_time
from qinco.collection.qdrant_geo import area
from qinco.config import suggest
from qinco.errors import ConfigError

CLAUSES = "must", "should", "must_not", "min_should"
_GEO = "geo_bounding_box", "geo_radius", "geo_polygon"
_TESTS = "match", "range", "values_count", "is_null", "is_empty", *_GEO
_TEXTS = {"text": "all", "text_any": "any", "phrase": "phrase"}  # how the words of each match


def is_qdrant(where: Mapping) -> bool:
    """Whether a mapping is a filter of Qdrant rather than one of fields, which may have such names, too."""
    return bool(where) and all(name in CLAUSES and _are_conditions(value) for name, value in where.items())


def _are_conditions(value) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return value is None or all(isinstance(one, Mapping) for one in values)


def parse_qdrant(where: Mapping, place: str, depth: int) -> Filter:
    depth = operands.deeper(depth)
    parts: list[Filter] = []
    for name, wanted in where.items():
        here = f"{place}[{name!r:.40}]"
        if name not in CLAUSES:
            raise ConfigError(
                f"{here} is of no Qdrant filter. {suggest(name, CLAUSES, 0.6)}There are {', '.join(CLAUSES)}"
            )
        if wanted is None:
            continue
        if name == "min_should":
            parts.append(_min_should(wanted, here, depth))
            continue
        found = _conditions(wanted, here, depth)
        if name == "must":
            parts.extend(found)
        elif name == "must_not":
            parts.extend(Not(part) for part in found)
        elif found:  # without any, `should` asks for nothing
            parts.append(Or(found))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _min_should(wanted, here: str, depth: int) -> AtLeast:
    count = wanted.get("min_count") if isinstance(wanted, Mapping) else None
    if not isinstance(count, int) or not operands.is_count(count):
        raise ConfigError(f'{here} is {operands.short(wanted)}: write {{"conditions": [...], "min_count": 2}}')
    return AtLeast(count, _conditions(wanted.get("conditions"), f"{here}['conditions']", depth))


def _conditions(given, here: str, depth: int) -> tuple[Filter, ...]:
    listed = [given] if isinstance(given, Mapping) else operands.listed(given, here)
    return tuple(_condition(one, f"{here}[{number}]", depth) for number, one in enumerate(listed))


def _condition(given, here: str, depth: int) -> Filter:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f'{here} is {operands.short(given)}: write a condition, {{"key": "lang", "match": {{"value": "de"}}}}'
        )
    given = {name: wanted for name, wanted in given.items() if wanted is not None}
    if any(name in given for name in CLAUSES):
        return parse_qdrant(given, here, depth)
    if "has_id" in given:
        return operands.ids(given["has_id"], f"{here}['has_id']")
    if "has_vector" in given:
        return HasVector(operands.text(given["has_vector"], f"{here}['has_vector']"))
    if "nested" in given:
        return _nested(given["nested"], f"{here}['nested']", depth)
    for name in ("is_null", "is_empty"):
        if isinstance(given.get(name), Mapping):
            return _missing(name, operands.text(given[name].get("key"), f"{here}[{name!r}]['key']"))
    tests = [name for name in given if name != "key"]
    if "key" not in given or len(tests) != 1 or tests[0] not in _TESTS:
        raise ConfigError(f"{here} is {operands.short(given)}: give a key and one of {', '.join(_TESTS)}, or has_id, "
                          "has_vector, nested or a filter, and two conditions for two tests")  # fmt: skip
    return _of_field(operands.text(given["key"], f"{here}['key']"), tests[0], given[tests[0]], f"{here}[{tests[0]!r}]")


def _nested(wanted, here: str, depth: int) -> Element:
    inner = wanted.get("filter") if isinstance(wanted, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ConfigError(
            f'{here} is {operands.short(wanted)}: write {{"key": "authors", "filter": {{"must": [...]}}}}'
        )
    path = operands.text(wanted.get("key"), f"{here}['key']").removesuffix("[]")
    return Element(path, parse_qdrant(inner, f"{here}['filter']", depth))


def _of_field(path: str, name: str, wanted, here: str) -> Filter:
    if name in ("is_null", "is_empty"):
        return _missing(name, path) if wanted else Not(_missing(name, path))
    if not isinstance(wanted, Mapping):
        raise ConfigError(
            f'{here} is {operands.short(wanted)}: write a mapping, as in {{"value": "de"}} or {{"gte": 2010}}'
        )
    wanted = {key: one for key, one in wanted.items() if one is not None}
    if name == "values_count":
        return operands.count_of(path, wanted, here)
    if name in _GEO:
        return Within(path, area(name, wanted, here))
    return _match(path, wanted, here) if name == "match" else _range(path, wanted, here)


def _match(path: str, wanted: Mapping, here: str) -> Filter:
    name, value = next(iter(wanted.items())) if len(wanted) == 1 else ("", None)
    at = f"{here}[{name!r}]"
    if name == "value":
        return Eq(path, operands.scalar(value, at))
    if name in ("any", "except", "except_"):
        values = tuple(operands.scalar(one, at) for one in operands.listed(value, at))
        return In(path, values) if name == "any" else Except(path, values)
    if name in _TEXTS:
        return Words(path, operands.text(value, at), _TEXTS[name])
    if name in ("prefix", "substring"):
        return (Prefix if name == "prefix" else Text)(path, operands.text(value, at))
    raise ConfigError(f"{here} is {operands.short(dict(wanted))}: give one of value, any, except, text, text_any, "
                      "phrase, prefix and substring")  # fmt: skip


def _range(path: str, wanted: Mapping, here: str) -> Filter:
    bounds = {}
    for name, bound in wanted.items():
        if name not in operands.BOUNDS:
            known = suggest(str(name), operands.BOUNDS, 0.6)
            raise ConfigError(f"{here} has {name!r:.40}. {known}There are {', '.join(operands.BOUNDS)}")
        at = f"{here}[{name!r}]"
        bounds[name] = parsed_time(bound, at) if isinstance(bound, str) else operands.scalar(bound, at)
    return operands.range_of(path, bounds, here)


def _missing(name: str, path: str) -> Filter:
    """is_empty; and is_null, which is false for a missing field, and true for an array that holds null."""
    if name == "is_empty":
        return Empty(path)
    element = f"{path}[]"
    return Or((And((Exists(path), Null(path))), And((Exists(element), Null(element)))))
