"""Files of vectors: their bytes, what opening refuses, and writing them in one piece or block by block."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import (
    SUFFIXES,
    VectorWriter,
    open_array,
    read_integers,
    write_vectors,
)

FLOATS = np.array([[1.5, -2, 3], [4, 5e30, 6]], np.float32)
BYTES = np.array([[0, 255], [7, 8], [9, 10]], np.uint8)
INTEGERS = np.array([[-(2**31), 2**31 - 1]], np.int32)
SMALL = np.array([[-128, 127, 0]], np.int8)
SAMPLES = [
    (".fvecs", FLOATS), (".bvecs", BYTES), (".ivecs", INTEGERS), (".npy", FLOATS),
    (".fbin", FLOATS), (".u8bin", BYTES), (".i8bin", SMALL), (".ibin", INTEGERS),
]  # fmt: skip


def save(folder, suffix, array) -> Path:
    path = folder / f"x{suffix}"
    write_vectors(path, array)
    return path


def test_bytes_are_as_documented(tmp_path):
    assert save(tmp_path, ".fvecs", FLOATS).read_bytes() == struct.pack("<i3fi3f", 3, *FLOATS[0], 3, *FLOATS[1])
    assert save(tmp_path, ".bvecs", BYTES[:2]).read_bytes() == struct.pack("<i2Bi2B", 2, 0, 255, 2, 7, 8)
    assert save(tmp_path, ".ivecs", INTEGERS).read_bytes() == struct.pack("<i2i", 2, *INTEGERS[0])
    for suffix, code in ((".fbin", "f"), (".u8bin", "B"), (".i8bin", "b"), (".ibin", "i")):
        expected = struct.pack(f"<2I6{code}", 2, 3, *range(6))
        assert save(tmp_path, suffix, np.arange(6).reshape(2, 3)).read_bytes() == expected


@pytest.mark.parametrize("suffix, array", SAMPLES)
def test_what_is_written_is_read(tmp_path, suffix, array):
    stored = open_array(save(tmp_path, suffix, array))
    assert stored.shape == array.shape and stored.dtype == array.dtype and len(stored) == len(array)
    np.testing.assert_array_equal(np.asarray(stored), array)
    np.testing.assert_array_equal(stored[np.array([0, -1])], array[[0, -1]])
    assert not stored[:].flags.writeable
    np.testing.assert_array_equal(open_array(save(tmp_path, suffix.upper(), array))[:1], array[:1])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">i2", "<u8", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_any_number_type_order_and_version(tmp_path, dtype, order, version):
    array = np.array([[1, 2, 3], [4, 5, 6]], dtype, order=order)
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version)
    assert open_array(path).dtype == array.dtype
    np.testing.assert_array_equal(open_array(path), array)
    write_vectors(path, array)
    assert np.load(path).dtype == array.dtype
    np.testing.assert_array_equal(np.load(path), array)


def test_opening_maps_and_does_not_read(tmp_path):
    path = tmp_path / "sparse.bvecs"
    with path.open("wb") as file:
        file.write(struct.pack("<i", 128))
        file.truncate(132 * 1_000_000_000)  # a billion rows, nearly all of them a hole
    stored = open_array(path)
    assert stored.shape == (1_000_000_000, 128) and stored[:1].shape == (1, 128)
    with pytest.raises(DataError, match=r"sparse\.bvecs is damaged at row 999999999"):
        stored[-1:]


@pytest.mark.parametrize("key", [slice(0, 3), slice(None, None, -1), np.array([2, -2]), slice(1, 2), 1])
def test_a_wrong_dimension_field_names_its_row_when_it_is_read(tmp_path, key):
    path = save(tmp_path, ".bvecs", BYTES)
    content = bytearray(path.read_bytes())
    content[6] = 77
    path.write_bytes(content)
    stored = open_array(path)
    np.testing.assert_array_equal(stored[2:], BYTES[2:])
    with pytest.raises(DataError, match=r"x\.bvecs is damaged at row 1: .*77"):
        stored[key]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_holds_no_vectors(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.touch()
    with pytest.raises(DataError, match=rf"x\{suffix} holds no vectors"):
        open_array(path)


def test_a_cropped_bin_file_says_how_many_rows_it_has(tmp_path):
    path = tmp_path / "x.u8bin"
    path.write_bytes(struct.pack("<II", 10**9, 4) + bytes(4 * 3))
    with pytest.raises(DataError, match=r"x\.u8bin .*20 bytes.*N=1000000000.* 3 .*4000000008"):
        open_array(path)
    for content in (struct.pack("<II", 3, 4) + bytes(4 * 3 + 1), bytes(7)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"x\.u8bin.* {len(content)} bytes"):
            open_array(path)


def test_paths_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path / "missing.npy", tmp_path, tmp_path / "pipe.npy", "x\0.npy", "n" * 300 + ".npy"):
        with pytest.raises(DataError):
            open_array(path)


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    path = tmp_path / "x.vecs"
    path.write_bytes(b"1234")
    for act in (open_array, lambda path: write_vectors(path, FLOATS), lambda path: VectorWriter(path, 3)):
        with pytest.raises(ConfigError, match=r"x\.vecs .* \.fvecs, \.bvecs, \.ivecs, \.npy"):
            act(path)
    assert path.read_bytes() == b"1234"
    for suffix in (".hdf5", ".h5", ".parquet"):
        with pytest.raises(ConfigError, match=rf"'\{suffix}'"):
            write_vectors(tmp_path / f"x{suffix}", FLOATS)


@pytest.mark.parametrize(
    "array, value",
    [
        (np.array([{}, None]), "pickled"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), bool), "bool"),
        (np.zeros((2, 2), [("a", "f4")]), "f4"),
        (np.array([["a"]]), "<U1"),
        (np.zeros(5), r"\(5,\).* \(1, 5\)"),
        (np.zeros((2, 2, 2)), r"\(2, 2, 2\)"),
        (np.array(5.0), r"\(\)"),
        (np.zeros((5, 0)), "one column"),
    ],
)
def test_npy_files_without_a_matrix_of_numbers(tmp_path, array, value):
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"x\.npy.*{value}"):
        open_array(path)


@pytest.mark.parametrize("array, value", [(FLOATS, "float32"), (BYTES[:0], "no rows"), ([[2**64 - 1]], str(2**64 - 1))])
def test_files_that_are_not_a_ground_truth(tmp_path, array, value):
    with pytest.raises(DataError, match=rf"x\.npy.*{value}"):
        read_integers(save(tmp_path, ".npy", array))


@pytest.mark.parametrize(
    "suffix, value, limit",
    [
        (".bvecs", 0.5, "whole numbers from 0 to 255; round"),
        (".bvecs", 256.0, "0 to 255"),
        (".bvecs", -1, "0 to 255"),
        (".bvecs", np.nan, "0 to 255"),
        (".ivecs", np.float32(2**31), "-2147483648 to 2147483647"),
        (".fvecs", 1e39, "float32"),
        (".fbin", 1e39, "float32"),
        (".i8bin", 128, "-128 to 127"),
    ],
)
def test_values_that_the_format_cannot_hold(tmp_path, suffix, value, limit):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(DataError, match=f"in row 3.* {limit}"), VectorWriter(path, 2) as writer:
        writer.append(np.zeros((2, 2)))
        writer.append(np.array([[1, 2], [3, value]]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".fvecs", ".npy", ".fbin"])
@pytest.mark.parametrize("num_rows", [None, 12])
def test_streaming(tmp_path, suffix, num_rows):
    path = tmp_path / f"x{suffix}"
    writer = VectorWriter(path, 3, num_rows=num_rows)
    for _ in range(2):  # a writer may write its file again
        with writer:
            for size in (5, 0, 7):
                writer.append(np.full((size, 3), size))
            assert not [file for file in tmp_path.iterdir() if file != path and not file.name.startswith(".")]
        assert writer.rows_written == 12
        np.testing.assert_array_equal(open_array(path), np.repeat([[5], [7]], [5, 7], 0) * np.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_stream_that_fails_leaves_the_old_file(tmp_path):
    path = save(tmp_path, ".npy", FLOATS)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"4.* 3"), VectorWriter(path, 3) as writer:
        writer.append(FLOATS)
        writer.append(np.zeros((1, 4)))
    with pytest.raises(DataError, match=r"must be 3, not 2"), VectorWriter(path, 3, num_rows=3) as writer:
        writer.append(FLOATS)
    with pytest.raises(KeyboardInterrupt), VectorWriter(path, 3) as writer:
        raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".fvecs", ".npy", ".fbin"])
def test_going_on_in_an_open_file(tmp_path, suffix):
    array = np.arange(30, dtype=np.float32).reshape(10, 3)
    whole, path = save(tmp_path, suffix, array), tmp_path / f"part{suffix}"
    for rows in (0, 4):
        with path.open("ab") as file:
            file.write(b"what is cut off")
        with path.open("r+b") as file:
            writer = VectorWriter(path, 3, num_rows=10)
            writer.attach(file, rows)
            writer.append(array[rows:7])
            assert writer.rows_written == 7
        assert path.stat().st_size == writer.size(7)
    with path.open("r+b") as file:
        writer.attach(file, 7)
        writer.append(array[7:])
    assert path.read_bytes() == whole.read_bytes()
    assert path.stat().st_size == writer.size(10)
