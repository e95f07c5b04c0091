import json

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

import qinco
from qinco.errors import ConfigError, DataError
from qinco.server.catalog import STATE, Catalog
from qinco.server.envelope import ConflictError, NotFoundError


def make(folder):
    return qinco.Collection.create(folder, dim=4)


def test_collections_and_aliases_are_there_when_it_is_opened_again(tmp_path):
    with Catalog.open(tmp_path / "data") as catalog:
        catalog.create("a", make, {"metadata": {"of": "me"}})
        catalog.create("b", make, {})
        catalog.get("a").upsert([1], [[1, 2, 3, 4]])
        catalog.change_aliases([("create", "first", "a"), ("create", "second", "b")])
        catalog.change_aliases([("rename", "second", "last"), ("delete", "none", "")])
    with Catalog.open(tmp_path / "data") as catalog:
        assert catalog.names() == ["a", "b"]
        assert catalog.aliases() == {"first": "a", "last": "b"}
        assert catalog.get("first").count() == 1
        assert catalog.details("a") == {"metadata": {"of": "me"}}
        assert catalog.drop("a") and not catalog.drop("a")
        assert catalog.aliases() == {"last": "b"}
    assert not (tmp_path / "data" / "a.qinco").exists()
    with Catalog.open(tmp_path / "data", read_only=True) as catalog:
        assert catalog.names() == ["b"]
        with pytest.raises(ConfigError, match="read_only"):
            catalog.drop("b")


def test_changes_of_aliases_are_all_made_or_none(tmp_path):
    with Catalog.open(tmp_path / "data") as catalog:
        catalog.create("a", make, {})
        with pytest.raises(NotFoundError):
            catalog.change_aliases([("create", "x", "a"), ("create", "y", "missing")])
        with pytest.raises(NotFoundError):
            catalog.change_aliases([("create", "x", "a"), ("rename", "missing", "z")])
        with pytest.raises(ConflictError):
            catalog.change_aliases([("create", "a", "a")])
        assert catalog.aliases() == {}
        with pytest.raises(NotFoundError):
            catalog.get("x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "a\0", "ä", "a" * 201])
def test_names_that_are_no_folders_are_refused(tmp_path, name):
    with Catalog.open(tmp_path / "data") as catalog, pytest.raises(ConfigError):
        catalog.create(name, make, {})


def test_a_collection_that_cannot_be_made_is_not_there(tmp_path):
    with Catalog.open(tmp_path / "data") as catalog:
        with pytest.raises(ConfigError):
            catalog.create("a", lambda folder: qinco.Collection.create(folder, bytes=0), {})
        assert catalog.names() == []
        catalog.create("a", make, {})


def test_single_collections_are_served_but_no_others_are_made(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / f"{name}.qinco").close()
    with Catalog.open(tmp_path / "a.qinco", tmp_path / "b.qinco") as catalog:
        assert catalog.names() == ["a", "b"]
        with pytest.raises(ConfigError, match="folder"):
            catalog.create("c", make, {})
        with pytest.raises(ConfigError, match="folder"):
            catalog.change_aliases([("create", "x", "a")])
    with pytest.raises(ConfigError, match="second"):
        Catalog.open(tmp_path / "a.qinco", tmp_path / "a.qinco")
    make(tmp_path / "c.qinco").close()  # nothing is left open


def test_a_folder_has_one_server_that_writes(tmp_path):
    with Catalog.open(tmp_path / "data") as catalog:
        catalog.create("a", make, {})
        with pytest.raises(ConfigError, match="open for writing"):
            Catalog.open(tmp_path / "data")


def test_what_a_kill_left_of_a_dropped_collection_is_removed(tmp_path):
    with Catalog.open(tmp_path / "data") as catalog:
        catalog.create("a", make, {})
    (tmp_path / "data" / "a.qinco").rename(tmp_path / "data" / ".dropped-0123")
    with Catalog.open(tmp_path / "data") as catalog:
        assert catalog.names() == [] and catalog.details("a") == {}
    assert not (tmp_path / "data" / ".dropped-0123").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"aliases": 1, "collections": {}}'])
def test_a_damaged_state_is_said(tmp_path, text):
    Catalog.open(tmp_path / "data").close()
    (tmp_path / "data" / STATE).write_text(text)
    with pytest.raises(DataError, match="damaged"):
        Catalog.open(tmp_path / "data")
    (tmp_path / "data" / STATE).write_text(json.dumps({"aliases": {}, "collections": {}}))
    Catalog.open(tmp_path / "data").close()
