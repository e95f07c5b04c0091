import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from qinco.errors import ConfigError, DataError, QincoError, ResourceError
from qinco.vectors.formats import SUFFIXES, FramedRows, VectorWriter, open_array, read_integers, write_vectors

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


def save_npy_header(path, descr="<f4", shape=(2, 3), is_fortran=False, version=(1, 0), payload=bytes(24)):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": is_fortran, "shape": shape}
    writers = {1: np.lib.format.write_array_header_1_0, 2: np.lib.format.write_array_header_2_0}
    writers[version[0]](file, header)
    path.write_bytes(file.getvalue() + payload)
    return path


def test_framed_bytes_are_as_documented(tmp_path):
    assert save(tmp_path, ".fvecs", FLOATS).read_bytes() == struct.pack("<i3fi3f", 3, *FLOATS[0], 3, *FLOATS[1])
    assert save(tmp_path, ".bvecs", BYTES[:2]).read_bytes() == struct.pack("<i2Bi2B", 2, 0, 255, 2, 7, 8)
    assert save(tmp_path, ".ivecs", INTEGERS).read_bytes() == struct.pack("<i2i", 2, *INTEGERS[0])


@pytest.mark.parametrize("suffix, array", SAMPLES)
def test_what_is_written_is_read(tmp_path, suffix, array):
    stored = open_array(save(tmp_path, suffix, array))
    assert stored.shape == array.shape and stored.dtype == array.dtype and len(stored) == len(array)
    np.testing.assert_array_equal(np.asarray(stored), array)
    np.testing.assert_array_equal(stored[:1], array[:1])
    np.testing.assert_array_equal(stored[np.array([0, -1])], array[[0, -1]])
    with pytest.raises(ValueError, match="read-only"):
        stored[:][0, 0] = 1


def test_upper_case_suffixes_are_known(tmp_path):
    assert open_array(save(tmp_path, ".FVECS", FLOATS)).shape == (2, 3)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8", "<i8", ">i2", "<u2", "i1", "<u8", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_number_type_and_order(tmp_path, dtype, order):
    array = np.array([[1, 2, 3], [4, 5, 6]], dtype, order=order)
    path = tmp_path / "x.npy"
    np.save(path, array)
    stored = open_array(path)
    assert stored.dtype == array.dtype
    np.testing.assert_array_equal(stored, array)
    write_vectors(path, array)
    assert np.load(path).dtype == array.dtype
    np.testing.assert_array_equal(np.load(path), array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_header_versions(tmp_path, version):
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, FLOATS, version)
    np.testing.assert_array_equal(open_array(path), FLOATS)


def test_an_array_may_have_no_rows(tmp_path):
    path = save(tmp_path, ".npy", np.empty((0, 8), np.uint16))
    assert open_array(path).shape == (0, 8) and open_array(path).dtype == np.uint16
    assert np.load(path).shape == (0, 8)
    path = save(tmp_path, ".i8bin", np.empty((0, 8), np.int8))
    assert open_array(path).shape == (0, 8) and open_array(path).dtype == np.int8


def test_opening_maps_and_does_not_read(tmp_path):
    path = tmp_path / "sparse.bvecs"
    with path.open("wb") as file:
        file.write(struct.pack("<i", 128))
        file.truncate(132 * 1_000_000_000)  # a billion rows, nearly all of them a hole
    stored = open_array(path)
    assert stored.shape == (1_000_000_000, 128)
    assert stored[:1].shape == (1, 128)
    with pytest.raises(DataError, match=r"sparse\.bvecs is damaged at row 999999999: the row claims dimension 0"):
        stored[-1:]


@pytest.mark.parametrize(
    "key, row", [(slice(0, 3), 1), (slice(None, None, -1), 1), (np.array([2, -2]), 1), (slice(1, 2), 1), (1, 1)]
)
def test_a_corrupt_dimension_names_its_row_when_it_is_read(tmp_path, key, row):
    path = save(tmp_path, ".bvecs", BYTES)
    content = bytearray(path.read_bytes())
    content[6] = 77
    path.write_bytes(content)
    stored = open_array(path)
    np.testing.assert_array_equal(stored[2:], BYTES[2:])
    with pytest.raises(DataError, match=rf"x\.bvecs is damaged at row {row}: the row claims dimension 77, the first"):
        stored[key]


@pytest.mark.parametrize("suffix, array", SAMPLES)
def test_a_truncated_file_is_refused(tmp_path, suffix, array):
    path = save(tmp_path, suffix, array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"x\{suffix} is truncated"):
        open_array(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_holds_no_vectors(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.touch()
    with pytest.raises(DataError, match=rf"x\{suffix} holds no vectors"):
        open_array(path)


@pytest.mark.parametrize("dim", [0, -1, 1_000_001, 2**31 - 1])
def test_an_absurd_dimension_is_refused(tmp_path, dim):
    path = tmp_path / "x.fvecs"
    path.write_bytes(struct.pack("<i", dim) + bytes(60))
    with pytest.raises(DataError, match=rf"x\.fvecs is not a \.fvecs file: its first row claims dimension {dim}"):
        open_array(path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(DataError, match=r"missing\.npy does not exist"):
        open_array(tmp_path / "missing.npy")
    with pytest.raises(DataError, match="is a folder"):
        open_array(tmp_path)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match="not a regular file"):
        open_array(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match="cannot read"):
        open_array("x\0.npy")
    with pytest.raises(DataError, match="cannot read"):
        open_array("n" * 300 + ".npy")


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    path = tmp_path / "x.vecs"
    path.write_bytes(b"1234")
    for act in (open_array, lambda path: write_vectors(path, FLOATS), lambda path: VectorWriter(path, 3)):
        with pytest.raises(ConfigError, match=r"x\.vecs has the suffix '\.vecs', .* \.fvecs, \.bvecs, \.ivecs, \.npy"):
            act(path)
    assert path.read_bytes() == b"1234"
    for suffix in (".hdf5", ".h5", ".parquet"):
        with pytest.raises(ConfigError, match=rf"the suffix '\{suffix}', which is only read: use one of \.fvecs"):
            write_vectors(tmp_path / f"x{suffix}", FLOATS)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([{}, None]), "pickled Python objects, which are never loaded"),
        (np.zeros((2, 2), complex), "holds complex128 values"),
        (np.zeros((2, 2), bool), "holds bool values"),
        (np.zeros((2, 2), [("a", "f4")]), "holds .* values"),
        (np.array([["a"]]), "holds <U1 values"),
        (np.zeros(5), r"has 1 axis, shape \(5,\).* give x\[None\]"),
        (np.zeros((2, 2, 2)), "has 3 axes"),
        (np.array(5.0), "has 0 axes"),
        (np.zeros((5, 0)), "has zero columns"),
    ],
)
def test_npy_files_without_a_matrix_of_numbers(tmp_path, array, message):
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"x\.npy.* {message}"):
        open_array(path)


@pytest.mark.parametrize(
    "header, message",
    [
        ({"shape": (3, 3)}, "truncated: it has 152 bytes"),
        ({"shape": (1, 3)}, "damaged: it has 152 bytes"),
        ({"shape": (10**30, 3)}, "truncated"),
        ({"shape": (-2, 3)}, "damaged: its header claims"),
        ({"shape": (0, 10**30)}, "damaged: its header claims"),
        ({"shape": (2.0, 3)}, "not a npy file, or a damaged one"),
        ({"descr": 5}, "not a npy file, or a damaged one"),
        ({"descr": ("<f4", (3,))}, "holds .* values"),
        ({"is_fortran": 1}, "not a npy file, or a damaged one"),
    ],
)
def test_npy_headers_that_lie(tmp_path, header, message):
    with pytest.raises(DataError, match=message):
        open_array(save_npy_header(tmp_path / "x.npy", **header))


def test_a_npy_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        file.write(np.lib.format.magic(2, 0) + struct.pack("<I", 2**32 - 1))
        file.truncate(2**33)
    with pytest.raises(DataError, match="header cannot be read"):
        open_array(path)


@pytest.mark.parametrize("array", [INTEGERS, np.array([[1, -1]], ">i8"), BYTES])
def test_integers_of_any_type_are_read_as_int64(tmp_path, array):
    read = read_integers(save(tmp_path, ".npy", array))
    assert read.dtype == np.int64 and read.flags.c_contiguous and read.flags.writeable
    np.testing.assert_array_equal(read, array)
    for suffix in (".ivecs", ".ibin"):
        np.testing.assert_array_equal(read_integers(save(tmp_path, suffix, INTEGERS)), INTEGERS)
    np.testing.assert_array_equal(read_integers(save(tmp_path, ".u8bin", BYTES)), BYTES)


def test_ground_truths_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"x\.fvecs holds float32: integers are expected"):
        read_integers(save(tmp_path, ".fvecs", FLOATS))
    with pytest.raises(DataError, match="holds no rows"):
        read_integers(save(tmp_path, ".npy", np.empty((0, 5), np.int32)))
    with pytest.raises(DataError, match="18446744073709551615, which int64 cannot express"):
        read_integers(save(tmp_path, ".npy", np.array([[2**64 - 1]], np.uint64)))


@pytest.mark.parametrize(
    "suffix, value, message",
    [
        (".bvecs", 0.5, "cannot hold 0.5 in row 3: it must be an integer between 0 and 255"),
        (".bvecs", 256.0, "an integer between 0 and 255"),
        (".bvecs", -1, "cannot hold -1 in row 3"),
        (".bvecs", np.nan, "cannot hold nan in row 3"),
        (".ivecs", 2**31, "an integer between -2147483648 and 2147483647"),
        (".ivecs", np.float32(2**31), "an integer between"),
        (".fvecs", 1e39, "a number in the range of float32"),
        (".fbin", 1e39, "a number in the range of float32"),
        (".i8bin", 128, "cannot hold 128 in row 3: it must be an integer between -128 and 127"),
        (".u8bin", -1, "an integer between 0 and 255"),
    ],
)
def test_values_that_the_format_cannot_hold(tmp_path, suffix, value, message):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(DataError, match=message), VectorWriter(path, 2) as writer:
        writer.append(np.zeros((2, 2)))
        writer.append(np.array([[1, 2], [3, value]]))
    assert list(tmp_path.iterdir()) == []


def test_whole_floats_fit_into_bytes_and_floats_keep_what_is_not_finite(tmp_path):
    np.testing.assert_array_equal(open_array(save(tmp_path, ".bvecs", [[0.0, 255.0]])), [[0, 255]])
    strange = np.array([[np.nan, np.inf, -np.inf]])
    np.testing.assert_array_equal(open_array(save(tmp_path, ".fvecs", strange)), strange)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((1, 2, 3)), np.zeros((3, 0)), np.zeros((2, 2), bool), "text"])
def test_what_is_no_matrix_of_numbers_is_not_written(tmp_path, array):
    with pytest.raises(DataError):
        save(tmp_path, ".npy", array)
    with pytest.raises(DataError, match="not an array of numbers"):
        save(tmp_path, ".npy", [[1, 2], [3]])
    with pytest.raises(DataError, match="not an array of numbers"):
        save(tmp_path, ".npy", torch.zeros(2, 2, requires_grad=True))
    assert list(tmp_path.iterdir()) == []


def test_many_rows_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("qinco.vectors.formats.WRITE_ROWS", 2)
    array = np.arange(14).reshape(7, 2)
    for suffix in (".fvecs", ".npy", ".fbin"):
        np.testing.assert_array_equal(open_array(save(tmp_path, suffix, array)), array)


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
        stored = open_array(path)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, np.repeat([[5], [7]], [5, 7], 0) * np.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_stream_that_fails_leaves_the_old_file(tmp_path):
    path = save(tmp_path, ".npy", FLOATS)
    before = path.read_bytes()
    with pytest.raises(DataError, match="has dimension 4, the file 3"), VectorWriter(path, 3) as writer:
        writer.append(FLOATS)
        writer.append(np.zeros((1, 4)))
    with (
        pytest.raises(DataError, match="was to have 3 rows and was given 2"),
        VectorWriter(path, 3, num_rows=3) as writer,
    ):
        writer.append(FLOATS)
    with pytest.raises(KeyboardInterrupt), VectorWriter(path, 3) as writer:
        raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_cannot_be(tmp_path):
    for settings in ({"dim": 0}, {"dim": 2.5}, {"dim": 3, "num_rows": -1}, {"dim": 3, "dtype": bool}):
        with pytest.raises(ConfigError):
            VectorWriter(tmp_path / "x.npy", **settings)
    with pytest.raises(ConfigError, match="no numpy type"):
        VectorWriter(tmp_path / "x.npy", 3, "nonsense")
    with pytest.raises(ConfigError, match=r"x\.bvecs stores uint8, not float32: choose \.npy"):
        VectorWriter(tmp_path / "x.bvecs", 3, np.float32)
    with pytest.raises(ConfigError, match=r"x\.ibin stores int32, not int64: choose \.npy"):
        VectorWriter(tmp_path / "x.ibin", 3, np.int64)
    with pytest.raises(ConfigError, match="is not open"):
        VectorWriter(tmp_path / "x.npy", 3).append(FLOATS)
    with pytest.raises(ResourceError, match="cannot write"), VectorWriter(tmp_path / "missing" / "x.npy", 3):
        pass
    with VectorWriter(tmp_path / "x.npy", 3) as writer:
        writer.append(FLOATS)
    with pytest.raises(ConfigError, match="is not open"):
        writer.append(FLOATS)


def test_framed_rows_as_arrays(tmp_path):
    stored = open_array(save(tmp_path, ".bvecs", BYTES))
    assert isinstance(stored, FramedRows)
    assert np.asarray(stored).dtype == np.uint8 and np.asarray(stored, np.float64).dtype == np.float64
    assert np.array(stored).flags.writeable
    np.testing.assert_array_equal(stored[1], BYTES[1])


def test_a_file_that_shrinks_while_it_is_opened(tmp_path, monkeypatch):
    path = save(tmp_path, ".fvecs", FLOATS)
    monkeypatch.setattr("qinco.vectors.formats.file_size", lambda path: 16 * 10**6)
    with pytest.raises(QincoError, match="cannot map"):
        open_array(path)


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
