import numpy as np
import pytest
from small_indexes import KINDS, built, decoded, exact, trained, vectors
from small_models import random_vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.search.exhaustive import Piece, exhaustive_search, nearest_in_blocks
from qinco.search.metric import METRICS, Metric


@pytest.mark.parametrize("sizes", [(1, 1), (32, 5)])
def test_all_are_compared_in_blocks_of_any_size(sizes, device):
    x_ND, queries_QD = random_vectors(40, 3), random_vectors(6, 3, 1)
    wanted_QN = exact("l2", queries_QD, x_ND)
    wanted_QR = wanted_QN.argsort(1)[:, :7]
    blocks = [(0, x_ND[:13]), (13, x_ND[13:14]), (14, x_ND[14:14]), (14, x_ND[14:])]
    limits = {"max_distances": sizes[0], "piece_rows": sizes[1]}
    distances_QR, ids_QR = nearest_in_blocks(queries_QD, blocks, 7, device, **limits)
    assert np.array_equal(ids_QR, wanted_QR) and ids_QR.dtype == np.int64
    np.testing.assert_allclose(distances_QR, np.take_along_axis(wanted_QN, wanted_QR, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
def test_vectors_of_any_kind_are_searched_by_any_metric(metric, tmp_path):
    x_ND, queries_QD = random_vectors(50, 4), random_vectors(5, 4, 1)
    sign = 1 if metric == "l2" else -1
    wanted_QN = sign * exact(metric, queries_QD, x_ND)
    np.save(tmp_path / "x.npy", x_ND)
    for given in (x_ND, tmp_path / "x.npy", x_ND.tolist()):
        found_QR, ids_QR = exhaustive_search(queries_QD, given, 6, metric=metric)
        assert np.array_equal(ids_QR, wanted_QN.argsort(1)[:, :6])
        np.testing.assert_allclose(found_QR, sign * np.sort(wanted_QN)[:, :6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_searched_by_any_decoder(kind):
    codec, queries_QD = trained(kind), vectors(9, 3)
    codes, heard = codec.encode(vectors()), []
    found = qinco.exhaustive_search(queries_QD, (codec, codes), 4, progress=lambda *told: heard.append(told))
    assert np.array_equal(found[1], exhaustive_search(queries_QD, decoded(kind), 4)[1])
    assert heard[-1][1:3] == (len(codes), len(codes))
    if kind == "ivf":
        lookup = built(kind).tables.lookup
        _, ids_QR = exhaustive_search(queries_QD, (lookup, codes), 4)
        assert np.array_equal(ids_QR, exhaustive_search(queries_QD, lookup.decode(codes.codes, codes.lists), 4)[1])


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("lengths", [(1e-30, 1e-30), (1e30, 1e30), (1e19, 3), (1e-30, 1e36), (1e25, 1e-30)])
def test_what_float32_cannot_square_is_compared(metric, lengths):
    x_ND, queries_QD = (random_vectors(n, 4, n) * np.float32(s) for n, s in zip((300, 9), lengths, strict=True))
    values_QN = exact(metric, queries_QD, x_ND) * (1 if metric == "l2" else -1)
    x_ND[7] = 0
    values_QN[:, 7] = np.square(queries_QD.astype(np.float64)).sum(1) if metric == "l2" else 0
    found_QR, ids_QR = exhaustive_search(queries_QD, x_ND, 300, metric=metric)
    best_QR = np.sort(values_QN, 1)
    rounding = {"rtol": 1e-4, "atol": 1e-6 if metric == "cosine" else 0}
    np.testing.assert_allclose(np.take_along_axis(values_QN, ids_QR, 1), best_QR, **rounding)
    with np.errstate(over="ignore"):
        best_QR = best_QR.astype(np.float32) * (1 if metric == "l2" else -1)
    np.testing.assert_allclose(found_QR, best_QR, **rounding)


def test_missing_neighbours_are_told(device):
    blocks = [(5, np.ones((1, 3), np.float32))]
    distances_QR, ids_QR = nearest_in_blocks(np.zeros((2, 3), np.float32), blocks, 3, device)
    assert ids_QR.tolist() == [[5, -1, -1]] * 2
    assert distances_QR.tolist() == [[3, np.inf, np.inf]] * 2


def test_what_cannot_be_compared_is_refused():
    x_ND = random_vectors(5, 3)
    for queries, options, error in (
        (x_ND[:, :2], {}, DataError), (x_ND * np.nan, {}, DataError),
        (x_ND, {"metric": "hamming"}, ConfigError), (x_ND, {"k": 0}, ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            exhaustive_search(queries, x_ND, **options)


@pytest.mark.parametrize("most", [1, 9000, 1 << 24])
def test_many_results_are_selected_in_parts(most, device):
    x_ND, queries_QD = random_vectors(2100, 4), random_vectors(9, 4, 1)
    found_QR, ids_QR = nearest_in_blocks(queries_QD, [(0, x_ND)], 2000, device, max_distances=most)
    values_QN = exact("l2", queries_QD, x_ND)
    np.testing.assert_allclose(found_QR, np.sort(values_QN, 1)[:, :2000], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found_QR, np.take_along_axis(values_QN, ids_QR, 1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("factor", [1.0, 1e25])
@pytest.mark.parametrize("metric", METRICS)
def test_a_piece_is_compared_again_and_again(metric, factor):
    x_ND, queries_QD = (np.random.default_rng(seed).normal(size=(50, 7)).astype(np.float32) for seed in (0, 1))
    measure = Metric(metric)
    x_ND = measure.prepare(x_ND * np.float32(factor))
    piece = Piece(x_ND, metric != "l2")
    for number in (1, 3, 40, 2):
        wanted = nearest_in_blocks(queries_QD[:number], [(5, x_ND)], 6, metric=measure)
        found = nearest_in_blocks(queries_QD[:number], [(5, piece)], 6, metric=measure)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
        assert np.array_equal(found[1], wanted[1])
