"""Which lists to scan: the coarse centroids nearest to a query, found through an HNSW graph where there are many.

Shape suffixes: Q queries, D dimension, V centroids, L lists that are probed.
"""

import os
from pathlib import Path

import faiss
import numpy as np

from qinco.engines.faiss_bytes import FaissBytes, faiss_reason
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
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(f"cannot read {Path(path)}: {error.strerror or error}") from error
        reader = FaissBytes(content, str(path))
        stored_VD, is_graph = reader.coarse_quantizer(*centroids_VD.shape[::-1], inner_product)
        if not is_graph or stored_VD is not None or reader.position != len(content):
            reader.fail("it is not an HNSW graph without vectors, or it has bytes after its end")
        try:
            graph = faiss.deserialize_index(content)
        except (RuntimeError, MemoryError) as error:
            raise DataError(f"faiss cannot read {Path(path)}: {faiss_reason(error)}") from error
        found = cls(centroids_VD, inner_product=inner_product)
        found._centroids.use_graph(graph)
        return found
