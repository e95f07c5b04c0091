"""The values of a field and how many records have each, counted by SQLite."""

from collections import Counter
from collections.abc import Sequence

from qinco.collection.finding import condition
from qinco.collection.moments import View
from qinco.collection.paths import path_steps
from qinco.collection.places import ARRAY, Place, place_of
from qinco.config import require_int
from qinco.errors import ConfigError

_TRUTHS = {b"\x01": True, b"\x02": False}  # as `places` has them


def facet(view: View, path: str, where, limit: int | None) -> list[tuple[str | int | bool, int]]:
    """What `Collection.facet` returns."""
    if limit is not None:
        require_int("limit", limit)
    if not view.has_points:
        raise ConfigError("the collection was created with payload=false: it has no fields to count")
    counts: Counter = Counter()
    for query, parameters in facet_queries(path, *condition(where, view)):
        for value, number in view.connection.execute(query, parameters):
            value = _TRUTHS.get(value) if isinstance(value, bytes) else value
            if isinstance(value, str | int):
                counts[type(value), value] += number
    kinds = bool, int, str
    ordered = sorted(counts.items(), key=lambda item: (-item[1], kinds.index(item[0][0]), item[0][1]))
    return [(value, number) for (_, value), number in ordered[:limit]]


def facet_queries(path: str, expression: str, parameters: Sequence) -> list[tuple[str, list]]:
    """Queries of values and numbers of those records for which an expression is true; the numbers are added up."""
    place = place_of(path_steps(path), "payload", 0)
    element = Place("e.type", "e.atom", "").value
    tables = "".join(f", {table}" for table in place.tables)
    holds = f"({expression})" + (f" AND {place.holds.text}" if place.tables else "")
    given = [*parameters, *place.holds.parameters]
    kinds = "typeof(v)"  # 1 and 1.0 are equal
    arrays = (f"SELECT DISTINCT points.key, {element} AS v, typeof({element}) FROM points{tables}, "
              f"json_each({place.each}) AS e WHERE {holds} AND {place.value} = {ARRAY}")  # fmt: skip
    if not place.tables:  # an index on the field holds all that this needs
        scalars = f"SELECT {place.value} AS v, count(*) FROM points WHERE {holds} AND v <> {ARRAY} GROUP BY v, {kinds}"
        return [(scalars, given), (f"SELECT v, count(*) FROM ({arrays}) GROUP BY v, {kinds}", given)]
    scalars = f"SELECT points.key, {place.value} AS v, typeof({place.value}) FROM points{tables} WHERE {holds}"
    return [(f"SELECT v, count(*) FROM ({scalars} UNION {arrays}) GROUP BY v, {kinds}", given * 2)]
