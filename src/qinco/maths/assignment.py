"""Assignment of vectors to their nearest coarse centroids (IVF)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from qinco.forking import new_lock
from qinco.machine import num_threads
from qinco.maths.devices import CPU, to_device
from qinco.native.flat import Flat
from qinco.native.graph import Links, NativeGraph
from qinco.native.library import is_available


class NearestCentroids:
    """Finds the nearest centroids (or largest inner products), exactly or by an HNSW graph; threads may share it.

    Without compiled kernels, all centroids are always compared. The links of a graph may be given.
    """

    def __init__(self, centroids_VD: np.ndarray, *, inner_product: bool = False, links: Links | None = None):
        self.num_lists, self.dim = centroids_VD.shape
        self.inner_product = inner_product
        self._centroids_VD = np.ascontiguousarray(centroids_VD, np.float32)
        self._flat, self._links = Flat(self._centroids_VD, inner_product), links
        self._graph: NativeGraph | None = None
        self._lock = new_lock()

    def search(
        self, x_ND: np.ndarray, count: int, effort: int | None = None, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest centroids of float32 (N, D), nearest first, by HNSW's efSearch; None compares all.

        Returns squared distances or negative inner products, float32 (N, R), and list numbers, int64 (N, R).
        """
        threads = num_threads() if threads is None else threads
        if effort is None or not is_available():
            return self._flat.search(x_ND, count, threads)
        values, lists = self._made_graph().search(x_ND, count, effort, threads)
        missed = np.flatnonzero(lists[:, -1] < 0)  # a graph may not reach all centroids
        if missed.size:
            values[missed], lists[missed] = self._flat.search(x_ND[missed], count, threads)
        return values, lists

    @property
    def links(self) -> Links | None:
        """Those of the graph, which is made when they are asked for; None without compiled kernels."""
        return self._made_graph().links if is_available() else self._links

    def _made_graph(self) -> NativeGraph:
        with self._lock:
            if self._graph is None:
                self._graph = NativeGraph(self._centroids_VD, self._links, inner_product=self.inner_product)
            return self._graph


def assigner(
    centroids_VD: np.ndarray, device: str = CPU, max_exact: int = 65_536, effort: int = 128
) -> Callable[[Any], np.ndarray]:
    """A function from float32 vectors (N, D) to the numbers of their nearest centroids, int64 (N,).

    Vectors are tensors on `device` unless that is the processor. GPUs compare all centroids. The processor does so up
    to `max_exact` of them, where it costs less than an HNSW graph that hardly ever errs, and searches such a graph
    above.
    """
    if device != CPU:
        from qinco.maths.split_products import prepared

        closest = prepared(to_device(centroids_VD, device))
        return lambda x_ND: closest(x_ND)[0].cpu().numpy()
    centroids = NearestCentroids(centroids_VD)
    graph_effort = None if centroids.num_lists <= max_exact else effort
    return lambda x_ND: centroids.search(x_ND, 1, graph_effort)[1][:, 0]


def search_effort(nprobe: int, ef_search: int | None) -> int:
    """HNSW's efSearch: the value given, or enough to miss about one list in a thousand; at least nprobe."""
    return max(2 * nprobe, 64) if ef_search is None else max(ef_search, nprobe)
