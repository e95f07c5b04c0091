"""Centroids in two levels are nearly as near as those of one k-means, and a repeated call goes on."""

from pathlib import Path

import numpy as np
import pytest
from small_indexes import vectors

import qinco
from qinco.distributed import kmeans
from qinco.distributed.clustering import shared_out
from qinco.errors import ConfigError, DataError
from qinco.executors import in_this_process
from qinco.maths.assignment import assigner

X = vectors(8000)


def error(centroids_VD, x_ND=X) -> float:
    return float(np.square(x_ND - centroids_VD[assigner(centroids_VD)(x_ND)]).sum(1).mean())


def test_the_error_is_nearly_that_of_one_level(tmp_path):
    found = kmeans(X, 100, tmp_path / "c.npy", executor=in_this_process, max_points_per_centroid=60, part_rows=1000)
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), found)
    assert found.shape == (100, X.shape[1]) and found.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["c.npy"]
    assert error(found) < 1.1 * error(qinco.kmeans(X, 100, device="cpu"))
    again = kmeans(X, 100, tmp_path / "d.npy", executor=in_this_process, max_points_per_centroid=60, part_rows=1000)
    np.testing.assert_array_equal(again, found)


def test_what_is_lost_goes_on(tmp_path):
    done = []

    def failing(function, numbers):
        for number in numbers:
            if len(done) in (1, 5):
                done.append(None)
                yield number, None, RuntimeError("lost")
            else:
                done.append(number)
                yield number, function(number), None

    for _ in range(2):
        with pytest.raises(DataError, match="lost"):
            kmeans(X, 30, tmp_path / "c.npy", executor=failing, part_rows=500)
    found = kmeans(X, 30, tmp_path / "c.npy", executor=failing, part_rows=500)
    np.testing.assert_array_equal(found, kmeans(X, 30, tmp_path / "d.npy", executor=in_this_process, part_rows=500))


def test_what_is_read_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("tr.npy", X)
    given = {"executor": in_this_process, "overwrite": True}
    for source, more in (("tr.npy", {}), (qinco.open_vectors("tr.npy"), {"inputs": ["tr.npy"]})):
        with pytest.raises(ConfigError, match="is read"):
            kmeans(source, 10, tmp_path / "tr.npy", **given, **more)
    (tmp_path / "c.npy.parts").mkdir()
    np.save("c.npy.parts/x.npy", X)
    with pytest.raises(ConfigError, match=r"c\.npy\.parts"):
        kmeans("c.npy.parts/*.npy", 10, "c.npy", **given)
    np.testing.assert_array_equal(np.load("tr.npy"), X)
    np.testing.assert_array_equal(np.load("c.npy.parts/x.npy"), X)


@pytest.mark.parametrize("name", ["thesis.txt", "facts.json"])
def test_a_folder_of_others_stays(tmp_path, name):
    folder = tmp_path / "c.npy.parts"
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"c\.npy\.parts"):
        kmeans(X, 10, tmp_path / "c.npy", executor=in_this_process)
    assert [file.read_text() for file in folder.iterdir()] == ['{"mine": 1}']


@pytest.mark.parametrize("names", [[], [".facts.12-0123abcd.json"]])
def test_a_folder_that_was_only_begun_is_taken(tmp_path, names):
    folder = tmp_path / "c.npy.parts"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{")
    kmeans(X, 10, tmp_path / "c.npy", executor=in_this_process)
    assert not folder.exists()


def test_parts_of_another_call_are_replaced(tmp_path):
    def stopped(function, numbers):
        yield from [(number, function(number), None) for number in numbers[:-1]]
        yield numbers[-1], None, RuntimeError("lost")

    with pytest.raises(DataError, match="repeat the call"):
        kmeans(X, 30, tmp_path / "c.npy", executor=stopped, part_rows=500)
    assert (tmp_path / "c.npy.parts/facts.json").exists()
    found = kmeans(X, 20, tmp_path / "c.npy", executor=in_this_process, part_rows=500)
    np.testing.assert_array_equal(found, kmeans(X, 20, tmp_path / "d.npy", executor=in_this_process, part_rows=500))


@pytest.mark.parametrize("name", ["s3://bucket/c.npy", "file:///tmp/c.npy"])
def test_addresses_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for output in (name, Path(name)):
        with pytest.raises(ConfigError, match="address"):
            kmeans(X, 10, output, executor=in_this_process)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("counts", [[10, 0, 5, 85], [1, 1, 1, 97], [25] * 4, [100, 0, 0, 0], [2, 3, 90, 5]])
@pytest.mark.parametrize("total", [1, 4, 7, 50, 100])
def test_lists_are_shared_out(counts, total):
    counts_G = np.array(counts)
    if total < (counts_G > 0).sum():
        return
    lists_G = shared_out(counts_G, total)
    assert lists_G.sum() == total and (lists_G <= counts_G).all() and ((lists_G > 0) == (counts_G > 0)).all()


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least 9000"):
        kmeans(X, 9000, tmp_path / "c.npy", executor=in_this_process)
    with pytest.raises(ConfigError, match="npy"):
        kmeans(X, 10, tmp_path / "c.fvecs", executor=in_this_process)
    broken = X.copy()
    broken[77] = np.nan
    with pytest.raises(DataError, match="row 77"):
        kmeans(broken, 200, tmp_path / "c.npy", executor=in_this_process)
