"""What filters mean: `matches` is the definition that their SQL is tested against."""

import operator
from collections.abc import Collection, Iterator

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
    as_kind,
    typed,
)
from qinco.collection.geo import point_of
from qinco.collection.paths import nodes, path_steps
from qinco.collection.words import has_words

_COMPARE = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def matches(filter: Filter, id: int | str, payload: dict | None, vectors: Collection[str] = ()) -> bool:
    """Whether a point, with vectors of these names, is what the filter asks for: the same answer as SQLite's.

    Example:
        >>> matches(And((Eq("lang", "de"), Range("year", gte=2010))), 7, {"lang": "de", "year": 2024})
        True
    """
    if isinstance(filter, And):
        return all(matches(part, id, payload, vectors) for part in filter.parts)
    if isinstance(filter, Or):
        return any(matches(part, id, payload, vectors) for part in filter.parts)
    if isinstance(filter, AtLeast):
        return sum(matches(part, id, payload, vectors) for part in filter.parts) >= filter.count
    if isinstance(filter, Not):
        return not matches(filter.part, id, payload, vectors)
    if isinstance(filter, Has):
        return id in filter._ids
    if isinstance(filter, HasVector):
        return bool(vectors) if filter.name is None else filter.name in vectors
    found = list(nodes(payload, path_steps(filter.path)))
    if isinstance(filter, Element):
        objects = [value for value in _elements(found, only=True) if isinstance(value, dict)]
        return any(matches(filter.part, id, value, vectors) for value in objects)
    if isinstance(filter, Null | Exists | Empty | Count):
        return _of_field(filter, found)
    return any(_of_value(filter, value) for value in _elements(found))


def _of_field(filter: Null | Exists | Empty | Count, found: list) -> bool:
    if isinstance(filter, Exists):
        return bool(found)
    if isinstance(filter, Null):
        return not found or any(value is None for value in found)
    if isinstance(filter, Empty):
        return all(value is None or value == [] for value in found)
    counts = [0 if value is None else len(value) if isinstance(value, list) else 1 for value in found]
    return any(_is_within(count, filter.bounds()) for count in counts or [0])


def _of_value(filter: Filter, value) -> bool:
    if isinstance(filter, Text):
        return isinstance(value, str) and filter.text in value
    if isinstance(filter, Prefix):
        return isinstance(value, str) and value.startswith(filter.text)
    if isinstance(filter, Words):
        return isinstance(value, str) and has_words(filter.match, filter.query, value)
    if isinstance(filter, Within):
        return (point := point_of(value)) is not None and filter.area.holds(*point)
    if isinstance(filter, Except):
        return value is not None and not filter.holds(value)
    if isinstance(filter, In):
        return filter.holds(value)
    if isinstance(filter, Eq):
        kind, wanted = typed(filter.value)
        return as_kind(value, kind) == (kind, wanted)
    assert isinstance(filter, Range)
    kind, found = as_kind(value, filter.kind)
    bounds = {name: typed(bound)[1] for name, bound in filter.bounds().items()}
    return kind == filter.kind and found is not None and _is_within(found, bounds)


def _is_within(value, bounds: dict) -> bool:
    return all(_COMPARE[name](value, bound) for name, bound in bounds.items())


def _elements(found: list, only: bool = False) -> Iterator:
    """The elements of arrays, and, unless `only` they are wanted, the values that are none."""
    for value in found:
        if isinstance(value, list):
            yield from value
        elif not only:
            yield value
