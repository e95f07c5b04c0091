import numpy as np
import pytest
from small_models import random_vectors

from qinco.maths.clustering import (
    BEAM_WIDTH,
    coarse_kmeans,
    kmeans,
    nearest,
    quantize_residually,
    residual_kmeans,
    shrunk,
)  # fmt: skip
from qinco.maths.device_clustering import lloyd
from qinco.maths.devices import CPU, to_device


def error(x_ND, centroids_KD):
    return float(np.square(x_ND - centroids_KD[nearest(x_ND, centroids_KD)]).sum(1).mean())


def test_kmeans_finds_separate_clusters(device):
    generator = np.random.default_rng(0)
    centers = np.array([[0, 0], [50, 0], [0, 50], [50, 50]], np.float32)
    x_ND = (centers[generator.integers(4, size=400)] + generator.standard_normal((400, 2))).astype(np.float32)
    found = kmeans(to_device(x_ND, device), 4)
    assert found.shape == (4, 2) and found.dtype == np.float32
    assert error(x_ND, found) < 4
    assert sorted(nearest(centers, found)) == [0, 1, 2, 3]


def test_kmeans_is_the_same_for_the_same_seed_alone(device):
    x_ND = to_device(random_vectors(300, 4), device)
    assert np.array_equal(kmeans(x_ND, 8, seed=1), kmeans(x_ND, 8, seed=1))
    assert not np.array_equal(kmeans(x_ND, 8, seed=1), kmeans(x_ND, 8, seed=2))
    assert kmeans(x_ND, 8, seed=2**62).shape == (8, 4)


@pytest.mark.parametrize(
    "x_ND",
    [
        np.full((50, 3), 7, np.float32),
        np.repeat(np.eye(3, dtype=np.float32), 20, 0),
        np.zeros((50, 1), np.float32),
    ],
    ids=["constant", "duplicated", "zeros in one dimension"],
)
def test_kmeans_of_fewer_distinct_vectors_than_centroids(x_ND, device):
    found = kmeans(to_device(x_ND, device), 8)
    assert np.isfinite(found).all()
    assert error(x_ND, found) < 2e-4  # a split moves centroids by a thousandth


@pytest.mark.parametrize("count", [1, 3, 8])
def test_kmeans_of_no_more_vectors_than_centroids_keeps_them(count, device):
    x_ND = random_vectors(count, 4)
    found = kmeans(to_device(x_ND, device), 8)
    assert found.shape == (8, 4) and np.isfinite(found).all()
    assert error(x_ND, found) == pytest.approx(0, abs=1e-4)


def test_kmeans_does_not_change_its_input():
    x_ND = random_vectors(100, 4)
    before = x_ND.copy()
    kmeans(x_ND, 4)
    residual_kmeans(x_ND, 2, 4)
    assert np.array_equal(x_ND, before)


def test_nearest_is_the_nearest(device):
    x_ND, c_KD = random_vectors(30, 4, 1), random_vectors(9, 4, 2)
    wanted = np.square(x_ND[:, None] - c_KD[None]).sum(2).argmin(1)
    assert np.array_equal(nearest(x_ND, c_KD), wanted)
    assert nearest(x_ND[:0], c_KD).shape == (0,)
    found_N = nearest(to_device(x_ND, device), to_device(c_KD, device))
    assert found_N.device.type == device.type and np.array_equal(found_N.cpu().numpy(), wanted)


def test_residual_kmeans_lowers_the_error_with_every_step(device):
    x_ND = random_vectors(500, 4)
    books_MKD = residual_kmeans(to_device(x_ND, device), 4, 8, max_rows=1500)  # fewer than there are hypotheses
    assert books_MKD.shape == (4, 8, 4) and books_MKD.dtype == np.float32
    residual_ND, errors = x_ND.copy(), [np.inf]
    for book_KD in books_MKD:
        residual_ND -= book_KD[nearest(residual_ND, book_KD)]
        errors.append(float(np.square(residual_ND).sum()))
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 5


def test_shrunk_codewords_leave_less_error_of_other_vectors():
    """Of vectors that lie near 8 of 40 dimensions, 19 for a codeword."""
    generator = np.random.default_rng(0)
    x_ND = generator.standard_normal((1600, 8)) @ generator.standard_normal((8, 40))
    x_ND, unseen_ND = np.split((x_ND + generator.standard_normal((1600, 40))).astype(np.float32), [600])
    errors = []
    for shrinks in (False, True):
        books_MKD = residual_kmeans(x_ND, 4, 32, shrinks=shrinks)
        errors.append(float(np.square(quantize_residually(unseen_ND, books_MKD) - unseen_ND).sum()))
    assert errors[1] < 0.98 * errors[0]


def test_codewords_without_doubt_are_not_shrunk(device):
    codebook_KD = random_vectors(8, 5)
    codebook_KD -= codebook_KD.mean(0)
    points_ND = np.repeat(codebook_KD, 4, 0)
    np.testing.assert_allclose(shrunk(codebook_KD, to_device(points_ND, device)), codebook_KD, rtol=1e-5)
    assert not shrunk(0 * codebook_KD, to_device(0 * points_ND, device)).any()


def test_codewords_of_few_vectors_are_shrunk_most(device):
    """By n / (n + W / B), where vectors vary by W around codewords, and these by B around zero."""
    codebook_KD = np.array([[3, 0.5], [-3, -0.5]], np.float32)
    offsets = np.array([[1, 2], [-1, -2]], np.float32)
    points_ND = np.concatenate([np.tile(codebook_KD[0] + offsets, (10, 1)), np.tile(codebook_KD[1] + offsets, (40, 1))])
    ratio_D = np.array([1, 4]) / (np.array([9, 0.25]) - np.array([1, 4]) / 50)
    wanted_KD = codebook_KD * (np.array([[20], [80]]) / (np.array([[20], [80]]) + ratio_D))
    book_KD = shrunk(codebook_KD, to_device(points_ND, device))
    np.testing.assert_allclose(book_KD, wanted_KD, rtol=1e-5)
    np.testing.assert_allclose(
        shrunk(codebook_KD, to_device(np.tile(points_ND, (3, 1)), device), 3), book_KD, rtol=1e-5
    )


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**66])
def test_coarse_centroids_are_found_at_any_scale(scale, device):
    x, heard = random_vectors(400, 3), []
    plain = coarse_kmeans(x, 8, device=device)
    scaled = coarse_kmeans(
        x * np.float32(scale), 8, device=device, progress=lambda *report, mse: heard.append((*report, mse))
    )
    np.testing.assert_allclose(scaled / scale, plain, rtol=1e-4, atol=1e-4)
    assert [report[:4] for report in heard] == [("k-means", done, 20, "iteration") for done in range(1, 21)]
    assert 0 < heard[-1][4] <= heard[0][4]


def test_coarse_centroids_are_as_good_on_every_device(device):
    x_ND = random_vectors(2000, 4)
    errors = [error(x_ND, coarse_kmeans(x_ND, 50, device=where)) for where in (device, CPU)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    assert error(x_ND, x_ND[:50]) > 1.1 * errors[1]  # or the start were as good


def test_vectors_that_a_device_cannot_hold_are_sent_in_parts(device):
    x_ND = random_vectors(500, 4)
    whole, parts = (coarse_kmeans(x_ND, 8, device=device, part_rows=rows) for rows in (None, 77))
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_centroids_of_no_vectors_are_put_beside_others(device):
    """Half of the centroids start where no vector is nearest to them."""
    x_ND = random_vectors(600, 4)
    start_KD = np.concatenate([x_ND[:10], np.full((10, 4), 1e6, np.float32)])
    found_KD = lloyd([to_device(x_ND, device)], to_device(start_KD, device), 10, 0).cpu().numpy()
    assert len(np.unique(nearest(x_ND, found_KD))) == 20
    assert error(x_ND, found_KD) < 0.9 * error(x_ND, kmeans(x_ND, 10))


@pytest.mark.parametrize(
    ("count", "size", "dim", "repeated"), [(3000, 64, 16, 2800), (9000, 256, 40, 0), (64, 64, 8, 0)]
)
def test_kmeans_is_that_of_faiss(count, size, dim, repeated):
    """With the clusters that it splits; sums are rounded otherwise, and so a few vectors go elsewhere after a while."""
    faiss = pytest.importorskip("faiss")
    x_ND = random_vectors(count, dim)
    x_ND[:repeated] = x_ND[0]
    for iterations in (1, 4):
        found = coarse_kmeans(x_ND, size, iterations=iterations)
        scale = np.float32(np.abs(x_ND).max())
        start_KD = (x_ND / scale)[np.random.default_rng(0).choice(count, size, replace=False)]
        for _ in range(iterations):
            theirs = faiss.Kmeans(dim, size, niter=1, min_points_per_centroid=1, max_points_per_centroid=count)
            theirs.train(x_ND / scale, init_centroids=start_KD)
            start_KD = theirs.centroids
        if iterations == 1:
            np.testing.assert_allclose(found, start_KD * scale, rtol=0, atol=1e-4 * scale)
        assert error(x_ND, found) <= 1.02 * error(x_ND, start_KD * scale) + 1e-5


def test_kmeans_does_not_depend_on_threads():
    x_ND = random_vectors(3000, 7)
    assert np.array_equal(kmeans(x_ND, 50, threads=1), kmeans(x_ND, 50, threads=3))


def test_vectors_are_quantized_with_a_beam():
    """Residuals of the best continuations of all hypotheses, against comparing all pairs."""
    x_ND, books_MKD = random_vectors(60, 5), random_vectors(24, 5, seed=1).reshape(3, 8, 5)
    beam_NBD = x_ND[:, None]
    for book_KD in books_MKD:
        next_NBD = (beam_NBD[:, :, None] - book_KD).reshape(60, -1, 5)
        order_NB = np.argsort(np.square(next_NBD).sum(2), axis=1, kind="stable")[:, :BEAM_WIDTH]
        beam_NBD = np.take_along_axis(next_NBD, order_NB[..., None], 1)
    found_ND = quantize_residually(x_ND, books_MKD)
    np.testing.assert_allclose(found_ND, x_ND - beam_NBD[:, 0], rtol=1e-5, atol=1e-5)
