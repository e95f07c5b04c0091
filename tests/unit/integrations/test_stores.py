"""What the stores of frameworks share: what SQL says of their filters, and how they open collections."""

import gc
import operator
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco import Collection, ConfigError
from qinco.collection.filters import And, Eq, Has, Not, Range
from qinco.collection.matching import matches
from qinco.collection.where import parse
from qinco.integrations import stores
from qinco.integrations.stores import EVERYTHING, UNKNOWN, Part, all_of, any_of, complement

PATH = '"a"'
scalars = st.one_of(st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.sampled_from(["", "a", "ab", "b"]))
COMPARE = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


@given(scalars | st.none(), st.lists(scalars, max_size=3))
def test_one_of_is_equality_of_python(value, wanted):
    part = stores.one_of(PATH, wanted)
    assert part.is_exact and matches(part.filter, 1, {"a": value}) == (value in wanted)


@given(scalars | st.none() | st.lists(scalars, max_size=2), st.sampled_from(list(COMPARE)), scalars)
def test_ordered_is_the_order_of_python(value, bound, limit):
    part = stores.ordered(PATH, bound, limit)
    comparable = value is not None and not isinstance(value, list) and isinstance(value, str) == isinstance(limit, str)
    assert part.is_exact
    assert matches(part.filter, 1, {"a": value}) == (comparable and COMPARE[bound](value, limit))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, "half \ud800", [1], None])
def test_what_sql_cannot_say_is_left_to_the_framework(value):
    assert stores.one_of(PATH, [value]) == UNKNOWN
    assert UNKNOWN.where is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=4))
def test_combinations_are_supersets(given_parts):
    """Of parts that are (really true, said to be true): what is said is true wherever it really is."""
    parts = [Part(EVERYTHING.filter, really) if really or said else Part(Has(()), True) for really, said in given_parts]
    really = [one for one, _ in given_parts]
    for combined, truth in ((all_of(parts), all(really)), (any_of(parts), any(really))):
        assert matches(combined.filter, 1, {}) or not truth


def test_complements_are_of_what_is_exact():
    assert complement(UNKNOWN) == UNKNOWN
    assert complement(Part(Eq("a", 1))) == Part(Not(Eq("a", 1)))


def test_a_filter_that_is_too_deep_for_sql_is_left_to_the_framework():
    part = Part(Eq("a", 1), False)
    for _ in range(30):
        part = Part(Not(part.filter), False)
    assert part.where is None


def test_filters_below_an_object():
    found = stores.below({"a": 1, "$or": [{"b.c": {"gt": 2}}, {"$id": "x"}], "$not": {"d": {"any": {"e": 1}}}}, "m", {})
    assert found == parse({"m.a": 1, "$or": [{"m.b.c": {"gt": 2}}, {"$id": "x"}], "$not": {"m.d": {"any": {"e": 1}}}})
    at = stores.below({"at": {"lt": "2024-05-01T00:00:00Z"}}, "m", {"m.at": "datetime", "at": "keyword"})
    assert isinstance(at, Range) and at.kind == "instant"
    assert stores.below({}, "m", {}) == And(())


def test_pages_of_matching_records(tmp_path):
    with Collection.create(tmp_path / "a.qinco") as docs:
        docs.upsert(range(10_000), None, [{"n": n % 10} for n in range(10_000)])
        found = stores.matching(docs, Eq("n", 3), lambda record: record.id % 100 == 3)
        assert [record.id for record in found] == list(range(3, 10_000, 100))


def test_stores_share_a_collection(tmp_path, monkeypatch):
    first = stores.open_store(tmp_path / "a.qinco", False, {"metric": "l2"})
    monkeypatch.chdir(tmp_path)
    assert stores.open_store("a.qinco", False, {}) is first
    with pytest.raises(ConfigError, match="l2"):
        stores.open_store("a.qinco", False, {"metric": "cosine"})
    first.close()
    with stores.open_store("a.qinco", False, {}) as second:
        assert second is not first and second.metric == "l2"
        assert stores.open_store("a.qinco", True, {}) is not second


def test_a_temporary_collection_goes_with_its_store():
    collection = stores.open_store(None, False, {})
    folder = Path(collection.folder)
    collection.upsert(["a"], np.ones((1, 3), np.float32))
    assert folder.is_dir()
    del collection
    gc.collect()
    assert not folder.parent.exists()
    with pytest.raises(ConfigError, match="read_only"):
        stores.open_store(None, True, {})


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("haystack", "haystack", "haystack"),
        ("llama_index", "llama_index", "llama-index"),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(module, package, extra):
    code = f"import sys; sys.modules['{package}'] = None; import qinco.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"needs the package {package}: pip install 'qinco[{extra}]'" in done.stderr.splitlines()[-1]
