"""SQL of filters: indexes are used, limits are kept, long lists are one parameter."""

import datetime
import sqlite3

import pytest

from qinco.collection import filters
from qinco.collection.filter_sql import find_keys, index_sql, to_sql
from qinco.collection.filters import And, AtLeast, Element, Eq, Has, In, Not, Or, Range
from qinco.collection.matching import matches
from qinco.collection.records import payload_text
from qinco.errors import ConfigError

PAYLOADS = [
    {"lang": "de", "year": 2000 + number % 30, "when": f"2024-01-{1 + number % 28:02}"} for number in range(300)
]
PAYLOADS += [{"lang": ["de", "en"], "year": [1990, 2029], "when": ["2024-01-01"]}, {}, None]


@pytest.fixture
def database():
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE points(key INTEGER PRIMARY KEY, id NOT NULL UNIQUE, payload TEXT)")
    texts = [None if payload is None else payload_text(payload) for payload in PAYLOADS]
    rows = ((key, f"id{key}", text) for key, text in enumerate(texts))
    database.executemany("INSERT INTO points VALUES (?, ?, ?)", rows)
    for number, (path, kind) in enumerate({"lang": "keyword", "year": "integer", "when": "datetime"}.items()):
        database.execute(f"CREATE INDEX field_{number} ON points({index_sql(path, kind)})")
    yield database
    database.close()


def found(database, filter) -> list[int]:
    return find_keys(database, *to_sql(filter)).tolist()


def expected(filter) -> list[int]:
    return [key for key, payload in enumerate(PAYLOADS) if matches(filter, f"id{key}", payload)]


DAY = datetime.datetime(2024, 1, 5)


@pytest.mark.parametrize(("filter", "index"), [
    (Eq("lang", "de"), "field_0"),
    (In("lang", ("de", "fr", "en")), "field_0"),
    (In("lang", (*map(str, range(100)), "de", True)), "field_0"),
    (Range("lang", gte="d", lt="e"), "field_0"),
    (filters.Null("lang"), "field_0"),
    (Eq("year", 2003), "field_1"),
    (Eq("year", 2003.0), "field_1"),
    (Range("year", gte=2029), "field_1"),
    (Range("year", lt=2003.5), "field_1"),
    (Range("year", gt=2003, lte=2005), "field_1"),
    (Eq("when", DAY), "field_2"),
    (Range("when", gt=DAY), "field_2"),
    (In("when", (DAY,)), "field_2"),
    (And((Eq("lang", "de"), Range("year", gte=2010))), "field_0"),
    (And((filters.Text("lang", "d"), Eq("year", 2003))), "field_1"),
    (Or((Eq("lang", "de"), Eq("year", 2003))), "field_0"),
])  # fmt: skip
def test_declared_fields_are_searched_by_index(database, filter, index):
    expression, parameters = to_sql(filter)
    plan = database.execute(f"EXPLAIN QUERY PLAN SELECT key FROM points WHERE {expression}", parameters).fetchall()
    steps = [text for *_, text in plan]
    assert any(f"INDEX {index} " in text for text in steps) and "SCAN points" not in steps, steps
    assert found(database, filter) == expected(filter) != []


def test_lists_are_longer_than_sqlite_has_variables(database):
    database.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 100)
    assert found(database, In("year", tuple(range(2003, 9000)))) == expected(Range("year", gte=2003))
    assert found(database, Has(tuple(f"id{key}" for key in range(5, 100_000)))) == list(range(5, 303))
    assert found(database, Has((2**70, "id\0", 7, *(f"id{key}" for key in range(20))))) == list(range(20))
    assert found(database, In("lang", ())) == [] == found(database, Has(()))


def test_the_largest_filters_fit_into_sqlite(database):
    wide = tuple(Eq("year", 2029 - number) for number in range(filters.MAX_CONDITIONS - 1))
    assert found(database, Or(wide)) == expected(filters.Exists("year"))
    deep = Eq("year", 2003)
    for level in range(filters.MAX_DEPTH - 2):
        others = tuple(Eq("lang", f"{level}-{number}") for number in range(80))
        deep = Not(deep) if level % 3 == 2 else Or((*others, deep)) if level % 3 else And((*map(Not, others), deep))
    assert found(database, deep) == expected(deep)
    inner = Eq("year", 2003)
    for _ in range(filters.MAX_NESTED):
        inner = Element("a[].b", And((Or((inner, Eq("c", 1))), AtLeast(1, (inner,)))))
    assert found(database, inner) == []


def test_larger_filters_are_refused():
    deep = inner = one = Eq("year", 2003)
    for _ in range(filters.MAX_DEPTH):
        deep = Not(deep)
    for _ in range(filters.MAX_NESTED + 1):
        inner = Element("a", inner)
    for filter in deep, inner, Or((one,) * filters.MAX_CONDITIONS):
        with pytest.raises(ConfigError, match="the filter"):
            to_sql(filter)


def test_fields_that_cannot_be_indexed_are_refused():
    for path in "tags[].name", '"a\\"b"':
        with pytest.raises(ConfigError, match="cannot be indexed"):
            index_sql(path, "keyword")
    with pytest.raises(ConfigError, match="keyword, integer"):
        index_sql("a", "string")


def test_paths_are_no_way_into_the_sql(database):
    for path in "x') OR 1 --", "'", "a'b.c''", '"\'); DROP TABLE points; --"':
        assert found(database, Eq(path if path.startswith('"') else f'"{path}"', "x")) == []
        assert found(database, filters.Exists(path)) == []
