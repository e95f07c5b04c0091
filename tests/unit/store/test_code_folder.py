"""Codes in shards: plans, both format versions, and what is refused."""

import dataclasses
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.store.code_folder import CodeFolder, CodePlan, default_shard_rows, remove_codes
from qinco.store.manifest import MANIFEST, PENDING

PLAN = CodePlan(10, 3, 256, 5, 12, 4, "codec", "source", {"num_pairs": 8, "beam_width": 4})
CODES = np.random.default_rng(0).integers(0, 256, (10, 3), dtype=np.uint8)
LISTS = np.random.default_rng(1).integers(0, 5, 10)
GOLDEN = Path(__file__).parents[2] / "data"


def fill(folder, shards=(0, 1, 2)):
    for shard in shards:
        rows = folder.plan.rows(shard)
        folder.write(shard, CODES[rows], LISTS[rows] if folder.plan.num_lists else None)
    return folder


def created(path, plan=PLAN):
    path.mkdir(exist_ok=True)
    return CodeFolder.create(path, plan)


def names(path):
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize(
    ("num_vectors", "rows"),
    [(0, 1 << 12), (1, 1 << 12), (1 << 22, 1 << 12), ((1 << 22) + 1, 1 << 13), (10**8, 1 << 17), (10**12, 1 << 20)],
)
def test_shards_are_about_a_thousand_and_neither_tiny_nor_huge(num_vectors, rows):
    assert default_shard_rows(num_vectors) == rows


def test_a_folder_is_filled_in_any_order_and_read(tmp_path):
    fill(created(tmp_path), (2, 0))
    with pytest.raises(DataError, match="2 of 3 shards"):
        CodeFolder.open(tmp_path)
    complete, pending = CodeFolder.find(tmp_path)
    assert complete is None and pending.missing() == [1] and pending.is_current()
    fill(pending, (1,)).commit()
    assert not pending.is_current() and CodeFolder.find(tmp_path) == (CodeFolder.open(tmp_path), None)
    found = CodeFolder.open(tmp_path)
    assert found.plan == PLAN and (found.codes.dtype, found.lists.dtype) == (np.uint8, np.int32)
    assert np.array_equal(found.codes[:], CODES) and np.array_equal(found.lists[:][:, 0], LISTS)
    token = found.manifest.token
    shards = [f"{kind}_0000{shard}-{token}.npy" for kind in ("codes", "lists") for shard in range(3)]
    assert names(tmp_path) == [*shards, MANIFEST]
    assert np.array_equal(np.concatenate([np.load(tmp_path / name) for name in shards[:3]]), CODES)


def test_new_codes_are_made_beside_complete_ones(tmp_path):
    fill(created(tmp_path)).commit()
    new = fill(created(tmp_path, dataclasses.replace(PLAN, source="other")), (1,))
    assert CodeFolder.find(tmp_path)[1] == new and CodeFolder.open(tmp_path).plan == PLAN
    again = created(tmp_path)  # the same work as the complete ones gets another token
    assert not new.is_current() and again.missing() == [0, 1, 2]
    fill(again).commit()
    assert CodeFolder.open(tmp_path).manifest.token == again.manifest.token
    assert len(names(tmp_path)) == 7


@pytest.mark.parametrize("name", ["codes", "lists"])
def test_a_missing_or_changed_shard_is_named(tmp_path, name):
    fill(created(tmp_path)).commit()
    (path,) = tmp_path.glob(f"{name}_00001-*")
    reader, data = CodeFolder.open(tmp_path), path.read_bytes()
    for changed in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"\x93" + data):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=path.name):
            CodeFolder.open(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        CodeFolder.open(tmp_path)
    with pytest.raises(DataError, match=path.name):
        getattr(reader, name)[4:]


def test_shards_of_other_codes_are_not_read_for_those_that_were_opened(tmp_path):
    fill(created(tmp_path)).commit()
    found = CodeFolder.open(tmp_path)
    codes, lists = found.codes, found.lists
    assert np.array_equal(codes[:4], CODES[:4])
    fill(created(tmp_path, dataclasses.replace(PLAN, source="other"))).commit()
    assert np.array_equal(codes[1:3], CODES[1:3])
    for rows in (codes, lists):
        with pytest.raises(DataError, match="No such file"):
            rows[4:]


def test_what_killed_processes_left_is_removed_in_the_end_and_nothing_else(tmp_path):
    folder = fill(created(tmp_path))
    token = folder.manifest.token
    left = [f".codes_00001-{token}.12-0123abcd.npy", ".manifest.77-00000000.json", "codes_00001-s0123456789ab.npy"]
    foreign = ["codes_00001.npy", "codes-0001.npy", "notes.txt", ".manifest.json", f"Codes_00001-{token}.npy"]
    for name in [*left, *foreign]:
        (tmp_path / name).write_text(name)
    folder.commit()
    assert not set(names(tmp_path)) & set(left)
    remove_codes(tmp_path)
    assert names(tmp_path) == sorted(foreign)
    for name in foreign:
        (tmp_path / name).unlink()
    remove_codes(tmp_path)
    assert not tmp_path.exists()


def test_codes_of_another_run_are_named():
    PLAN.check_same("x", PLAN)
    other = dataclasses.replace(PLAN, codec="other", encode={"num_pairs": 9, "beam_width": 4})
    with pytest.raises(ConfigError, match=r"^x .*another codec; num_pairs=9 there, 8 here\)"):
        PLAN.check_same("x", other)
    with pytest.raises(ConfigError) as caught:
        PLAN.check_same("x", dataclasses.replace(PLAN, encode={"x": "z" * 100_000}))
    assert len(str(caught.value)) < 1000


# Format version 1: shards without tokens, and a manifest that is written first

V1 = {
    "kind": "codes", "format_version": 1, "num_vectors": 10, "code_size": 3, "codebook_size": 256, "num_lists": 5,
    "dim": 12, "shard_rows": 4, "codec": "codec", "source": "source", "search": PLAN.encode, "complete": True,
}  # fmt: skip


def write_v1(path, shards=range(3), **changes):
    path.mkdir(exist_ok=True)
    (path / MANIFEST).write_text(json.dumps(V1 | changes))
    for shard in shards:
        np.save(path / f"codes-0000{shard}.npy", CODES[PLAN.rows(shard)])
        np.save(path / f"lists-0000{shard}.npy", LISTS[PLAN.rows(shard), None].astype(np.int32))


def test_version_1_is_read_and_replaced(tmp_path):
    write_v1(tmp_path)
    found = CodeFolder.open(tmp_path)
    assert found.plan == PLAN and np.array_equal(found.codes[:], CODES) and np.array_equal(found.lists[:][:, 0], LISTS)
    new = fill(created(tmp_path))
    assert CodeFolder.open(tmp_path) == found
    new.commit()
    assert CodeFolder.open(tmp_path).manifest == CodeFolder.read(tmp_path).manifest is not None
    assert len(names(tmp_path)) == 7


@pytest.mark.parametrize("kill_at", [1, 3, 4])
def test_interrupted_version_1_is_continued(tmp_path, monkeypatch, kill_at):
    write_v1(tmp_path, (0, 2), complete=False)
    rename, renamed = Path.rename, []

    def killed(path, target):
        if len(renamed) == kill_at:
            raise KeyboardInterrupt
        renamed.append(target)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        if kill_at == 4:
            CodeFolder.find(tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                CodeFolder.find(tmp_path)
    complete, adopted = CodeFolder.find(tmp_path)
    assert complete is None and adopted.missing() == [1] and not (tmp_path / MANIFEST).exists()
    fill(adopted, (1,)).commit()
    assert np.array_equal(CodeFolder.open(tmp_path).codes[:], CODES) and len(names(tmp_path)) == 7


def test_interrupted_version_1_is_begun_anew(tmp_path):
    write_v1(tmp_path, (0, 2), complete=False)
    with pytest.raises(DataError, match="2 of 3 shards"):
        CodeFolder.open(tmp_path)
    CodeFolder.find(tmp_path)
    new = created(tmp_path, dataclasses.replace(PLAN, source="other"))
    assert names(tmp_path) == [PENDING] and new.is_current()


# Manifests


def signed(content: dict) -> str:
    """A manifest with the checksum that its content needs."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"crc32": zlib.crc32(text.encode())})


WRONG_MANIFESTS = {
    "no object": "[]",
    "deep": "[" * 100_000,
    "huge": " " * (1 << 24) + "{}",
    "newer": {"format_version": 3},
    "version in words": {"format_version": "1"},
    "unknown field": {"new\nline": 1},
    "missing field": {"codec": ...},
    "negative": {"num_vectors": -1},
    "true": {"num_vectors": True},
    "unclear": {"complete": "yes"},
    "beyond reason": {"num_vectors": 1 << 60},
    "more digits than Python reads": '{"kind": "codes", "num_vectors": ' + "1" * 5000 + "}",
    "no rows": {"shard_rows": 0},
    "too many shards": {"num_vectors": 1 << 40},
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_wrong_manifests_are_refused(tmp_path, name, version):
    text = WRONG_MANIFESTS[name]
    if isinstance(text, dict):
        changes, header = text, {"kind": "codes", "format_version": version}
        if version == 1:
            renamed = {"num_codes": "code_size", "encode": "search"}
            content = V1 | {renamed.get(name, name): value for name, value in changes.items()}
        else:
            of_header = {name: changes.get(name, value) for name, value in header.items()}
            settings = dataclasses.asdict(PLAN) | {key: changes[key] for key in changes if key not in header}
            settings = {key: value for key, value in settings.items() if value is not ...}
            content = of_header | {"token": f"s{'0' * 12}", "settings": settings, "files": {}}
        content = {key: value for key, value in content.items() if value is not ...}
        text = json.dumps(content) if version == 1 else signed(content)
    (tmp_path / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (CodeFolder.read, CodeFolder.open):
        with pytest.raises(DataError, match=r"manifest\.json") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_folders_without_a_manifest_hold_no_codes(tmp_path):
    (tmp_path / "file").touch()
    for path, named in ((tmp_path, "manifest.json"), (tmp_path / "nowhere", "nowhere"), (tmp_path / "file", "file")):
        with pytest.raises(DataError, match=named):
            CodeFolder.open(path)


@pytest.mark.parametrize("name", [MANIFEST, PENDING])
def test_manifests_that_are_no_files_are_refused(tmp_path, name):
    makers = [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
    for number, make in enumerate(makers):
        path = tmp_path / str(number)
        path.mkdir()
        make(path / name)
        with pytest.raises(DataError, match="json"):
            CodeFolder.open(path)
