"""Filters answer the same in SQL as `matches` does in Python, with and without indexes."""

import datetime
import json
import sqlite3

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qinco.collection import filters
from qinco.collection.filter_sql import find_keys, index_sql, to_sql
from qinco.collection.functions import add_functions
from qinco.collection.geo import Box, Circle, Polygon
from qinco.collection.instants import instant
from qinco.collection.matching import matches
from qinco.collection.paths import quoted
from qinco.collection.records import payload_text
from qinco.collection.words import MATCHES

KEYS = ["a", "b", "x.y", 'q"t', "ü", "", "it's", "back\\slash", "[0]", "$c", "\n", "\x7f", "nul\0key"]
TIMES = [
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "2023-12-31T23:00:00-01:00",
    "2024-01-01t00:00:00.000001z",
    "now",
    "12:00",
]
TIMES += ["2024-02-30", "2024-01-01 00:00:00.25", "2024-01-01T24:00:00Z", "2460310.5", "2024-01-01T00:00:00+15:00"]
# Numbers that 64-bit integers, floats and text could confuse
NUMBERS = [
    0,
    1,
    1.0,
    -0.0,
    2**53,
    2**53 + 1,
    float(2**53),
    2**63 - 1,
    -(2**63),
    2**63,
    2**64 + 1,
    0.1,
    0.3,
    0.1 + 0.2,
    1e308,
]
TEXTS = [
    "",
    "1",
    "true",
    "a",
    "aa",
    "A",
    "é",
    "e\u0301",
    "\U0001f600",
    "\uffff",
    "null",
    "[",
    "[1]",
    '"',
    "'",
    "\\u0000",
    *TIMES,
]
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS),
    st.integers(-(2**65), 2**65), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
)  # fmt: skip
keys = st.sampled_from([key for key in KEYS if "\0" not in key])
places = st.fixed_dictionaries({"lat": st.sampled_from([0, 1, 1.5, 90, None, True, "1", 10**400]),
                                "lon": st.sampled_from([0, 1, 1.25, 180])})  # fmt: skip
values = st.recursive(
    scalars | places, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
payloads = st.none() | st.dictionaries(keys, values, max_size=4)
ids = st.integers(-5, 20) | st.sampled_from([2**63 - 1, "a", "1", "nul\0id"])

steps = st.sampled_from(["", "[]", "[0]", "[1]"])
paths = st.lists(st.tuples(st.sampled_from(KEYS).map(quoted), steps).map("".join), min_size=1, max_size=2).map(".".join)
simple = st.sampled_from(["a", "b", "a.b", "ü", "a[]", "a[].b", "a[0]"])
times = st.datetimes(datetime.datetime(2023, 12, 31), datetime.datetime(2024, 1, 2)) | st.just(
    datetime.datetime(2024, 1, 1)
)
present = scalars.filter(lambda value: value is not None) | st.sampled_from(["nul\0", "\0"])
numbers = st.sampled_from([*NUMBERS, float("inf"), float("-inf")]) | st.integers(-5, 5)


@st.composite
def ranges(draw):
    bound = draw(st.sampled_from([numbers, st.sampled_from(TEXTS), times]))
    names = draw(st.sets(st.sampled_from(["gt", "gte", "lt", "lte"]), min_size=1, max_size=3))
    return filters.Range(draw(simple | paths), **{name: draw(bound) for name in sorted(names)})


@st.composite
def counts(draw):
    names = draw(st.sets(st.sampled_from(["gt", "gte", "lt", "lte"]), min_size=1, max_size=2))
    return filters.Count(draw(simple | paths), **{name: draw(st.integers(0, 4)) for name in sorted(names)})


def lists_of(one):
    return st.lists(one, max_size=4).map(tuple) | st.lists(one, min_size=17, max_size=20).map(tuple)


degrees = st.sampled_from([-180, -90, 0, 1, 1.5, 2, 90, 180, 179.5])
points = st.tuples(degrees, degrees)
rings = st.lists(points, min_size=3, max_size=5).map(tuple)
areas = st.one_of(
    st.builds(Box, degrees, degrees, degrees, degrees),
    st.builds(Circle, degrees, degrees, st.sampled_from([0.0, 1e5, 1e7])),
    st.builds(Polygon, rings, st.lists(rings, max_size=1).map(tuple)),
)
field = simple | paths
conditions = st.one_of(
    st.builds(filters.Eq, field, present | times),
    st.builds(filters.In, field, lists_of(present | times)),
    st.builds(filters.Except, field, lists_of(present)),
    ranges(),
    counts(),
    st.builds(filters.Null, field),
    st.builds(filters.Exists, field),
    st.builds(filters.Empty, field),
    st.builds(filters.Text, field, st.sampled_from(TEXTS) | st.just("\0")),
    st.builds(filters.Prefix, field, st.sampled_from([*TEXTS, "\0", "a\0"])),
    st.builds(filters.Words, field, st.sampled_from([*TEXTS, "A a", "01 2024"]), st.sampled_from(MATCHES)),
    st.builds(filters.Within, field, areas),
    st.builds(filters.Has, lists_of(ids)),
    st.builds(filters.HasVector, st.sampled_from([None, "", "other"])),
)


def compound(inner):
    parts = st.lists(inner, max_size=3).map(tuple)
    return st.one_of(
        st.builds(filters.And, parts), st.builds(filters.Or, parts), st.builds(filters.Not, inner),
        st.builds(filters.AtLeast, st.integers(0, 3), parts),
    )  # fmt: skip


plain_filters = st.recursive(conditions, compound, max_leaves=6)
elements = st.builds(filters.Element, field, st.recursive(conditions, compound, max_leaves=3))
all_filters = st.recursive(conditions | elements, compound, max_leaves=6)


@pytest.fixture(scope="module", params=["plain", "indexed"])
def database(request):
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE points(key INTEGER PRIMARY KEY, id NOT NULL UNIQUE, payload TEXT, vectors)")
    add_functions(database)
    if request.param == "indexed":
        for number, (path, kind) in enumerate([("a", "keyword"), ("a", "datetime"), ("b", "integer"), ("a.b", "float"),
                                               ("ü", "bool"), ("ü", "datetime"), ("a[0]", "keyword")]):  # fmt: skip
            database.execute(f"CREATE INDEX field_{number} ON points({index_sql(path, kind)})")
    yield database
    database.close()


def _store(database, rows) -> list:
    """The rows as SQLite and JSON have them."""
    database.execute("DELETE FROM points")
    texts = [None if payload is None else payload_text(payload) for _, payload in rows]
    for key, ((id, _), text) in enumerate(zip(rows, texts, strict=True)):
        database.execute("INSERT INTO points VALUES (?, ?, ?, ?)", (key, id, text, key % 3))
    return [(id, None if text is None else json.loads(text)) for (id, _), text in zip(rows, texts, strict=True)]


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    filter=all_filters, rows=st.lists(st.tuples(ids, payloads), min_size=1, max_size=5, unique_by=lambda row: row[0])
)
@example(filter=filters.Eq("a", 1), rows=[(1, {"a": True}), (2, {"a": "1"}), (3, {"a": 1.0}), (4, {"a": [2, 1]})])
@example(filter=filters.Not(filters.Range("a", gt=0)), rows=[(1, {}), (2, {"a": None}), (3, None), (4, {"a": "1"})])
@example(filter=filters.Element("a", filters.Has((1,))), rows=[(1, {"a": [{}]}), (2, {"a": [{}]})])
@example(filter=filters.AtLeast(1, (filters.Has((1,)), filters.And(()))), rows=[(1, None), (2, None)])
@example(filter=filters.Eq("a", 2**53 + 1), rows=[(1, {"a": 2**53}), (2, {"a": float(2**53)}), (3, {"a": 2**53 + 1})])
def test_sql_and_python_agree(database, filter, rows):
    rows = _store(database, rows)
    expected = [int(matches(filter, id, payload, [""] if key % 3 else [])) for key, (id, payload) in enumerate(rows)]
    expression, parameters = to_sql(filter)
    assert [
        found for (found,) in database.execute(f"SELECT {expression} FROM points ORDER BY key", parameters)
    ] == expected
    assert find_keys(database, expression, parameters).tolist() == np.flatnonzero(expected).tolist()


DIGITS = st.text("0123456789", max_size=8)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.builds(
        "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}{}{}".format,
        st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32), st.sampled_from("Tt X"), st.integers(0, 24),
        st.integers(0, 60), st.integers(0, 60), st.sampled_from(["", ".", ","]), DIGITS,
        st.sampled_from(["", "Z", "z", "+00:00", "-01:30", "+14:59", "-15:00", "+1:00", "+01:60", "Zz", " "]),
    ) | st.text("0123456789-:TZ. +", max_size=25) | st.datetimes().map(datetime.datetime.isoformat)
)  # fmt: skip
def test_instants_are_those_of_python(database, text):
    _store(database, [(1, {"ü": text})])
    (found,) = database.execute(f"SELECT {index_sql('ü', 'datetime')} FROM points").fetchone()
    assert (None if found == b"" else found) == instant(text)


def test_a_text_that_is_no_time_can_be_in_an_indexed_field(database):
    rows = [(number, {"a": text, "ü": [text]}) for number, text in enumerate(TIMES)]
    _store(database, rows)
    filter = filters.Range("a", gte=datetime.datetime(2024, 1, 1), lte=datetime.datetime(2024, 1, 1))
    assert find_keys(database, *to_sql(filter)).tolist() == [0, 1, 2]
