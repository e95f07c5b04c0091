"""Exact nearest neighbours among vectors that come in blocks: decoded ones, or the originals.

Shape suffixes: Q queries, D dimension, R results.
"""

from collections.abc import Iterable

import numpy as np
import torch

from qinco.maths.devices import to_device
from qinco.maths.distances import smallest, squared_distances

_DISTANCES, _PIECE_ROWS = 1 << 23, 1 << 15
_DEVICE_DISTANCES = 1 << 27  # a device needs more of them to be busy


def search(
    queries_QD: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], k: int, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest vectors of each query by exact squared L2 distance, in ascending order.

    queries_QD: float32 (Q, D)
    blocks:     (number of the first vector, float32 (n, D)) pairs, for instance of `Codec.decode_blocks`

    Returns distances, float32 (Q, k), and numbers, int64 (Q, k). Where there are fewer than k vectors the rest is +inf
    and -1. Memory is bounded by a block's and the results'.
    """
    device = torch.device(device)
    queries = to_device(np.asarray(queries_QD, np.float32), device)
    best_QR = torch.full((len(queries), k), torch.inf, device=device)
    ids_QR = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for first, block in blocks:
        for piece in to_device(np.asarray(block, np.float32), device).split(_PIECE_ROWS):
            _merge(queries, piece, first, best_QR, ids_QR)
            first += len(piece)
    return best_QR.cpu().numpy(), ids_QR.cpu().numpy()


def _merge(queries_QD: torch.Tensor, x_ND: torch.Tensor, first: int, best_QR: torch.Tensor, ids_QR: torch.Tensor):
    """Let the vectors compete with the best so far, which are changed in place."""
    count = min(best_QR.shape[1], len(x_ND))
    most = _DISTANCES if x_ND.device.type == "cpu" else _DEVICE_DISTANCES
    rows = max(1, most // max(1, len(x_ND)))
    for begin in range(0, len(queries_QD) if count else 0, rows):
        part = slice(begin, begin + rows)
        distances, columns = smallest(squared_distances(queries_QD[part], x_ND), count)
        merged = torch.cat([best_QR[part], distances], 1)
        best_QR[part], order = torch.topk(merged, best_QR.shape[1], dim=1, largest=False)
        ids_QR[part] = torch.cat([ids_QR[part], columns + first], 1).gather(1, order)
