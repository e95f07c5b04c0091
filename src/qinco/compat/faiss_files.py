"""faiss's files of IVF additive-quantizer indexes: written from codes and tables, read and searched through faiss.

The authors' indexes are such files. Shape suffixes: V lists, D dimension, M codes of a vector, K codewords, N vectors,
Q queries, P lists that are probed, S shortlist.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from qinco.atomic import write_atomically
from qinco.compat.faiss_graphs import graph_fault
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError, DataError, ResourceError, needs_extra
from qinco.forking import new_lock
from qinco.maths.assignment import search_effort
from qinco.native.graph import Links
from qinco.packing import packed_size, unpack_codes
from qinco.progress import ProgressOption, reporting
from qinco.vectors.mapped import file_size, map_file, read_start, release_pages

with needs_extra("a file of faiss", "faiss", "faiss"):
    import faiss

MAX_STEPS, MAX_BITS = 256, 16
_KINDS = {b"IwRQ": "rq", b"IwLS": "lsq"}  # residual quantizer, local search quantizer
_KEY = re.compile(r"IVF(\d{1,9})(?:_HNSW(\d{0,4}))?,(?:RQ|LSQ)(\d{1,4})x(\d{1,3})(?:_N(?:float|qint8|qint4))?")
_NORM_BITS = {0: 0, 1: 0, 3: 32, 4: 8, 5: 4}  # bits of a stored norm by faiss's Search_type_t
_FLAT = faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP
_HEADER = struct.Struct("<4siqqqBi")
_READING = new_lock()  # faiss's limits of reading are those of the process


def read_faiss_file(path: str | os.PathLike, flags: int = 0) -> faiss.Index:
    """What `faiss.read_index` reads, whose promised sizes may not exceed that of the file; DataError if it cannot."""
    size = max(1, file_size(Path(path)))
    with _READING:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(size)
        faiss.set_deserialization_loop_limit(size)
        try:
            return faiss.read_index(str(path), flags)
        except MemoryError as error:
            raise ResourceError(f"not enough memory to read {path} ({size} bytes)") from error
        except RuntimeError as error:
            raise DataError(f"faiss cannot read {path}: {_reason(error)}") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def read_links(path: str | os.PathLike, count: int, dim: int, inner_product: bool) -> Links | None:
    """The links of an HNSW graph in a file without its vectors; None for another index or graph."""
    graph = read_faiss_file(path)
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    is_graph = type(graph) is faiss.IndexHNSWFlat and graph.storage is None
    if not is_graph or (graph.ntotal, graph.d, graph.metric_type) != (count, dim, metric):
        return None
    levels, offsets, neighbors, most = _graph_arrays(graph.hnsw)
    links = int(most[1]) // 2 if len(most) > 1 else 0
    if not np.array_equal(most[1:], links * np.arange(2, len(most) + 1)):
        return None
    return Links(levels, offsets, neighbors, graph.hnsw.entry_point, links)


def _graph_arrays(hnsw: faiss.HNSW) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    names = ("levels", "offsets", "neighbors", "cum_nneighbor_per_level")
    levels, offsets, neighbors, most = (faiss.vector_to_array(getattr(hnsw, name)) for name in names)
    return levels, offsets.astype(np.int64), neighbors, most.astype(np.int64)


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Let faiss use at most `count` of its threads in the block; in a forked child it has one."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(count, before))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _reason(error: Exception) -> str:
    """The message of an exception of faiss without the source location that precedes it."""
    return str(error).rsplit("Error: ", 1)[-1].strip() or type(error).__name__


class FaissIndex:
    """A faiss file of an IVF index with an additive quantizer (RQ, LSQ); DataError for any other. Threads may share it.

    Codes and ids stay in the file. faiss reads the file into memory at the first search.

    Attributes:
        centroids: float32 (V, D).
        tables: float32 (M, K, D); their sum is added to the centroid of a vector's list.
        inner_product: whether it searches for large inner products rather than small distances.
        has_graph: whether the nearest centroids are found through a graph (HNSW).
        bytes_per_vector: bytes of a vector's codes, norm and id.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        file_size(self._path)
        start = read_start(self._path, 4)
        found = start.decode() if start.isalnum() else "unknown"
        self._check(start in _KINDS, f"its type is {found}, those with RQ or LSQ are IwRQ and IwLS")
        index = read_faiss_file(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
        quantizer, coarse = getattr(index, _KINDS[start]), faiss.downcast_index(index.quantizer)
        self.has_graph = type(coarse) is faiss.IndexHNSWFlat
        flat = faiss.downcast_index(coarse.storage) if self.has_graph else coarse
        lists = faiss.downcast_InvertedLists(index.invlists)
        self._check(type(flat) in _FLAT, "its coarse quantizer is neither flat nor HNSW")
        self._check(isinstance(lists, faiss.OnDiskInvertedLists), "its inverted lists are not in the file")
        is_trained = index.is_trained and quantizer.is_trained
        self._check(is_trained and index.by_residual, "it is not trained, or not on residuals (by_residual)")
        self.dim, self.num_lists, self.num_codes = index.d, index.nlist, quantizer.M
        self.inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        metrics, dims = {i.metric_type for i in (index, coarse, flat)}, {i.d for i in (index, coarse, flat, quantizer)}
        counts = {index.nlist, lists.nlist, coarse.ntotal, flat.ntotal}
        is_sound = metrics in ({0}, {1}) and len(dims) == len(counts) == 1
        self._check(is_sound, f"metrics {metrics}, dimensions {dims} or numbers of lists {counts} differ")
        if self.has_graph:
            hnsw = coarse.hnsw
            fault = graph_fault(*_graph_arrays(hnsw), hnsw.entry_point, hnsw.max_level, coarse.ntotal)
            self._check(fault is None, str(fault))
        bits = faiss.vector_to_array(quantizer.nbits).tolist()
        is_sound = len(bits) == self.num_codes <= MAX_STEPS and len(set(bits)) == 1 and 1 <= bits[0] <= MAX_BITS
        self._check(is_sound, f"it has codes of {bits[:9]} bits")
        self._bits, self.codebook_size = bits[0], 1 << bits[0]
        kind, norms = quantizer.search_type, [quantizer.norm_min, quantizer.norm_max]
        is_sound = np.isfinite(norms).all() and norms == sorted(norms)
        self._check(kind in _NORM_BITS and (is_sound or kind not in (4, 5)), f"its norms are of type {kind} in {norms}")
        self._code_bytes = packed_size(1, self.num_codes * self._bits + _NORM_BITS[kind])
        self.bytes_per_vector = self._code_bytes + 8
        tables, centroids = faiss.vector_to_array(quantizer.codebooks), faiss.vector_to_array(flat.codes).view("<f4")
        shape = self.num_codes, self.codebook_size, self.dim
        is_sound = tables.size == math.prod(shape) and centroids.size == self.num_lists * self.dim
        self._check(is_sound and np.isfinite(tables).all() and np.isfinite(centroids).all(), "its tables are damaged")
        self.tables, self.centroids = tables.reshape(shape), centroids.reshape(self.num_lists, self.dim)
        # The lists end the file: of each its codes, then its ids of 8 bytes.
        sizes = np.fromiter(map(lists.list_size, range(self.num_lists)), np.float64, self.num_lists)
        size = index.ntotal * self.bytes_per_vector
        begin = file_size(self._path) - size
        is_sound = sizes.sum() == index.ntotal and 0 < begin == lists.lists.at(0).offset
        self._check(is_sound and {index.code_size, lists.code_size} == {self._code_bytes}, "its lists are damaged")
        self._starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64))])
        self._content = map_file(self._path, np.dtype(np.uint8), (size,), begin)

    def _check(self, is_sound, reason: str) -> None:
        if not is_sound:
            raise DataError(f"{self._path} is not a supported faiss index, or damaged: {reason}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int = 1 << 16) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All vectors, list by list: codes, uint8 (n, M), uint16 above 256 codewords; lists, int32; ids, int64."""
        for first in range(0, len(self), rows):
            numbers_N = np.arange(first, min(first + rows, len(self)))
            lists_N = np.searchsorted(self._starts, numbers_N, "right") - 1
            codes_NM, ids_N = self._rows(lists_N, numbers_N - self._starts[lists_N])
            begin, end = self._starts[lists_N[[0, -1]]] * self.bytes_per_vector
            release_pages(self._content[begin:end])
            yield codes_NM, lists_N.astype(np.int32), ids_N

    def _rows(self, lists_N: np.ndarray, offsets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, M) and ids (n,) of the vectors at offsets in lists."""
        starts_N = self._starts[lists_N]
        codes = starts_N * self.bytes_per_vector + offsets_N * self._code_bytes
        ids = starts_N * 8 + self._starts[lists_N + 1] * self._code_bytes + offsets_N * 8
        packed = self._content[codes[:, None] + np.arange(packed_size(self.num_codes, self._bits))]
        ids_N = self._content[ids[:, None] + np.arange(8)].view("<i8")[:, 0]
        return unpack_codes(packed, self.num_codes, self._bits), ids_N

    def shortlist(
        self, queries_QD: np.ndarray, num_short: int, nprobe: int, ef_search: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The `num_short` nearest vectors of float32 queries in the `nprobe` nearest lists, by faiss's tables.

        A graph is searched with `ef_search` (HNSW's efSearch), which None fits to nprobe. Returns values, float32
        (Q, S), squared distances or negative inner products, +inf where there are no more vectors; ids, int64 (Q, S),
        or -1; lists, int32 (Q, S), or -1; codes (Q, S, M); and the numbers of vectors scanned, int64 (Q,).
        """
        index, quantizer = self._loaded
        nprobe, queries_QD = min(nprobe, self.num_lists), np.ascontiguousarray(queries_QD, np.float32)
        effort = {"params": faiss.SearchParametersHNSW(efSearch=search_effort(nprobe, ef_search))}
        bases_QP, probes_QP = quantizer.search(queries_QD, nprobe, **(effort if self.has_graph else {}))
        shape = (len(queries_QD), num_short)
        values_QS, places_QS = np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int64)
        if num_short:
            index.search_preassigned_c(
                len(queries_QD), faiss.swig_ptr(queries_QD), num_short, faiss.swig_ptr(probes_QP),
                faiss.swig_ptr(bases_QP), faiss.swig_ptr(values_QS), faiss.swig_ptr(places_QS), True,
                faiss.SearchParametersIVF(nprobe=nprobe),
            )  # fmt: skip
        found = places_QS >= 0
        values_QS = np.where(found, -values_QS if self.inner_product else values_QS, np.float32(np.inf))
        ids_QS, lists_QS = np.full(shape, -1, np.int64), np.full(shape, -1, np.int32)
        lists_QS[found] = places_QS[found] >> 32  # faiss packs the list and the offset in it
        codes_NM, ids_QS[found] = self._rows(places_QS[found] >> 32, places_QS[found] & 0xFFFFFFFF)
        codes_QSM = np.zeros((*shape, self.num_codes), codes_NM.dtype)
        codes_QSM[found] = codes_NM
        sizes_QP = np.where(probes_QP >= 0, np.diff(self._starts)[probes_QP], 0)
        return values_QS, ids_QS, lists_QS, codes_QSM, sizes_QP.sum(1)

    @cached_property
    def _loaded(self) -> tuple[faiss.Index, faiss.Index]:
        """The index in memory and its coarse quantizer."""
        # The tables left out are for encoding, and quadratic in the codebooks' sizes.
        index = read_faiss_file(self._path, faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
        is_here = isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.ArrayInvertedLists)
        self._check(is_here, "its inverted lists are not in the file")
        return index, faiss.downcast_index(index.quantizer)


def describe_faiss_file(path: str | os.PathLike) -> dict:
    """Type and sizes of a faiss index of any kind, from its header; of an IVF index with RQ or LSQ its tables too."""
    size, start = file_size(path := Path(path)), read_start(path, _HEADER.size)
    code, dim, num_vectors, _, _, is_trained, metric = _HEADER.unpack(start.ljust(_HEADER.size, b"\xff"))
    if not code.isalnum() or not 0 < dim < 1 << 24 or not 0 <= num_vectors < 1 << 48 or is_trained > 1:
        raise DataError(f"{path} is not a faiss index, or damaged: its header is invalid")
    fields = {
        "kind": "faiss index", "type": code.decode(), "num_vectors": num_vectors, "dim": dim,
        "metric": {0: "inner_product", 1: "l2"}.get(metric, str(metric)), "is_trained": bool(is_trained),
        "bytes_per_vector": round(size / num_vectors, 2) if num_vectors else None,
    }  # fmt: skip
    if code not in _KINDS or not is_trained:
        return fields
    index = FaissIndex(path)
    return fields | {
        "num_lists": index.num_lists, "num_codes": index.num_codes, "codebook_size": index.codebook_size,
        "bytes_per_vector": index.bytes_per_vector, "table_bytes": index.centroids.nbytes + index.tables.nbytes,
    }  # fmt: skip


def selected_ids(selector: faiss.IDSelector, ids_N: np.ndarray, block: int = 1 << 20) -> np.ndarray:
    """The ids of integers (N,) that a selector admits: int64, ascending, each once."""
    if not isinstance(selector, faiss.IDSelector):
        raise DataError(f"a filter is an array of ids or a faiss.IDSelector, not a faiss.{type(selector).__name__}")
    params, parts = faiss.SearchParameters(sel=selector), [np.empty(0, np.int64)]
    for first in range(0, len(ids_N), block):  # a range search over identical points finds all that it admits
        some_N = np.asarray(ids_N[first : first + block], np.int64)
        index = faiss.IndexIDMap(faiss.IndexFlatL2(1))
        index.add_with_ids(np.zeros((len(some_N), 1), np.float32), some_N)
        parts.append(index.range_search(np.zeros((1, 1), np.float32), 1.0, params=params)[2])
    ids_N = np.sort(np.concatenate(parts))
    return ids_N[np.diff(ids_N, prepend=ids_N[:1] - 1) != 0]  # np.unique hashes: far slower on millions


def check_index_key(index_key: str, num_lists: int, num_codes: int, codebook_size: int) -> None:
    """Raise ConfigError unless `write_faiss` can make such an index of such codes."""
    match, bits = _KEY.fullmatch(index_key), codebook_size.bit_length() - 1
    usual = f"IVF{num_lists}_HNSW32,RQ{num_codes}x{bits}_Nqint8"
    if num_codes > MAX_STEPS or bits > MAX_BITS:
        raise ConfigError(f"faiss files hold at most {MAX_STEPS} codes of {MAX_BITS} bits, not {num_codes} of {bits}")
    if not match:
        raise ConfigError(f"search.index_key={index_key} is not an IVF index with RQ or LSQ: use one like {usual}")
    lists, links, *sizes = match.groups()
    if links and not 2 <= int(links) <= 512:
        raise ConfigError(f"search.index_key={index_key}: HNSW takes 2 to 512 links")
    if [int(size) for size in (lists, *sizes)] != [num_lists, num_codes, bits]:
        raise ConfigError(f"search.index_key={index_key} does not fit the codes, which need one like {usual}")


def write_faiss(
    path: str | os.PathLike, index_key: str, lookup: LookupDecoder, codes, *, inner_product: bool = False,
    progress: ProgressOption = None, block_rows: int = 0,
) -> None:  # fmt: skip
    """Write an index that plain faiss reads and searches, made in memory, whole or not at all. Ids are row numbers.

    Args:
        index_key: faiss's name of the index, `IVF{V}[_HNSW{links}],RQ|LSQ{M}x{log2 K}[_Nqint8|_Nqint4|_Nfloat]`.
        lookup: centroids and tables of the codes.
        codes: checked Codes with lists, or what has `len` and their `blocks`.
        progress: see `qinco.progress`; the norms are the first half of the work.
        block_rows: vectors that are added at a time; by default 16 MiB of them.
    """
    check_index_key(index_key, lookup.num_lists, *lookup.tables_MKD.shape[:2])
    rows, total = block_rows or max(1, (1 << 22) // lookup.dim), len(codes)
    with write_atomically(path) as temporary, reporting(progress) as report:
        try:
            index, quantizer = _empty_index(index_key, lookup, inner_product)
            low, high = np.inf, -np.inf  # the range of the norms, which are quantized over it
            for first, block in codes.blocks(rows):
                codes_NM = np.ascontiguousarray(block.codes, np.int32)
                sums_ND = np.empty((len(block), lookup.dim), np.float32)
                quantizer.decode_unpacked(faiss.swig_ptr(codes_NM), faiss.swig_ptr(sums_ND), len(block))
                norms_N = np.einsum("nd,nd->n", sums_ND, sums_ND)
                low, high = min(low, norms_N.min()), max(high, norms_N.max())
                report("filling lists", (first + len(block)) // 2, total)
            quantizer.norm_min = float(low) if low < np.inf else 0.0
            quantizer.norm_max = float(high) if high > low else quantizer.norm_min + 1.0  # faiss divides by the range
            for first, block in codes.blocks(rows):
                codes_NM = np.ascontiguousarray(block.codes, np.int32)
                packed = np.empty((len(block), quantizer.code_size), np.uint8)
                quantizer.pack_codes(len(block), faiss.swig_ptr(codes_NM), faiss.swig_ptr(packed))  # and their norms
                list_bytes = block.lists.astype("<u8")[:, None].view(np.uint8)[:, : index.coarse_code_size()]
                ids_N = np.arange(first, first + len(block))
                index.add_sa_codes(np.concatenate([list_bytes, packed], axis=1), ids_N)  # fast: no loop over lists
                report("filling lists", (total + first + len(block)) // 2, total)
            faiss.write_index(index, str(temporary))
        except MemoryError as error:
            raise ResourceError(f"not enough memory for the index {path}, ntotal {total}") from error
        except RuntimeError as error:
            raise ResourceError(f"cannot write {path}: {_reason(error)}") from error
        try:
            FaissIndex(temporary)  # faiss ignores a disk that is full at the end of the file
        except DataError as error:
            raise ResourceError(f"cannot write {path}: what was written is damaged, is the disk full?") from error


def _empty_index(index_key: str, lookup: LookupDecoder, inner_product: bool):
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    index = faiss.index_factory(lookup.dim, index_key, metric)
    index.quantizer.add(np.ascontiguousarray(lookup.centroids_VD, np.float32))
    quantizer = index.rq if ",RQ" in index_key else index.lsq
    if isinstance(quantizer, faiss.ResidualQuantizer):
        quantizer.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables  # else whoever reads it computes them
    faiss.copy_array_to_vector(np.ascontiguousarray(lookup.tables_MKD, np.float32).ravel(), quantizer.codebooks)
    quantizer.is_trained = index.is_trained = True
    return index, quantizer
