"""Filters of Haystack as those of collections; see `qinco.integrations.stores`.

Haystack compares as Python does, so that 1, 1.0 and True are equal, and reads text as dates, in any time zone and any
form: what SQL says of dates is wider, and Haystack decides.
"""

# pyright: reportMissingImports=false
import datetime
from collections.abc import Iterator
from typing import Any

from haystack.errors import FilterError

from qinco.collection.filters import Not, Null, Range
from qinco.integrations.stores import (
    UNKNOWN,
    Part,
    all_of,
    any_of,
    complement,
    not_array,
    one_of,
    ordered,
    path_of,
    said,
)

_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_OPERATORS = "==", "!=", *_BOUNDS, "in", "not in"
_FIELDS = "id", "content", "blob", "meta", "score", "embedding", "sparse_embedding"  # of documents; others are in meta
_DAY = datetime.timedelta(days=1)
_EARLIEST = datetime.datetime.min.replace(tzinfo=datetime.UTC)


def part_of(filters: dict[str, Any]) -> Part:
    """What SQL can say of a filter; raises FilterError unless it is one."""
    if not isinstance(filters, dict):
        raise FilterError(f"a filter is a dict with 'operator', not {filters!r:.60}")
    names = ("operator", "value") if "field" in filters else ("operator", "conditions")
    for name in names:
        if name not in filters:
            raise FilterError(f"'{name}' is missing in {filters!r:.200}: give it")
    if "field" in filters:
        return _comparison(filters["field"], filters["operator"], filters["value"])
    parts = [part_of(one) for one in filters["conditions"]]
    if filters["operator"] not in ("AND", "OR", "NOT"):
        raise FilterError(f"there is no logical operator {filters['operator']!r:.40}: give AND, OR or NOT")
    if filters["operator"] == "OR":
        return any_of(parts)
    return all_of(parts) if filters["operator"] == "AND" else complement(all_of(parts))


def fields_of(filters: dict[str, Any]) -> Iterator[str]:
    """The fields that a filter names."""
    if "field" in filters:
        yield filters["field"]
    for one in filters.get("conditions", ()):
        yield from fields_of(one)


def _comparison(field: str, operator: str, value: Any) -> Part:
    if operator not in _OPERATORS:
        raise FilterError(f"there is no operator {operator!r:.40}: give one of {', '.join(_OPERATORS)}")
    if operator in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"the value of {operator!r} must be a list, not {type(value).__name__}: give [{value!r:.40}]")
    if operator in _BOUNDS and isinstance(value, list):
        raise FilterError(f"{operator} compares numbers and dates, not a list: give one of them")
    path = _path(field)
    if path is None:
        return UNKNOWN
    if operator in _BOUNDS:
        return _ordered(path, operator, value)
    found = any_of(_equal(path, one) for one in (value if "in" in operator else [value]))
    return complement(found) if operator in ("!=", "not in") else found


def _path(field: str) -> str | None:
    """The path of a field in payloads, where documents are kept without their ids and embeddings."""
    keys = field.split(".")
    if len(keys) == 1 and field not in _FIELDS:
        keys = ["meta", field]
    return path_of(keys) if keys == ["content"] or (keys[0] == "meta" and len(keys) > 1) else None


def _equal(path: str, value: Any) -> Part:
    if value is None:
        return said(Null, path)
    if isinstance(value, list | dict):
        return UNKNOWN
    equal = all_of([one_of(path, [value]), not_array(path)])
    if isinstance(value, datetime.datetime) or (isinstance(value, str) and value[:4].isdigit() and len(value) >= 10):
        near = _near(path, value, "gte", "lte")
        return any_of([equal, near]).widened() if near is not UNKNOWN else UNKNOWN
    return equal


def _ordered(path: str, operator: str, value: Any) -> Part:
    if value is None:
        return any_of([])  # true of nothing
    if isinstance(value, str | datetime.datetime):
        return _near(path, value, _BOUNDS[operator])
    return ordered(path, _BOUNDS[operator], value)


def _near(path: str, value: str | datetime.datetime, *bounds: str) -> Part:
    """A date or time within bounds, a day more in either direction for time zones, or what SQL reads as none."""
    try:
        time = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(value)
        time = time.replace(tzinfo=time.tzinfo or datetime.UTC)
        limits = {bound: time - _DAY if bound.startswith("g") else time + _DAY for bound in bounds}
        near = any_of([said(Range, path, **limits), said(lambda: Not(Range(path, gte=_EARLIEST)))])
    except (ValueError, OverflowError):
        return UNKNOWN
    return all_of([said(lambda: Not(Null(path))), near]).widened()
