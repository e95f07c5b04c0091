"""faiss's own files of IVF additive-quantizer indexes: written from our codes and tables, read, and searched by faiss.

Upstream's indexes are such files. Shape suffixes: V lists, D dimension, M codes of a vector, K codewords, N vectors,
Q queries, P lists that are probed, S vectors of a shortlist.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from threading import Lock

import faiss
import numpy as np

from qinco.atomic import write_atomically
from qinco.engines.faiss_bytes import faiss_reason
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.maths.assignment import search_effort
from qinco.packing import check_codes, check_lists
from qinco.search.faiss_layout import MAX_BITS, MAX_STEPS, FaissLayout, read_layout
from qinco.search.scan import Shortlist
from qinco.vectors.mapped import release_pages

Block = tuple[np.ndarray, np.ndarray, np.ndarray]

_KEY = re.compile(r"IVF(\d{1,9})(?:_HNSW(\d{0,4}))?,(RQ|LSQ)(\d{1,4})x(\d{1,3})(?:_N(?:float|qint8|qint4))?")
_PIECE_FLOATS = 1 << 22
_FEWEST_LINKS, _MOST_LINKS = 2, 512
_SELECTED_AT_ONCE = 1 << 20


def write_faiss(
    path: str | os.PathLike,
    index_key: str,
    centroids_VD: np.ndarray,
    tables_MKD: np.ndarray,
    blocks: Callable[[], Iterable[Block]],
    num_vectors: int,
    *,
    inner_product: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write a faiss index that plain faiss reads and searches, whole or not at all.

    index_key:    faiss's name of it, `IVF{V}[_HNSW{links}],RQ|LSQ{M}x{log2 K}[_Nqint8|_Nqint4|_Nfloat]`
    centroids_VD: float32     tables_MKD: float32, what is added to them
    blocks:       called twice, gives the codes (n, M), list numbers (n,) and ids (n,), integers, of all vectors
    on_progress:  hears how many vectors are done; their norms are the first half of the work

    The index itself is made in memory. Raises ConfigError for a key that is not one of these or that does not fit
    the codes, DataError for codes or lists out of range, or another number of them than `num_vectors`.
    """
    check_index_key(index_key, len(centroids_VD), *tables_MKD.shape[:2])
    with write_atomically(path) as temporary:
        try:
            index = _empty_index(index_key, centroids_VD, tables_MKD, inner_product)
            _fill(index, tables_MKD.shape, len(centroids_VD), blocks, num_vectors, on_progress)
            faiss.write_index(index, str(temporary))
        except MemoryError as error:
            raise ResourceError(f"not enough memory for the index {path} of {num_vectors} vectors") from error
        except RuntimeError as error:
            raise ResourceError(f"cannot write {path}: {faiss_reason(error)}") from error
        try:
            read_layout(temporary)  # faiss does not say so when the disk is full at the end of the file
        except DataError as error:
            raise ResourceError(f"cannot write {path}: what was written is damaged, is the disk full?") from error


class FaissIndex:
    """A faiss file, searched by faiss, which reads it at the first search; made with `open`. Threads may share it.

    centroids:     float32 (V, D)     tables: float32 (M, K, D), whose sum is added to a vector's centroid
    inner_product: whether it seeks large inner products rather than small distances
    has_graph:     whether the nearest centroids are found through a graph (HNSW)
    """

    def __init__(self, layout: FaissLayout):
        self._layout = layout
        self.centroids, self.tables, self.inner_product = layout.centroids_VD, layout.tables_MKD, layout.inner_product
        self.has_graph = layout.has_graph
        self.num_lists, self.dim = self.centroids.shape
        self.code_size, self.codebook_size, _ = self.tables.shape
        self._lock, self._index, self._quantizer = Lock(), None, None

    @classmethod
    def open(cls, path: str | os.PathLike) -> "FaissIndex":
        """Check a file and map it. Raises DataError unless it is a sound IVF index with an additive quantizer."""
        return cls(read_layout(path))

    def __len__(self) -> int:
        return len(self._layout)

    def blocks(self, rows: int = 1 << 16) -> Iterator[Block]:
        """All vectors, by list: codes, uint8 (n, M) (uint16 above 256 codewords), lists, int32, and ids, int64 (n,)."""
        for first in range(0, len(self), rows):
            numbers_N = np.arange(first, min(first + rows, len(self)))
            lists_N = np.searchsorted(self._layout.starts, numbers_N, "right") - 1
            codes_NM, ids_N = self._layout.rows(lists_N, numbers_N - self._layout.starts[lists_N])
            release_pages(self._layout.content[slice(*self._layout.offsets[lists_N[[0, -1]]])])
            yield codes_NM, lists_N.astype(np.int32), ids_N

    def shortlist(self, queries_QD: np.ndarray, num_short: int, nprobe: int, ef_search: int | None = None) -> Shortlist:
        """The `num_short` nearest vectors of float32 queries in the `nprobe` nearest lists, by faiss's tables.

        ef_search: effort of the search for lists where that goes through a graph (HNSW's efSearch); fitted if None
        """
        index, quantizer = self._loaded()
        layout, nprobe = self._layout, min(nprobe, self.num_lists)
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        effort = {"params": faiss.SearchParametersHNSW(efSearch=search_effort(nprobe, ef_search))}
        bases_QP, probes_QP = quantizer.search(queries_QD, nprobe, **(effort if layout.has_graph else {}))
        shape = (len(queries_QD), num_short)
        values_QS, places_QS = np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int64)
        if num_short:
            index.search_preassigned_c(
                len(queries_QD), faiss.swig_ptr(queries_QD), num_short, faiss.swig_ptr(probes_QP),
                faiss.swig_ptr(bases_QP), faiss.swig_ptr(values_QS), faiss.swig_ptr(places_QS), True,
                faiss.SearchParametersIVF(nprobe=nprobe),
            )  # fmt: skip
        found = places_QS >= 0
        values_QS = np.where(found, -values_QS if layout.inner_product else values_QS, np.float32(np.inf))
        ids_QS, lists_QS = np.full(shape, -1, np.int64), np.full(shape, -1, np.int32)
        lists_QS[found] = places_QS[found] >> 32  # faiss packs the list and the place in it
        codes_NM, ids_QS[found] = layout.rows(places_QS[found] >> 32, places_QS[found] & 0xFFFFFFFF)
        codes_QSM = np.zeros((*shape, self.code_size), codes_NM.dtype)
        codes_QSM[found] = codes_NM
        sizes_QP = np.where(probes_QP >= 0, np.diff(layout.starts)[probes_QP], 0)
        return Shortlist(values_QS, ids_QS, lists_QS, codes_QSM, sizes_QP.sum(1))

    def _loaded(self) -> tuple:
        with self._lock:
            if self._index is None:
                path = self._layout.path
                try:  # the tables that are left out are for encoding, and quadratic in the codebooks' sizes
                    index = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
                except MemoryError as error:
                    raise ResourceError(f"not enough memory for the index {path} of {len(self)} vectors") from error
                except RuntimeError as error:
                    raise DataError(f"faiss cannot read {path}: {faiss_reason(error)}") from error
                self._index, self._quantizer = index, faiss.downcast_index(index.quantizer)
            return self._index, self._quantizer


def admitted_ids(selector, ids_N: np.ndarray) -> np.ndarray:
    """Those of `ids_N` (integers) that a faiss.IDSelector admits, int64, in ascending order and once each.

    Raises DataError for another object of faiss.
    """
    if not isinstance(selector, faiss.IDSelector):
        raise DataError(f"a filter is an array of ids or a faiss.IDSelector, not a faiss.{type(selector).__name__}")
    parts = (ids_N[first : first + _SELECTED_AT_ONCE] for first in range(0, len(ids_N), _SELECTED_AT_ONCE))
    return _sorted_once(np.concatenate([np.empty(0, np.int64), *(_select(selector, part) for part in parts)]))


def _sorted_once(ids_N: np.ndarray) -> np.ndarray:
    """What np.unique gives, which hashes: a hundred times slower on millions."""
    ids_N = np.sort(ids_N)
    return ids_N[np.diff(ids_N, prepend=ids_N[:1] - 1) != 0]


def _select(selector, ids_N: np.ndarray) -> np.ndarray:
    """A search among points that coincide, which finds all that the selector lets it see."""
    points = faiss.IndexFlatL2(1)
    index = faiss.IndexIDMap(points)
    index.add_with_ids(np.zeros((len(ids_N), 1), np.float32), np.asarray(ids_N, np.int64))
    return index.range_search(np.zeros((1, 1), np.float32), 1.0, params=faiss.SearchParameters(sel=selector))[2]


def check_index_key(index_key: str, num_lists: int, code_size: int, codebook_size: int) -> None:
    """Raise ConfigError unless `write_faiss` can make such an index of such codes."""
    match = _KEY.fullmatch(index_key)
    bits = codebook_size.bit_length() - 1
    usual = f"IVF{num_lists}_HNSW32,RQ{code_size}x{bits}_Nqint8"
    if not match:
        raise ConfigError(f"search.index_key={index_key} is no key of an IVF additive quantizer: give {usual} or alike")
    if code_size > MAX_STEPS or bits > MAX_BITS:
        raise ConfigError(f"faiss files hold at most {MAX_STEPS} codes of {MAX_BITS} bits, not {code_size} of {bits}")
    lists, links, _, steps, width = match.groups()
    if links and not _FEWEST_LINKS <= int(links) <= _MOST_LINKS:
        raise ConfigError(f"search.index_key={index_key}: HNSW takes {_FEWEST_LINKS} to {_MOST_LINKS} links")
    for what, given, there in (("lists", lists, num_lists), ("codes", steps, code_size), ("bits a code", width, bits)):
        if int(given) != there:
            raise ConfigError(f"search.index_key={index_key} is for {given} {what}, there are {there}: give {usual}")


def _empty_index(index_key: str, centroids_VD: np.ndarray, tables_MKD: np.ndarray, inner_product: bool):
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    index = faiss.index_factory(centroids_VD.shape[1], index_key, metric)
    index.quantizer.add(np.ascontiguousarray(centroids_VD, np.float32))
    quantizer = _quantizer_of(index)
    if isinstance(quantizer, faiss.ResidualQuantizer):
        quantizer.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables  # else whoever reads it computes them
    faiss.copy_array_to_vector(np.ascontiguousarray(tables_MKD, np.float32).ravel(), quantizer.codebooks)
    quantizer.is_trained = index.is_trained = True
    return index


def _quantizer_of(index):
    """The additive quantizer of an index, which it lives in."""
    return index.rq if isinstance(index, faiss.IndexIVFResidualQuantizer) else index.lsq


def _fill(
    index, tables_shape: tuple[int, int, int], num_lists: int, blocks: Callable, num_vectors: int, on_progress: Callable
) -> None:
    """Fit the range of the norms to all vectors, then put them into the lists."""
    quantizer, dim = _quantizer_of(index), tables_shape[2]
    done, low, high = 0, np.inf, -np.inf
    for codes_NM, _, _ in _pieces(blocks(), tables_shape, num_lists, num_vectors):
        sums_ND = np.empty((len(codes_NM), dim), np.float32)
        quantizer.decode_unpacked(faiss.swig_ptr(codes_NM), faiss.swig_ptr(sums_ND), len(codes_NM))
        norms_N = np.einsum("nd,nd->n", sums_ND, sums_ND)
        low, high = min(low, norms_N.min()), max(high, norms_N.max())
        done += len(codes_NM)
        on_progress(done // 2)
    quantizer.norm_min = float(low) if done else 0.0
    quantizer.norm_max = float(high) if high > low else quantizer.norm_min + 1.0  # faiss divides by the range
    done = 0
    for codes_NM, lists_N, ids_N in _pieces(blocks(), tables_shape, num_lists, num_vectors):
        packed = np.empty((len(codes_NM), quantizer.code_size), np.uint8)
        quantizer.pack_codes(len(codes_NM), faiss.swig_ptr(codes_NM), faiss.swig_ptr(packed))  # and their norms
        list_bytes = lists_N.astype("<u8")[:, None].view(np.uint8)[:, : index.coarse_code_size()]
        index.add_sa_codes(np.concatenate([list_bytes, packed], axis=1), ids_N)
        done += len(codes_NM)
        on_progress((num_vectors + done) // 2)


def _pieces(
    blocks: Iterable[Block], tables_shape: tuple[int, int, int], num_lists: int, num_vectors: int
) -> Iterator[Block]:
    """The blocks, checked, in pieces of bounded size: codes as int32 and ids as int64, as faiss takes them."""
    steps, codebook_size, dim = tables_shape
    size, done = max(1, _PIECE_FLOATS // dim), 0
    for codes, lists, ids in blocks:
        codes, ids = check_codes(codes, steps, codebook_size), np.asarray(ids)
        lists = check_lists(lists, len(codes), num_lists)
        if codes.shape[1] != steps:
            raise DataError(f"codes have {codes.shape[1]} columns, the tables are for {steps}")
        if ids.shape != lists.shape or ids.dtype.kind not in "iu":
            raise DataError(f"ids must be {len(codes)} integers, one for each code, not {ids.dtype} {ids.shape}")
        for first in range(0, len(codes), size):
            part = slice(first, first + size)
            yield np.ascontiguousarray(codes[part], np.int32), lists[part], np.ascontiguousarray(ids[part], np.int64)
        done += len(codes)
    if done != num_vectors:
        raise DataError(f"there are {done} codes where {num_vectors} were expected")
