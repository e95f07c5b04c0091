"""Assignment of vectors to their nearest coarse centroids (IVF)."""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from qinco.forking import new_lock
from qinco.maths.clustering import faiss_threads, search_flat
from qinco.maths.devices import CPU, to_device
from qinco.maths.distances import closest


class NearestCentroids:
    """Finds the nearest centroids (or largest inner products), exactly or by an HNSW graph; threads may share it."""

    def __init__(self, centroids_VD: np.ndarray, *, inner_product: bool = False):
        self.num_lists, self.dim = centroids_VD.shape
        self.inner_product = inner_product
        self._metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
        self._centroids_VD = np.ascontiguousarray(centroids_VD, np.float32)
        self._flat: faiss.IndexFlat | None = None
        self._graph: faiss.IndexHNSWFlat | None = None
        self._lock = new_lock()

    def search(self, x_ND: np.ndarray, count: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest centroids of float32 (N, D), nearest first, by HNSW's efSearch; None compares all.

        Returns squared distances or negative inner products, float32 (N, R), and list numbers, int64 (N, R).
        """
        x_ND = np.ascontiguousarray(x_ND, np.float32)
        if effort is None:
            values, lists = search_flat(self.flat(), x_ND, count)
        else:
            values, lists = self.graph().search(x_ND, count, params=faiss.SearchParametersHNSW(efSearch=effort))
            # A graph over duplicate centroids may not reach all of them.
            missed = np.flatnonzero((lists < 0).any(1))
            if missed.size:
                values[missed], lists[missed] = search_flat(self.flat(), x_ND[missed], count)
        return (-values if self.inner_product else values), lists

    def flat(self) -> faiss.IndexFlat:
        """The faiss index that compares all centroids, built on first use."""
        with self._lock:
            if self._flat is None:
                flat = faiss.IndexFlat(self.dim, self._metric)
                flat.add(self._centroids_VD)
                self._flat = flat
            return self._flat

    def graph(self) -> faiss.IndexHNSWFlat:
        """The HNSW graph, built on first use."""
        with self._lock:
            if self._graph is None:
                graph = faiss.IndexHNSWFlat(self.dim, 32, self._metric)
                with faiss_threads(1):  # not every release of faiss builds the same graph with several threads
                    graph.add(self._centroids_VD)
                self._graph = graph
            return self._graph

    def use_graph(self, graph: faiss.IndexHNSWFlat) -> None:
        """Take a graph that was read from a file; its vectors are these centroids."""
        graph.storage = self.flat()  # which lives as long as self
        graph.own_fields = False
        self._graph = graph


def assigner(
    centroids_VD: np.ndarray, device: str = CPU, max_exact: int = 65_536, effort: int = 128
) -> Callable[[Any], np.ndarray]:
    """A function from float32 vectors (N, D) to the numbers of their nearest centroids, int64 (N,).

    Vectors are tensors on `device` unless that is the processor. GPUs compare all centroids. The processor does so up
    to `max_exact` of them, where it costs less than an HNSW graph that hardly ever errs, and searches such a graph
    above.
    """
    if device != CPU:
        on_device = to_device(centroids_VD, device)
        return lambda x_ND: closest(x_ND, on_device)[0].cpu().numpy()
    centroids = NearestCentroids(centroids_VD)
    graph_effort = None if centroids.num_lists <= max_exact else effort
    return lambda x_ND: centroids.search(x_ND, 1, graph_effort)[1][:, 0]


def search_effort(nprobe: int, ef_search: int | None) -> int:
    """HNSW's efSearch: the value given, or enough to miss about one list in a thousand; at least nprobe."""
    return max(2 * nprobe, 64) if ef_search is None else max(ef_search, nprobe)
