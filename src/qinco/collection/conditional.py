"""Which records of an upsert are written: those whose id is new, those that are there, or those that fulfil a filter.

Shape suffixes: n vectors, D dimension.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from qinco.collection.changes import find
from qinco.collection.finding import condition, keys_by_id
from qinco.collection.moments import View
from qinco.collection.records import Id
from qinco.errors import ConfigError

MODES = "upsert", "insert", "update"


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ConfigError(f'mode must be "upsert", "insert" or "update", not {mode!r:.40}')


def rounds(view: View, ids: list[Id], mode: str, only_where) -> Iterator[list[int]]:
    """Rows of records to write, one list after the other: with a filter, each is compared with what is there then."""
    if only_where is not None:
        yield from (_admitted(view, ids, rows, mode, only_where) for rows in _by_occurrence(ids))
    elif mode == "upsert":
        yield list(range(len(ids)))
    else:
        known, is_insert = keys_by_id(view, list(dict.fromkeys(ids))), mode == "insert"
        first = {id: row for row, id in reversed(list(enumerate(ids)))}
        yield [row for row, id in enumerate(ids) if (id in known) != is_insert and (not is_insert or first[id] == row)]


def rows_of(
    rows: Sequence[int], rows_n: np.ndarray, vectors_nD: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of which of some ascending rows each vector is, and the vectors, given those of all `count` rows."""
    if len(rows) == count:
        return rows_n, vectors_nD
    place_N = np.full(count, -1, np.int64)
    place_N[rows] = np.arange(len(rows))
    is_kept_n = place_N[rows_n] >= 0
    return place_N[rows_n][is_kept_n], vectors_nD[is_kept_n]


def _by_occurrence(ids: list[Id]) -> list[list[int]]:
    """The rows where ids occur first, those where they occur for the second time, and so on."""
    seen, found = {}, []
    for row, id in enumerate(ids):
        number = seen[id] = seen.get(id, -1) + 1
        if number == len(found):
            found.append([])
        found[number].append(row)
    return found


def _admitted(view: View, ids: list[Id], rows: list[int], mode: str, only_where) -> list[int]:
    known = keys_by_id(view, [ids[row] for row in rows])
    expression, parameters = condition(only_where, view)
    query = f"SELECT id FROM points WHERE id IN ({{}}) AND ({expression.replace('{', '{{').replace('}', '}}')})"
    fulfil = {id for (id,) in find(view.connection, query, list(known), parameters)}
    replaces, adds = mode != "insert", mode != "update"
    return [row for row in rows if (replaces and ids[row] in fulfil) or (adds and ids[row] not in known)]
