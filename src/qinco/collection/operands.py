"""What operators of filters take: values, lists, bounds, counts, ids, text; wrong ones are refused with their place."""

import datetime
from collections.abc import Mapping
from uuid import UUID

import numpy as np

from qinco.collection import filters
from qinco.collection.filters import Count, Range
from qinco.errors import ConfigError

BOUNDS = "gt", "gte", "lt", "lte"
_MAX_NESTING = 4 * filters.MAX_DEPTH  # of mappings that are read, before anything is known of the filter


def deeper(depth: int) -> int:
    """One level further in; raises ConfigError before Python's stack ends."""
    if depth >= _MAX_NESTING:
        raise ConfigError(
            f"where nests more than {filters.MAX_DEPTH} levels in each other: write it flatter, with lists"
        )
    return depth + 1


def scalar(value, place: str) -> filters.Scalar:
    """A scalar as filters hold it: dates and times as datetimes in a zone, UUIDs as text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=value.tzinfo or datetime.UTC)
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str | int | float):
        raise ConfigError(f"{place} is {short(value)}: compare with text, a number, true, false, null or a datetime")
    filters.check_value(value, place)
    return value


def is_list(value) -> bool:
    is_row = isinstance(value, np.ndarray) and value.ndim == 1
    return is_row or isinstance(value, list | tuple | set | frozenset | range)


def listed(value, place: str) -> list:
    if not is_list(value):
        raise ConfigError(f"{place} is {short(value)}: give a list")
    return list(value)


def text(value, place: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{place} is {short(value)}: give text, or write eq for another value of a list")
    filters.check_value(value, place)
    return value


def ids(values, place: str) -> filters.Has:
    found = []
    for value in listed(values, place):
        one = scalar(value, place)
        if isinstance(one, bool) or not isinstance(one, int | str):
            raise ConfigError(f"{place} holds {short(value)}: an id is an integer or text")
        found.append(one)
    return filters.Has(tuple(found))


def range_of(path: str, bounds: Mapping[str, filters.Scalar], place: str) -> Range:
    kinds = {type(bound) if isinstance(bound, str | bool | datetime.datetime) else float for bound in bounds.values()}
    if len(kinds) != 1 or bool in kinds:
        raise ConfigError(f"{place} is {short(dict(bounds))}: give gt, gte, lt or lte, all numbers, text, or datetimes")
    return Range(path, **bounds)


def count_of(path: str, bounds: Mapping, place: str) -> Count:
    named = {str(name).removeprefix("$"): bound for name, bound in bounds.items()}
    if not named or not named.keys() <= set(BOUNDS) or not all(map(is_count, named.values())):
        raise ConfigError(f'{place} is {short(dict(bounds))}: give whole numbers, as in {{"gte": 2, "lt": 10}}')
    return Count(path, **named)


def is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def short(value) -> str:
    return "null" if value is None else f"{value!r:.60} of type {type(value).__name__}"
