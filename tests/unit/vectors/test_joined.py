"""Several files as one source: folders, patterns and lists; and sources that are pickled by name."""

import copy
import os
import pickle
import struct

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import input_files, open_array, read_integers, write_vectors
from qinco.vectors.rows import as_source, open_vectors

X = np.random.default_rng(0).integers(0, 200, (26, 6)).astype(np.float32)
PARTS = 13  # part-10 comes after part-2


def save(path, rows) -> None:
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": range(len(rows)), "emb": rows.tolist()}), path)
    elif path.suffix == ".hdf5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file.create_dataset("train", data=rows, compression="gzip")
    elif path.suffix == ".npz":
        np.savez_compressed(path, rows)
    else:
        write_vectors(path, rows)


@pytest.fixture(params=[".npy", ".fvecs", ".u8bin", ".npz", ".hdf5", ".parquet"])
def folder(request, tmp_path):
    for number, start in enumerate(range(0, 26, 2)):
        save(tmp_path / f"part-{number}{request.param}", X[start : start + 2])
    for other in ("_SUCCESS", ".part-0.npy", "README.md"):
        (tmp_path / other).write_text("not vectors")
    return tmp_path


def test_folders_patterns_and_lists_are_joined_in_natural_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    suffix = next(folder.glob("part-0*")).suffix
    files = [f"part-{number}{suffix}" for number in range(PARTS)]
    for path in (
        folder,
        f"{folder}/",
        f"*{suffix}",
        f"{folder}/part-*{suffix}",
        "**/part-[0-9]*",
        files,
        f"[{', '.join(files)}]",
    ):
        source = as_source(path)
        np.testing.assert_array_equal(source[:], X, str(path))
        np.testing.assert_array_equal(source[[25, 0, -1, 13]], X[[25, 0, -1, 13]])
        np.testing.assert_array_equal(source.window(3, 20)[::3], X[3:20:3])
        np.testing.assert_array_equal(np.concatenate([block for _, block in source.limit(15).blocks(4)]), X[:15])
        assert "part-0" in source.name and "part-12" in source.name and source.shape == (26, 6)
    assert sorted(file.name for file in input_files(files)) == sorted(files)
    np.testing.assert_array_equal(open_vectors(files[::-1])[:2], X[24:])  # the order of a list is its own
    np.testing.assert_array_equal(open_vectors([files[0]]), X[:2])
    save(folder / f"part-99{suffix}", X[:, :3])
    with pytest.raises(DataError, match=r"part-99.* dimension 6, .*part-0.* not 3"):
        open_vectors(folder)


PICKED = [lambda s: s, lambda s: s.window(3, 20), lambda s: s.take([9, 3]), lambda s: s.map(np.negative).window(1, 9)]


@pytest.mark.parametrize("make", PICKED)
def test_sources_are_pickled_as_paths_and_ranges(folder, make):
    for path in (folder, next(folder.glob("part-3*"))):
        try:
            source = make(open_vectors(path))
            expected = source[:]
        except (ConfigError, IndexError):
            continue  # one file has too few rows
        content = pickle.dumps(source)
        assert len(content) < 2500
        for again in (pickle.loads(content), copy.deepcopy(source)):
            assert repr(again) == repr(source)
            np.testing.assert_array_equal(again[:], expected)
        assert pickle.dumps(pickle.loads(content)) == content


def test_a_missing_or_changed_file_is_noticed_when_it_is_opened_again(folder):
    source = open_vectors(folder)
    source[:]
    content, file = pickle.dumps(source), next(folder.glob("part-3*"))
    alone = pickle.dumps(open_vectors(file))
    os.utime(file, ns=(0, 0))
    for act in (lambda: pickle.loads(alone), lambda: pickle.loads(content)[:], lambda: source[:]):
        with pytest.raises(DataError, match=r"part-3.* changed"):
            act()
    file.unlink()
    for act in (lambda: pickle.loads(alone), lambda: pickle.loads(content)[:]):
        with pytest.raises(DataError, match=r"No such file.*part-3"):
            act()


@pytest.mark.parametrize("view", [np.s_[:], np.s_[3:20], np.s_[::-2], np.s_[:, 1:5], np.s_[5:20:3, ::-1]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_maps_of_users_are_pickled_by_name(tmp_path, view, order):
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(100) + X.tobytes(order))
    for mode in ("r", "r+", "c"):
        mapped = np.memmap(path, np.float32, mode, 100, X.shape, order)[view]
        content = pickle.dumps(as_source(mapped))
        assert (b"x.raw" in content) == (mode != "c")  # whose changes are private
        np.testing.assert_array_equal(pickle.loads(content)[:], X[view])


def test_vectors_in_memory_are_pickled_as_they_are():
    for x in (X, iter([X[:4], X[4:]]), X.tolist()):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(as_source(x).window(3, 9)))[:], X[3:9])


def test_folders_that_are_not_one_set(tmp_path):
    with pytest.raises(DataError, match="without files of vectors"):
        open_array(tmp_path)
    write_vectors(tmp_path / "sift_base.fvecs", X)
    write_vectors(tmp_path / "sift_query.fvecs", X)
    with pytest.raises(DataError, match=rf"sift_base.* sift_query.*{tmp_path}/\*\.fvecs"):
        open_array(tmp_path)
    assert open_array(f"{tmp_path}/*.fvecs").shape == (52, 6)  # the remedy
    (tmp_path / "sift_query.fvecs").rename(tmp_path / "x.npy")
    with pytest.raises(DataError, match="several sets"):
        open_array(tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(DataError, match="codes or an index"):
        open_array(tmp_path)
    with pytest.raises(DataError, match="no file"):
        open_array(tmp_path / "*.parquet")


def test_a_column_is_chosen_in_all_files(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, rows in enumerate((X[:20], X[20:])):
        parquet.write_table(pyarrow.table({"a": rows.tolist(), "b": (-rows).tolist()}), tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match="'a', 'b'"):
        open_vectors(tmp_path)
    for path in (f"{tmp_path}/*.parquet:b", f"{tmp_path}:b", [f"{tmp_path}/{number}.parquet:b" for number in (0, 1)]):
        np.testing.assert_array_equal(open_vectors(path), -X)


def big_ann(*parts, header="<II", shape=X.shape) -> bytes:
    return struct.pack(header, *shape) + b"".join(part.tobytes() for part in parts)


IDS = np.arange(26 * 6, dtype="<u4").reshape(26, 6)


@pytest.mark.parametrize("name", ["gt.ibin", "gt.bin", "bigann-10M", "GT.gt100"])
def test_ground_truths_of_big_ann_are_ids_then_distances(tmp_path, name):
    for content in (big_ann(IDS, X), big_ann(IDS, X, header="<QQ")):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_integers(tmp_path / name), IDS)
    (tmp_path / name).write_bytes(big_ann(np.array([1, 3, 2], "<i4"), IDS.ravel()[:6], X.ravel()[:6], shape=(3, 6)))
    with pytest.raises(DataError, match="range search"):
        read_integers(tmp_path / name)


@pytest.mark.parametrize("name, dtype", [("x.fbin", "<f4"), ("x.u8bin", "u1"), ("x.i8bin", "u1"), ("x.bin", "<f4")])
def test_bin_files_cropped_or_of_many_rows(tmp_path, name, dtype):
    values = (X % 100).astype(dtype)
    (tmp_path / name).write_bytes(big_ann(values, header="<QQ"))
    np.testing.assert_array_equal(open_array(tmp_path / name), values)
    cropped = tmp_path / f"{name}.crop_nb_10"
    for content in (
        big_ann(values[:10], shape=(10, 6)),
        big_ann(values[:10]),
        big_ann(values, shape=(10, 6)),
        big_ann(values),
    ):
        cropped.write_bytes(content)
        np.testing.assert_array_equal(open_vectors(cropped), values[:10])
    for content in (big_ann(values[:9]), big_ann(values[:9], shape=(10, 6)), b"\0" * 7):
        cropped.write_bytes(content)
        with pytest.raises(DataError, match="crop_nb_10"):
            open_array(cropped)


def test_bytes_of_unknown_sign_are_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(big_ann(X.astype("u1")))
    with pytest.raises(DataError, match="u8bin"):
        open_array(tmp_path / "x.bin")


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_npz_files(tmp_path, save_npz):
    path = tmp_path / "x.npz"
    for array in (X, np.asfortranarray(X, ">f8"), X.astype(np.uint8), np.zeros((200_000, 6), np.float16)):
        save_npz(path, emb=array, labels=np.arange(26), names=np.array(["a"]))
        np.testing.assert_array_equal(open_vectors(path)[:], array)
        np.testing.assert_array_equal(open_vectors(f"{path}:emb")[[25, 0]], array[[25, 0]])
    for name in ("labels", "names", "none"):
        with pytest.raises(DataError, match=rf"x\.npz.*{name}"):
            open_array(f"{path}:{name}")
    save_npz(path, train=X, test=-X, neighbors=IDS)
    np.testing.assert_array_equal(open_vectors(path, "test"), -X)
    np.testing.assert_array_equal(read_integers(path), IDS)
    save_npz(path, a=X, b=X)
    with pytest.raises(DataError, match="'a', 'b'"):
        open_array(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"x\.npz"):
        open_array(path)
