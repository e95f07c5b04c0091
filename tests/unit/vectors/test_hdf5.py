"""HDF5 files as h5py writes them; damage is a DataError that names the file."""

import pickle
import sys

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import open_array, read_integers, write_vectors
from qinco.vectors.hdf5 import open_hdf5
from qinco.vectors.rows import as_source, open_vectors

h5py = pytest.importorskip("h5py")
DATA = np.random.default_rng(0).standard_normal((57, 10)).astype(np.float32)
ROWS = [slice(None), slice(3, 9), slice(50, 2, -7), slice(9, 9), np.array([56, 0, 0, -1, 31]), np.array([], np.int64)]
PACKED = {"chunks": (8, 4), "compression": "gzip", "shuffle": True}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.hdf5"


def save(path, array=DATA, name="train", libver="earliest", **settings):
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset(name, data=array, **settings)
    return path


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunks": (100, 100), "maxshape": (None, None)},
        {"chunks": (8, 3)},
        PACKED,
        {"chunks": (1, 10), "compression": "lzf", "maxshape": (None, 10), "fletcher32": True},
    ],
)
def test_what_h5py_writes_is_read(path, libver, settings):
    stored = open_array(save(path, libver=libver, **settings))
    assert stored.shape == DATA.shape and stored.dtype == np.float32 and len(stored) == 57
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))
    np.testing.assert_array_equal(np.asarray(stored), DATA)
    with pytest.raises(IndexError):
        stored[np.array([0, 57])]


def test_an_uncompressed_matrix_is_mapped(path):
    stored = open_array(save(path))
    assert isinstance(stored, np.ndarray) and isinstance(stored.base, np.memmap) and not stored.flags.writeable


@pytest.mark.parametrize("block_bytes", [1, 7 * 40 + 3, 20 * 40, 1 << 20])
def test_blocks_bound_what_is_read_at_once(path, block_bytes):
    save(path, chunks=(8, 2), compression="gzip")
    stored = open_hdf5(path, path.stat().st_size, None, "train", block_bytes)
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))
        assert stored._block.nbytes <= max(block_bytes, 40)


def test_the_data_sets_of_an_ann_benchmark(path):
    truth = np.arange(12, dtype=np.int32).reshape(4, 3)
    with h5py.File(path, "w") as file:
        file["train"], file["test"] = DATA, DATA[:4] + 1
        file["neighbors"], file["distances"] = truth, truth.astype(np.float32)
        file["group/inner"], file["flat"] = DATA[:2], DATA[0]
    np.testing.assert_array_equal(open_vectors(path), DATA)
    np.testing.assert_array_equal(open_vectors(path, "test"), DATA[:4] + 1)
    np.testing.assert_array_equal(open_vectors(f"{path}:test"), DATA[:4] + 1)
    np.testing.assert_array_equal(open_vectors(f"{path}:/group/inner", "test"), DATA[:2])
    np.testing.assert_array_equal(read_integers(path), truth)
    with pytest.raises(DataError, match=r"x\.hdf5:distances.* float32"):
        read_integers(f"{path}:distances")
    for name in ("tree", "group", "group/none", "train/x"):
        with pytest.raises(DataError, match=f"'{name}', but 'distances', 'flat', 'neighbors'"):
            open_array(f"{path}:{name}")
    with pytest.raises(DataError, match="'distances', 'neighbors', 'test', 'train'"):
        open_array(path, "learn")


def test_the_only_matrix_needs_no_name(path):
    with h5py.File(path, "w") as file:
        file["vectors"], file["ids"], file["names"] = DATA, np.arange(57), [["a"]]
    assert open_array(path).shape == DATA.shape
    save(path, np.arange(57), "ids")
    with pytest.raises(DataError, match=r"x\.hdf5"):
        open_array(path)


@pytest.mark.parametrize(
    "settings, value",
    [
        ({"data": np.zeros((2, 2), complex)}, "complex128"),
        ({"data": np.zeros((2, 2), bool)}, "bool"),
        ({"data": [["a"]]}, "object"),
        ({"data": h5py.Empty("f4")}, r"\(\)"),
        ({"data": np.float32(3)}, r"\(\)"),
        ({"data": np.zeros((2, 0))}, "one column"),
        ({"shape": (3, 1_000_001), "dtype": "u1"}, "1000001"),
    ],
)
def test_what_is_not_a_matrix_of_numbers(path, settings, value):
    with h5py.File(path, "w") as file:
        file.create_dataset("train", **settings)
    with pytest.raises(DataError, match=rf"x\.hdf5:train .*{value}"):
        open_array(path)


def test_other_files_are_never_opened(path, tmp_path):
    other = save(tmp_path / "other.h5")
    DATA.tofile(tmp_path / "raw")
    layout = h5py.VirtualLayout(DATA.shape, np.float32)
    layout[:] = h5py.VirtualSource(other, "train", DATA.shape)
    with h5py.File(path, "w") as file:
        file["linked"] = h5py.ExternalLink(str(other), "train")
        file["folder"] = h5py.ExternalLink(str(other), "/")
        file["soft"] = h5py.SoftLink("/linked")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", DATA.shape, np.float32, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
    for name in ("linked", "folder/train", "soft", "virtual", "raw"):
        with pytest.raises(DataError, match=name):
            open_array(f"{path}:{name}")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("settings", [{}, {"chunks": (1000, 128)}, {"chunks": (1000, 128), "compression": "gzip"}])
def test_rows_that_were_never_written_are_refused_whatever_the_header_promises(path, libver, settings):
    for num_rows in (5000, 10**8, 2**40):
        with h5py.File(path, "w", libver=libver) as file:
            data = file.create_dataset("train", (num_rows, 128), np.float32, **settings)
            if settings:
                data[:1500] = 1
        with pytest.raises(DataError, match=r"x\.hdf5:train is"):
            open_array(path)
    assert open_array(save(path, DATA[:0])).shape == (0, 10)


def test_damage_names_the_file(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("train", (12, 4), np.float32, chunks=(4, 4), compression="gzip")
        data[:] = 5
        data.id.write_direct_chunk((4, 0), b"nonsense")
    with pytest.raises(DataError, match=r"x\.hdf5:train"):
        open_array(path)[:]
    whole = save(path).read_bytes()
    for content in (b"x", b"\x89HDF\r\n\x1a\n", bytes(5000), whole[:-1], whole[:1000]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.hdf5"):
            open_array(path)


def test_without_h5py(path, monkeypatch):
    save(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"pip install 'qinco\[hdf5\]'"):
        open_array(path)
    write_vectors(path.with_suffix(".npy"), DATA)
    assert open_array(path.with_suffix(".npy")).shape == DATA.shape


@pytest.mark.parametrize("locking", [{}, {"locking": "best-effort"}, {"locking": False}])
def test_a_file_that_the_caller_has_open(path, locking):
    with h5py.File(save(path), "r", **locking):
        assert open_vectors(path).shape == (57, 10)


@pytest.mark.parametrize("settings", [{}, PACKED])
def test_an_open_data_set_is_pickled_by_name(path, settings):
    with h5py.File(save(path, np.tile(DATA, (100, 1)), "g/x", **settings), "r") as file:
        source = as_source(file["g/x"])
        assert str(path) in repr(source) and source[5].tolist() == DATA[5].tolist()
        content = pickle.dumps(source.window(3, 60))
    assert len(content) < 1000 and np.array_equal(pickle.loads(content)[:], np.tile(DATA, (2, 1))[3:60])
    with h5py.File("none", "w", driver="core", backing_store=False) as file:
        assert as_source(file.create_dataset("x", data=DATA)).name == "vectors"
