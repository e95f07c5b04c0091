"""Rotations that make the parts of a product quantizer equally hard (OPQ)."""

import numpy as np

from qinco.machine import num_threads
from qinco.maths.clustering import improve_centroids, kmeans, nearest

_ITERATIONS, _FIRST_ITERATIONS, _FURTHER_ITERATIONS = 20, 20, 4  # of the rotation, and of its codebooks at a time
_ROWS_PER_CENTROID, _MOST_BITS = 32, 8


def fit_rotation(x_ND: np.ndarray, num_parts: int) -> np.ndarray:
    """OPQ's rotation for float32 vectors, orthonormal float32 (D, D), which are rotated by `x_ND @ rotation_DD.T`.

    The codebooks of a product quantizer and the rotation that is best for its codes are fitted in turns ("Optimized
    Product Quantization", section 4.1). Codebooks have 256 codewords, or as many as a small sample can fill.
    """
    dim = x_ND.shape[1]
    parts, threads = np.split(np.arange(dim), num_parts), num_threads()
    size = 1 << min(_MOST_BITS, max(1, (len(x_ND) // _ROWS_PER_CENTROID).bit_length() - 1))
    x_ND = x_ND - x_ND.mean(0, dtype=np.float64).astype(np.float32)
    scale = float(np.abs(x_ND).max()) or 1.0  # squares of very large or small values leave float32's range
    x_ND /= np.float32(scale)
    drawn_DD = np.random.default_rng(0).standard_normal((dim, dim))
    rotation_DD, books = np.linalg.qr(drawn_DD)[0].astype(np.float32), []
    for _ in range(_ITERATIONS):
        rotated_ND = x_ND @ rotation_DD.T
        for number, columns in enumerate(parts):
            part_ND = np.ascontiguousarray(rotated_ND[:, columns])
            if len(books) < num_parts:
                books.append(kmeans(part_ND, size, iterations=_FIRST_ITERATIONS, threads=threads))
            elif len(part_ND) > size:
                books[number], _ = improve_centroids(part_ND, books[number], _FURTHER_ITERATIONS, threads)
            rotated_ND[:, columns] = books[number][nearest(part_ND, books[number], threads)]
        # The orthonormal matrix that brings the vectors nearest to what their codes decode to (Procrustes' problem).
        left_DD, _, right_DD = np.linalg.svd(rotated_ND.T.astype(np.float64) @ x_ND.astype(np.float64))
        rotation_DD = (left_DD @ right_DD).astype(np.float32)
    return rotation_DD
