"""Exact nearest neighbours on the processor: compiled, or by numpy where nothing is compiled.

Shape suffixes: V vectors, N queries, n queries of a block, D dimension, R results of a query.
"""

import numpy as np

from qinco.errors import ResourceError
from qinco.forking import new_lock
from qinco.native.library import LEVELS, address, check_memory, compiled, level, run

_REMEDY = "fewer vectors at a time or fewer threads"
_WORTH_PACKING = 12  # queries
_BLOCK_VALUES = 1 << 22


class Flat:
    """Vectors, float32 (V, D), to compare with queries: by squared L2 distances or negative inner products.

    They are not copied where they are contiguous float32, and may not be changed then; for more than a few queries they
    are packed. Of equally near ones the smaller number comes first; values that are no numbers are infinite. `added_V`,
    float32 (V,), is added to the values of each vector.
    """

    def __init__(self, vectors_VD: np.ndarray, inner_product: bool = False, added_V: np.ndarray | None = None):
        self._made: list[int] = []  # the vectors as they are and, once that pays, packed
        self._vectors_VD = np.ascontiguousarray(vectors_VD, np.float32)
        self.count, self.dim = self._vectors_VD.shape
        self.inner_product = inner_product
        self._added_V = None if added_V is None else np.ascontiguousarray(added_V, np.float32)
        assert added_V is None or added_V.shape == (self.count,)
        assert 1 <= self.count < 1 << 31 and self.dim >= 1
        self._queries, self._lock = 0, new_lock()

    def __reduce__(self):
        return Flat, (self._vectors_VD, self.inner_product, self._added_V)

    def __del__(self):
        for made in self._made:
            compiled().qinco_destroy_flat(made)

    def nearest(self, x_ND: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The number of the nearest vector of each query, int64 (N,), and its value, float32 (N,)."""
        values_N1, numbers_N1 = self.search(x_ND, 1, threads)
        return numbers_N1[:, 0], values_N1[:, 0]

    def search(self, x_ND: np.ndarray, count: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest in ascending order: values, float32 (N, R), and numbers, int64 (N, R)."""
        assert x_ND.ndim == 2 and x_ND.shape[1] == self.dim and 1 <= count <= self.count
        x_ND, shape = np.ascontiguousarray(x_ND, np.float32), (len(x_ND), count)
        values_NR, numbers_NR = np.empty(shape, np.float32), np.empty(shape, np.int64)
        if compiled() is None:
            self._search_by_numpy(x_ND, values_NR, numbers_NR)
            return values_NR, numbers_NR
        flat = self._prepared(len(x_ND))
        failed = run(
            lambda: compiled().qinco_search_flat(
                flat, address(x_ND), len(x_ND), count, threads, address(values_NR), address(numbers_NR)
            ),
            2.0 * len(x_ND) * self.count * self.dim,
        )
        check_memory(failed, _REMEDY)
        return values_NR, numbers_NR

    def _prepared(self, queries: int) -> int:
        """What so many more queries are compared with."""
        with self._lock:
            self._queries += queries
            packs = self._queries > _WORTH_PACKING
            if len(self._made) < 1 or (packs and len(self._made) < 2):
                given = address(self._vectors_VD), address(self._added_V), self.count, self.dim, self.inner_product
                if packs and not self._made:
                    self._made.append(0)  # the vectors as they are will not be needed
                made = compiled().qinco_create_flat(*given, packs, LEVELS.index(level()))
                if not made:
                    raise ResourceError("out of memory: the vectors cannot be packed for the native engine")
                self._made.append(made)
            return self._made[-1]

    @np.errstate(over="ignore", invalid="ignore")
    def _search_by_numpy(self, x_ND, values_NR, numbers_NR) -> None:
        vectors_VD, count = self._vectors_VD, values_NR.shape[1]
        norms_V = np.zeros(self.count) if self.inner_product else np.einsum("vd,vd->v", vectors_VD, vectors_VD)
        added_V = np.zeros(self.count, np.float32) if self._added_V is None else self._added_V
        rows = max(1, min(_BLOCK_VALUES // self.count, _BLOCK_VALUES // (count * self.dim)))
        for first in range(0, len(x_ND), rows):
            block_nD = x_ND[first : first + rows]
            values_nV = norms_V + added_V - (1 if self.inner_product else 2) * (block_nD @ vectors_VD.T)
            values_nV[np.isnan(values_nV)] = np.inf
            numbers_nR = np.argsort(values_nV, axis=1, kind="stable")[:, :count]
            found_nRD = vectors_VD[numbers_nR]
            if self.inner_product:
                found_nR = -np.einsum("nd,nrd->nr", block_nD, found_nRD)
            else:
                found_nR = np.square(block_nD[:, None] - found_nRD).sum(2)
            found_nR[np.isnan(found_nR)] = np.inf
            found_nR = found_nR + added_V[numbers_nR]
            order_nR = np.lexsort([numbers_nR, found_nR])
            values_NR[first : first + rows] = np.take_along_axis(found_nR, order_nR, 1)
            numbers_NR[first : first + rows] = np.take_along_axis(numbers_nR, order_nR, 1)
