"""Where the path of a field leads in payloads, as SQL over the table `points(key, id, payload)`.

Everything rests on one expression for the value at a path, which is never NULL: text and numbers as they are, and a
blob for true, false, arrays, objects, and for null and missing fields. SQLite orders numbers before text before blobs,
and no two of them are equal, so that comparisons keep types apart.
"""

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from qinco.collection.paths import Step

TRUE, FALSE, ARRAY, OBJECT, NULL = "x'01'", "x'02'", "x'03'", "x'04'", "x''"
_NOT_PLAIN = re.compile(r'[\x00-\x1f"\\]|^$')  # in keys: what SQLite's paths cannot hold in all versions


class Sql(NamedTuple):
    """An expression with `?` in it, and the parameters in their order."""

    text: str
    parameters: tuple = ()


@dataclass(frozen=True)
class Place:
    """Where a path leads: SQL of the type and of the scalar there, and the arguments of json_each for its elements.

    Without `tables` it is one place of each row; else one for each row of these tables for which `holds`.
    """

    type: str
    scalar: str
    each: str
    tables: tuple[str, ...] = ()
    holds: Sql = field(default_factory=lambda: Sql(""))

    @property
    def json(self) -> str:
        """The object or array there as JSON."""
        return self.scalar.removesuffix(".atom") + ".value" if self.scalar.endswith(".atom") else self.scalar

    @property
    def value(self) -> str:
        return (f"CASE {self.type} WHEN 'true' THEN {TRUE} WHEN 'false' THEN {FALSE} WHEN 'array' THEN {ARRAY} "
                f"WHEN 'object' THEN {OBJECT} ELSE COALESCE({self.scalar}, {NULL}) END")  # fmt: skip

    @property
    def instant(self) -> str:
        """Microseconds since 1970 for RFC 3339 text, as `filters.instant` has them."""
        v = self.scalar
        start = f"(substr({v}, 1, 10) || 'T' || CASE length({v}) WHEN 10 THEN '00:00:00' ELSE substr({v}, 12, 8) END)"
        rest = f"substr({v}, 20)"
        offset = f"CASE WHEN {rest} GLOB '.[0-9]*' THEN ltrim(substr({v}, 21), '0123456789') ELSE {rest} END"
        is_time = (
            f"{v} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*' AND substr({v}, 11, 1) IN ('', 'T', 't', ' ') "
            f"AND {start} >= '0001' AND strftime('%Y-%m-%dT%H:%M:%S', {start}, '+0 seconds') = {start} "
            f"AND ({offset} IN ('', 'Z', 'z') OR {offset} GLOB '[+-][0-9][0-9]:[0-9][0-9]')"
        )
        fraction = f"CASE WHEN {rest} GLOB '.[0-9]*' THEN CAST('0.' || substr({v}, 21, 6) AS REAL) ELSE 0 END"
        seconds = f"CAST(strftime('%s', {start} || {offset}) AS INTEGER)"
        microseconds = f"{seconds} * 1000000 + CAST(round(({fraction}) * 1000000) AS INTEGER)"
        return (f"CASE {self.type} WHEN 'array' THEN {ARRAY} WHEN 'text' THEN COALESCE(CASE WHEN {is_time} "
                f"THEN {microseconds} END, {NULL}) ELSE {NULL} END")  # fmt: skip


def place_of(steps: tuple[Step, ...], source: str, level: int) -> Place:
    """Where steps lead in `source`, SQL of an object as JSON; `level` tells tables in each other apart."""
    tables, holds, parameters = [], [], []
    run = "$"
    at_end = ""  # the row of json_each that the path has come to, where no step follows it
    for step in steps:
        if isinstance(step, int):
            run, at_end = f"{run}[{step}]", ""
        elif step is not None and not _NOT_PLAIN.search(step):
            run, at_end = f'{run}."{step}"', ""
        else:  # every element, or a key that a path cannot name: a row for each, and the one with this key
            alias = f"n{level}_{len(tables)}"
            place = _at(source, run)
            tables.append(f"json_each({place.each}) AS {alias}")
            holds.append(f"{place.type} = '{'array' if step is None else 'object'}'")
            if step is not None:
                holds.append(f"{alias}.key = ?")
                parameters.append(step)
            source, run, at_end = f"CASE WHEN {alias}.type IN ('array', 'object') THEN {alias}.value END", "$", alias
    found = _at(source, run)
    if at_end:
        found = replace(found, type=f"{at_end}.type", scalar=f"{at_end}.atom")
    return replace(found, tables=tuple(tables), holds=Sql(" AND ".join(holds), tuple(parameters)))


def _at(source: str, run: str) -> Place:
    arguments = f"{source}, " + "'" + run.replace("'", "''") + "'"
    return Place(f"json_type({arguments})", f"json_extract({arguments})", arguments)
