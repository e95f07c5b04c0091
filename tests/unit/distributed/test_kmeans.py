"""Centroids in two levels are nearly as near as those of one k-means, and a repeated call goes on."""

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
