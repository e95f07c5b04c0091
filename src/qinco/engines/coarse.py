"""Assignment of vectors to their nearest coarse centroid (IVF)."""

import faiss
import numpy as np
import torch
from torch import Tensor


class CoarseAssigner:
    """Finds the nearest of V centroids, exactly. `centroids_VD`: float32 (V, D), in the space of the queries."""

    def __init__(self, centroids_VD: np.ndarray):
        self.index = faiss.IndexFlatL2(centroids_VD.shape[1])
        self.index.add(np.ascontiguousarray(centroids_VD, np.float32))

    def assign(self, x_ND: np.ndarray) -> np.ndarray:
        """List numbers, int64 (N,), of float32 vectors (N, D)."""
        return self.index.search(np.ascontiguousarray(x_ND, np.float32), 1)[1][:, 0]

    def assign_tensor(self, x_ND: Tensor) -> Tensor:
        """List numbers, int64 (N,), of float32 vectors (N, D), on their device."""
        return torch.from_numpy(self.assign(x_ND.cpu().numpy())).to(x_ND.device)
