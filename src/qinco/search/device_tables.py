"""The look-up tables of an index on a device: what they decode beside what a network has decoded there.

Shape suffixes: N vectors, D dimension, M codes of a vector, V lists, T rows of all tables.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qinco.maths.devices import to_device
from qinco.native.scanner import ENTRIES
from qinco.search.scan import Scanner


class DeviceTables:
    """The tables of a scanner on a device, and the centroids (V, D) that they are added to; None: to one origin."""

    def __init__(self, scanner: Scanner, centroids_VD: np.ndarray | None, mean_D: np.ndarray, device: torch.device):
        num_codes, _, dim = scanner.tables_MKD.shape
        self._rows_TD = to_device(scanner.tables_MKD.reshape(-1, dim), device)
        self._first_M = torch.arange(0, num_codes * ENTRIES, ENTRIES, device=device)
        self._shift_D, self._mean_D = to_device(scanner.shift_D, device), to_device(mean_D, device)
        self._centroids_VD = None if centroids_VD is None else to_device(centroids_VD, device) - self._shift_D
        self._inner_product, self._device = scanner.inner_product, device

    def compare(self, codes_NM: np.ndarray, lists_N: np.ndarray, decoded_ND: Tensor) -> tuple[np.ndarray, ...]:
        """What `Scanner.compare` returns, of vectors that were decoded on this device."""
        rows_NM = to_device(codes_NM, self._device).long() + self._first_M
        r_ND = functional.embedding_bag(rows_NM, self._rows_TD, mode="sum")
        norms_N = (r_ND * r_ND).sum(1)
        if self._centroids_VD is not None:
            centroids_ND = self._centroids_VD[to_device(lists_N, self._device).long()]
            norms_N = norms_N + 2 * (centroids_ND * r_ND).sum(1)
            r_ND = r_ND + centroids_ND
        from_centre_ND = r_ND + (self._shift_D if self._inner_product else self._shift_D - self._mean_D)
        squares_N = (from_centre_ND * from_centre_ND).sum(1)
        shared_N = ((decoded_ND - self._shift_D - r_ND) * (decoded_ND - self._mean_D)).sum(1)
        if self._inner_product:
            norms_N = torch.zeros_like(norms_N)
        found_3N = torch.stack([norms_N, squares_N, shared_N]).cpu().numpy()
        return found_3N[0], found_3N[1], found_3N[2]
