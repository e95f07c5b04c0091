"""The part of a file that is there is gone on with where its record says the same, and by one process."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from qinco.errors import ConfigError, ResourceError
from qinco.store.decoded_part import Record, open_part
from qinco.vectors.formats import VectorWriter

RECORD = Record(20, 3, "a codec", "some codes", 8, "float32", "auto", ".npy")
BLOCK = np.arange(15, dtype=np.float32).reshape(5, 3)


def opened(folder, resume=False, overwrite=False, record=RECORD):
    writer = VectorWriter(folder / "x.npy", 3, np.float32, 20)
    return open_part(folder / "x.npy.part", writer, record, resume=resume, overwrite=overwrite)


def write(folder, count=1, **options):
    with opened(folder, **options) as part:
        part.begin()
        for _ in range(count):
            part.append(BLOCK)
        part.save()


def test_it_becomes_the_file(tmp_path):
    write(tmp_path, 3)
    with opened(tmp_path, resume=True) as part:
        assert part.record == dataclasses.replace(RECORD, rows=15)
        part.begin()
        assert part.append(BLOCK) == 20
        part.finish(tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.tile(BLOCK, (4, 1)))


def test_what_is_recorded_and_what_gets_its_name_is_on_disk(tmp_path, monkeypatch):
    path, synced, fsync, replace = tmp_path / "x.npy.part", [0], os.fsync, Path.replace

    def sync(descriptor):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            synced.append(path.stat().st_size)
        fsync(descriptor)

    def rename(source, target):
        assert synced[-1] == path.stat().st_size, f"{target} says more than is on disk"
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    with opened(tmp_path) as part:
        part.begin()
        for _ in range(2):
            part.append(BLOCK)
            part.save()
        part.append(np.tile(BLOCK, (2, 1)))
        part.finish(tmp_path / "x.npy")
    assert len(synced) == 4


def test_one_process_at_a_time(tmp_path):
    with opened(tmp_path) as part:
        part.begin()
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with (
                pytest.raises(ConfigError, match=r"another process .*x\.npy\.part"),
                opened(tmp_path, **options),
            ):
                pass
        part.append(BLOCK)
        part.save()
    write(tmp_path, resume=True)


def test_nothing_is_changed_before_it_begins(tmp_path):
    with opened(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ({"resume": True}, {"overwrite": True}):
        with opened(tmp_path, **options):
            pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_part_that_is_too_short_is_not_gone_on_with(tmp_path):
    write(tmp_path, 2)
    size = (tmp_path / "x.npy.part").stat().st_size
    os.truncate(tmp_path / "x.npy.part", size - 1)
    message = rf"x\.npy\.part is damaged: .*{size - 1} bytes.* {size};"
    with pytest.raises(ConfigError, match=message), opened(tmp_path, resume=True):
        pass
    write(tmp_path, overwrite=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_record_without_a_part_means_nothing(tmp_path, resume):
    write(tmp_path)
    (tmp_path / "x.npy.part").unlink()
    with opened(tmp_path, resume) as part:
        assert part.record.rows == 0


def damage(**changes):
    return lambda content: json.dumps(content | changes)


@pytest.mark.parametrize(
    "change",
    [
        damage(kind="codes"),
        damage(rows=-1),
        damage(rows=21),
        damage(rows=True),
        damage(codec=None),
        damage(more=1),
        damage(format_version=0),
        damage(format_version="1"),
        lambda content: json.dumps(
            {name: value for name, value in content.items() if name != "rows" and name != "dim"}
        ),
        lambda content: json.dumps(content)[:-1],
        lambda content: json.dumps([content]),
        lambda content: "[" * 100_000,
        lambda content: "\udcff",
    ],
)
def test_damaged_records(tmp_path, change):
    write(tmp_path)
    path = tmp_path / "x.npy.part.json"
    path.write_text(change(json.loads(path.read_text())), errors="surrogateescape")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with (
            pytest.raises(ConfigError, match=r"x\.npy\.part\.json"),
            opened(tmp_path, **options),
        ):
            pass


def test_records_that_cannot_be_read(tmp_path):
    write(tmp_path)
    path = tmp_path / "x.npy.part.json"
    path.write_text(json.dumps({"kind": "decoding", "format_version": 2, "content": "of a later version"}))
    with pytest.raises(ConfigError, match="version 2"), opened(tmp_path):
        pass
    path.unlink()
    os.mkfifo(path)  # reading it would never end
    with pytest.raises(ConfigError, match=r"x\.npy\.part\.json"), opened(tmp_path):
        pass


def test_a_record_that_cannot_be_written(tmp_path):
    (tmp_path / "x.npy.part.json").symlink_to(tmp_path / "missing" / "folder")
    with pytest.raises(ConfigError, match=r"x\.npy\.part\.json"), opened(tmp_path):
        pass
    (tmp_path / "x.npy.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match=r"cannot write .*x.npy.part: "), opened(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
