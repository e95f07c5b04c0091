"""ctypes binding of exact nearest neighbours.

Shape suffixes: V vectors, N queries, D dimension, R results of a query.
"""

import numpy as np

from qinco.errors import ResourceError
from qinco.native.library import LEVELS, address, check_memory, compiled, level, run

_REMEDY = "fewer vectors at a time or fewer threads"


class NativeFlat:
    """Vectors, float32 (V, D), to compare with queries: by squared L2 distances or negative inner products.

    They are not copied where they are contiguous float32, and may not be changed then. Of equally near ones the smaller
    number comes first; distances beyond float32's range are infinite.
    """

    def __init__(self, vectors_VD: np.ndarray, inner_product: bool = False):
        self._flat = None
        self._vectors_VD = np.ascontiguousarray(vectors_VD, np.float32)
        self.count, self.dim = self._vectors_VD.shape
        assert 1 <= self.count < 1 << 31 and self.dim >= 1
        self._flat = compiled().qinco_create_flat(
            address(self._vectors_VD), self.count, self.dim, inner_product, LEVELS.index(level())
        )
        if not self._flat:
            raise ResourceError("out of memory: the vectors cannot be packed for the native engine")

    def __reduce__(self):
        raise TypeError("packed vectors cannot be copied: pack them again")  # they would be freed twice

    def __del__(self):
        if self._flat:
            compiled().qinco_destroy_flat(self._flat)

    def nearest(self, x_ND: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The number of the nearest vector of each query, int64 (N,), and its value, float32 (N,)."""
        values_N1, numbers_N1 = self.search(x_ND, 1, threads)
        return numbers_N1[:, 0], values_N1[:, 0]

    def search(self, x_ND: np.ndarray, count: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest in ascending order: values, float32 (N, R), and numbers, int64 (N, R)."""
        x_ND = self._rows(x_ND)
        assert 1 <= count <= self.count
        shape = (len(x_ND), count)
        values_NR, numbers_NR = np.empty(shape, np.float32), np.empty(shape, np.int64)
        failed = run(
            lambda: compiled().qinco_search_flat(
                self._flat, address(x_ND), len(x_ND), count, threads, address(values_NR), address(numbers_NR)
            ),
            2.0 * len(x_ND) * self.count * self.dim,
        )
        check_memory(failed, _REMEDY)
        return values_NR, numbers_NR

    def _rows(self, x_ND: np.ndarray) -> np.ndarray:
        assert x_ND.ndim == 2 and x_ND.shape[1] == self.dim
        return np.ascontiguousarray(x_ND, np.float32)
