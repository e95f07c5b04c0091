"""Saving and opening; run as a script with a folder, it ends a save at every single operation on files."""

import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from endings import OF_INDEXES as OPERATIONS
from endings import UNTOLD, count_points, ends_at

from qinco.atomic import write_atomically
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store import folder as module
from qinco.store.folder import LOCK, check_folder_output, read_folder, write_folder
from qinco.store.manifest import MANIFEST, is_kind, read_manifest


def save(path, seed=0):
    """An index whose parts all tell `seed`, written in all the ways there are."""
    with write_folder(path, "index", {"seed": seed}) as writer:
        writer.array("codes", np.uint8, (50,))[:] = seed
        writer.put("tables", np.full((2, 3), seed, np.float32))
        writer.put("ids", np.zeros(seed, np.uint32))
        writer.file("graph.bin").write_bytes(bytes([seed]))
        with write_atomically(writer.file("codec.safetensors")) as temporary:
            temporary.write_text(str(seed))


def seed_of(folder: module.OpenFolder) -> int:
    seed = folder.settings["seed"]
    assert {name: (array.dtype, array.shape) for name, array in folder.arrays.items()} == {
        "codes": (np.uint8, (50,)), "tables": (np.float32, (2, 3)), "ids": (np.uint32, (seed,)),
    }  # fmt: skip
    assert (folder.arrays["codes"] == seed).all() and (folder.arrays["tables"] == seed).all()
    assert folder.files["graph.bin"].read_bytes() == bytes([seed])
    assert folder.files["codec.safetensors"].read_text() == str(seed)
    return seed


def found(path, mmap=True) -> int:
    return read_folder(path, "index", seed_of, mmap=mmap)


def listing(path) -> list[str]:
    return sorted(file.name for file in Path(path).iterdir())


def expected_listing(path) -> list[str]:
    token = read_manifest(path, "index").token
    names = ["codec-{}.safetensors", "codes-{}.npy", "graph-{}.bin", "ids-{}.npy", "tables-{}.npy"]
    return sorted([*(name.format(token) for name in names), MANIFEST])


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_saved_is_read(tmp_path, mmap):
    save(tmp_path / "index", 3)
    assert found(tmp_path / "index", mmap) == 3
    assert listing(tmp_path / "index") == expected_listing(tmp_path / "index")
    assert listing(tmp_path) == ["index"]
    codes = read_folder(tmp_path / "index", "index", mmap=mmap).arrays["codes"]
    assert codes.flags.writeable != mmap


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (0,), (3, 0), (2, 1, 2, 3)])
def test_arrays_of_any_type_and_shape(tmp_path, dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    with write_folder(tmp_path, "index", {}) as writer:
        writer.put("whole", array, piece_bytes=16)
        writer.put("strided", np.repeat(array, 2, -1)[..., ::2], piece_bytes=16)
        writer.array("mapped", dtype, shape)[...] = array
    for mmap in (True, False):
        arrays = read_folder(tmp_path, "index", mmap=mmap).arrays
        assert all(np.array_equal(arrays[name], array) and arrays[name].dtype == array.dtype for name in arrays)
        assert set(arrays) == {"whole", "strided", "mapped"}


def test_settings_are_a_json_object_that_may_still_grow(tmp_path):
    with write_folder(tmp_path, "index", {"lists": {10: (1, 2), 9: 0.1}}) as writer:
        writer.settings["last"] = "ü"
    assert read_folder(tmp_path, "index").settings == {"lists": {"10": [1, 2], "9": 0.1}, "last": "ü"}


def test_an_index_is_saved_over_itself(tmp_path):
    save(tmp_path, 1)
    old = read_folder(tmp_path, "index")
    with write_folder(tmp_path, "index", old.settings) as writer:
        for name, array in old.arrays.items():
            writer.put(name, array)
        for name, file in old.files.items():
            shutil.copy(file, writer.file(name))
    assert found(tmp_path) == 1
    save(tmp_path, 2)
    assert (old.arrays["codes"] == 1).all(), "what is mapped outlives its file"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    def fail(path):
        with pytest.raises(error), write_folder(path, "index", {}) as writer:
            writer.array("codes", np.uint8, (9,))
            writer.file("codec.bin").write_bytes(b"x")
            raise error

    fail(tmp_path / "new")
    assert listing(tmp_path) == []
    (tmp_path / "empty").mkdir()
    fail(tmp_path / "empty")
    assert listing(tmp_path / "empty") == []
    save(tmp_path / "old", 1)
    fail(tmp_path / "old")
    assert found(tmp_path / "old") == 1 and listing(tmp_path / "old") == expected_listing(tmp_path / "old")


def test_all_files_are_on_disk_before_the_manifest_names_them(tmp_path, monkeypatch):
    events = []
    flush, replace = os.fsync, Path.replace

    def note_flush(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", lambda path, target: (events.append(target.name), replace(path, target)))
    save(tmp_path / "index")
    committed = events.index(MANIFEST)
    assert set(expected_listing(tmp_path / "index")) - {MANIFEST} <= set(events[:committed])
    assert "index" in events[:committed] and "index" in events[committed:]


def test_foreign_folders_are_neither_filled_nor_read(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other files"):
        save(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_folder(tmp_path, "index")
    assert listing(tmp_path) == ["notes.txt"] and not is_kind(tmp_path, "index")
    (tmp_path / MANIFEST).write_text(json.dumps({"kind": "codes", "format_version": 1}))
    with pytest.raises(ConfigError, match="codes"):
        check_folder_output(tmp_path, "index")
    with pytest.raises(DataError, match="codes"):
        read_manifest(tmp_path, "index")
    assert listing(tmp_path) == [MANIFEST, "notes.txt"] and not is_kind(tmp_path, "index")


@pytest.mark.parametrize("version", [3, 10**30])
def test_an_index_of_a_newer_qinco_is_neither_read_nor_replaced(tmp_path, version):
    text = json.dumps({"kind": "index", "format_version": version})
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="newer than 2"):
        read_folder(tmp_path, "index")
    with pytest.raises(ConfigError, match="newer than 2"):
        save(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == text and is_kind(tmp_path, "index")


def test_paths_where_no_index_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/index", "missing/index", "bad\0name", "n" * 300):
        path = tmp_path / name
        with pytest.raises(ConfigError, match=name[:7]):
            save(path)
        with pytest.raises(DataError):
            read_folder(path, "index")
        assert not is_kind(path, "index")
    assert listing(tmp_path) == ["file"]


def test_files_of_others_stay(tmp_path):
    save(tmp_path, 1)
    token = read_manifest(tmp_path, "index").token
    theirs = ["README.md", "codes-20240131.npy", "codes-deadbeefdead.npy", f"Codes-{token}.npy", f"codes-{token}", ".x"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    (tmp_path / "codes-s000000000000.npy").mkdir()
    save(tmp_path, 2)
    assert found(tmp_path) == 2
    assert listing(tmp_path) == sorted([*theirs, "codes-s000000000000.npy", *expected_listing(tmp_path)])


def test_what_killed_processes_left_is_removed(tmp_path):
    left = [LOCK, ".manifest.12-0123abcd.json", "codes-s0123456789ab.npy", ".codec-s0123456789ab.12-0123abcd.bin"]
    for round_ in range(2):
        for name in left:
            (tmp_path / name).write_text("half")
        save(tmp_path, round_)
        assert found(tmp_path) == round_ and listing(tmp_path) == expected_listing(tmp_path)
    (tmp_path / left[2]).write_text("half")
    with write_folder(tmp_path, "index", {}) as writer:
        writer.put("codes", np.zeros(1, np.uint8))
        assert not {*left[1:]} & {*listing(tmp_path)}, "its room is there for the new index"


def test_a_full_disk_is_noticed_before_a_map_is_filled(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "index", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ResourceError, match=r"cannot write .*index: No space left on device"):
            save(tmp_path / "index", 2)
    assert found(tmp_path / "index") == 1 and listing(tmp_path / "index") == expected_listing(tmp_path / "index")


def test_only_the_smallest_files_are_verified_when_they_are_mapped(tmp_path):
    save(tmp_path, 1)
    token = read_manifest(tmp_path, "index").token
    for name, limit in (("codes", 400), ("tables", 200)):
        file = tmp_path / f"{name}-{token}.npy"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"\xff")
        assert read_folder(tmp_path, "index", verified_bytes=limit).arrays[name].tobytes()[-1] == 255
        with pytest.raises(DataError, match=f"{name}-{token}.npy is damaged"):
            read_folder(tmp_path, "index", mmap=False)
        with pytest.raises(DataError, match=f"{name}-{token}.npy is damaged"):
            read_folder(tmp_path, "index")
        file.write_bytes(content)


def test_a_reader_sees_the_new_index_where_the_old_one_vanishes_while_it_opens(tmp_path, monkeypatch):
    save(tmp_path, 1)
    map_file, saved = module.map_file, []

    def map_after_a_save(*arguments):
        if not saved:
            saved.append(save(tmp_path, 2))
        return map_file(*arguments)

    monkeypatch.setattr(module, "map_file", map_after_a_save)
    assert found(tmp_path) == 2

    def load(folder):
        if len(saved) == 1:
            saved.append(save(tmp_path, 3))
        return seed_of(folder)

    assert found(tmp_path) == 2
    assert read_folder(tmp_path, "index", load) == 3


def test_writers_and_readers_at_the_same_time(tmp_path):
    save(tmp_path, 1)
    seen, errors = set(), []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    writers = [
        threading.Thread(target=guarded, args=(lambda seed=seed: [save(tmp_path, seed) for _ in range(10)],))
        for seed in (2, 3)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        guarded(lambda: seen.add(found(tmp_path)))
    for writer in writers:
        writer.join()
    assert not errors and seen <= {1, 2, 3} and found(tmp_path) in (2, 3)
    assert listing(tmp_path) == expected_listing(tmp_path)


@pytest.mark.slow
def test_an_end_at_any_operation_on_files_leaves_the_old_index_or_the_new_one(tmp_path):
    assert count_points(Path(__file__), tmp_path) > 100


def state(path) -> int | None:
    try:
        return found(path)
    except DataError as error:
        assert "it has no manifest.json" in str(error) or not path.exists(), error
        return None


def end_everywhere(folder: Path, old: int | None) -> int:
    """How many points there are. At each, the old index or the new one is there, and the next save leaves no trace."""
    path, states = folder / "index", []
    for point in range(10_000):
        shutil.rmtree(path, ignore_errors=True)
        if old is not None:
            save(path, old)
        if not ends_at(point, folder, lambda: save(path, 2), OPERATIONS, UNTOLD):
            break
        states.append(state(path))
        if point % 5 == 0:  # the next one is ended, too
            ends_at(point // 2, folder, lambda: save(path, 2), OPERATIONS, UNTOLD)
            assert state(path) in (old, 2)
        save(path, 3)
        assert found(path) == 3
        assert listing(path) == expected_listing(path), f"left after an end at operation {point}"
    assert found(path) == 2 and listing(path) == expected_listing(path)
    assert set(states) == {old, 2} and states == sorted(states, key=lambda seed: seed == 2)
    return point


if __name__ == "__main__":
    print(sum(end_everywhere(Path(sys.argv[1]), old) for old in (None, 1)))


def test_temporary_files_of_safetensors_are_not_others(tmp_path):
    for name in (".tmpQ3xZa9", ".tmp000000"):  # which a killed process of an earlier version left
        (tmp_path / name).touch()
        save(tmp_path, 3)
        assert found(tmp_path) == 3 and listing(tmp_path) == expected_listing(tmp_path)
