import numpy as np
import pytest
from small_models import random_vectors

from qinco.search import exhaustive


@pytest.mark.parametrize("sizes", [(1, 1), (32, 5)])
def test_all_are_compared_in_blocks_of_any_size(sizes, device, monkeypatch):
    for name, size in zip(("_DISTANCES", "_DEVICE_DISTANCES", "_PIECE_ROWS"), (sizes[0], *sizes), strict=True):
        monkeypatch.setattr(exhaustive, name, size)
    x_ND, queries_QD = random_vectors(40, 3), random_vectors(6, 3, 1)
    distances_QN = np.square(queries_QD[:, None] - x_ND[None]).sum(2)
    wanted_QR = distances_QN.argsort(1)[:, :7]
    blocks = [(0, x_ND[:13]), (13, x_ND[13:14]), (14, x_ND[14:14]), (14, x_ND[14:])]
    distances_QR, ids_QR = exhaustive.search(queries_QD, blocks, 7, device)
    assert np.array_equal(ids_QR, wanted_QR) and ids_QR.dtype == np.int64
    np.testing.assert_allclose(distances_QR, np.take_along_axis(distances_QN, wanted_QR, 1), rtol=1e-4, atol=1e-5)


def test_missing_neighbours_are_told(device):
    distances_QR, ids_QR = exhaustive.search(
        np.zeros((2, 3), np.float32), [(5, np.ones((1, 3), np.float32))], 3, device
    )
    assert ids_QR.tolist() == [[5, -1, -1]] * 2
    assert distances_QR.tolist() == [[3, np.inf, np.inf]] * 2
