"""Rotations that make the parts of a product quantizer equally hard (OPQ)."""

import faiss
import numpy as np


def fit_rotation(x_ND: np.ndarray, num_parts: int) -> np.ndarray:
    """OPQ's rotation for float32 vectors, orthonormal float32 (D, D), which are rotated by `x_ND @ rotation_DD.T`."""
    dim = x_ND.shape[1]
    rotation = faiss.OPQMatrix(dim, num_parts)
    rotation.niter = 20
    # faiss fits 256 centroids a part and fails on fewer vectors: use as many as a small sample can fill.
    bits = min(8, max(1, (len(x_ND) // 32).bit_length() - 1))
    quantizer = faiss.ProductQuantizer(dim, num_parts, bits)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    rotation.train(np.ascontiguousarray(x_ND))
    return faiss.vector_to_array(rotation.A).reshape(dim, dim).copy()
