"""Memory maps that leave memory again, and the error for a file that does not exist."""

from pathlib import Path

import numpy as np
import pytest

from qinco.errors import DataError
from qinco.vectors.formats import open_array, write_vectors
from qinco.vectors.mapped import missing_file, release_pages
from qinco.vectors.rows import open_vectors

DATA = np.arange(1 << 20, dtype=np.float32).reshape(-1, 64)  # 4 MiB


def resident_bytes(path: Path) -> int:
    """How much of a file is mapped and counted as memory of this process."""
    sizes, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(path.name)
        elif inside and line.startswith("Rss:"):
            sizes.append(int(line.split()[1]) * 1024)
    return sum(sizes)


@pytest.mark.parametrize("suffix", [".npy", ".fbin", ".fvecs"])
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what is resident")
def test_files_that_are_read_in_blocks_do_not_fill_memory(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_vectors(path, DATA)
    source = open_vectors(path)
    for start, block in source.blocks(2048):
        np.testing.assert_array_equal(block, DATA[start : start + 2048])
        assert resident_bytes(path) < 1 << 20
    kept = open_array(path)[:]
    assert kept.sum() > 0 and resident_bytes(path) >= DATA.nbytes  # the test sees what is mapped
    np.testing.assert_array_equal(source[100:9000], DATA[100:9000])


def test_only_maps_that_cannot_be_written_are_released(tmp_path):
    np.save(tmp_path / "x.npy", DATA)
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[:] = 7
    for rows in (DATA[:9], changed, np.asarray(changed)[5:], DATA[:0], open_array(tmp_path / "x.npy")[:0]):
        release_pages(rows)
    assert (changed == 7).all() and DATA[0, 1] == 1


@pytest.mark.parametrize(
    "missing, suggestion",
    [
        ("sft.safetensors", "sift.safetensors"),
        ("./sft.safetensors", "sift.safetensors"),
        ("sub/cods.npy", "sub/codes.npy"),
        ("sift.safetensor", "sift.safetensors"),
        ("q.npy", None),
        ("sub/codes.fvecs", "sub/codes.npy"),
        ("queries.npy", None),
        ("nowhere/sift.safetensors", None),
        ("nul\0.npy", None),
        ("sub/", None),
    ],
)
def test_a_missing_file_has_its_nearest_name(missing, suggestion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("sift.safetensors", "x.npy", "sub/codes.npy"):
        (tmp_path / name).touch()
    hint = "" if suggestion is None else f". Did you mean {suggestion}?"
    assert str(missing_file(missing)) == f"No such file: {missing}{hint}"
    with pytest.raises(DataError, match=r"Did you mean .*sift\.safetensors"):
        open_array(tmp_path / "siftt.npy")
