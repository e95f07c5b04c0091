"""k-means, plain and residual.

Shape suffixes: N vectors, D dimension, K centroids, M steps, B hypotheses of a beam.
"""

import faiss
import numpy as np
import torch

from qinco.maths.distances import smallest, squared_distances

_KMEANS_ROWS = 200_000
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
    beam_width: int = 4,
    iterations: int = 10,
    seed: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """The codebooks of a residual quantizer that is searched with a beam: float32 (M, K, D).

    Each codebook is fitted to what all hypotheses of a beam leave, not the greedy one alone, because that is what it
    will meet.
    """
    residual_NBD = torch.from_numpy(x_ND)[:, None]
    codebooks = []
    for step in range(num_steps):
        points_ND = _some_rows(residual_NBD.flatten(0, 1).numpy(), _KMEANS_ROWS, seed + step)
        codebook_KD = kmeans(points_ND, num_centroids, iterations=iterations, seed=seed + step, threads=threads)
        codebooks.append(codebook_KD)
        if step + 1 < num_steps:
            residual_NBD = _extend_beam(residual_NBD, torch.from_numpy(codebook_KD), beam_width)
    return np.stack(codebooks)


def _some_rows(x_ND: np.ndarray, count: int, seed: int) -> np.ndarray:
    if len(x_ND) <= count:
        return x_ND
    return x_ND[np.sort(np.random.default_rng(seed).choice(len(x_ND), count, replace=False))]


def _extend_beam(residual_NBD: torch.Tensor, codebook_KD: torch.Tensor, beam_width: int) -> torch.Tensor:
    """What the best `beam_width` continuations of each vector's hypotheses leave: (N, B, D)."""
    _, beam, dim = residual_NBD.shape
    size = len(codebook_KD)
    kept = min(beam_width, beam * size)
    extended = []
    for part_NBD in residual_NBD.split(max(1, _TILE_DISTANCES // (beam * size))):
        distances = squared_distances(part_NBD.flatten(0, 1), codebook_KD).view(len(part_NBD), -1)
        pairs_NB = smallest(distances, kept)[1]
        parents_NBD = part_NBD.gather(1, (pairs_NB // size)[..., None].expand(-1, -1, dim))
        extended.append(parents_NBD - codebook_KD[pairs_NB % size])
    return torch.cat(extended)
