"""Squared Euclidean distances and exact selection of the smallest.

Shape suffixes: N rows, D dimension, K codewords, S selected.
"""

import numpy as np
import torch
from torch import Tensor

from qinco.maths.devices import to_device

_SELECT_DIRECTLY = 512
_TILE_DISTANCES, _TILE_COLUMNS = 1 << 26, 16_384


def squared_distances(x_ND: Tensor, c_KD: Tensor, squares_K: Tensor | None = None) -> Tensor:
    """‖x − c‖² of every pair, by the expanded form, never below zero: float (N, K); ‖c‖² may be given."""
    squares_K = (c_KD * c_KD).sum(1) if squares_K is None else squares_K
    cross_NK = torch.addmm(squares_K[None], x_ND, c_KD.T, alpha=-2)
    return cross_NK.add_((x_ND * x_ND).sum(1)[:, None]).clamp_(min=0)


def closest(x_ND: Tensor, c_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codeword of each row, its number (int64) and its squared distance (float): (N,) each.

    All are compared, in tiles; float32 is not shortened. Of equally near ones, any.
    """
    squares_K = (c_KD * c_KD).sum(1)
    numbers_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
    distances_N = torch.full((len(x_ND),), torch.inf, dtype=x_ND.dtype, device=x_ND.device)
    rows = _TILE_DISTANCES // min(max(1, len(c_KD)), _TILE_COLUMNS)
    for row in range(0, len(x_ND), rows):
        part = slice(row, row + rows)
        for column in range(0, len(c_KD), _TILE_COLUMNS):
            tile = slice(column, column + _TILE_COLUMNS)
            values_NK = torch.addmm(squares_K[None, tile], x_ND[part], c_KD[tile].T, alpha=-2)
            values_N, columns_N = values_NK.min(1)
            is_nearer_N = values_N < distances_N[part]
            numbers_N[part] = torch.where(is_nearer_N, columns_N + column, numbers_N[part])
            distances_N[part] = torch.minimum(values_N, distances_N[part])
    return numbers_N, distances_N.add_((x_ND * x_ND).sum(1)).clamp_(min=0)


def smallest(values_NK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest values of each row in ascending order, and their columns (int64): (N, S) each.

    Long rows are first cut into strided groups: the count best groups by their minima hold the count best values, so
    the sort sees a fraction of the row and the result is still exact.
    """
    length = values_NK.shape[1]
    group = 1
    while length > _SELECT_DIRECTLY and length % (2 * group) == 0 and length // (2 * group) >= 2 * group * count:
        group *= 2
    if group == 1:
        return torch.topk(values_NK, count, dim=1, largest=False)
    groups_NGK = values_NK.unflatten(1, (group, length // group))
    chosen_NS = torch.topk(groups_NGK.amin(1), count, dim=1, largest=False, sorted=False).indices
    within_G = torch.arange(group, device=values_NK.device) * (length // group)
    columns_NS = (chosen_NS[:, None] + within_G[:, None]).flatten(1)
    values_NS, order_NS = torch.topk(values_NK.gather(1, columns_NS), count, dim=1, largest=False)
    return values_NS, columns_NS.gather(1, order_NS)


class BestOnDevice:
    """The nearest of queries' vectors so far on a device: squared distances, or negative inner products."""

    def __init__(self, queries_QD: np.ndarray, count: int, inner_product: bool, max_distances: int, device: str):
        self.queries_QD, self.inner_product = to_device(queries_QD, device), inner_product
        self.max_distances, self.device = max_distances, device
        self.values_QR = torch.full((len(queries_QD), count), torch.inf, device=device)
        self.ids_QR = torch.full((len(queries_QD), count), -1, dtype=torch.int64, device=device)

    def merge(self, x_ND: np.ndarray, first: int, is_double: bool) -> None:
        """Merge vectors, of which the first has this number; from the first `is_double` on in float64."""
        vectors, count = to_device(x_ND, self.device), min(self.values_QR.shape[1], len(x_ND))
        if is_double:
            vectors, self.queries_QD, self.values_QR = (
                vectors.double(),
                self.queries_QD.double(),
                self.values_QR.double(),
            )
        squares_N = None if self.inner_product else (vectors * vectors).sum(1)
        rows = max(1, self.max_distances // len(vectors))
        for begin in range(0, len(self.queries_QD), rows):
            part = slice(begin, begin + rows)
            q_QD = self.queries_QD[part]
            values = -(q_QD @ vectors.T) if squares_N is None else squared_distances(q_QD, vectors, squares_N)
            step = max(1, rows * len(vectors) // (2 * (count + self.values_QR.shape[1])))  # Ctrl-C is heard in between
            for start in range(0, len(values), step):
                some = slice(begin + start, begin + min(start + step, len(values)))
                distances, columns = smallest(values[start : start + step], count)
                merged = torch.cat([self.values_QR[some], distances], 1)
                self.values_QR[some], order = torch.topk(merged, self.values_QR.shape[1], dim=1, largest=False)
                self.ids_QR[some] = torch.cat([self.ids_QR[some], columns + first], 1).gather(1, order)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and numbers, (Q, R) each."""
        return self.values_QR.cpu().numpy(), self.ids_QR.cpu().numpy()
