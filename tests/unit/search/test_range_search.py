"""Range search finds what comparing everything finds, in the lists that it visits."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, built, copied, exact, vectors

from qinco.errors import ConfigError, DataError, ResourceError
from qinco.search import range_search
from qinco.search.index import Index
from qinco.search.metric import METRICS
from qinco.search.pipeline import NeuralDecoder

QUERIES_QD = vectors(30, 1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_lists_are_searched_as_by_definition(kind, metric):
    index, sign = copied(built(kind, metric)), 1 if metric == "l2" else -1
    index.add(vectors(100, 4))
    values_QN = sign * exact(metric, QUERIES_QD, index.reconstruct(index.ids))
    radius = sign * np.unique(values_QN.round(4))[800:802].mean()  # between two values
    options = {"nprobe": NUM_LISTS, "precision": "float32", "ranking": "decoded"}
    lims, distances, ids = index.range_search(QUERIES_QD, radius, **options)
    assert (lims.dtype, distances.dtype, ids.dtype) == (np.int64, np.float32, np.int64)
    assert lims.shape == (31,) and lims[0] == 0 and lims[-1] == len(ids) == len(distances) > 700
    for row, (first, last) in enumerate(pairwise(lims)):
        assert set(ids[first:last]) == set(index.ids[values_QN[row] < sign * radius])
        assert (np.diff(sign * distances[first:last]) >= 0).all()
    one = index.range_search(QUERIES_QD[3], radius, **options)
    np.testing.assert_array_equal(one[0], [0, lims[4] - lims[3]])
    np.testing.assert_array_equal(one[2], ids[lims[3] : lims[4]])


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_search(metric, monkeypatch):
    index, options = built("plain", metric), {"nprobe": NUM_LISTS, "num_short": NUM_VECTORS}
    distances_QR, ids_QR, x_QRD = index.search_and_reconstruct(QUERIES_QD, k=NUM_VECTORS, **options)
    lims, distances, ids = index.range_search(QUERIES_QD, np.inf if metric == "l2" else -np.inf, nprobe=NUM_LISTS)
    assert (np.diff(lims) == NUM_VECTORS).all() and (np.sort(ids.reshape(30, -1)) == np.arange(NUM_VECTORS)).all()
    # Compiled sums of products, which cancel out, are in another order than those of arrays.
    rounding = 4 * np.finfo(np.float32).eps * np.abs(distances_QR).max() if metric == "inner_product" else 1e-6
    np.testing.assert_allclose(distances.reshape(30, -1), distances_QR, rtol=1e-5, atol=rounding)
    with monkeypatch.context() as patch:
        patch.setattr(NeuralDecoder, "native", lambda decoder: None)
        by_arrays_QR, _ = index.search(QUERIES_QD, k=NUM_VECTORS, **options)
    np.testing.assert_allclose(distances.reshape(30, -1), by_arrays_QR, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x_QRD, index.reconstruct(ids_QR))
    few = index.search_and_reconstruct(QUERIES_QD, k=8, filter=range(5))
    assert np.isnan(few[2][:, 5:]).all() and np.isfinite(few[2][:, :5]).all() and (few[1][:, 5:] == -1).all()
    assert index.search_and_reconstruct(QUERIES_QD[0], k=8)[2].shape == (8, DIM)


def test_filters_options_and_nothing_found():
    index = built()
    for chosen in (range(0, 500, 7), np.arange(0, 500, 7)):
        ids = index.range_search(QUERIES_QD, np.inf, filter=chosen)[2]
        assert ids.tolist() == sorted(ids.tolist()) or set(ids.tolist()) <= set(range(0, 500, 7))
        assert index.range_search(QUERIES_QD, np.inf, NUM_LISTS, chosen)[0][-1] == 30 * len(chosen)
    for lims, distances, ids in (index.range_search(QUERIES_QD, 0), index.emptied().range_search(QUERIES_QD, 9.5)):
        assert lims.tolist() == [0] * 31 and distances.shape == ids.shape == (0,)
    bare = Index(None, index.parts)
    assert bare.range_search(QUERIES_QD, np.inf, NUM_LISTS)[0][-1] == 30 * NUM_VECTORS
    assert index.range_search(QUERIES_QD[:0], 5.0)[0].tolist() == [0]


@pytest.mark.parametrize("metric", METRICS)
def test_an_infinite_radius_gives_all_or_nothing(metric, monkeypatch):
    index, sign = built("plain", metric), 1 if metric == "l2" else -1
    assert index.range_search(QUERIES_QD, sign * np.inf, NUM_LISTS)[0][-1] == 30 * NUM_VECTORS
    assert index.range_search(QUERIES_QD, -sign * np.inf, NUM_LISTS)[0][-1] == 0
    monkeypatch.setattr(range_search, "_LARGE_BYTES", 0)
    monkeypatch.setattr(range_search, "free_memory", lambda: 10_000 * 60)
    with pytest.raises(ResourceError, match=r"^more than 1\d,... results do not fit in memory: search for"):
        index.range_search(QUERIES_QD, sign * np.inf, NUM_LISTS)
    assert index.range_search(QUERIES_QD[:3], sign * np.inf, NUM_LISTS)[0][-1] == 3 * NUM_VECTORS


@pytest.mark.parametrize("radius", [None, "5", np.nan, [1.0]])
def test_what_is_no_radius_is_refused(radius):
    with pytest.raises(ConfigError):
        built().range_search(QUERIES_QD, radius)
    with pytest.raises(DataError):
        built().range_search(QUERIES_QD[:, :3], 1.0)


@pytest.mark.filterwarnings("error")
def test_queries_whose_squares_no_float_holds():
    lims, _, ids = built().range_search(np.full((1, DIM), 3e38, np.float32), 1e5, nprobe=NUM_LISTS)
    assert lims.tolist() == [0, 0] and not len(ids)


@pytest.mark.parametrize("length", [1e18, 1e30, 3e37])
def test_inner_products_of_long_queries_are_those_of_search(length):
    index, queries_QD = built("plain", "inner_product"), QUERIES_QD * np.float32(length / np.abs(QUERIES_QD).max())
    with np.errstate(over="ignore"):
        values_QN = exact("inner_product", queries_QD, index.reconstruct(index.ids)).astype(np.float32)
    options = {"nprobe": NUM_LISTS, "precision": "float32", "ranking": "decoded"}
    lims, distances, ids = index.range_search(queries_QD, 0.0, **options)
    assert (np.diff(lims) == (values_QN > 0).sum(1)).all() and lims[-1] > 1000
    queries_P = np.repeat(np.arange(30), np.diff(lims))
    norms = partial(np.linalg.norm, axis=1)
    lengths_Q, lengths_N = norms(queries_QD.astype(float)), norms(index.reconstruct(index.ids).astype(float))
    scale_P = lengths_Q[queries_P] * lengths_N[ids]  # the terms of a small product are of this size
    np.testing.assert_allclose(distances / scale_P, values_QN[queries_P, ids] / scale_P, rtol=1e-5, atol=1e-6)
