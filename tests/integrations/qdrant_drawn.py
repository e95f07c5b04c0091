"""Points, filters and changes that tests of Qdrant's clients draw, and what it is for answers to be the same."""

import datetime
import random
import uuid

import numpy as np
from hypothesis import strategies as st
from qdrant_client.http import models as m

SCHEMES = {
    "cosine": {"": (12, "Cosine")},
    "dot": {"": (8, "Dot")},
    "euclid": {"": (6, "Euclid")},
    "named": {"image": (12, "Cosine"), "text": (8, "Dot"), "code": (6, "Euclid")},
}
COLORS, WORDS = ["red", "green", "blue", "déjà vu"], ["alpha", "beta", "gamma", "delta"]


def payload_of(draw: random.Random, number: int) -> dict:
    """Values of all kinds, of which some are missing, null, or arrays."""
    day = datetime.datetime(2024, 1, 1) + datetime.timedelta(days=number % 300, hours=draw.randrange(24))
    payload = {
        "number": draw.choice([draw.randrange(20), [draw.randrange(20) for _ in range(draw.randrange(4))], None]),
        "rating": draw.choice([round(draw.uniform(0, 5), 2) + 0.001, None]),
        "flag": draw.choice([True, False]),
        "color": draw.choice([draw.choice(COLORS), draw.sample(COLORS, draw.randrange(4)), None, 7]),
        "when": day.isoformat() + "Z",
        "of": {"name": draw.choice(WORDS), "tags": draw.sample(WORDS, draw.randrange(3))},
        "parts": [{"kind": draw.choice(WORDS), "size": draw.randrange(6)} for _ in range(draw.randrange(3))],
        "text": " ".join(draw.sample([*WORDS, "Beta", "gamma-ray", "red,", "green!", "déjà"], draw.randrange(6))),
        "place": {"lon": round(draw.uniform(-20, 20), 3), "lat": round(draw.uniform(-60, 60), 3)},
        "group": draw.choice([draw.randrange(9), draw.choice(WORDS)]),
        "empty": [],
    }
    return {name: value for name, value in payload.items() if draw.random() > 0.15}


def points_of(scheme: str, count: int, seed: int) -> list[m.PointStruct]:
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    found = []
    for number in range(count):
        vectors = {name: rng.standard_normal(dim).tolist() for name, (dim, _) in SCHEMES[scheme].items()}
        kept = {name: vector for name, vector in vectors.items() if draw.random() > 0.1}
        id = number if number % 3 else str(uuid.UUID(int=draw.getrandbits(128)))
        vector = kept.get("", {}) if "" in SCHEMES[scheme] else kept
        found.append(m.PointStruct(id=id, vector=vector, payload=payload_of(draw, number)))
    return found


POINTS = {scheme: points_of(scheme, 1000, 1) for scheme in SCHEMES}
FEW = {scheme: points_of(scheme, 24, 2) for scheme in SCHEMES}
IDS = sorted({point.id for points in POINTS.values() for point in points}, key=str)
FEW_IDS = sorted({point.id for points in FEW.values() for point in points} | {5000}, key=str)


def config(scheme: str):
    params = {name: m.VectorParams(size=dim, distance=distance) for name, (dim, distance) in SCHEMES[scheme].items()}
    return params.get("", params)


def fields(**parts):
    return st.fixed_dictionaries(parts)


def some_fields(parts: dict):
    """Some of the parts, and one at least."""
    return st.fixed_dictionaries({}, optional=parts).filter(bool)


# Filters are drawn as JSON: the models of qdrant-client cannot be shown as a failing example
keys = st.sampled_from(["number", "rating", "flag", "color", "when", "of.name", "of.tags", "parts[].kind", "parts",
                        "parts[].size", "empty", "group", "missing", "of.tags[]", "parts[0].size", "of",
                        "text"])  # fmt: skip
names, schemes = st.sampled_from(["", "image", "text"]), st.sampled_from(list(SCHEMES))
texts, integers = st.sampled_from([*COLORS, *WORDS, "none"]), st.integers(-1, 21)
places = fields(lon=st.floats(-25, 25), lat=st.floats(-65, 65))
SQUARE = [{"lon": lon, "lat": lat} for lon, lat in ((-10, -10), (15, -12), (12, 14), (-9, 11), (-10, -10))]
BOUNDS = "gt", "gte", "lt", "lte"
ranges = some_fields({name: st.integers(-1, 21) | st.floats(-1, 21) for name in BOUNDS})
counts = some_fields({name: st.integers(0, 4) for name in BOUNDS})
days = st.dates(datetime.date(2023, 12, 1), datetime.date(2024, 12, 31)).map(lambda day: f"{day}T10:00:00Z")
words = st.sampled_from(["alpha", "Beta gamma", "vu", "red, green", "déjà VU", "a", ""])
lists = st.lists(texts, max_size=3) | st.lists(integers, max_size=3)
matches = st.one_of(
    fields(value=texts | integers | st.booleans()),
    fields(any=lists),
    fields(text=words),
    fields(text_any=words),
    fields(phrase=words),
    fields(prefix=words),
    fields(substring=words),
    st.fixed_dictionaries({"except": lists}),
)
of_values = st.one_of(
    fields(key=keys, match=matches),
    fields(key=keys, range=ranges),
    fields(key=st.just("when"), range=some_fields(dict.fromkeys(BOUNDS, days))),
    fields(key=keys, values_count=counts),
    fields(key=st.just("place"), geo_radius=fields(center=places, radius=st.floats(1e3, 5e6))),
    fields(key=st.just("place"), geo_bounding_box=fields(top_left=places, bottom_right=places)),
    fields(key=st.just("place"), geo_polygon=fields(exterior=fields(points=st.just(SQUARE)))),
    fields(key=keys, is_empty=st.booleans()),
    fields(key=keys, is_null=st.booleans()),
    fields(is_empty=fields(key=keys)),
    fields(is_null=fields(key=keys)),
)
of_points = st.one_of(
    fields(has_id=st.lists(st.sampled_from(IDS), max_size=40)),
    fields(has_vector=names),
)
of_parts = st.one_of(
    fields(key=st.just("kind"), match=fields(value=texts)),
    fields(key=st.just("size"), range=ranges),
)


def filters(conditions):
    some = st.lists(conditions, min_size=1, max_size=3)
    at_least = fields(conditions=some, min_count=st.integers(1, 3))
    clauses = {"must": some | conditions, "should": some, "must_not": some, "min_should": at_least}
    return st.fixed_dictionaries({}, optional=clauses)


nested = fields(nested=fields(key=st.sampled_from(["parts", "parts[]"]), filter=filters(of_parts)))
whole_filters = filters(st.recursive(st.one_of(of_values, of_points, nested), filters, max_leaves=8))


def filter_of(given: dict | None) -> m.Filter | None:
    return None if given is None else m.Filter.model_validate(given)


def same_points(ours, theirs):
    """The same ids, payloads and vectors, and scores that are equal but for rounding."""
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(
        [getattr(one, "score", 0) for one in ours], [getattr(one, "score", 0) for one in theirs], atol=1e-4, rtol=1e-4
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.id == other.id
        assert one.payload == other.payload
        same_vectors(one.vector, other.vector)


def same_vectors(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)
    elif one is None:
        assert other is None
    else:
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def vector_of(scheme: str, name: str, seed: int) -> list[float]:
    """A vector that no point has: at a distance of zero, a score and a tiny threshold differ by rounding alone."""
    return np.random.default_rng([seed, 1]).standard_normal(SCHEMES[scheme][name][0]).tolist()


def having(scheme: str, name: str) -> list:
    """The ids of points that have a vector of this name."""
    return [point.id for point in POINTS[scheme] if (name in point.vector if name else point.vector)]


values = st.recursive(
    st.none() | st.booleans() | integers | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
new_payloads = st.dictionaries(st.sampled_from(["number", "color", "of", "new"]), values, max_size=3)
paths = st.sampled_from(["number", "of", "of.name", "of.new", "parts[].kind", "parts[0]", "parts[1].new", "parts[]",
                         "new.a"])  # fmt: skip
few_ids, rows = st.sampled_from(FEW_IDS), st.integers(0, 500)
selectors = st.one_of(fields(points=st.lists(few_ids, min_size=1, max_size=4)), fields(filter=filters(of_values)))
changed = st.one_of(
    st.tuples(st.just("delete"), selectors, st.just({})),
    st.tuples(st.just("clear_payload"), selectors, st.just({})),
    st.tuples(st.just("set_payload"), selectors, fields(payload=new_payloads)),
    st.tuples(st.just("set_payload"), selectors, fields(payload=new_payloads, key=paths)),
    st.tuples(st.just("overwrite_payload"), selectors, fields(payload=new_payloads)),
    st.tuples(st.just("delete_payload"), selectors, fields(keys=st.lists(paths, min_size=1))),
    st.tuples(st.just("delete_vectors"), selectors, fields(vector=st.lists(names, min_size=1))),
    st.tuples(st.just("upsert"), fields(id=few_ids, row=rows), fields(
        update_mode=st.sampled_from([None, "insert_only", "update_only"]),
        update_filter=st.none() | filters(of_values))),
    st.tuples(st.just("update_vectors"), fields(id=few_ids, row=rows), st.just({})),
)  # fmt: skip


def operation_of(scheme: str, kind: str, chosen: dict, more: dict) -> m.UpdateOperation:
    body = {**chosen, **more}
    if "row" in chosen:
        point = POINTS[scheme][chosen["row"]]
        given = {"payload": point.payload} if kind == "upsert" else {}
        body = {"points": [{"id": chosen["id"], "vector": point.vector, **given}], **more}
    return m.UpdateOperations.model_validate({"operations": [{kind: body}]}).operations[0]
