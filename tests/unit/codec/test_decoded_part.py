"""The part of a file that is there is gone on with where its record says the same, and by one process."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from qinco.codec.decode_file import open_part
from qinco.errors import ConfigError, ResourceError
from qinco.vectors.formats import VectorWriter

WORK = {"num_vectors": 20, "dim": 3, "codec": "a codec", "format": ".npy"}
BLOCK = np.arange(15, dtype=np.float32).reshape(5, 3)


def opened(folder, resume=False, overwrite=False):
    writer = VectorWriter(folder / "x.npy", 3, np.float32, 20)
    return open_part(folder / "x.npy.part", writer, WORK, resume=resume, overwrite=overwrite)


def write(folder, count=1, **options):
    with opened(folder, **options) as part:
        for _ in range(count):
            part.append(BLOCK)
        part.save()


def test_what_is_recorded_and_what_gets_its_name_is_on_disk(tmp_path, monkeypatch):
    path, synced, fsync, replace = tmp_path / "x.npy.part", [0], os.fsync, Path.replace

    def sync(descriptor):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            synced.append(path.stat().st_size)
        fsync(descriptor)

    def rename(source, target):
        assert synced[-1] == path.stat().st_size or (target.name == "x.npy.part.json" and len(synced) == 1)
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    with opened(tmp_path) as part:
        for _ in range(2):
            part.append(BLOCK)
            part.save()
        part.append(np.tile(BLOCK, (2, 1)))
        part.finish(tmp_path / "x.npy")
    assert len(synced) == 4 and [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.tile(BLOCK, (4, 1)))


def test_one_process_at_a_time(tmp_path):
    with opened(tmp_path) as part:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=r"x\.npy\.part"), opened(tmp_path, **options):
                pass
        part.append(BLOCK)
        part.save()
    write(tmp_path, resume=True)


def test_a_part_that_is_too_short_is_not_gone_on_with(tmp_path):
    write(tmp_path, 2)
    size = (tmp_path / "x.npy.part").stat().st_size
    os.truncate(tmp_path / "x.npy.part", size - 1)
    with pytest.raises(ConfigError, match=rf"x\.npy\.part .*{size - 1},"), opened(tmp_path, resume=True):
        pass
    write(tmp_path, overwrite=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_record_without_a_part_means_nothing(tmp_path, resume):
    write(tmp_path)
    (tmp_path / "x.npy.part").unlink()
    with opened(tmp_path, resume) as part:
        assert part.rows == 0


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "codes"},
        {"rows": -1},
        {"rows": 21},
        {"rows": True},
        {"rows": None},
        {"codec": None},
        {"more": "x" * 10_000},
        {"format_version": 2},
        {"format_version": "1"},
        "{",
        "[]",
        "[" * 100_000,
        "\udcff",
        os.mkfifo,  # reading it would never end
        lambda path: path.symlink_to("missing"),
    ],
)
def test_damaged_records_and_those_of_later_versions_are_refused(tmp_path, change):
    write(tmp_path)
    path = tmp_path / "x.npy.part.json"
    content = json.loads(path.read_text())
    if callable(change):
        path.unlink()
        change(path)
    else:
        text = json.dumps(content | change) if isinstance(change, dict) else change
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"x\.npy\.part") as caught, opened(tmp_path, resume=True):
        pass
    assert len(str(caught.value)) < 800


def test_a_part_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "x.npy.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match=r"x\.npy\.part"), opened(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
