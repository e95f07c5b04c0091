"""Records in the order of a field of their payloads, as Qdrant's `order_by` has it."""

import datetime
import heapq
from collections.abc import Iterator
from typing import Any

from qdrant_client.http import models as m

from qinco.collection.instants import instant, microseconds
from qinco.collection.paths import nodes, path_steps
from qinco.collection.records import Id, Record
from qinco.server.catalog import Served

_PAGE = 4096


def ordered(
    collection: Served, where: dict | None, order: str | m.OrderBy, limit: int, kinds: dict[str, Any]
) -> list[tuple[Record, int | float]]:
    """The first records by a field, and its values: numbers, or times as microseconds.

    A record is there once for each of its values, and not at all without one. Payloads of all records that the filter
    admits are read.
    """
    order = m.OrderBy(key=order) if isinstance(order, str) else order
    steps, is_falling = path_steps(order.key), order.direction == m.Direction.DESC
    start = _order_value(order.start_from)
    values = (
        (value, -row if is_falling else row, record.id)
        for row, record in enumerate(_all(collection, where))
        for value in dict.fromkeys(_values(record.payload, steps))
        if start is None or (value <= start if is_falling else value >= start)
    )
    first = heapq.nlargest(limit, values) if is_falling else heapq.nsmallest(limit, values)
    ids = list(dict.fromkeys(id for _, _, id in first))
    records = {record.id: record for record in collection.get(ids, **kinds)} if ids else {}
    return [(records[id], value) for value, _, id in first if id in records]


def _all(collection: Served, where: dict | None) -> Iterator[Record]:
    """All records that a filter admits, some at a time."""
    last: Id | None = None
    while found := collection.get(where=where, after=last, limit=_PAGE):
        yield from found
        last = found[-1].id


def _values(payload: dict | None, steps: tuple) -> list[int | float]:
    found = []
    for value in nodes(payload or {}, steps):
        found += value if isinstance(value, list) else [value]
    return [one for one in map(_order_value, found) if one is not None]


def _order_value(value: Any) -> int | float | None:
    """A number, or the microseconds of a time; None of anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if isinstance(value, datetime.datetime):
        return microseconds(value)
    return instant(value) if isinstance(value, str) else None
