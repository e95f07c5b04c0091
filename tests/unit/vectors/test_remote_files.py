"""Files in stores that pyarrow or fsspec reads are read as those on disk."""

import pickle

import numpy as np
import pytest

import qinco
from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import find_files, input_files
from qinco.vectors.remote import RemotePath, is_remote

fsspec = pytest.importorskip("fsspec")
pyarrow = pytest.importorskip("pyarrow")
DATA = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of a store in memory with files of DATA, some in parts."""
    from pyarrow import ipc, parquet

    folder, store = tmp_path_factory.mktemp("bucket"), fsspec.filesystem("memory")
    for name in ("x.npy", "x.fvecs", "x.fbin"):
        qinco.write_vectors(folder / name, DATA)
    np.savez(folder / "x.npz", train=DATA)
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(DATA.ravel()), 8)
    table = pyarrow.table({"id": range(len(DATA)), "embedding": column})
    for number, (start, stop) in {1: (0, 90), 2: (90, 130), 10: (130, 400)}.items():
        parquet.write_table(table[start:stop], folder / f"part-{number}.parquet", row_group_size=50)
    with ipc.new_file(str(folder / "x.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=70)
    for file in folder.iterdir():
        store.pipe(f"/qinco/{'parts/' if 'part-' in file.name else ''}{file.name}", file.read_bytes())
    yield "memory://qinco"
    store.rm("/qinco", recursive=True)


@pytest.mark.parametrize(
    "name", ["x.npy", "x.fvecs", "x.fbin", "x.npz", "x.arrow", "x.arrow:embedding", "parts/*.parquet", "parts/",
             "parts/part-*.parquet:embedding", "**/*.parquet"]
)  # fmt: skip
def test_vectors_are_those_of_the_file(bucket, name):
    source = qinco.open_vectors(f"{bucket}/{name}")
    assert source.shape == DATA.shape and source.dtype == np.float32
    for rows in (slice(None), slice(3, 90), slice(200, 100, -7), slice(5, 5)):
        np.testing.assert_array_equal(source[rows], DATA[rows])
    rows_N = np.array([399, 0, 0, 17, 130, 18])
    np.testing.assert_array_equal(source[rows_N], DATA[rows_N])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[:5], DATA[:5])
    np.testing.assert_array_equal(source.window(85, 135)[:], DATA[85:135])


def test_files_are_in_natural_order(bucket):
    files = [str(file) for file, _ in find_files(f"{bucket}/parts/*.parquet")]
    assert [file.rpartition("/")[2] for file in files] == ["part-1.parquet", "part-2.parquet", "part-10.parquet"]


def test_only_what_is_asked_for_is_read(bucket, monkeypatch):
    read, opened = [], RemotePath.open

    class Counted:
        def __init__(self, file):
            self.file = file

        def read_at(self, size, place):
            read.append(size)
            return self.file.read_at(size, place)

    source = qinco.open_vectors(f"{bucket}/x.npy")
    monkeypatch.setattr(RemotePath, "open", lambda path, mode="rb": Counted(opened(path, mode)))
    source[10:12]
    assert read == [2 * 8 * 4]


def test_what_is_not_there_is_named(bucket):
    for name, error in {
        "none.npy": "No such file: memory://qinco/none.npy", "none-*.npy": "no file has such a name",
        "x.parquet:embedding": "No such file", "parts/*.parquet:other": "no column 'other'",
        "": "several sets", "parts/part-1.parquet:id": "no column 'id' of lists",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=error):
            qinco.open_vectors(f"{bucket}/{name}")
    with pytest.raises(ConfigError, match="nosuch"):
        qinco.open_vectors("nosuch://bucket/x.npy")
    fsspec.filesystem("memory").pipe("/qinco/text/x.txt", b"words")
    with pytest.raises(ConfigError, match="suffix"):
        qinco.open_vectors(f"{bucket}/text/x.txt")


def test_a_file_that_has_changed_is_refused(bucket):
    store = fsspec.filesystem("memory")
    store.pipe("/qinco/y.fvecs", store.cat("/qinco/x.fvecs"))
    pickled = pickle.dumps(qinco.open_vectors(f"{bucket}/y.fvecs"))
    store.pipe("/qinco/y.fvecs", store.cat("/qinco/x.fvecs")[: 36 * 10])
    with pytest.raises(DataError, match="has changed"):
        pickle.loads(pickled)
    store.rm("/qinco/y.fvecs")


def test_addresses_are_told_from_paths():
    assert is_remote("s3://b/x.npy") and is_remote("gs://b") and not is_remote("c:/x.npy") and not is_remote("x.npy")
    assert not is_remote("file:///x.npy") and not is_remote(None)
    assert input_files("s3://bucket/x.npy", ["gs://b/*.npy"]) == []


def test_codes_are_those_of_the_file(bucket, tmp_path):
    settings = {"num_steps": 2, "codebook_size": 8, "num_blocks": 1, "hidden_dim": 8, "epochs": 1, "device": "cpu"}
    codec = qinco.Codec.fit(f"{bucket}/x.npy", **settings)
    qinco.encode_file(codec, f"{bucket}/parts/*.parquet:embedding", tmp_path / "codes")
    np.testing.assert_array_equal(qinco.Codes.load(tmp_path / "codes", codec).codes, codec.encode(DATA).codes)
