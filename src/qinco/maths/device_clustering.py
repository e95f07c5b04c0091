"""k-means and residual quantization of tensors, on their device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qinco.maths.devices import to_device
from qinco.maths.distances import smallest, squared_distances
from qinco.maths.split_products import prepared
from qinco.progress import Progress, silent

_TILE_DISTANCES = 1 << 21
_NUDGE = 1 / 1024  # moves apart the two centroids that a split gives, as in faiss


def lloyd(
    parts: Sequence[np.ndarray | Tensor], centroids_KD: Tensor, iterations: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Lloyd's algorithm on the device of the first centroids: float32 (K, D).

    `parts` are the vectors, float32 (n, D) each, on that device or sent there in every iteration. The seed chooses the
    clusters that are split.
    """
    size, device = len(centroids_KD), centroids_KD.device
    for iteration in range(iterations):
        # In float64 the order in which a device adds up does not show in float32.
        sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64, device=device)
        counts_K = torch.zeros(size, dtype=torch.int64, device=device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        closest = prepared(centroids_KD)
        for part in parts:
            x_ND = part if isinstance(part, Tensor) else to_device(part, device)
            numbers_N, distances_N = closest(x_ND)
            sums_KD.index_add_(0, numbers_N, x_ND.double())
            counts_K += torch.bincount(numbers_N, minlength=size)
            total += distances_N.sum(dtype=torch.float64)
        means_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).float()
        centroids_KD = torch.where(counts_K[:, None] > 0, means_KD, centroids_KD)
        if iteration + 1 < iterations:
            centroids_KD = _split(centroids_KD, counts_K, np.random.default_rng((seed, iteration)))
        progress("k-means", iteration + 1, iterations, "iteration", mse=float(total) / sum(map(len, parts)))
    return centroids_KD


def _split(centroids_KD: Tensor, counts_K: Tensor, generator: np.random.Generator) -> Tensor:
    """Split large clusters to replace empty ones (as faiss does)."""
    counts = counts_K.cpu().numpy()
    empty = np.flatnonzero(counts == 0)
    if not empty.size:
        return centroids_KD
    shares = np.maximum(counts - 1, 0) / max(1, np.maximum(counts - 1, 0).sum())
    count = min(len(empty), np.count_nonzero(shares))
    donors = to_device(generator.choice(len(counts), count, replace=False, p=shares), centroids_KD.device)
    others = to_device(empty[:count], centroids_KD.device)
    nudge_D = 1 + _NUDGE * (1 - 2 * (torch.arange(centroids_KD.shape[1], device=centroids_KD.device) % 2))
    split_KD = centroids_KD.clone()
    split_KD[others] = centroids_KD[donors] * nudge_D
    split_KD[donors] = centroids_KD[donors] * (2 - nudge_D)
    return split_KD


def extend_beam(residual_NBD: Tensor, beam: int, codebook_KD: Tensor) -> int:
    """Replace the first `beam` residuals of each vector by those of the best continuations; returns their number."""
    size, dim = codebook_KD.shape
    kept = min(residual_NBD.shape[1], beam * size)
    for part_NBD in residual_NBD.split(max(1, _TILE_DISTANCES // (beam * size))):
        alive_NBD = part_NBD[:, :beam]
        distances = squared_distances(alive_NBD.flatten(0, 1), codebook_KD).view(len(part_NBD), -1)
        pairs_NB = smallest(distances, kept)[1]
        parents_NBD = alive_NBD.gather(1, (pairs_NB // size)[..., None].expand(-1, -1, dim))
        part_NBD[:, :kept] = parents_NBD - codebook_KD[pairs_NB % size]
    return kept
