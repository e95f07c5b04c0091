"""Filters of Qdrant mean what they mean to its client's local mode."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco.collection.matching import matches
from qinco.collection.where import parse

models = pytest.importorskip("qdrant_client.models")
local = pytest.importorskip("qdrant_client.local.payload_filters")

# Not compared: 1 and 1.0, which differ there and are one number here; times in other forms than RFC 3339
KEYS = ["a", "b", "a.b", "a[]", "a[].b", "a[0]", "b[].lat"]
WORDS = ["red Car", "car", "RED-car 2", "big_red", "é É", "", "2"]
TIMES = ["2024-01-01T00:00:00Z", "2024-01-01 01:00:00+01:00", "2024-01-02", "2024-01-01T00:00:00.5Z", "soon"]
numbers = st.integers(-2, 3)
scalars = st.none() | st.booleans() | numbers | st.sampled_from([*WORDS, *TIMES]) | st.sampled_from([0.5, -1.5])
degrees = st.sampled_from([-170, -1, 0, 0.5, 1, 1.5, 2, 179])
points = st.fixed_dictionaries({"lat": degrees, "lon": degrees})
broken = st.fixed_dictionaries({"lat": st.sampled_from([True, "1", None])}, optional={"lon": degrees})
values = st.recursive(
    scalars | points | broken,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=8,
)
payloads = st.dictionaries(st.sampled_from("ab"), values, max_size=2)


def bounds(one):
    return st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), one, min_size=1, max_size=2)


def ring(least=3):
    return st.lists(points, min_size=least, max_size=5).map(lambda some: {"points": some})


keys = st.sampled_from(KEYS)
lists = st.lists(numbers, max_size=3) | st.lists(st.sampled_from(WORDS), max_size=3)
match = st.one_of(
    (numbers | st.booleans() | st.sampled_from(WORDS)).map(lambda one: {"value": one}),
    lists.map(lambda some: {"any": some}),
    lists.map(lambda some: {"except": some}),
    st.builds(lambda name, text: {name: text},
              st.sampled_from(["text", "text_any", "phrase", "prefix", "substring"]), st.sampled_from(WORDS)),
)  # fmt: skip
tests = st.one_of(
    match.map(lambda one: {"match": one}),
    bounds(st.sampled_from([-1, 0, 0.5, 2])).map(lambda one: {"range": one}),
    bounds(st.sampled_from(TIMES[:4])).map(lambda one: {"range": one}),
    bounds(st.integers(0, 3)).map(lambda one: {"values_count": one}),
    st.booleans().map(lambda one: {"is_null": one}),
    st.booleans().map(lambda one: {"is_empty": one}),
    st.builds(lambda a, b: {"geo_bounding_box": {"top_left": a, "bottom_right": b}}, points, points),
    st.builds(lambda a, r: {"geo_radius": {"center": a, "radius": r}}, points, st.sampled_from([1.0, 111e3, 1e6, 1e7])),
    st.builds(lambda a, b: {"geo_polygon": {"exterior": a, "interiors": b}}, ring(),
              st.none() | st.lists(ring(), max_size=1)),
)  # fmt: skip
conditions = st.one_of(
    st.builds(lambda key, test: {"key": key} | test, keys, tests),
    keys.map(lambda key: {"is_null": {"key": key}}),
    keys.map(lambda key: {"is_empty": {"key": key}}),
    st.lists(st.sampled_from([1, 7, 9]), max_size=2).map(lambda ids: {"has_id": ids}),
    st.sampled_from(["", "image", "none"]).map(lambda name: {"has_vector": name}),
)


@st.composite
def combined(draw, inner):
    names = draw(st.sets(st.sampled_from(["must", "should", "must_not", "min_should"]), min_size=1))
    filter = {name: draw(st.lists(inner, max_size=2)) for name in sorted(names)}
    if "min_should" in filter:
        filter["min_should"] = {"min_count": draw(st.integers(1, 2)), "conditions": filter["min_should"]}
    return filter


plain = st.recursive(conditions, combined, max_leaves=4)
nested = st.builds(lambda key, one: {"nested": {"key": key, "filter": {"must": [one]}}}, keys,
                   st.builds(lambda key, test: {"key": key} | test, keys, tests))  # fmt: skip
all_filters = combined(plain | nested)


@settings(max_examples=400, deadline=None)
@given(all_filters, st.sampled_from([1, 7]), payloads, st.sampled_from([[], [""], ["image"]]))
def test_filters_mean_what_they_mean_to_the_client(where, id, payload, vectors):
    filter = models.Filter.model_validate(where)
    expected = local.check_filter(filter, payload, id, dict.fromkeys(vectors, True))
    assert matches(parse(where), id, payload, vectors) == expected
    given = filter.model_dump(exclude_none=True)  # as a user of the client's models has it
    assert matches(parse(given), id, payload, vectors) == expected


def test_distances_are_those_of_the_client():
    geo = pytest.importorskip("qdrant_client.local.geo")
    from qinco.collection.geo import distance

    assert math.isclose(distance((52.5, 13.4), (48.1, 11.6)), geo.geo_distance(13.4, 52.5, 11.6, 48.1))
