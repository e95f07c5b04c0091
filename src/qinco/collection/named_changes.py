"""Changes of records with vectors of several names, each within a transaction of `Database.writing`.

Shape suffixes: n vectors, D dimension.
"""

import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np

from qinco.collection.changes import find, keys_of, new_keys, put_fresh, remove_all, remove_vectors
from qinco.collection.records import Id
from qinco.collection.spaces import in_space

Columns = Mapping[int, tuple[np.ndarray, np.ndarray]]  # by numbers of names: rows of records, and vectors


def put(connection: sqlite3.Connection, ids: Sequence[Id], texts: Sequence[str | None], columns: Columns) -> None:
    """Insert records of different ids, and replace those whose id is there, with all their vectors."""
    remove(connection, list(keys_of(connection, ids).values()))
    keys_N = new_keys(connection, np.ones(len(ids), np.int64))
    new = zip(keys_N.tolist(), ids, texts, strict=True)
    connection.executemany("INSERT INTO points VALUES (?, ?, ?, 0)", new)
    _add(connection, keys_N, columns)


def replace_vectors(connection: sqlite3.Connection, keys: Sequence[int], columns: Columns) -> None:
    """Give records, by their different keys, other vectors of some names."""
    keys_N = np.array(keys, np.int64)
    for number, (rows_n, _) in columns.items():
        remove_vectors_of(connection, keys_N[rows_n].tolist(), [number])
    _add(connection, keys_N, columns)


def remove(connection: sqlite3.Connection, keys: Sequence[int]) -> None:
    """Delete records by their keys, all of which there are."""
    having = dict(find(connection, "SELECT key, vectors FROM points WHERE key IN ({}) AND vectors > 0", keys))
    bits = np.fromiter(having.values(), np.int64, len(having))
    used = int(np.bitwise_or.reduce(bits)) if len(bits) else 0
    remove_vectors_of(
        connection, list(having), [number + 1 for number in range(used.bit_length()) if used >> number & 1]
    )
    connection.executemany("DELETE FROM points WHERE key = ?", ((key,) for key in keys))


def remove_vectors_of(connection: sqlite3.Connection, keys: Sequence[int], numbers: Sequence[int]) -> set[int]:
    """Delete vectors of names from records, which stay; returns the keys of those that had one of them."""
    changed = set()
    for number in numbers:
        query = f"SELECT key FROM points WHERE key IN ({{}}) AND vectors >> {number - 1} & 1"
        having = [key for (key,) in find(connection, query, keys)]
        remove_vectors(in_space(connection, number), having)
        clear = "UPDATE points SET vectors = vectors - ? WHERE key = ?"
        connection.executemany(clear, ((1 << number - 1, key) for key in having))
        changed.update(having)
    return changed


def clear(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Delete all records with their vectors."""
    for number in numbers:
        remove_all(in_space(connection, number))


def _add(connection: sqlite3.Connection, keys_N: np.ndarray, columns: Columns) -> None:
    """Add vectors of names that records, by their keys, do not have."""
    for number, (rows_n, vectors_nD) in columns.items():
        put_fresh(in_space(connection, number), keys_N[rows_n], vectors_nD)
        marked = ((1 << number - 1, key) for key in keys_N[rows_n].tolist())
        connection.executemany("UPDATE points SET vectors = vectors + ? WHERE key = ?", marked)
