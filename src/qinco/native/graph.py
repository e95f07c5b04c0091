"""ctypes binding of HNSW graphs (arXiv 1603.09320), whose links are plain arrays.

Shape suffixes: V vectors, N queries, D dimension, R results of a query.
"""

from ctypes import Structure, addressof, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import partial

import numpy as np

from qinco.native.library import LEVELS, address, check_memory, compiled, level, run

LINKS = 32
BUILD_EFFORT = 40
_REMEDY = "fewer vectors at a time or fewer threads"


@dataclass(frozen=True, eq=False)
class Links:
    """The links of a graph, in the layout of faiss.

    Attributes:
        levels: int32 (V,), on how many levels each vector is.
        offsets: int64 (V + 1,), where the links of each vector begin in `neighbors`: 2M of level 0, then M a level.
        neighbors: int32, numbers of vectors; -1 after the last one of a level.
        entry: a vector of the highest level.
        links: M.
    """

    levels: np.ndarray
    offsets: np.ndarray
    neighbors: np.ndarray
    entry: int
    links: int = LINKS

    def are_sound(self) -> bool:
        """Whether a search stays within the arrays."""
        levels, count = self.levels, len(self.levels)
        if not count or levels.min() < 1 or self.links < 1 or not 0 <= self.entry < count:
            return False
        steps = (levels.astype(np.int64) + 1) * self.links
        is_laid_out = self.offsets.shape == (count + 1,) and self.offsets[0] == 0
        if (
            not is_laid_out
            or not np.array_equal(np.diff(self.offsets), steps)
            or self.offsets[-1] != len(self.neighbors)
        ):
            return False
        if self.neighbors.min() < -1 or self.neighbors.max() >= count or levels[self.entry] != levels.max():
            return False
        for above in range(1, levels.max()):  # who is linked to on a level is on it
            begins = self.offsets[:-1][levels > above] + (above + 1) * self.links
            linked = self.neighbors[begins[:, None] + np.arange(self.links)]
            if (levels[linked[linked >= 0]] <= above).any():
                return False
        return True


class _Graph(Structure):
    """`qinco_graph` in nearest.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("vectors", "levels", "offsets", "neighbors", "order")),
        ("count", c_int64),
        *((name, c_int32) for name in ("dim", "links", "entry", "inner_product")),
    ]


class NativeGraph:
    """An HNSW graph over vectors, float32 (V, D), for squared L2 distances or inner products.

    The vectors and links are not copied where they are contiguous arrays of these types. Without links, a graph is
    built: the same one for the same vectors and seed.
    """

    def __init__(
        self, vectors_VD: np.ndarray, links: Links | None = None, *, inner_product: bool = False, seed: int = 0
    ):
        self._vectors_VD = np.ascontiguousarray(vectors_VD, np.float32)
        self.count, self.dim = self._vectors_VD.shape
        assert 1 <= self.count < 1 << 31 and self.dim >= 1
        self._level, self._inner_product = LEVELS.index(level()), inner_product
        if links is None:
            links = self._build(np.random.default_rng(seed))
        assert links.levels.shape == (self.count,) and links.levels.dtype == links.neighbors.dtype == np.int32
        assert links.offsets.dtype == np.int64 and all(
            array.flags.c_contiguous for array in (links.levels, links.offsets, links.neighbors)
        )
        self.links = links
        self._graph = self._described(links)

    def search(self, x_ND: np.ndarray, count: int, effort: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest that are found, nearest first, by HNSW's efSearch `effort`, at least `count`.

        Returns squared distances or negative inner products, float32 (N, R), and numbers, int64 (N, R); +inf and -1
        where so many are not reached.
        """
        assert x_ND.ndim == 2 and x_ND.shape[1] == self.dim
        x_ND, effort = np.ascontiguousarray(x_ND, np.float32), min(max(count, effort), self.count)
        values_NR, numbers_NR = np.empty((len(x_ND), count), np.float32), np.empty((len(x_ND), count), np.int64)
        failed = run(
            lambda: compiled().qinco_search_graph(
                addressof(self._graph), address(x_ND), len(x_ND), count, effort, threads, address(values_NR),
                address(numbers_NR), self._level,
            ),
            2.0 * len(x_ND) * effort * self.links.links * self.dim,
        )  # fmt: skip
        check_memory(failed, _REMEDY)
        return values_NR, numbers_NR

    def _build(self, random: np.random.Generator) -> Links:
        drawn = -np.log(1 - random.random(self.count)) / np.log(LINKS)
        levels = drawn.astype(np.int32) + np.int32(1)
        offsets = np.concatenate([[0], np.cumsum((levels.astype(np.int64) + 1) * LINKS)])
        order = random.permutation(self.count)
        order = order[np.argsort(-levels[order], kind="stable")].astype(np.int32)
        links = Links(levels, offsets, np.empty(offsets[-1], np.int32), int(order[0]))
        graph = self._described(links, order)
        build = partial(compiled().qinco_build_graph, addressof(graph), BUILD_EFFORT, self._level)
        check_memory(run(build, 4.0 * self.count * BUILD_EFFORT * LINKS * self.dim), "fewer lists")
        return links

    def _described(self, links: Links, order: np.ndarray | None = None) -> _Graph:
        arrays = self._vectors_VD, links.levels, links.offsets, links.neighbors, order
        return _Graph(*map(address, arrays), self.count, self.dim, links.links, links.entry, self._inner_product)
