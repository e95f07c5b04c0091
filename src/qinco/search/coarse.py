"""Which lists to scan: the coarse centroids nearest to a query, found through an HNSW graph where there are many.

Shape suffixes: Q queries, D dimension, V centroids.
"""

import os

import faiss
import numpy as np

from qinco.compat.faiss_files import read_faiss_file
from qinco.errors import DataError
from qinco.maths.assignment import NearestCentroids, search_effort

MIN_GRAPH_LISTS = 4096  # so many centroids are searched through a graph


class CoarseGraph(NearestCentroids):
    """An HNSW graph over the coarse centroids."""

    def probe(self, queries_QD: np.ndarray, nprobe: int, ef_search: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `nprobe` nearest centroids as `search` gives them, all V where there are fewer.

        `ef_search` is HNSW's efSearch; fitted to nprobe if None.
        """
        nprobe = min(nprobe, self.num_lists)
        return self.search(queries_QD, nprobe, search_effort(nprobe, ef_search))

    def serialize(self) -> bytes:
        """The graph without the centroids."""
        return faiss.serialize_index(self.graph(), faiss.IO_FLAG_SKIP_STORAGE).tobytes()

    @classmethod
    def read(cls, path: str | os.PathLike, centroids_VD: np.ndarray, *, inner_product: bool = False) -> "CoarseGraph":
        """Read a file of what `serialize` returned, for the same centroids."""
        graph, found = read_faiss_file(path), cls(centroids_VD, inner_product=inner_product)
        if not isinstance(graph, faiss.IndexHNSWFlat) or graph.storage is not None:
            raise DataError(f"{path} is not an HNSW graph without vectors")
        is_theirs = (graph.ntotal, graph.d, graph.metric_type) == (*centroids_VD.shape, found.flat().metric_type)
        if not is_theirs or graph.hnsw.levels.size() != graph.ntotal:
            raise DataError(f"{path} is the graph of other centroids, or damaged")
        found.use_graph(graph)
        return found
