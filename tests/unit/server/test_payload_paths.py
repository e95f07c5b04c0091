import pytest

from qinco.collection.paths import path_steps
from qinco.server.payload_paths import changed_at, excluded, included, merged, tree_of, without

PAYLOAD = {"a": {"b": 1, "c": 2}, "aa": {"b": 3}, "a.b": 4, "l": [{"b": 5, "c": 6}, 7]}


@pytest.mark.parametrize(("paths", "expected"), [
    (["a.b"], {"a": {"b": 1}}),
    (['"a.b"', "l[].c"], {"a.b": 4, "l": [{"c": 6}, 7]}),
    (["a", "a.b"], {"a": {"b": 1, "c": 2}}),
    (["l[0]"], {"l": []}),
    (["l"], {"l": PAYLOAD["l"]}),
    (["missing", "aa.missing"], {"aa": {}}),
    ([], {}),
])  # fmt: skip
def test_parts_that_paths_lead_to(paths, expected):
    assert included(PAYLOAD, tree_of(paths)) == expected


@pytest.mark.parametrize(("paths", "expected"), [
    (["a", "l[].b"], {"aa": {"b": 3}, "a.b": 4, "l": [{"c": 6}, 7]}),
    (["l[]"], PAYLOAD | {"l": []}),
    (["l[0]", "missing.b"], PAYLOAD),
    (["a.b", "a"], {"aa": {"b": 3}, "a.b": 4, "l": PAYLOAD["l"]}),
])  # fmt: skip
def test_parts_without_what_paths_lead_to(paths, expected):
    assert excluded(PAYLOAD, tree_of(paths)) == expected


def test_null_removes_a_field_that_is_merged():
    assert merged({"a": 1, "b": 2, "n": None}, {"a": None, "c": 3}) == {"b": 2, "n": None, "c": 3}
    assert merged([1], {"c": 3}) == {"c": 3}


@pytest.mark.parametrize(("path", "expected"), [
    ("a", {"a": {"b": 1, "c": 2, "x": 9}}),
    ("a.b", {"a": {"b": {"x": 9}, "c": 2}}),
    ("new.deep", {"new": {"deep": {"x": 9}}}),
    ("l[0]", {"l": [{"b": 5, "c": 6, "x": 9}, 7]}),
    ("l[]", {"l": [{"b": 5, "c": 6, "x": 9}, {"x": 9}]}),
    ("l[5]", {}),
    ("aa[]", {"aa": []}),
])  # fmt: skip
def test_objects_at_a_path_are_changed(path, expected):
    found = changed_at(PAYLOAD, path_steps(path), lambda old: merged(old, {"x": 9}))
    assert found == PAYLOAD | expected


@pytest.mark.parametrize(("path", "expected"), [
    ("a", {"aa": {"b": 3}, "a.b": 4, "l": PAYLOAD["l"]}),
    ("a.c", PAYLOAD | {"a": {"b": 1}}),
    ("l[].b", PAYLOAD | {"l": [{"c": 6}, 7]}),
    ("l[0].b", PAYLOAD | {"l": [{"c": 6}, 7]}),
    ("l[]", PAYLOAD | {"l": []}),
    ("l[0]", PAYLOAD),
    ("a.b.c", PAYLOAD),
    ("missing.b", PAYLOAD),
])  # fmt: skip
def test_what_a_path_leads_to_is_removed(path, expected):
    assert without(PAYLOAD, path_steps(path)) == expected
