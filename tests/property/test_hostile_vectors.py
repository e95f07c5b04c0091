"""Damaged and malicious files of every format: an error of ours or rows, never a crash, never code, never gigabytes."""

import importlib.util
import io
import pickle
import struct
import subprocess
import sys
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinco.errors import DataError, QincoError
from qinco.vectors.formats import SUFFIXES, open_array, read_integers, write_vectors
from qinco.vectors.rows import open_vectors

TABLES = {".hdf5": "h5py", ".h5": "h5py", ".parquet": "pyarrow"}
MISSING = {suffix for suffix, package in TABLES.items() if importlib.util.find_spec(package) is None}
HERE = [suffix for suffix in SUFFIXES if suffix not in MISSING]
DATA = np.arange(24 * 8).reshape(24, 8) % 11
WORDS = [b"\xff" * 8, bytes(8), *(struct.pack("<q", 2**power) for power in (16, 31, 60)), b"\xff\xff\xff\xff\x0f"]


@cache
def valid_files(suffix) -> list[bytes]:
    """Small files of a format, in the ways in which its library writes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        files = []
        for write in _writers(suffix):
            write(path)
            files.append(path.read_bytes())
        return files


def _writers(suffix):
    if suffix in (".hdf5", ".h5"):
        import h5py

        def write(path, libver, packed):
            with h5py.File(path, "w", libver=libver) as file:
                file.create_dataset("train", data=DATA.astype(np.float32), **packed)
                file["test"], file["neighbors"] = DATA[:3].astype("f4"), DATA[:3]

        packings = ({}, {"chunks": (5, 3)}, {"chunks": (5, 8), "compression": "gzip", "shuffle": True})
        packings += ({"chunks": (5, 8), "maxshape": (None, 8), "compression": "gzip"},)
        return [
            lambda path, v=libver, p=packed: write(path, v, p)
            for libver in ("earliest", "latest")
            for packed in packings
        ]
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        def write(path, kind, settings):
            table = pyarrow.table({"id": range(24), "emb": pyarrow.array(DATA.tolist(), kind)})
            pyarrow.parquet.write_table(table, path, row_group_size=10, **settings)

        kinds = [
            pyarrow.list_(pyarrow.float32()),
            pyarrow.list_(pyarrow.int8(), 8),
            pyarrow.large_list(pyarrow.uint64()),
        ]
        ways = [{"compression": "none"}, {"compression": "zstd", "data_page_version": "2.0", "use_dictionary": False}]
        return [lambda path, k=kind, w=way: write(path, k, w) for kind in kinds for way in ways]
    return [lambda path: write_vectors(path, DATA if suffix != ".npy" else DATA.astype(">f4"))]


@st.composite
def damaged_files(draw, suffix):
    content = bytearray(draw(st.sampled_from(valid_files(suffix))))
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


@pytest.mark.parametrize("suffix", HERE)
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_files(suffix, data):
    content = data.draw(damaged_files(suffix))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(content)
        read(path)


@pytest.mark.parametrize("suffix", HERE)
@given(start=st.integers(0, 40), rest=st.binary(max_size=200))
@settings(deadline=None, max_examples=50)
def test_random_bytes_behind_a_valid_start(suffix, start, rest):
    end = valid_files(suffix)[0][-8:] if suffix == ".parquet" else b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(valid_files(suffix)[0][:start] + rest + end)
        read(path)


@pytest.mark.parametrize("suffix", [".parquet", ".h5", ".npy", ".fbin", ".u8bin"])
def test_a_file_cut_anywhere_is_refused(suffix, tmp_path):
    if suffix in MISSING:
        pytest.skip(f"needs {TABLES[suffix]}")
    path = tmp_path / f"x{suffix}"
    content = valid_files(suffix)[-1]
    for length in range(0, len(content), max(1, len(content) // 500)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"x\{suffix}"):
            open_array(path)


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
    for suffix in HERE:
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


def write_hdf5_bombs(folder):
    import h5py

    for libver in ("earliest", "latest"):
        for name, packed in (
            ("chunks", {"chunks": (1000, 128)}),
            ("gzip", {"chunks": (9, 128), "compression": "gzip"}),
        ):
            with h5py.File(folder / f"{name}-{libver}.h5", "w", libver=libver) as file:
                file.create_dataset("train", (2**40, 128), np.float32, maxshape=(None, 128), **packed)
        with h5py.File(folder / f"plain-{libver}.h5", "w", libver=libver) as file:
            file.create_dataset("train", (2**40, 128), np.float32)
        with h5py.File(folder / f"deflate-{libver}.h5", "w", libver=libver) as file:
            data = file.create_dataset("train", (4, 4), np.float32, chunks=(4, 4), compression="gzip")
            data.id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 28), 1))
            data = file.create_dataset("short", (100_000, 128), np.float32, chunks=(100_000, 128), compression="gzip")
            data.id.write_direct_chunk((0, 0), zlib.compress(b"abc"))


def write_parquet_bombs(folder):
    import pyarrow
    import pyarrow.parquet

    def write(name, lengths, **settings):
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        lists = pyarrow.ListArray.from_arrays(offsets, np.zeros(offsets[-1], np.int8))
        pyarrow.parquet.write_table(pyarrow.table({"emb": lists}), folder / f"{name}.parquet", **settings)

    write("row", [100] * 50 + [12_000_000] + [100] * 50)
    write("same", [500] * 20_000, compression="zstd", use_dictionary=False)
    write("dim", [12_000_000])


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
    for suffix in HERE:
        (good / f"x{suffix}").write_bytes(valid_files(suffix)[0])
    for name, content in bombs().items():
        (bad / name).write_bytes(content)
    if ".h5" in HERE:
        write_hdf5_bombs(bad)
    if ".parquet" in HERE:
        write_parquet_bombs(bad)
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
