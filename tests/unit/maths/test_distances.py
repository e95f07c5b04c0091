import pytest
import torch

from qinco.maths import distances
from qinco.maths.distances import closest, smallest, squared_distances


def test_squared_distances_of_all_pairs():
    x_ND, c_KD = torch.randn(7, 5), torch.randn(9, 5)
    wanted = (x_ND[:, None] - c_KD[None]).square().sum(2)
    torch.testing.assert_close(squared_distances(x_ND, c_KD), wanted, rtol=1e-4, atol=1e-4)


def test_squared_distances_in_one_dimension():
    assert squared_distances(torch.tensor([[3.0]]), torch.tensor([[1.0], [3.0]])).tolist() == [[4.0, 0.0]]


def test_squared_distances_are_never_negative_where_rounding_would_make_them():
    x_ND = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1e3
    assert squared_distances(x_ND, x_ND).min() >= 0


@pytest.mark.parametrize("tile", [(7, 3), (1 << 26, 1 << 14)])
def test_the_closest_codeword_of_all(tile, device, monkeypatch):
    monkeypatch.setattr(distances, "_TILE_DISTANCES", tile[0])
    monkeypatch.setattr(distances, "_TILE_COLUMNS", tile[1])
    generator = torch.Generator().manual_seed(0)
    x_ND, c_KD = torch.randn(13, 5, generator=generator), torch.randn(10, 5, generator=generator)
    least_N, wanted_N = (x_ND[:, None] - c_KD[None]).square().sum(2).min(1)
    numbers_N, distances_N = closest(x_ND.to(device), c_KD.to(device))
    assert torch.equal(numbers_N.cpu(), wanted_N)
    torch.testing.assert_close(distances_N.cpu(), least_N, rtol=1e-4, atol=1e-5)
    assert closest(x_ND[:0].to(device), c_KD.to(device))[0].shape == (0,)


@pytest.mark.parametrize("length", [1, 7, 512, 513, 514, 1024, 1025, 2048, 4096, 5000, 8191, 8192])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 64])
def test_smallest_is_exact_at_every_length(length, count):
    count = min(count, length)
    values_NK = torch.randn(5, length, generator=torch.Generator().manual_seed(length + count))
    found_NS, columns_NS = smallest(values_NK, count)
    assert torch.equal(found_NS, values_NK.sort(1).values[:, :count])
    assert torch.equal(values_NK.gather(1, columns_NS), found_NS)


@pytest.mark.parametrize("length", [600, 4096, 8192])
def test_smallest_with_ties_names_distinct_columns(length):
    values_NK = torch.randint(3, (6, length), generator=torch.Generator().manual_seed(1)).float()
    found_NS, columns_NS = smallest(values_NK, 32)
    assert torch.equal(found_NS, values_NK.sort(1).values[:, :32])
    assert torch.equal(values_NK.gather(1, columns_NS), found_NS)
    assert all(len(set(row)) == 32 for row in columns_NS.tolist())


def test_smallest_when_all_lie_in_one_strided_group():
    """The best values share one column of the groups: they must not push each other out."""
    values_NK = torch.ones(1, 8192)
    values_NK[0, 5::1024] = torch.arange(8.0) / 100
    assert smallest(values_NK, 8)[1].tolist() == [list(range(5, 8192, 1024))]


def test_smallest_of_no_rows():
    found_NS, columns_NS = smallest(torch.empty(0, 8192), 4)
    assert found_NS.shape == columns_NS.shape == (0, 4)


def test_smallest_with_infinite_values():
    values_NK = torch.full((1, 4096), float("inf"))
    values_NK[0, 4095] = 1.0
    found_NS, columns_NS = smallest(values_NK, 2)
    assert columns_NS[0, 0] == 4095 and found_NS.tolist() == [[1.0, float("inf")]]
