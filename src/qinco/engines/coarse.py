"""The nearest coarse centroids (IVF): exactly where they are few, through a graph (HNSW) where they are many.

Shape suffixes: N vectors, Q queries, D dimension, V centroids, P lists that are probed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import faiss
import numpy as np
import torch
from torch import Tensor

from qinco.engines.faiss_bytes import FaissBytes
from qinco.errors import DataError
from qinco.maths.distances import closest

GRAPH_LISTS = 4096  # so many centroids are probed through a graph
_EXACT_LISTS = 65_536  # up to so many, comparing with all costs less than a graph's search that hardly ever errs
_ASSIGN_EFFORT = 128
_LINKS = 32


class CoarseAssigner:
    """Finds the nearest of V centroids. Threads may share it.

    centroids_VD:  float32 (V, D), in the space of the vectors
    inner_product: whether `probe` seeks the largest inner products; `assign` always seeks the least distance
    hnsw:          whether `probe` goes through a graph; None: from GRAPH_LISTS centroids on
    """

    def __init__(self, centroids_VD: np.ndarray, *, inner_product: bool = False, hnsw: bool | None = None):
        self.num_lists, self.dim = centroids_VD.shape
        self.inner_product = inner_product
        self.has_graph = self.num_lists >= GRAPH_LISTS if hnsw is None else hnsw
        self._centroids_VD = np.ascontiguousarray(centroids_VD, np.float32)
        self._indexes: dict[tuple[bool, bool], faiss.Index] = {}
        self._lock = Lock()

    def assign(self, x_ND: np.ndarray) -> np.ndarray:
        """List numbers, int64 (N,), of float32 vectors (N, D): exact up to 65,536 centroids, nearly so above."""
        if self.num_lists <= _EXACT_LISTS:
            return self._search(x_ND, 1, inner_product=False)[1][:, 0]
        return self._search(x_ND, 1, inner_product=False, effort=_ASSIGN_EFFORT)[1][:, 0]

    def probe(self, queries_QD: np.ndarray, nprobe: int, ef_search: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest `nprobe` centroids of float32 queries, nearest first, or all V where there are fewer.

        ef_search: effort of the graph's search (HNSW's efSearch); fitted to nprobe if None. Ignored without a graph.

        Returns values, float32 (Q, P), squared distances or negative inner products, and lists, int64 (Q, P).
        """
        nprobe = min(nprobe, self.num_lists)
        effort = search_effort(nprobe, ef_search) if self.has_graph else None
        return self._search(queries_QD, nprobe, inner_product=self.inner_product, effort=effort)

    def serialize(self) -> bytes:
        """The graph that `probe` goes through, without the centroids; empty where it needs none."""
        if not self.has_graph:
            return b""
        return faiss.serialize_index(self._index(self.inner_product, True), faiss.IO_FLAG_SKIP_STORAGE).tobytes()

    @classmethod
    def deserialize(
        cls, data: bytes | str | os.PathLike, centroids_VD: np.ndarray, *, inner_product: bool = False
    ) -> "CoarseAssigner":
        """What `serialize` gave, or a file of it, for the same centroids. Raises DataError for anything else."""
        is_path = not isinstance(data, bytes)
        try:
            content = np.fromfile(data, np.uint8) if is_path else np.frombuffer(data, np.uint8)
        except OSError as error:
            raise DataError(f"cannot read {Path(data)}: {error.strerror or error}") from error
        assigner = cls(centroids_VD, inner_product=inner_product, hnsw=len(content) > 0)
        if assigner.has_graph:
            name = f"{Path(data)}" if is_path else "the graph of the coarse centroids"
            assigner._indexes[inner_product, True] = assigner._graph_of(content, name)
        return assigner

    def _graph_of(self, content: np.ndarray, name: str) -> faiss.IndexHNSWFlat:
        reader = FaissBytes(content, name)
        centroids_VD, is_graph = reader.coarse_quantizer(self.dim, self.num_lists, self.inner_product)
        if not is_graph or centroids_VD is not None or reader.position != len(content):
            reader.fail("it is no graph without its centroids, or has bytes after its end")
        try:
            graph = faiss.deserialize_index(content)
        except (RuntimeError, MemoryError) as error:
            raise DataError(f"{name} cannot be read: {faiss_reason(error)}") from error
        graph.storage = self._index(self.inner_product, False)  # which lives as long as self
        graph.own_fields = False
        return graph

    def _search(
        self, x_ND: np.ndarray, count: int, *, inner_product: bool, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and numbers of the nearest centroids, exactly if no effort is given."""
        x_ND = np.ascontiguousarray(x_ND, np.float32)
        index = self._index(inner_product, effort is not None)
        if effort is None:
            values, lists = index.search(x_ND, count)
        else:
            values, lists = index.search(x_ND, count, params=faiss.SearchParametersHNSW(efSearch=effort))
            # A graph of centroids that coincide may not lead to all of them.
            missed = np.flatnonzero((lists < 0).any(1))
            if missed.size:
                exact = faiss.downcast_index(index.storage)
                values[missed], lists[missed] = exact.search(x_ND[missed], count)
        return (-values if inner_product else values), lists

    def _index(self, inner_product: bool, is_graph: bool) -> faiss.Index:
        """The index of one kind, made when it is first needed."""
        with self._lock:
            index = self._indexes.get((inner_product, is_graph))
            if index is None:
                metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
                index = faiss.IndexHNSWFlat(self.dim, _LINKS, metric) if is_graph else faiss.IndexFlat(self.dim, metric)
                with faiss_threads(1 if is_graph else None):  # not every release of faiss builds the same graph in many
                    index.add(self._centroids_VD)
                self._indexes[inner_product, is_graph] = index
            return index


def assigner_of(centroids_VD: Tensor) -> Callable[[Tensor], Tensor]:
    """What gives the number of the nearest centroid, int64 (N,), of float32 vectors (N, D) on the centroids' device.

    Exact on GPUs, which compare with all centroids; on the processor as `CoarseAssigner` is.
    """
    if centroids_VD.device.type != "cpu":
        return lambda x_ND: closest(x_ND, centroids_VD)[0]
    assigner = CoarseAssigner(centroids_VD.numpy())
    return lambda x_ND: torch.from_numpy(assigner.assign(x_ND.numpy()))


def search_effort(nprobe: int, ef_search: int | None) -> int:
    """HNSW's efSearch: what was asked for, or enough to miss about one list in a thousand; nprobe at least."""
    return max(2 * nprobe, 64) if ef_search is None else max(ef_search, nprobe)


@contextmanager
def faiss_threads(count: int | None) -> Iterator[None]:
    """Let faiss use `count` threads for what the calling thread asks of it in the block; None leaves it alone."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def faiss_reason(error: Exception) -> str:
    """What went wrong, of an exception of faiss, whose messages begin with places in its source."""
    return str(error).rsplit("Error: ", 1)[-1].strip() or type(error).__name__
