"""k-means, plain and residual.

Shape suffixes: N vectors, D dimension, K centroids, M steps, B hypotheses of a beam.
"""

from collections.abc import Callable

import faiss
import numpy as np
import torch

from qinco.maths.distances import smallest, squared_distances

BEAM_WIDTH = 4
KMEANS_ROWS = 200_000
_TILE_DISTANCES = 1 << 21


def kmeans(
    x_ND: np.ndarray, num_centroids: int, *, iterations: int = 10, seed: int = 0, threads: int = 1
) -> np.ndarray:
    """Centroids of float32 vectors: float32 (K, D). Works with duplicated vectors, and with fewer vectors than K.

    They start as noise around the mean rather than at data points: more of them end up in use, which later decides
    how much of a code carries information.
    """
    generator = np.random.default_rng(seed)
    spread = x_ND.std(0)
    start_KD = (x_ND.mean(0) + spread * generator.standard_normal((num_centroids, x_ND.shape[1]))).astype(np.float32)
    if len(x_ND) <= num_centroids:
        start_KD[: len(x_ND)] = x_ND
        return start_KD
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        clustering = faiss.Kmeans(
            x_ND.shape[1], num_centroids, niter=iterations, seed=seed % 2**31,
            min_points_per_centroid=1, max_points_per_centroid=len(x_ND),
        )  # fmt: skip
        clustering.train(np.ascontiguousarray(x_ND, np.float32), init_centroids=start_KD)
    finally:
        faiss.omp_set_num_threads(before)
    centroids_KD = clustering.centroids
    unusable = ~np.isfinite(centroids_KD).all(1)
    centroids_KD[unusable] = start_KD[unusable]
    return centroids_KD


def coarse_kmeans(
    x_ND: np.ndarray,
    num_centroids: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    on_iteration: Callable[[int, float], None] = lambda iteration, mse: None,
) -> np.ndarray:
    """Coarse centroids of float32 vectors, at least as many as centroids: float32 (V, D), with faiss's threads.

    They start at data points, which keeps inverted lists balanced. `on_iteration` hears the number of iterations done
    and the mean squared distance, summed over dimensions, before the last of them.
    """
    scale = float(np.abs(x_ND).max()) or 1.0  # squares of very large or small values leave float32's range
    x_ND = np.ascontiguousarray(x_ND / np.float32(scale), np.float32)
    centroids_VD = x_ND[np.random.default_rng(seed).choice(len(x_ND), num_centroids, replace=False)]
    for iteration in range(iterations):
        clustering = faiss.Kmeans(
            x_ND.shape[1], num_centroids, niter=1, seed=(seed + iteration) % 2**31,
            min_points_per_centroid=1, max_points_per_centroid=len(x_ND),
        )  # fmt: skip
        clustering.train(x_ND, init_centroids=centroids_VD)
        centroids_VD = clustering.centroids
        on_iteration(iteration + 1, float(clustering.obj[-1]) / len(x_ND) * scale**2)
    return centroids_VD * np.float32(scale)


def nearest(x_ND: np.ndarray, centroids_KD: np.ndarray, threads: int = 1) -> np.ndarray:
    """The number of the nearest centroid of each float32 vector: int64 (N,)."""
    index = faiss.IndexFlatL2(centroids_KD.shape[1])
    index.add(np.ascontiguousarray(centroids_KD, np.float32))
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        return index.search(np.ascontiguousarray(x_ND, np.float32), 1)[1][:, 0]
    finally:
        faiss.omp_set_num_threads(before)


def residual_kmeans(
    x_ND: np.ndarray,
    num_steps: int,
    num_centroids: int,
    *,
    beam_width: int = BEAM_WIDTH,
    iterations: int = 10,
    seed: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """The codebooks of a residual quantizer that is searched with a beam: float32 (M, K, D).

    Each codebook is fitted to what all hypotheses of a beam leave, not the greedy one alone, because that is what it
    will meet.
    """
    # One buffer for all hypotheses, of which the first `beam` are alive.
    residual_NBD = torch.empty(len(x_ND), beam_width, x_ND.shape[1])
    residual_NBD[:, 0] = torch.from_numpy(x_ND)
    beam, codebooks = 1, []
    for step in range(num_steps):
        points_ND = _some_residuals(residual_NBD[:, :beam], seed + step)
        codebook_KD = kmeans(points_ND, num_centroids, iterations=iterations, seed=seed + step, threads=threads)
        codebooks.append(codebook_KD)
        if step + 1 < num_steps:
            beam = _extend_beam(residual_NBD, beam, torch.from_numpy(codebook_KD))
    return np.stack(codebooks)


def quantize_residually(x_ND: np.ndarray, books_MKD: np.ndarray, threads: int = 1) -> np.ndarray:
    """What a residual quantizer with codebooks (M, K, D), K a power of two, makes of float32 vectors: (N, D)."""
    num_steps, num_centroids, _ = books_MKD.shape
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        quantizer = faiss.ResidualQuantizer(x_ND.shape[1], num_steps, num_centroids.bit_length() - 1)
        faiss.copy_array_to_vector(books_MKD.ravel(), quantizer.codebooks)
        quantizer.max_beam_size = BEAM_WIDTH
        quantizer.is_trained = True
        return quantizer.decode(quantizer.compute_codes(np.ascontiguousarray(x_ND, np.float32)))
    finally:
        faiss.omp_set_num_threads(before)


def _some_residuals(residual_NBD: torch.Tensor, seed: int) -> np.ndarray:
    """At most KMEANS_ROWS of all hypotheses' residuals, drawn at random: (n, D)."""
    num_vectors, beam, _ = residual_NBD.shape
    if num_vectors * beam <= KMEANS_ROWS:
        return residual_NBD.flatten(0, 1).numpy()
    chosen = np.random.default_rng(seed).choice(num_vectors * beam, KMEANS_ROWS, replace=False)
    rows, hypotheses = np.divmod(np.sort(chosen), beam)
    return residual_NBD[torch.from_numpy(rows), torch.from_numpy(hypotheses)].numpy()


def _extend_beam(residual_NBD: torch.Tensor, beam: int, codebook_KD: torch.Tensor) -> int:
    """Replace the first `beam` residuals of each vector by those of their best continuations; returns how many."""
    size, dim = codebook_KD.shape
    kept = min(residual_NBD.shape[1], beam * size)
    for part_NBD in residual_NBD.split(max(1, _TILE_DISTANCES // (beam * size))):
        alive_NBD = part_NBD[:, :beam]
        distances = squared_distances(alive_NBD.flatten(0, 1), codebook_KD).view(len(part_NBD), -1)
        pairs_NB = smallest(distances, kept)[1]
        parents_NBD = alive_NBD.gather(1, (pairs_NB // size)[..., None].expand(-1, -1, dim))
        part_NBD[:, :kept] = parents_NBD - codebook_KD[pairs_NB % size]
    return kept
