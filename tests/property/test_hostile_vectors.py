"""Damaged and malicious files of the formats that we read ourselves: an error of ours or rows, never code or gigabytes.

HDF5 and Parquet are left to h5py and pyarrow, which may end the process over a damaged file.
"""

import io
import pickle
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco.errors import DataError, QincoError
from qinco.vectors.formats import SUFFIXES, WRITTEN_SUFFIXES, open_array, read_integers, write_vectors
from qinco.vectors.rows import open_vectors

DATA = np.arange(24 * 8).reshape(24, 8) % 11
WORDS = [b"\xff" * 8, bytes(8), *(struct.pack("<q", 2**power) for power in (16, 31, 60)), b"\xff\xff\xff\xff\x0f"]


@cache
def valid_file(suffix) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write_vectors(path, DATA if suffix != ".npy" else DATA.astype(">f4"))
        return path.read_bytes()


@st.composite
def damaged_files(draw, suffix):
    content = bytearray(valid_file(suffix))
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["bit", "bit", "byte", "word", "cut", "insert"])):
            case "bit":
                content[position] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                content[position] = draw(st.integers(0, 255))
            case "word":
                content[position : position + 8] = draw(st.sampled_from(WORDS))
            case "cut":
                del content[position : position + draw(st.integers(1, 40))]
            case "insert":
                content[position:position] = draw(st.binary(max_size=9))
        if not content:
            break
    return bytes(content)


def read(path) -> None:
    """Whatever the file is, it is refused, or gives as many finite or infinite float32 as it says."""
    for open_it in (open_vectors, read_integers):
        try:
            rows = open_it(path)
            count = min(len(rows), 1000)
            assert rows[:count].shape == (count, rows.shape[1])
            assert rows[np.array([count - 1, 0, -1])].shape == (3, rows.shape[1])
        except QincoError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_damaged_files(suffix, data):
    content = data.draw(damaged_files(suffix))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(content)
        read(path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_not_executed(tmp_path):
    path, touched = tmp_path / "x.npy", tmp_path / "touched"
    attack = Malicious(touched)
    np.save(path, np.array([[attack]], object), allow_pickle=True)
    assert not touched.exists()
    contents = [path.read_bytes(), pickle.dumps(attack), pickle.dumps(np.array([[attack]]))]
    contents.append(b"\x93NUMPY\x01\x00" + struct.pack("<H", 90) + b"__import__('os').system('touch x')".ljust(90))
    for suffix in SUFFIXES:
        for content in contents:
            path.with_suffix(suffix).write_bytes(content)
            with pytest.raises(DataError):
                open_array(path.with_suffix(suffix))
    assert not touched.exists() and not (tmp_path / "x").exists()
    pickle.loads(contents[1])
    assert touched.exists()  # it would have been seen


def npy(header: bytes, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header


def npy_of(shape, descr="<f4", payload=bytes(24)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + payload


def bombs() -> dict[str, bytes]:
    """Files that promise much in few bytes, by name; all must be refused."""
    nested = [b"(" * 9000, b"[" * 150 + b"]" * 150, b"-" * 9000 + b"1", b"{'a':" * 900, b"1" * 9000, b"'" * 9999]
    files = {f"nested{number}.npy": npy(header) for number, header in enumerate(nested)}
    files |= {
        "rows.npy": npy_of((2**60, 8)),
        "columns.npy": npy_of((1, 2**31)),
        "overflow.npy": npy_of((2**62, 2**62)),
        "nothing.npy": npy_of((0, 2**31), payload=b""),
        "objects.npy": npy_of((2**60, 8), "|O"),
        "strings.npy": npy_of((1, 1), f"<U{2**30}"),
        "length.npy": npy(b"", 2)[:8] + b"\xff\xff\xff\xff" + bytes(1000),
        "long.npy": npy(b"{" + b" " * 10_000_000 + b"}", 2),
        "rows.fbin": struct.pack("<II", 2**32 - 1, 8) + bytes(320),
        "columns.u8bin": struct.pack("<II", 1, 2**31) + bytes(320),
        "both.ibin": struct.pack("<II", 2**32 - 1, 2**32 - 1) + bytes(320),
        "columns.fvecs": struct.pack("<i", 2**31 - 1) + bytes(320),
        "negative.bvecs": struct.pack("<i", -(2**31)) + bytes(320),
    }
    return files


READER = """
import resource, sys
from pathlib import Path
from qinco.errors import QincoError
from qinco.vectors.rows import open_vectors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for path in sorted(Path(sys.argv[1]).iterdir()):  # the libraries are loaded
    open_vectors(path)[:]
begun = peak()
for path in sorted(Path(sys.argv[2]).iterdir()):
    before, result = peak(), "read"
    try:
        open_vectors(path)[:1000]
    except QincoError as error:
        result = type(error).__name__
    print(path.name, result, peak() - begun)
"""


def test_bombs_are_refused_without_gigabytes(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    for suffix in WRITTEN_SUFFIXES:
        (good / f"x{suffix}").write_bytes(valid_file(suffix))
    for name, content in bombs().items():
        (bad / name).write_bytes(content)
    root = Path(sys.modules["qinco.vectors"].__file__).parents[2]
    command = [sys.executable, "-c", READER, str(good), str(bad)]
    lines = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(root)}, timeout=120
    ).stdout.splitlines()
    assert len(lines) == len(list(bad.iterdir()))
    for line in lines:
        name, result, mebibytes = line.split()
        assert result == "DataError", name
        assert int(mebibytes) < 200, line
