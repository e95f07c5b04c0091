"""ctypes binding of the search in inverted lists.

Shape suffixes: V lists, D dimension, M codes of a vector, Q queries, P lists visited, S vectors of a shortlist.
"""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_int32, c_int64, c_void_p

import numpy as np

from qinco.errors import ResourceError
from qinco.native.bits import num_words
from qinco.native.library import LEVELS, address, check_memory, compiled, level, run

ENTRIES = 256
_REMEDY = "fewer queries at a time (batch_size) or fewer threads"


class _Sizes(Structure):
    _fields_ = [(name, c_int32) for name in ("dim", "lists", "steps", "inner_product")]


class _Segment(Structure):
    _fields_ = [(name, c_void_p) for name in ("starts", "codes", "ids", "admitted")] + [("ids_are_wide", c_int32)]


class _Scan(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("queries", "probes", "bases", "segments")),
        ("count", c_int64),
        *((name, c_int32) for name in ("num_segments", "num_probes", "num_short", "nprobe")),
        *((name, c_void_p) for name in ("values", "ids", "lists", "codes", "norm_codes", "scanned")),
    ]


class NativeScanner:
    """A copy of centroids (V, D), tables (M, 256, D) and levels (256,), float32, in the layout of the kernels.

    Values are squared L2 distances or negative inner products: the smaller the nearer.
    """

    def __init__(self, centroids_VD: np.ndarray, tables_MKD: np.ndarray, levels: np.ndarray, inner_product: bool):
        self._scanner = None
        (self.num_lists, self.dim), self.steps = centroids_VD.shape, len(tables_MKD)
        assert tables_MKD.shape == (self.steps, ENTRIES, self.dim) and levels.shape == (ENTRIES,)
        given = [np.ascontiguousarray(array, np.float32) for array in (centroids_VD, tables_MKD, levels)]
        sizes = _Sizes(self.dim, self.num_lists, self.steps, inner_product)
        self._scanner = compiled().qinco_create_scanner(
            byref(sizes), *(array.ctypes.data for array in given), LEVELS.index(level())
        )
        if not self._scanner:
            raise ResourceError("out of memory: the look-up tables cannot be packed for the native engine")

    def __reduce__(self):
        raise TypeError("a packed scanner cannot be copied: make another")  # it would be freed twice

    def __del__(self):
        if self._scanner:
            compiled().qinco_destroy_scanner(self._scanner)

    def probe(self, queries_QD: np.ndarray, nprobe: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest centroids in order, int32 (Q, nprobe), and the values of their lists, float32 (Q, nprobe)."""
        queries_QD = self._rows(queries_QD)
        assert 1 <= nprobe <= self.num_lists
        shape = (len(queries_QD), nprobe)
        probes_QP, bases_QP = np.empty(shape, np.int32), np.empty(shape, np.float32)
        failed = run(
            lambda: compiled().qinco_probe(
                self._scanner, address(queries_QD), len(queries_QD), nprobe, threads, address(probes_QP),
                address(bases_QP),
            ),
            2.0 * len(queries_QD) * self.num_lists * self.dim,
        )  # fmt: skip
        check_memory(failed, _REMEDY)
        return probes_QP, bases_QP

    def scan(
        self, queries_QD: np.ndarray, probes_QP: np.ndarray, bases_QP: np.ndarray, segments: Sequence, num_short: int,
        *, nprobe: int, admitted: Sequence[np.ndarray | None] | None, threads: int,
    ) -> tuple[np.ndarray, ...]:  # fmt: skip
        """Search lists for the vectors of smallest value. Of equal values, the first one visited comes first.

        Args:
            queries_QD: float32 (Q, D).
            probes_QP: lists to visit, int32 (Q, P).
            bases_QP: values of these lists, float32 (Q, P).
            segments: objects with `starts` int64 (V + 1,), `codes` uint8, `ids` uint32 or int64 (N,); see lists.h.
            nprobe: lists to visit for each query.
            admitted: of each segment the bits of positions that may be found, uint64 (⌈N / 64⌉,), or None for all.

        Returns:
            Values, float32 (Q, S); ids, int64 (Q, S); lists, int32 (Q, S); codes, uint8 (Q, S, M); norm codes,
            uint8 (Q, S); and the number of vectors scanned, int64 (Q,). Missing results are +inf, -1, -1 and zeros;
            values that overflow are missing.
        """
        queries_QD, probes_QP = self._rows(queries_QD), np.ascontiguousarray(probes_QP, np.int32)
        bases_QP = np.ascontiguousarray(bases_QP, np.float32)
        assert probes_QP.shape == bases_QP.shape and len(probes_QP) == len(queries_QD)
        assert num_short >= 1 and probes_QP.max(initial=-1) < self.num_lists
        shape = (len(queries_QD), num_short)
        results = (
            np.empty(shape, np.float32), np.empty(shape, np.int64), np.empty(shape, np.int32),
            np.empty((*shape, self.steps), np.uint8), np.empty(shape, np.uint8), np.empty(len(queries_QD), np.int64),
        )  # fmt: skip
        bits = [None] * len(segments) if admitted is None else admitted
        parts = map(self._segment, segments, bits)
        given = (_Segment * len(segments))(*parts)
        request = _Scan(
            address(queries_QD), address(probes_QP), address(bases_QP), ctypes.addressof(given), len(queries_QD),
            len(segments), probes_QP.shape[1], num_short, nprobe, *map(address, results),
        )  # fmt: skip
        looked_up = sum(len(segment.ids) for segment in segments) * probes_QP.shape[1] / self.num_lists * self.steps
        operations = len(queries_QD) * (looked_up + 2.0 * self.steps * ENTRIES * self.dim)
        kept = request, given, segments, admitted, queries_QD, probes_QP, bases_QP, results
        failed = run(lambda: compiled().qinco_scan_lists(self._scanner, byref(kept[0]), threads), operations)
        check_memory(failed, _REMEDY)
        return results

    def norms(self, codes_NM: np.ndarray, lists_N: np.ndarray, threads: int) -> np.ndarray:
        """2 <c, r> + |r|^2 of codes and their lists' centroids c, r being the sum of a code's rows: float32 (N,)."""
        codes_NM, lists_N = np.ascontiguousarray(codes_NM, np.uint8), np.ascontiguousarray(lists_N, np.int32)
        assert codes_NM.shape == (len(lists_N), self.steps) and ((lists_N >= 0) & (lists_N < self.num_lists)).all()
        norms_N = np.empty(len(lists_N), np.float32)
        failed = run(
            lambda: compiled().qinco_scalars(
                self._scanner, address(codes_NM), address(lists_N), len(lists_N), threads, address(norms_N)
            ),
            4.0 * codes_NM.size * self.dim,
        )
        check_memory(failed, _REMEDY)
        return norms_N

    def _rows(self, queries_QD: np.ndarray) -> np.ndarray:
        assert queries_QD.ndim == 2 and queries_QD.shape[1] == self.dim
        return np.ascontiguousarray(queries_QD, np.float32)

    def _segment(self, segment, admitted: np.ndarray | None) -> _Segment:
        assert segment.starts.dtype == np.int64 and len(segment.starts) == self.num_lists + 1
        assert segment.codes.dtype == np.uint8 and len(segment.codes) == (self.steps + 1) * len(segment.ids)
        assert segment.ids.dtype in (np.uint32, np.int64) and segment.starts[-1] == len(segment.ids)
        arrays = segment.starts, segment.codes, segment.ids
        assert all(array.flags.c_contiguous for array in arrays)
        if admitted is not None:
            assert admitted.dtype == np.uint64 and admitted.flags.c_contiguous
            assert admitted.shape == (num_words(len(segment.ids)),)
        addresses = [array.ctypes.data for array in arrays]  # `address` is slow for arrays that are not written to
        return _Segment(*addresses, address(admitted), segment.ids.dtype == np.int64)
