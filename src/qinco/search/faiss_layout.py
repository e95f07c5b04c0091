"""Where things lie in a file of a faiss IVF additive-quantizer index; it is checked before faiss reads any of it.

Shape suffixes: V lists, D dimension, M codes of a vector, K codewords, N vectors.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.engines.faiss_bytes import FaissBytes
from qinco.errors import DataError
from qinco.packing import packed_size, unpack_codes
from qinco.vectors.mapped import file_size, map_file, read_start

MAX_STEPS, MAX_BITS = 256, 16
KINDS = {"IwRQ": "residual quantizer", "IwLS": "local search quantizer"}
_NORM_BITS = {0: 0, 1: 0, 3: 32, 4: 8, 5: 4}  # by faiss's Search_type_t: what is stored of each vector's norm


@dataclass(frozen=True, eq=False)
class FaissLayout:
    """The contents of the file; the arrays are views of its memory map.

    centroids_VD: float32 (V, D)     tables_MKD: float32 (M, K, D), codebooks of x - centroid     bits: log2 K
    starts:       int64 (V + 1,), the number of each list's first vector, and N
    offsets:      int64 (V,), the byte at which a list begins: its codes of `code_bytes` each, then its ids of 8
    """

    path: Path
    content: np.ndarray
    inner_product: bool
    has_graph: bool
    centroids_VD: np.ndarray
    tables_MKD: np.ndarray
    bits: int
    code_bytes: int
    starts: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, lists_N: np.ndarray, places_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes, uint8 (n, M), uint16 above 256 codewords, and ids, int64 (n,), of the vectors at places of lists."""
        steps = len(self.tables_MKD)
        begins = self.offsets[lists_N]
        codes = begins + places_N * self.code_bytes
        ids = begins + (self.starts[lists_N + 1] - self.starts[lists_N]) * self.code_bytes + places_N * 8
        packed = self.content[codes[:, None] + np.arange(packed_size(steps, self.bits))]
        return unpack_codes(packed, steps, self.bits), self.content[ids[:, None] + np.arange(8)].view("<i8")[:, 0]


def read_layout(path: str | os.PathLike) -> FaissLayout:
    """The layout of a faiss file. Raises DataError for any other file, and a damaged or unsupported one."""
    path = Path(path)
    size = file_size(path)
    kind = read_start(path, 4).decode("latin-1")
    if kind not in KINDS:
        raise DataError(
            f"{path} holds no index of the supported kinds: its first bytes are {kind!r}, those of a faiss IVF index "
            f"with an additive quantizer (RQ, LSQ) are one of {', '.join(KINDS)}"
        )
    reader = FaissBytes(map_file(path, np.dtype(np.uint8), (size,)), str(path))
    reader.kind()
    dim, count, inner_product = reader.header()
    num_lists, _ = reader.number("<u8"), reader.number("<u8")
    if not 1 <= num_lists <= len(reader.content):
        reader.fail(f"it has {num_lists} lists")
    centroids_VD, has_graph = reader.coarse_quantizer(dim, num_lists, inner_product)
    if centroids_VD is None:
        reader.fail("its centroids are missing")
    _skip_direct_map(reader)
    code_bytes = reader.number("<u8")
    tables_MKD, bits, expected = _read_quantizer(reader, kind, dim)
    if code_bytes != expected:
        reader.fail(f"its codes take {code_bytes} bytes, {len(tables_MKD)} of {bits} bits and the norm need {expected}")
    if not reader.flag():
        reader.fail("its codes are not relative to the centroids (by_residual), which is not supported")
    reader.number("<i4")
    starts, offsets = _read_lists(reader, num_lists, code_bytes, count)
    return FaissLayout(
        path, reader.content, inner_product, has_graph, np.require(centroids_VD, np.float32, "CA"),
        tables_MKD, bits, code_bytes, starts, offsets,
    )  # fmt: skip


def _skip_direct_map(reader: FaissBytes) -> None:
    kind = reader.number("u1")
    if kind > 2:
        reader.fail(f"its map of ids is of the kind {kind}")
    reader.vector("<i8")
    if kind == 2:
        reader.array("<i8", 2 * reader.number("<u8"))


def _read_quantizer(reader: FaissBytes, kind: str, dim: int) -> tuple[np.ndarray, int, int]:
    """The tables, float32 (M, K, D), log2 K, and the bytes of a vector's codes and norm."""
    inner_dim, steps = reader.number("<u8"), reader.number("<u8")
    if inner_dim != dim or not 1 <= steps <= MAX_STEPS:
        reader.fail(f"its {KINDS[kind]} has {steps} steps in {inner_dim} dimensions, the index has {dim}")
    bits_M = reader.vector("<u8", steps)
    bits = int(bits_M[0])
    if (bits_M != bits).any() or not 1 <= bits <= MAX_BITS:
        reader.fail(f"its codebooks have {bits_M.tolist()} bits: all must have the same, {MAX_BITS} at most")
    is_trained = reader.flag()
    tables_MKD = reader.vector("<f4", steps * dim << bits).reshape(steps, 1 << bits, dim)
    search_type, low, high = reader.number("<i4"), reader.number("<f4"), reader.number("<f4")
    if search_type not in _NORM_BITS:
        reader.fail(f"its way to store norms, faiss's number {search_type}, is not supported")
    if not is_trained or not np.isfinite(tables_MKD).all():
        reader.fail("its codebooks are not trained or not finite")
    if search_type in (4, 5) and not (np.isfinite((low, high)).all() and low <= high):
        reader.fail(f"its norms range from {low} to {high}")
    if kind == "IwRQ":
        reader.number("<i4")
        if reader.number("<i4") < 1:
            reader.fail("its beam is empty")
    else:
        reader.array("<u8", 5)
        reader.array("<f4", 2)
        reader.array("<u8", 1)
        reader.array("<i4", 1)
        reader.array("<u8", 1)
        reader.flag()
    return np.require(tables_MKD, np.float32, "CA"), bits, (steps * bits + _NORM_BITS[search_type] + 7) // 8


def _read_lists(reader: FaissBytes, num_lists: int, code_bytes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the lists begin: in vectors (V + 1,) and in bytes (V,)."""
    kind = reader.kind()
    if kind != "ilar":
        reader.fail(f"its inverted lists are of the kind {kind!r}: only those within the file ('ilar') are supported")
    if (reader.number("<u8"), reader.number("<u8")) != (num_lists, code_bytes):
        reader.fail("its inverted lists have another number or other codes than itself")
    form = reader.kind()
    sizes = np.zeros(num_lists, np.uint64)
    if form == "full":
        sizes[:] = reader.vector("<u8", num_lists)
    elif form == "sprs":
        pairs = reader.vector("<u8")
        if len(pairs) % 2 or (pairs[::2] >= num_lists).any():
            reader.fail("the sizes of its lists are damaged")
        sizes[pairs[::2].astype(np.int64)] = pairs[1::2]
    else:
        reader.fail(f"the sizes of its lists are of the kind {form!r}")
    left = len(reader.content) - reader.position
    total = int(sizes.sum(dtype=np.float64))  # in floats, which do not wrap around
    if total != count or count * (code_bytes + 8) != left:
        reader.fail(f"it has {left} bytes of lists for {total} vectors, its header says {count} vectors")
    starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64))])
    return starts, reader.position + starts[:-1] * (code_bytes + 8)
