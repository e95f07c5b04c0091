"""Vectors of several names in one database: those of each name are in tables of their own, beside those of records.

The vectors of the name with number 2 are in the tables fresh_2, dead_2 and segments_2, described by meta_2, and their
segments in the folder vectors/2. Bit 1 of a record's `vectors` says whether it has one, whose key is the record's.
What all names have in common is `version`, in meta, which counts the commits of the database.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import cast

from qinco.atomic import make_folder
from qinco.collection.schema import TABLES, Database, set_value, value_of
from qinco.errors import DataError

FOLDER, NAMES = "vectors", "names"  # NAMES: the numbers by names, in `meta`
MAX_NAMES = 62  # bits of an integer of SQLite that is not negative
_OWN = "fresh", "dead", "segments", "meta"
_TABLE = re.compile(rf"'(?:[^']|'')*'|(?<![\w.])({'|'.join(_OWN)})\b|\b(sqlite_autoindex_fresh)(?=_1\b)")


class Space:
    """The database as `Moments` and `Optimizer` use it, of the vectors of one name."""

    def __init__(self, database: Database, number: int):
        self.whole, self.number = database, number
        self.folder, self.read_only = database.folder / FOLDER / str(number), database.read_only
        self.check, self.check_writable, self.shrink = database.check, database.check_writable, database.shrink

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self.whole.reading() as connection:
            yield in_space(connection, self.number)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        with self.whole.writing() as connection:
            yield in_space(connection, self.number)

    @contextmanager
    def optimizing(self) -> Iterator[None]:
        with self.whole.optimizing():
            make_folder(self.folder)
            yield

    def close(self) -> None:
        """Nothing: the database is closed by what opened it."""


class _SpaceConnection:
    """A connection whose statements are about the tables of one name."""

    def __init__(self, connection: sqlite3.Connection, number: int):
        self.whole, self._number = connection, number

    def execute(self, statement: str, parameters=()) -> sqlite3.Cursor:
        return self.whole.execute(_renamed(statement, self._number), parameters)

    def executemany(self, statement: str, parameters) -> sqlite3.Cursor:
        return self.whole.executemany(_renamed(statement, self._number), parameters)


def in_space(connection: sqlite3.Connection, number: int) -> sqlite3.Connection:
    """A connection whose statements are about the tables of one name, given one of the database or of another name."""
    whole = connection.whole if isinstance(connection, _SpaceConnection) else connection
    return cast(sqlite3.Connection, _SpaceConnection(whole, number))


def numbers_of(connection: sqlite3.Connection) -> dict[str, int] | None:
    """The numbers of names; None where vectors have no names."""
    names = value_of(connection, NAMES)
    if names is not None and not all(type(number) is int and 1 <= number <= MAX_NAMES for number in names.values()):
        raise DataError(f"the numbers of names of vectors are not from 1 to {MAX_NAMES}: restore it from a snapshot")
    return names


def create_space(connection: sqlite3.Connection, number: int, meta: Mapping) -> None:
    """Make the tables of a name, with values by name."""
    own = in_space(connection, number)
    for statement in TABLES.split(";"):
        if (found := re.match(r"\s*CREATE TABLE (\w+)", statement)) and found[1] in _OWN:
            own.execute(statement)
    for name, value in meta.items():
        set_value(own, name, value)


def has_vector(names: Mapping[str, int]) -> dict[str | None, str]:
    """SQL of whether a point has the vector of a name; with the name None, any."""
    return {None: "points.vectors > 0"} | {
        name: f"points.vectors >> {number - 1} & 1" for name, number in names.items()
    }


@lru_cache(512)
def _renamed(statement: str, number: int) -> str:
    """A statement about the tables of a name; quoted text stays as it is."""

    def changed(found: re.Match) -> str:
        return f"{found[0]}_{number}" if found[1] or found[2] else found[0]

    return _TABLE.sub(changed, statement)
