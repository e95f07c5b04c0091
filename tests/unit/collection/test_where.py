"""What `where=` may be, and what is said about anything else."""

import datetime
from uuid import UUID

import numpy as np
import pytest

from qinco.collection.filters import (
    And,
    AtLeast,
    Count,
    Element,
    Empty,
    Eq,
    Except,
    Exists,
    Has,
    HasVector,
    In,
    Not,
    Null,
    Or,
    Prefix,
    Range,
    Text,
    Within,
    Words,
)
from qinco.collection.geo import Box, Circle, Polygon
from qinco.collection.where import parse
from qinco.errors import ConfigError

NOON = datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(("where", "filter"), [
    ({}, And(())),
    ({"lang": "de"}, Eq("lang", "de")),
    ({"a": None}, Null("a")),
    ({"tag": ["a", "b"]}, In("tag", ("a", "b"))),
    ({"tag": [None, 1]}, Or((Null("tag"), In("tag", (1,))))),
    ({"n": np.arange(2)}, In("n", (0, 1))),
    ({"n": np.float32(0.5)}, Eq("n", 0.5)),
    ({"u": UUID(int=0)}, Eq("u", str(UUID(int=0)))),
    ({"t": datetime.date(2024, 1, 1)}, Eq("t", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))),
    ({"y": {"gte": 1, "$lt": 5}}, Range("y", gte=1, lt=5)),
    ({"y": {">": 1}}, Range("y", gt=1)),
    ({"y": {"$ne": 1}}, Not(Eq("y", 1))),
    ({"y": {"ne": None}}, Not(Null("y"))),
    ({"y": {"not_in": [1]}}, Not(In("y", (1,)))),
    ({"y": {"$nin": []}}, Not(In("y", ()))),
    ({"y": {"exists": False}}, Not(Exists("y"))),
    ({"y": {"null": True, "empty": True}}, And((Null("y"), Empty("y")))),
    ({"y": {"contains": "x"}}, Text("y", "x")),
    ({"y": {"count": 2}}, Count("y", gte=2, lte=2)),
    ({"y": {"not": {"gt": 3}}}, Not(Range("y", gt=3))),
    ({"y": {"$elemMatch": {"a": 1}}}, Element("y", Eq("a", 1))),
    ({"$or": [{"a": 1}, {"b": 2, "c": 3}]}, Or((Eq("a", 1), And((Eq("b", 2), Eq("c", 3)))))),
    ({"$not": [{"a": 1}]}, Not(Or((Eq("a", 1),)))),
    ({"$nor": [{"a": 1}]}, Not(Or((Eq("a", 1),)))),
    ({"$and": [Eq("a", 1)]}, And((Eq("a", 1),))),
    ({"$vector": True}, HasVector()),
    ({"$vector": False}, Not(HasVector())),
    ({"$vector": "image"}, HasVector("image")),
    ({"$id": 5, '"$a"': 1}, And((Has((5,)), Eq('"$a"', 1)))),
    ({"must": "x"}, Eq("must", "x")),
    (Eq("a", 1), Eq("a", 1)),
])  # fmt: skip
def test_mappings(where, filter):
    assert parse(where) == filter


@pytest.mark.parametrize(("where", "filter"), [
    ({"must": [{"key": "a", "match": {"value": 1}}]}, Eq("a", 1)),
    ({"must": {"key": "a", "match": {"any": ["x", "y"]}}, "must_not": [{"has_id": [1, "u"]}]},
     And((In("a", ("x", "y")), Not(Has((1, "u")))))),
    ({"should": [{"key": "a", "match": {"except": [1]}}, {"key": "b", "match": {"substring": "t"}}]},
     Or((Except("a", (1,)), Text("b", "t")))),
    ({"should": [{"key": "a", "match": {name: "t u"}} for name in ("text", "text_any", "phrase", "prefix")]},
     Or((Words("a", "t u"), Words("a", "t u", "any"), Words("a", "t u", "phrase"), Prefix("a", "t u")))),
    ({"must": [{"has_vector": "image"}]}, HasVector("image")),
    ({"must": [{"key": "a", "geo_radius": {"center": {"lat": 1, "lon": 2}, "radius": 3}}]},
     Within("a", Circle(1.0, 2.0, 3.0))),
    ({"must": [{"key": "a", "geo_bounding_box": {"top_left": {"lat": 3, "lon": 1}, "bottom_right":
                                                 {"lat": 1, "lon": 2}}}]}, Within("a", Box(3.0, 1.0, 1.0, 2.0))),
    ({"must": [{"key": "a", "geo_polygon": {"exterior": {"points": [{"lat": n, "lon": n * n} for n in range(3)]},
                                            "interiors": None}}]},
     Within("a", Polygon(((0.0, 0.0), (1.0, 1.0), (2.0, 4.0))))),
    ({"must": [], "should": None}, And(())),
    ({"must": [{"should": [{"key": "a", "range": {"gte": 1.0, "lt": None}}]}]}, Or((Range("a", gte=1.0),))),
    ({"must": [{"key": "t", "range": {"lt": "2024-01-01T13:00:00+01:00"}}]}, Range("t", lt=NOON)),
    ({"must": [{"key": "a", "values_count": {"gt": 1}}]}, Count("a", gt=1)),
    ({"must": [{"is_empty": {"key": "a"}}, {"key": "b", "is_empty": False}]}, And((Empty("a"), Not(Empty("b"))))),
    ({"must": [{"is_null": {"key": "a"}}]}, Or((And((Exists("a"), Null("a"))), And((Exists("a[]"), Null("a[]")))))),
    ({"min_should": {"conditions": [{"has_id": [1]}], "min_count": 1}}, AtLeast(1, (Has((1,)),))),
    ({"must": [{"nested": {"key": "a[]", "filter": {"must": [{"key": "b", "match": {"value": 1}}]}}}]},
     Element("a", Eq("b", 1))),
])  # fmt: skip
def test_filters_of_qdrant(where, filter):
    assert parse(where) == filter


def test_text_of_declared_datetimes_is_a_time():
    fields = {"t": "datetime"}
    assert parse({"t": {"gte": "2024-01-01T12:00:00Z"}}, fields) == Range("t", gte=NOON)
    assert parse({"t": ["2024-01-01 12:00:00"]}, fields) == In("t", (NOON,))
    assert parse({"s": {"gte": "2024"}}, fields) == Range("s", gte="2024")
    with pytest.raises(ConfigError, match="RFC 3339"):
        parse({"t": "yesterday"}, fields)


@pytest.mark.parametrize(("where", "said"), [
    ("lang = 'de'", "mapping"),
    ({"year": {"gtee": 3}}, "gte"),
    ({"$orr": []}, r"\$or"),
    ({"or": [{"a": 1}]}, r"\$or"),
    ({"author": {"name": "Ada"}}, "author.name"),
    ({"a": {}}, "operator"),
    ({"a": {"eq": [1]}}, "in"),
    ({"a": {"in": "x"}}, "list"),
    ({"a": {"gte": 1, "lt": "x"}}, "all numbers"),
    ({"a": {"gt": None}}, "compare with"),
    ({"a": {"gt": True}}, "all numbers"),
    ({"a": {"contains": 5}}, "eq"),
    ({"a": {"exists": 1}}, "true or false"),
    ({"a": {"count": -1}}, "whole numbers"),
    ({"a": float("nan")}, "NaN"),
    ({"a": b"x"}, "compare with"),
    ({"a": "\ud800"}, "surrogate"),
    ({"a..b": 1}, "join keys by dots"),
    ({1: 1}, "strings"),
    ({"$id": [True]}, "id"),
    ({"$and": {"a": 1}}, "list"),
    ({"must": [{"key": "a", "match": {"value": 1}}], "lang": "de"}, "Qdrant"),
    ({"must": [{"key": "a", "match": {"value": 1}, "range": {"gt": 1}}]}, "two conditions"),
    ({"must": [{"key": "a", "match": {"values": 1}}]}, "value, any"),
    ({"must": [{"key": "a", "range": {"gtt": 1}}]}, "gt"),
    ({"must": [{"key": "a", "geo_radius": {}}]}, "center"),
    ({"must": [{"key": "a", "geo_radius": {"center": {"lat": 1, "lon": 2}, "radius": -1}}]}, "radius"),
    ({"must": [{"key": "a", "geo_polygon": {"exterior": {"points": []}}}]}, "three points"),
    ({"must": [{"key": "a", "geo": {}}]}, "geo_radius"),
    ({"must": [{"slice": {"total": 4, "index": 1}}]}, "has_id"),
    ({"$vector": 1}, "name of a vector"),
    ({"min_should": {"conditions": []}}, "min_count"),
])  # fmt: skip
def test_wrong_filters_are_refused_with_a_remedy(where, said):
    with pytest.raises(ConfigError, match=said) as raised:
        parse(where)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_the_place_is_said():
    with pytest.raises(ConfigError, match=r"where\['\$or'\]\[1\]\['year'\]\['gtee'\]"):
        parse({"$or": [{"a": 1}, {"year": {"gtee": 3}}]})
    with pytest.raises(ConfigError, match=r"where\['must'\]\[0\]\['range'\]\['gt'\]"):
        parse({"must": [{"key": "a", "range": {"gt": "soon"}}]})


def test_endless_nesting_is_refused():
    mapping, qdrant = {"a": 1}, {"must": []}
    for _ in range(5000):
        mapping, qdrant = {"$not": mapping}, {"must": [qdrant]}
    operators: dict = {"gt": 1}
    for _ in range(5000):
        operators = {"not": operators}
    for where in mapping, qdrant, {"a": operators}:
        with pytest.raises(ConfigError, match="levels"):
            parse(where)
