"""Changes of records, each within a transaction of `Database.writing`.

Shape suffixes: N records, R different ones, n vectors, D dimension.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qinco.collection.filter_sql import index_sql
from qinco.collection.records import Id, payload_of, payload_text
from qinco.errors import DataError

_CHUNK = 500  # values in a list of SQL


def find(connection: sqlite3.Connection, query: str, values: Sequence, then: Sequence = ()) -> Iterator[tuple]:
    """Rows of a query whose `{}` is a list of some of the values, for all of them; `then` are other parameters."""
    for start in range(0, len(values), _CHUNK):
        some = values[start : start + _CHUNK]
        yield from connection.execute(query.format(",".join("?" * len(some))), [*some, *then])


def keys_of(connection: sqlite3.Connection, ids: Sequence[Id]) -> dict[Id, int]:
    """The keys of the ids that there are."""
    return dict(find(connection, "SELECT id, key FROM points WHERE id IN ({})", ids))


def put(
    connection: sqlite3.Connection, ids: list[Id], texts: list[str | None], rows_n: np.ndarray, vectors_nD: np.ndarray
) -> None:
    """Insert records, and replace those whose id is there. Of records with equal ids the last one counts.

    `rows_n` say of which record each vector is, ascending.
    """
    last = {id: row for row, id in enumerate(ids)}
    remove(connection, list(keys_of(connection, list(last)).values()))
    if not last:
        return
    rows_R, counts_N = np.sort(list(last.values())), np.bincount(rows_n, minlength=len(ids))
    keys_N = np.full(len(ids), -1, np.int64)
    keys_N[rows_R] = new_keys(connection, counts_N[rows_R])
    new = ((int(keys_N[row]), ids[row], texts[row], int(counts_N[row])) for row in rows_R.tolist())
    connection.executemany("INSERT INTO points VALUES (?, ?, ?, ?)", new)
    _put_vectors_of(connection, keys_N, rows_n, vectors_nD)


def replace_vectors(
    connection: sqlite3.Connection, keys: Sequence[int], rows_n: np.ndarray, vectors_nD: np.ndarray
) -> None:
    """Give records, by their different keys, other vectors, or none; they get new keys. `rows_n`: as of `put`."""
    counts_N = np.bincount(rows_n, minlength=len(keys))
    _remove_vectors_of(connection, keys)
    keys_N = new_keys(connection, counts_N)
    changed = zip(keys_N.tolist(), counts_N.tolist(), keys, strict=True)
    connection.executemany("UPDATE points SET key = ?, vectors = ? WHERE key = ?", changed)
    _put_vectors_of(connection, keys_N, rows_n, vectors_nD)


def new_keys(connection: sqlite3.Connection, counts_N: np.ndarray) -> np.ndarray:
    """Keys of records with so many vectors, int64 (N,), none of which was ever used."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'points'").fetchone()
    taken_N = np.maximum(counts_N, 1)
    ends_N = np.cumsum(taken_N) + (0 if found is None else found[0])
    last = int(ends_N[-1]) if len(ends_N) else 0
    if found is None:
        connection.execute("INSERT INTO sqlite_sequence VALUES ('points', ?)", (last,))
    elif len(ends_N):
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'points'", (last,))
    return ends_N - taken_N + 1


def _put_vectors_of(
    connection: sqlite3.Connection, keys_N: np.ndarray, rows_n: np.ndarray, vectors_nD: np.ndarray
) -> None:
    """Insert vectors of records by their keys, which are -1 for those that are left out."""
    number_n = np.arange(len(rows_n)) - np.searchsorted(rows_n, rows_n)  # of a vector within its record
    is_kept_n = keys_N[rows_n] >= 0
    put_fresh(connection, (keys_N[rows_n] + number_n)[is_kept_n], vectors_nD[is_kept_n])


def put_vectors(
    connection: sqlite3.Connection,
    ids: list[int],
    vectors_ND: np.ndarray,
    are_stored: Callable[[np.ndarray], np.ndarray],
) -> None:
    """`put` where ids are keys; `are_stored` says which keys have a vector in a segment."""
    last = {id: row for row, id in enumerate(ids)}
    keys_n = np.array(list(last), np.int64)
    _bury(connection, keys_n[are_stored(keys_n)].tolist())
    connection.executemany("DELETE FROM fresh WHERE key = ?", ((id,) for id in last))
    put_fresh(connection, keys_n, vectors_ND[list(last.values())])


def put_fresh(connection: sqlite3.Connection, keys_n: np.ndarray, vectors_nD: np.ndarray) -> None:
    """Add vectors by their keys, which no fresh vector has."""
    vectors_nD = np.ascontiguousarray(vectors_nD, "<f4")
    new = ((key, x_D.tobytes()) for key, x_D in zip(keys_n.tolist(), vectors_nD, strict=True))
    connection.executemany("INSERT INTO fresh(key, vector) VALUES (?, ?)", new)


def remove(connection: sqlite3.Connection, keys: Sequence[int]) -> None:
    """Delete records by their keys, all of which there are."""
    _remove_vectors_of(connection, keys)
    connection.executemany("DELETE FROM points WHERE key = ?", ((key,) for key in keys))


def _remove_vectors_of(connection: sqlite3.Connection, keys: Sequence[int]) -> None:
    found = find(connection, "SELECT key, vectors FROM points WHERE key IN ({})", keys)
    remove_vectors(connection, [key for first, count in found for key in range(first, first + count)])


def remove_vectors(connection: sqlite3.Connection, keys: Sequence[int]) -> None:
    """Delete vectors by their keys, all of which there are."""
    fresh = {key for (key,) in find(connection, "SELECT key FROM fresh WHERE key IN ({})", keys)}
    _bury(connection, [key for key in keys if key not in fresh])
    connection.executemany("DELETE FROM fresh WHERE key = ?", ((key,) for key in fresh))


def _bury(connection: sqlite3.Connection, keys: Sequence[int]) -> None:
    """Mark vectors of keys as deleted in all segments that there are."""
    (newest,) = connection.execute("SELECT max(segment) FROM segments").fetchone()
    if newest is not None:
        connection.executemany("DELETE FROM dead WHERE key = ?", ((key,) for key in keys))
        connection.executemany("INSERT INTO dead(key, segment) VALUES (?, ?)", ((key, newest) for key in keys))


def remove_all(connection: sqlite3.Connection) -> None:
    for table in ("points", "fresh", "dead", "segments"):
        connection.execute(f"DELETE FROM {table}")


def change_payloads(connection: sqlite3.Connection, keys: Sequence[int], change: Callable[[dict], dict]) -> None:
    """Replace the payload of each key by what a function makes of it."""
    rows = find(connection, "SELECT key, payload FROM points WHERE key IN ({})", keys)
    new = [(payload_text(change(payload_of(text) or {})), key) for key, text in rows]
    connection.executemany("UPDATE points SET payload = ? WHERE key = ?", new)


def add_field(connection: sqlite3.Connection, path: str, kind: str) -> None:
    """Declare a field, and make an index of it; one that is there is made anew."""
    expression = index_sql(path, kind)
    drop_field(connection, path)
    connection.execute("INSERT INTO fields VALUES (?, ?)", (path, kind))
    connection.execute(f"CREATE INDEX {_index_of(connection, path)} ON points({expression})")


def drop_field(connection: sqlite3.Connection, path: str) -> bool:
    """Remove the index of a field; whether there was one."""
    name = _index_of(connection, path)
    if name is not None:
        connection.execute(f"DROP INDEX IF EXISTS {name}")
        connection.execute("DELETE FROM fields WHERE path = ?", (path,))
    return name is not None


def _index_of(connection: sqlite3.Connection, path: str) -> str | None:
    row = connection.execute("SELECT rowid FROM fields WHERE path = ?", (path,)).fetchone()
    return None if row is None else f"field_{row[0]}"


def payload_change(payload, mode: str, path: str | None) -> Callable[[dict], dict]:
    """A function that changes an object as `Collection.update_payload` does, at a path of names or as a whole."""
    names = [] if path is None else path.split(".")

    def changed(old):
        if mode == "replace":
            return payload
        old = old if isinstance(old, dict) else {}
        return old | payload if mode == "merge" else {name: old[name] for name in old if name not in payload}

    def at(old, depth: int):
        if depth == len(names):
            return changed(old)
        old = old if isinstance(old, dict) else {}
        return old | {names[depth]: at(old.get(names[depth]), depth + 1)}

    return lambda old: at(old, 0)


def check_changed(payload, mode: str):
    """The `payload` of `Collection.update_payload`, checked: an object, or a list of names to remove."""
    if mode not in ("merge", "replace", "remove"):
        raise DataError(f'mode must be "merge", "replace" or "remove", not {mode!r:.40}')
    if mode != "remove":
        return json.loads(payload_text(payload))
    names = [payload] if isinstance(payload, str) else payload
    if not isinstance(names, list | tuple | set) or not all(isinstance(name, str) for name in names):
        raise DataError(f'mode="remove" takes a list of names of fields, not {payload!r:.60}')
    return set(names)
