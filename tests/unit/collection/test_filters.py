"""What filters mean, by hand."""

import datetime

import pytest

from qinco.collection import filters
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
from qinco.collection.matching import matches
from qinco.errors import ConfigError

POINT = {
    "text": "Ein Satz", "one": 1, "half": 0.5, "yes": True, "nothing": None, "tags": ["a", 2, None], "none": [],
    "time": "2024-01-01T01:00:00+01:00", "large": 2**53 + 1, "a.b": 3,
    "place": {"lat": 52.5, "lon": 13.4}, "places": [{"lat": 1, "lon": 179}, {"lat": "1", "lon": 2}, 5],
    "author": {"name": "Ada", "born": 1815}, "parts": [{"n": 1, "kind": "x"}, {"n": 2, "kind": "y"}],
}  # fmt: skip
NOON = datetime.datetime(2024, 1, 1, 12)


@pytest.mark.parametrize("filter", [
    Eq("one", 1), Eq("one", 1.0), Eq("yes", True), Eq("tags", "a"), Eq("tags[0]", "a"), Eq("author.name", "Ada"),
    Eq('"a.b"', 3), Eq("parts[].n", 2), Eq("large", 2**53 + 1), Eq("time", datetime.datetime(2024, 1, 1)),
    In("tags", ("b", 2)), Not(In("one", ())), Except("tags", ("a",)), Range("half", gt=0, lt=1), Range("tags", gte=2),
    Range("text", gte="E", lt="F"), Range("time", lt=NOON), Null("nothing"), Null("missing"), Exists("nothing"),
    Empty("none"), Empty("nothing"), Empty("missing"), Text("text", "Satz"), Count("tags", gte=3, lte=3),
    Count("one", gte=1), Count("missing", lte=0), Has((7,)),
    Prefix("text", "Ein S"), Prefix("tags", ""), Words("text", "satz EIN"), Words("text", "satz x", "any"),
    Words("text", "ein satz!", "phrase"), Within("place", Box(53, 13, 52, 14)), Within("places", Box(2, 178, 0, -178)),
    Within("place", Circle(52.5, 13.41, 1000)), Within("place", Polygon(((50, 10), (50, 20), (60, 13)))),
    HasVector(), HasVector("image"),
    Not(Eq("missing", 1)), And(()), AtLeast(1, (Or(()), And(()))),
    Element("parts", And((Eq("n", 1), Eq("kind", "x")))),
])  # fmt: skip
def test_true(filter):
    assert matches(filter, 7, POINT, {"image"})


@pytest.mark.parametrize("filter", [
    Eq("one", "1"), Eq("one", True), Eq("yes", 1), Eq("text", "ein satz"), Eq("author", "Ada"), Eq("a.b", 3),
    Eq("large", float(2**53)), Eq("parts.n", 1), In("one", ()), Except("one", (1,)), Except("missing", ()),
    Except("nothing", ()), Range("text", gte=0), Range("yes", gte=0), Range("one", gte="0"), Range("text", lt=NOON),
    Null("one"), Null("tags"), Exists("missing"), Empty("one"), Text("one", "1"), Text("text", "satz"), Has(("7",)),
    Prefix("text", "ein"), Prefix("one", ""), Words("text", ""), Words("text", "sat"), Words("text", "satz x"),
    Words("text", "satz ein", "phrase"), Words("one", "1"), Within("place", Box(52.5, 13, 52, 14)),
    Within("place", Circle(52.5, 13.5, 1000)), Within("place.lat", Box(90, -180, -90, 180)),
    Within("place", Polygon(((50, 10), (50, 20), (60, 13)), (((52, 13), (52, 14), (53, 13)),))), HasVector("text"),
    Or(()), AtLeast(2, (And(()), Or(()))), Element("author", And(())),
    Element("parts", And((Eq("n", 1), Eq("kind", "y")))),
])  # fmt: skip
def test_false(filter):
    assert not matches(filter, 7, POINT, {"image"})


def test_wrong_filters_are_refused():
    for make in (
        lambda: Eq("a", float("nan")),
        lambda: In("a", ("\ud800",)),
        lambda: Range("a"),
        lambda: Range("a", gte=1, lt="b"),
        lambda: Range("a", gte=True),
        lambda: Except("a", (NOON,)),
        lambda: Has((True,)),
        lambda: Words("a", "b", "none"),
        lambda: Eq("a..b", 1),
    ):
        with pytest.raises(ConfigError):
            make()


def test_numbers_too_large_for_64_bits_are_floats():
    assert filters.number(2**63 - 1) == 2**63 - 1 and isinstance(filters.number(2**63), float)
    assert filters.number(10**400) == float("inf") and filters.number(-(10**400)) == float("-inf")
