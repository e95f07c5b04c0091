import sys
import zlib

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import open_array, read_integers, write_vectors
from qinco.vectors.rows import open_vectors

h5py = pytest.importorskip("h5py")
DATA = np.random.default_rng(0).standard_normal((57, 10)).astype(np.float32)
ROWS = [slice(None), slice(3, 9), slice(50, 2, -7), slice(9, 9), np.array([56, 0, 0, -1, 31]), np.array([], np.int64)]
PACKED = {"chunks": (8, 4), "compression": "gzip", "shuffle": True}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.hdf5"


def save(path, array=DATA, name="train", libver="earliest", userblock=0, **settings):
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file.create_dataset(name, data=array, **settings)
    return path


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunks": (8, 10)},
        {"chunks": (100, 100), "maxshape": (None, None)},
        {"chunks": (8, 3)},
        {"chunks": (8, 4), "compression": "gzip"},
        PACKED,
        {"chunks": (7, 10), "shuffle": True},
        {"chunks": (1, 10), "compression": "gzip", "maxshape": (None, 10)},
        {"compression": "gzip", "compression_opts": 0},
    ],
)
def test_what_h5py_writes_is_read(path, libver, userblock, settings):
    stored = open_array(save(path, libver=libver, userblock=userblock, **settings))
    assert stored.shape == DATA.shape and stored.dtype == np.float32 and len(stored) == 57
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))
    np.testing.assert_array_equal(np.asarray(stored), DATA)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "i1", "<u2", ">i4", "<i8", "<u8"])
@pytest.mark.parametrize("settings", [{}, PACKED])
def test_any_number_type(path, dtype, settings):
    array = (DATA * 10).astype("i1").astype(dtype)
    stored = open_array(save(path, array, **settings))
    assert stored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(stored[:], array)
    np.testing.assert_array_equal(open_vectors(path)[5:9], array[5:9].astype(np.float32))


def test_an_uncompressed_matrix_is_mapped(path):
    stored = open_array(save(path))
    assert isinstance(stored, np.ndarray) and isinstance(stored.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        stored[0, 0] = 1


def test_the_data_sets_of_an_ann_benchmark(path):
    truth = np.arange(12, dtype=np.int32).reshape(4, 3)
    with h5py.File(path, "w") as file:
        file["train"], file["test"] = DATA, DATA[:4] + 1
        file["neighbors"], file["distances"] = truth, truth.astype(np.float32)
        file["group/inner"] = DATA[:2]
        file["flat"] = DATA[0]
        file.attrs["distance"] = "euclidean"
    np.testing.assert_array_equal(open_vectors(path), DATA)
    np.testing.assert_array_equal(open_vectors(path, "test"), DATA[:4] + 1)
    np.testing.assert_array_equal(open_vectors(f"{path}:test"), DATA[:4] + 1)
    np.testing.assert_array_equal(open_vectors(f"{path}:/group/inner", "test"), DATA[:2])
    np.testing.assert_array_equal(read_integers(path), truth)
    np.testing.assert_array_equal(read_integers(f"{path}:neighbors"), truth)
    with pytest.raises(DataError, match=r"x\.hdf5:distances holds float32: integers are expected"):
        read_integers(f"{path}:distances")
    for name in ("tree", "group", "group/none", "train/x"):
        message = f"holds no data set '{name}': it holds 'distances', 'flat', 'neighbors'"
        with pytest.raises(DataError, match=message):
            open_array(f"{path}:{name}")
    with pytest.raises(DataError, match=r"x\.hdf5:flat has 1 axis"):
        open_array(f"{path}:flat")
    with pytest.raises(DataError, match="more than one matrix: name one of 'distances', 'neighbors', 'test', 'train'"):
        open_array(path, "learn")


def test_the_only_matrix_needs_no_name(path):
    with h5py.File(path, "w") as file:
        file["vectors"], file["ids"], file["names"] = DATA, np.arange(57), [["a"]]
    assert open_array(path).shape == DATA.shape
    with h5py.File(path, "w") as file:
        file["ids"] = np.arange(57)
    with pytest.raises(DataError, match="holds no matrix"):
        open_array(path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data": np.zeros((2, 2), complex)}, "complex128 values"),
        ({"data": np.zeros((2, 2), bool)}, "bool values"),
        ({"data": np.zeros((2, 2), [("a", "f4")])}, "values: vectors are"),
        ({"data": [["a"]]}, "object values"),
        ({"data": h5py.Empty("f4")}, "is empty"),
        ({"data": np.float32(3)}, "has 0 axes"),
        ({"data": np.zeros((2, 0))}, "zero columns"),
        ({"shape": (2, 2), "dtype": h5py.vlen_dtype(np.float32)}, "object values"),
        ({"shape": (2, 2), "dtype": h5py.enum_dtype({"a": 1})}, "a type that numpy has not"),
        ({"data": DATA, "compression": "lzf"}, "the HDF5 filter 32000: only gzip and shuffle are read"),
        ({"data": DATA, "chunks": (8, 8), "fletcher32": True}, "the HDF5 filter 3"),
        (
            {"shape": (20_000_000, 2), "dtype": "f8", "chunks": (10_000_000, 1), "compression": "gzip"},
            "chunks of 10000000 x 1 values",
        ),
        ({"shape": (3, 1_000_001), "dtype": "u1"}, "is damaged: it claims the shape"),
    ],
)
def test_what_is_not_read(path, settings, message):
    with h5py.File(path, "w") as file:
        file.create_dataset("train", **settings)
    with pytest.raises(DataError, match=rf"x\.hdf5:train .*{message}"):
        open_array(path)


def test_other_files_are_never_opened(path, tmp_path):
    other = tmp_path / "other.h5"
    save(other)
    DATA.tofile(tmp_path / "raw")
    layout = h5py.VirtualLayout(DATA.shape, np.float32)
    layout[:] = h5py.VirtualSource(other, "train", DATA.shape)
    with h5py.File(path, "w") as file:
        file["linked"] = h5py.ExternalLink(str(other), "train")
        file["folder"] = h5py.ExternalLink(str(other), "/")
        file["soft"] = h5py.SoftLink("/linked")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", DATA.shape, np.float32, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
    for name in ("linked", "folder/train", "soft"):
        with pytest.raises(DataError, match="holds no data set"):
            open_array(f"{path}:{name}")
    for name in ("virtual", "raw"):
        with pytest.raises(DataError, match=f":{name} refers to other files, which are never opened"):
            open_array(f"{path}:{name}")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("settings", [{}, {"chunks": (1000, 128)}, {"chunks": (1000, 128), "compression": "gzip"}])
@pytest.mark.parametrize("maxshape", [None, (None, 128)])
def test_rows_that_were_never_written(path, libver, settings, maxshape):
    if maxshape is not None and not settings:
        pytest.skip("a matrix that grows has chunks")
    for num_rows in (5000, 10**8, 2**40):
        with h5py.File(path, "w", libver=libver) as file:
            data = file.create_dataset("train", (num_rows, 128), np.float32, maxshape=maxshape, **settings)
            if settings:
                data[:1500] = 1
        with pytest.raises(DataError, match=r"x\.hdf5:train is (truncated|damaged, or stored in \d+ chunks)"):
            open_array(path)
    assert open_array(save(path, DATA[:0])).shape == (0, 10)
    with pytest.raises(DataError, match="holds no vectors"):
        open_vectors(path)


@pytest.mark.parametrize(
    "packed, message",
    [
        (zlib.compress(b"abc"), "a chunk has 3 bytes where 64 belong"),
        (zlib.compress(bytes(1 << 26)), "a chunk does not end where it should"),
        (zlib.compress(bytes(64))[:-1], "a chunk does not end where it should"),
        (zlib.compress(bytes(65)), "a chunk has 65 bytes where 64 belong"),
        (b"nonsense", "incorrect header check"),
    ],
)
def test_chunks_that_unpack_to_something_else(path, packed, message):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("train", (12, 4), np.float32, chunks=(4, 4), compression="gzip", shuffle=True)
        data[:] = 5
        data.id.write_direct_chunk((4, 0), packed)
    stored = open_array(path)
    assert (stored[:4] == 5).all() and (stored[8:] == 5).all()
    with pytest.raises(DataError, match=rf"x\.hdf5:train is damaged at row 4: .*{message}"):
        stored[3:9]


def test_chunks_may_be_left_unpacked(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("train", (8, 4), np.float32, chunks=(4, 4), compression="gzip", shuffle=True)
        data[:] = 5
        data.id.write_direct_chunk((4, 0), np.full((4, 4), 6, "<f4").tobytes(), filter_mask=3)
    np.testing.assert_array_equal(open_array(path)[:], np.repeat([[5.0], [6.0]], 4, 0) * np.ones(4))


def test_bands_of_chunks_beyond_a_block_are_read_in_pieces(path, monkeypatch):
    save(path, chunks=(50, 2), compression="gzip")
    monkeypatch.setattr("qinco.vectors.hdf5.BLOCK_BYTES", 7 * 40 + 3)  # seven rows, no whole chunk
    with pytest.raises(DataError, match="chunks of at most 283 bytes"):
        open_array(path)
    save(path, chunks=(30, 2), compression="gzip")
    stored = open_array(path)
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))


def test_rows_that_do_not_exist(path):
    stored = open_array(save(path, **PACKED))
    for row in (57, -58):
        with pytest.raises(IndexError):
            stored[np.array([0, row])]


def test_files_that_are_no_hdf5(path):
    for content in (b"x", b"\x89HDF\r\n\x1a\n", bytes(5000), save(path).read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.hdf5 is not an HDF5 file, or a damaged one"):
            open_array(path)


def test_without_h5py(path, monkeypatch):
    save(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"x\.hdf5 needs the package h5py: pip install 'qinco\[hdf5\]'"):
        open_array(path)
    write_vectors(path.with_suffix(".npy"), DATA)
    assert open_array(path.with_suffix(".npy")).shape == DATA.shape
