"""What faiss writes of coarse quantizers, checked before faiss reads it.

faiss allocates whatever a damaged size asks for, and not every release of it checks that a graph's links stay inside
the graph. Shape suffixes: V centroids, D dimension.
"""

from typing import NoReturn

import numpy as np

from qinco.errors import DataError

_MAX_DIM = 1 << 20
_FLAT = {"IxF2": False, "IxFI": True, "IxFl": None}


class FaissBytes:
    """A walk through bytes that faiss wrote. Every method raises DataError, about `name`, where they are not valid.

    content: uint8 (n,), the whole file, which may be a memory map: what the methods return are views of it
    """

    def __init__(self, content: np.ndarray, name: str):
        self.content, self.name, self.position = content, name, 0

    def fail(self, reason: str) -> NoReturn:
        raise DataError(f"{self.name} is not a sound faiss index: {reason}")

    def array(self, dtype: str, count: int) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        left = len(self.content) - self.position
        if size > left:
            self.fail(f"at byte {self.position} it needs {size} more bytes and has {left} (truncated or damaged)")
        self.position += size
        return self.content[self.position - size : self.position].view(dtype)

    def number(self, dtype: str):
        return self.array(dtype, 1)[0].item()

    def flag(self) -> bool:
        value = self.number("u1")
        if value > 1:
            self.fail(f"a flag at byte {self.position - 1} is {value}")
        return bool(value)

    def vector(self, dtype: str, expected: int | None = None) -> np.ndarray:
        """An array that follows its length."""
        count = self.number("<u8")
        if expected is not None and count != expected:
            self.fail(f"it has {count} values before byte {self.position} where {expected} belong")
        return self.array(dtype, count)

    def kind(self) -> str:
        """The four letters that say what follows."""
        return self.array("u1", 4).tobytes().decode("latin-1")

    def header(self) -> tuple[int, int, bool]:
        """What every index begins with: its dimension, its number of vectors, whether it seeks inner products."""
        dim, count = self.number("<i4"), self.number("<i8")
        self.array("<i8", 2)
        is_trained, metric = self.flag(), self.number("<i4")
        if not 1 <= dim <= _MAX_DIM or count < 0 or metric not in (0, 1) or not is_trained:
            self.fail(f"its header says dimension {dim}, {count} vectors, metric {metric}, trained {is_trained}")
        return dim, count, metric == 0

    def coarse_quantizer(self, dim: int, count: int, inner_product: bool) -> tuple[np.ndarray | None, bool]:
        """Centroids, float32 (V, D), and whether a graph leads to them; None if the bytes hold the graph alone.

        dim, count, inner_product: what they must be
        """
        kind = self.kind()
        if kind not in _FLAT and kind != "IHNf":
            self.fail(f"its coarse quantizer is of the kind {kind!r}: flat and HNSW ones are supported")
        if self.header() != (dim, count, inner_product):
            self.fail("its coarse quantizer has another dimension, number of lists or metric than itself")
        if kind == "IHNf":
            self._graph(count)
            kind = self.kind()
            if kind == "null":
                return None, True
            if kind not in _FLAT or self.header() != (dim, count, inner_product):
                self.fail("the centroids of its graph are missing or others")
            return self._flat(kind, dim, count, inner_product), True
        return self._flat(kind, dim, count, inner_product), False

    def _flat(self, kind: str, dim: int, count: int, inner_product: bool) -> np.ndarray:
        if _FLAT[kind] not in (None, inner_product):
            self.fail("its centroids contradict its metric")
        centroids_VD = self.vector("<f4", count * dim).reshape(count, dim)
        if not np.isfinite(centroids_VD).all():
            self.fail("its centroids are not finite")
        return centroids_VD

    def _graph(self, count: int) -> None:
        """Walk past an HNSW graph of `count` nodes, all of whose links lead to nodes of the link's level."""
        self.vector("<f8")
        widths = self.vector("<i4").astype(np.int64)  # links of a node of one level, of two, ...: cumulative
        levels, offsets = self.vector("<i4", count), self.vector("<u8", count + 1)
        links = self.vector("<i4")
        entry, top = self.number("<i4"), self.number("<i4")
        efforts = self.number("<i4"), self.number("<i4")
        self.number("<i4")
        self._require(len(widths) > 1 and widths[0] == 0 and (np.diff(widths) >= 0).all())
        self._require(count > 0 and levels.min() >= 1 and levels.max() < len(widths) and min(efforts) >= 1)
        self._require(offsets[0] == 0 and offsets[-1] == len(links))
        self._require(np.array_equal(np.diff(offsets.astype(np.int64)), widths[levels]))
        self._require(links.size == 0 or (links.min() >= -1 and links.max() < count))
        self._require(0 <= entry < count and levels[entry] == top + 1)
        for level in range(1, levels.max()):
            nodes = np.flatnonzero(levels > level)
            places = offsets[nodes, None].astype(np.int64) + np.arange(widths[level], widths[level + 1])
            targets = links[places]
            self._require((levels[targets[targets >= 0]] > level).all())

    def _require(self, is_sound: bool) -> None:
        if not is_sound:
            self.fail("the graph of its coarse quantizer is damaged")


def faiss_reason(error: Exception) -> str:
    """The message of an exception of faiss without the source location that precedes it."""
    return str(error).rsplit("Error: ", 1)[-1].strip() or type(error).__name__
