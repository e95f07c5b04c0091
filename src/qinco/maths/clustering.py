"""k-means, plain and residual.

Shape suffixes: N vectors, D dimension, K centroids, M steps.
"""

import faiss
import numpy as np


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
    x_ND: np.ndarray, num_steps: int, num_centroids: int, *, iterations: int = 10, seed: int = 0, threads: int = 1
) -> np.ndarray:
    """The codebooks of a residual quantizer, each fitted to what the ones before it leave: float32 (M, K, D)."""
    residual_ND = x_ND.copy()
    codebooks = []
    for step in range(num_steps):
        codebook_KD = kmeans(residual_ND, num_centroids, iterations=iterations, seed=seed + step, threads=threads)
        residual_ND -= codebook_KD[nearest(residual_ND, codebook_KD, threads)]
        codebooks.append(codebook_KD)
    return np.stack(codebooks)
