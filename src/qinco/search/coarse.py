"""Which lists to scan: the coarse centroids nearest to a query, found through an HNSW graph where there are many.

Shape suffixes: Q queries, D dimension, V centroids, L lists that are probed.
"""

import os

import faiss
import numpy as np

from qinco.compat.faiss_files import read_faiss_file
from qinco.errors import DataError
from qinco.maths.assignment import NearestCentroids, search_effort

MIN_GRAPH_LISTS = 4096  # so many centroids are searched through a graph


class CoarseGraph:
    """An HNSW graph over the coarse centroids. Threads may share it.

    Args:
        centroids_VD: float32 (V, D), in the space of the vectors.
        inner_product: probe the centroids of largest inner product instead of smallest distance.
    """

    def __init__(self, centroids_VD: np.ndarray, *, inner_product: bool = False):
        self._centroids = NearestCentroids(centroids_VD, inner_product=inner_product)

    def probe(self, queries_QD: np.ndarray, nprobe: int, ef_search: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `nprobe` nearest centroids of float32 queries, nearest first; all V where there are fewer.

        Args:
            ef_search: effort of the graph search (HNSW's efSearch); fitted to nprobe if None.

        Returns:
            Squared distances or negative inner products, float32 (Q, L), and list numbers, int64 (Q, L).
        """
        nprobe = min(nprobe, self._centroids.num_lists)
        return self._centroids.search(queries_QD, nprobe, search_effort(nprobe, ef_search))

    def serialize(self) -> bytes:
        """The graph without the centroids."""
        return faiss.serialize_index(self._centroids.graph(), faiss.IO_FLAG_SKIP_STORAGE).tobytes()

    @classmethod
    def read(cls, path: str | os.PathLike, centroids_VD: np.ndarray, *, inner_product: bool = False) -> "CoarseGraph":
        """Read a file of what `serialize` returned, for the same centroids.

        Raises:
            DataError: the file is missing, damaged, or the graph of other centroids.
        """
        graph = read_faiss_file(path)
        if not isinstance(graph, faiss.IndexHNSWFlat) or graph.storage is not None:
            raise DataError(f"{path} is not an HNSW graph without vectors")
        metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
        is_theirs = (graph.ntotal, graph.d, graph.metric_type) == (*centroids_VD.shape, metric)
        if not is_theirs or graph.hnsw.levels.size() != graph.ntotal:
            raise DataError(f"{path} is the graph of other centroids, or damaged")
        found = cls(centroids_VD, inner_product=inner_product)
        found._centroids.use_graph(graph)
        return found
