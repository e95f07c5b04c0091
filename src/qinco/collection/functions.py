"""Functions of Python that filters call in SQL."""

import json
import sqlite3
import threading
from collections.abc import Callable

from qinco.collection.geo import area_of, point_of
from qinco.collection.words import has_words

_raised = threading.local()


def add_functions(connection: sqlite3.Connection) -> None:
    """Let filters be evaluated on a connection."""
    connection.create_function("qinco_words", 3, _kept(_has_words), deterministic=True)
    connection.create_function("qinco_within", 2, _kept(_is_within), deterministic=True)


def raised_within() -> BaseException | None:
    """What ended such a function of this thread since it was asked last, such as Ctrl-C: SQLite tells nothing of it."""
    error, _raised.error = getattr(_raised, "error", None), None
    return error


def _kept(function: Callable) -> Callable:
    def call(*values):
        try:
            return function(*values)
        except BaseException as error:
            _raised.error = error
            raise

    return call


def _has_words(match: str, query: str, value) -> bool:
    return isinstance(value, str) and has_words(match, query, value)


def _is_within(area: str, value) -> bool:
    point = point_of(json.loads(value)) if isinstance(value, str) else None
    return point is not None and area_of(area).holds(*point)
