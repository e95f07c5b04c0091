import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.store.code_store import (
    LOCK,
    MANIFEST,
    CodeStore,
    Manifest,
    check_same_codes,
    is_foreign,
    other_files,
    read_manifest,
    shard_rows,
)

SEARCH = {"num_pairs": 8, "beam_width": 4}
SMALL = Manifest(10, 3, 256, 5, 12, 4, "codec", "source", SEARCH)
CODES = np.random.default_rng(0).integers(0, 256, (10, 3), dtype=np.uint8)
LISTS = np.random.default_rng(1).integers(0, 5, 10)


def fill(store, shards=(0, 1, 2)):
    for shard in shards:
        rows = store.manifest.rows(shard)
        store.write(shard, CODES[rows], LISTS[rows] if store.manifest.num_lists else None)
    return store


@pytest.mark.parametrize(
    ("num_vectors", "rows"),
    [(0, 1 << 12), (1, 1 << 12), (1 << 22, 1 << 12), ((1 << 22) + 1, 1 << 13), (10**8, 1 << 17), (10**12, 1 << 20)],
)
def test_shards_are_about_a_thousand_and_neither_tiny_nor_huge(num_vectors, rows):
    assert shard_rows(num_vectors) == rows


def test_shards_cover_all_rows_once():
    assert SMALL.num_shards == 3
    assert [list(SMALL.rows(shard)) for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert dataclasses.replace(SMALL, num_vectors=0).num_shards == 0
    assert dataclasses.replace(SMALL, num_vectors=8).num_shards == 2


def test_a_store_is_filled_in_any_order_and_read(tmp_path):
    store = CodeStore.create(tmp_path / "codes", SMALL)
    assert store.missing() == [0, 1, 2]
    fill(store, (2, 0))
    assert store.missing() == [1]
    assert not store.finish()
    with pytest.raises(DataError, match="not complete: 2 of 3 shards are there, resume it"):
        CodeStore.open(tmp_path / "codes")
    again = CodeStore.create(tmp_path / "codes", SMALL)
    assert again.missing() == [1]
    fill(again, (1,))
    assert again.finish()
    read = CodeStore.open(tmp_path / "codes")
    assert read.manifest == dataclasses.replace(SMALL, complete=True)
    assert np.array_equal(read.codes[:], CODES)
    assert np.array_equal(read.lists[:][:, 0], LISTS)
    assert (read.codes.dtype, read.lists.dtype) == (np.uint8, np.int32)
    names = [f"{kind}-0000{shard}.npy" for kind in ("codes", "lists") for shard in range(3)]
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == [*names, MANIFEST]


def test_no_vectors_and_no_lists(tmp_path):
    store = CodeStore.create(tmp_path / "codes", dataclasses.replace(SMALL, num_vectors=0, num_lists=0))
    assert store.finish()
    read = CodeStore.open(tmp_path / "codes")
    assert read.codes[:].shape == (0, 3)
    assert read.lists is None


def test_the_manifest_is_json_that_says_what_it_is(tmp_path):
    CodeStore.create(tmp_path / "codes", SMALL)
    content = json.loads((tmp_path / "codes" / MANIFEST).read_text())
    assert content == {"kind": "codes", "format_version": 1, **dataclasses.asdict(SMALL)}
    assert read_manifest(tmp_path / "codes") == SMALL


def test_a_missing_shard_of_a_complete_store_is_damage(tmp_path):
    store = CodeStore.create(tmp_path / "codes", SMALL)
    assert fill(store).finish()
    store.lists_path(1).unlink()
    lists = CodeStore.open(tmp_path / "codes").lists
    assert len(lists[:4]) == 4
    with pytest.raises(DataError, match=r"No such file: .*lists-00001\.npy"):
        lists[:]
    store.codes_path(1).unlink()
    with pytest.raises(DataError, match=r"codes-00001\.npy is missing: the set is damaged"):
        CodeStore.open(tmp_path / "codes")


@pytest.mark.parametrize(
    "wrong", [CODES[:3], CODES[:5], CODES[:4, :2], CODES[:4].astype(np.uint16), CODES[:4].astype(np.float32)]
)
def test_shards_that_the_manifest_does_not_describe_are_damage(tmp_path, wrong):
    store = CodeStore.create(tmp_path / "codes", SMALL)
    assert fill(store).finish()
    np.save(store.codes_path(1), wrong)
    with pytest.raises(DataError, match=r"codes-00001\.npy is .*the manifest says uint8 \(4, 3\): the set is damaged"):
        CodeStore.open(tmp_path / "codes").codes[:]


def test_what_killed_processes_left_is_removed_in_the_end_and_nothing_else(tmp_path):
    store = CodeStore.create(tmp_path / "codes", SMALL)
    left = [".codes-00001.12-0123abcd.npy", ".lists-00000.1-ffffffff.npy", ".manifest.77-00000000.json"]
    foreign = [
        ".codes-00001.npy",
        "codes-0001.npy",
        "codes-old.npy",
        "notes.txt",
        ".manifest.json",
        ".codes.1-0123abcd.npy",
    ]
    for name in [*left, *foreign]:
        (store.path / name).write_text(name)
    before = {path.name for path in store.path.iterdir()}
    assert not store.finish()
    assert {path.name for path in store.path.iterdir()} == before
    assert fill(store).finish()
    assert not {path.name for path in store.path.iterdir()} & set(left)
    store.clear()
    assert sorted(path.name for path in store.path.iterdir()) == sorted(foreign)
    assert all((store.path / name).read_text() == name for name in foreign)


def test_a_clearing_that_is_killed_can_be_repeated(tmp_path, monkeypatch):
    store = CodeStore.create(tmp_path / "codes", SMALL)
    assert fill(store).finish()
    unlink, unlinked = type(store.path).unlink, []

    def dies_at_the_third(path, **options):
        if len(unlinked) == 2:
            raise KeyboardInterrupt
        unlinked.append(path)
        unlink(path, **options)

    monkeypatch.setattr(type(store.path), "unlink", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        store.clear()
    monkeypatch.undo()
    assert store.exists()
    assert not is_foreign(store.path)
    assert not any(path.name == MANIFEST for path in unlinked)
    store.clear()
    assert list(store.path.iterdir()) == []


def test_folders_with_other_things_are_foreign(tmp_path):
    assert not is_foreign(tmp_path)
    assert not is_foreign(tmp_path / "nowhere")
    # a process has begun, or was killed before its manifest was there
    (tmp_path / LOCK).touch()
    (tmp_path / ".manifest.123-0123abcd.json").touch()
    assert not is_foreign(tmp_path)
    for name in ("x", "codes-00000.npy", ".manifest.json", ".codes-00000.1-0123abcd.npy"):
        (tmp_path / name).touch()
        assert is_foreign(tmp_path)
        assert is_foreign(tmp_path / name)
        (tmp_path / name).unlink()
    CodeStore.create(tmp_path, SMALL)
    (tmp_path / "x").touch()
    assert not is_foreign(tmp_path)


def test_codes_of_another_run_are_named(tmp_path):
    check_same_codes("x", dataclasses.replace(SMALL, complete=True), SMALL)
    other = dataclasses.replace(SMALL, codec="other", search={"num_pairs": 9})
    with pytest.raises(ConfigError, match=r"x holds codes of another run \(another codec; searched with C=9 there"):
        check_same_codes("x", other, SMALL)
    with pytest.raises(ConfigError) as caught:
        check_same_codes("x", dataclasses.replace(SMALL, codec="z" * 100_000), SMALL)
    assert len(str(caught.value)) < 1000


def test_other_files_are_those_that_no_store_writes(tmp_path):
    store = CodeStore.create(tmp_path / "codes", SMALL)
    assert fill(store).finish()
    for name in (LOCK, ".codes-00001.12-0123abcd.npy", ".manifest.77-00000000.json"):
        (store.path / name).touch()
    assert other_files(store.path) == []
    for name in ("notes", "codes-1.npy", ".manifest.json"):
        (store.path / name).touch()
    assert sorted(file.name for file in other_files(store.path)) == [".manifest.json", "codes-1.npy", "notes"]


def test_shards_of_other_codes_are_not_read_for_those_that_were_opened(tmp_path):
    fill(CodeStore.create(tmp_path / "codes", SMALL)).finish()
    read = CodeStore.open(tmp_path / "codes")
    codes, lists = read.codes, read.lists
    assert np.array_equal(codes[:4], CODES[:4])
    CodeStore(tmp_path / "codes", SMALL).clear()
    fill(CodeStore.create(tmp_path / "codes", dataclasses.replace(SMALL, source="other")))
    assert np.array_equal(codes[1:3], CODES[1:3])
    for rows in (codes, lists):
        with pytest.raises(DataError, match="was replaced by other codes while it was read"):
            rows[4:]


WRONG_MANIFESTS = {
    "no object": ("[]", "holds no codes"),
    "a list of names": ('["kind"]', "holds no codes"),
    "no JSON": ("{", r"is damaged \(Expecting"),
    "no text": (b"\xff\xfe\xff", "is damaged"),
    "empty": ("", "is damaged"),
    "deep": ("[" * 100_000, "is damaged"),
    "deep in a field": ({"search": "DEEP"}, "is damaged"),
    "huge": (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
    "other kind": ({"kind": "index"}, "holds no codes"),
    "newer": ({"format_version": 2}, "of format version 2, this qinco reads up to 1: update it"),
    "version in words": ({"format_version": "1"}, "format_version is '1'"),
    "version true": ({"format_version": True}, "format_version is True"),
    "unknown field": ({"new\nline": 1}, r"\['new\\nline'\] are missing or unknown"),
    "missing field": ({"codec": ...}, r"\['codec'\] are missing or unknown"),
    "null": ({"codec": None}, "codec is None"),
    "negative": ({"num_vectors": -1}, "num_vectors is -1"),
    "fraction": ({"num_vectors": 10.0}, r"num_vectors is 10\.0"),
    "true": ({"num_vectors": True}, "num_vectors is True"),
    "words": ({"code_size": "3" * 9999}, "code_size is '3333"),
    "a number": ({"source": 3}, "source is 3"),
    "a list": ({"search": []}, r"search is \[\]"),
    "unclear": ({"complete": "yes"}, "complete is 'yes'"),
    "NaN": ({"dim": float("nan")}, "dim is nan"),
    "beyond reason": ({"num_vectors": 1 << 60}, "num_vectors is 1152921504606846976"),
    "more digits than Python reads": ({"num_vectors": "DIGITS"}, "is damaged"),
    "no rows": ({"shard_rows": 0}, "a size of zero"),
    "no columns": ({"code_size": 0}, "a size of zero"),
    "no codewords": ({"codebook_size": 0}, "a size of zero"),
    "too many shards": ({"num_vectors": 1 << 40}, "claims 274877906944 shards"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_wrong_manifests_are_refused(tmp_path, name):
    changes, message = WRONG_MANIFESTS[name]
    if isinstance(changes, dict):
        fields = {"kind": "codes", "format_version": 1, **dataclasses.asdict(SMALL)} | changes
        content = json.dumps({name: value for name, value in fields.items() if value is not ...})
        changes = content.replace('"DEEP"', "[" * 50_000 + "]" * 50_000).replace('"DIGITS"', "1" * 5000)
    (tmp_path / MANIFEST).write_bytes(changes if isinstance(changes, bytes) else changes.encode())
    for read in (read_manifest, CodeStore.open):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_folders_without_a_manifest_are_no_stores(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match=r"is no folder of codes: it has no manifest\.json"):
            read_manifest(path)


def test_manifests_that_are_no_files_are_refused(tmp_path):
    makers = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to(path),
    }
    for name, make in makers.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / MANIFEST)
        with pytest.raises(DataError, match=r"manifest\.json is damaged \((it is no file|Too many levels)"):
            read_manifest(tmp_path / name)
