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


class Segment(Structure):
    """The arrays of inverted lists, as the kernels read them: see lists.h. They must outlive it."""

    _fields_ = [(name, c_void_p) for name in ("starts", "codes", "ids", "admitted")] + [("ids_are_wide", c_int32)]

    @classmethod
    def of(cls, starts: np.ndarray, codes: np.ndarray, ids: np.ndarray) -> "Segment":
        """Of starts int64 (V + 1,), codes uint8 (N · (M + 1),), and ids uint32 or int64 (N,)."""
        assert starts.dtype == np.int64 and codes.dtype == np.uint8 and ids.dtype in (np.uint32, np.int64)
        assert starts[-1] == len(ids) and all(array.flags.c_contiguous for array in (starts, codes, ids))
        addresses = (array.ctypes.data for array in (starts, codes, ids))
        return cls(*addresses, None, ids.dtype == np.int64)


class _Scan(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("queries", "probes", "bases", "segments")),
        ("count", c_int64),
        *((name, c_int32) for name in ("num_segments", "num_probes", "num_short", "nprobe")),
        *((name, c_void_p) for name in ("values", "ids", "lists", "codes", "norm_codes", "scanned")),
    ]


class _Sums(Structure):
    _fields_ = [
        ("codes", c_void_p), ("lists", c_void_p), ("count", c_int64),
        *((name, c_void_p) for name in ("decoded", "origin", "mean", "centre", "sums")),
    ]  # fmt: skip


class NativeScanner:
    """A copy of centroids (V, D), tables (M, 256, D) and levels (256,), float32, in the layout of the kernels.

    Values are squared L2 distances or negative inner products: the smaller the nearer. `compared` are the origin of the
    centroids, a mean and a centre, (D,), for `compare`.
    """

    def __init__(
        self, centroids_VD: np.ndarray, tables_MKD: np.ndarray, levels: np.ndarray, inner_product: bool,
        compared: Sequence[np.ndarray] = (),
    ):  # fmt: skip
        self.scanner = None
        (self.num_lists, self.dim), self.steps = centroids_VD.shape, len(tables_MKD)
        assert tables_MKD.shape == (self.steps, ENTRIES, self.dim) and levels.shape == (ENTRIES,)
        given = [np.ascontiguousarray(array, np.float32) for array in (centroids_VD, tables_MKD, levels)]
        self.compared = [np.array(of_D, np.float32) for of_D in compared]
        assert all(of_D.shape == (self.dim,) for of_D in self.compared)
        sizes = _Sizes(self.dim, self.num_lists, self.steps, inner_product)
        self.scanner = compiled().qinco_create_scanner(
            byref(sizes), *(array.ctypes.data for array in given), LEVELS.index(level())
        )
        if not self.scanner:
            raise ResourceError("out of memory: the look-up tables cannot be packed for the native engine")

    def __reduce__(self):
        raise TypeError("a packed scanner cannot be copied: make another")  # it would be freed twice

    def __del__(self):
        if self.scanner:
            compiled().qinco_destroy_scanner(self.scanner)

    def probe(self, queries_QD: np.ndarray, nprobe: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest centroids in order, int32 (Q, nprobe), and the values of their lists, float32 (Q, nprobe)."""
        queries_QD = self._rows(queries_QD)
        assert 1 <= nprobe <= self.num_lists
        shape = (len(queries_QD), nprobe)
        probes_QP, bases_QP = np.empty(shape, np.int32), np.empty(shape, np.float32)
        failed = run(
            lambda: compiled().qinco_probe(
                self.scanner, address(queries_QD), len(queries_QD), nprobe, threads, address(probes_QP),
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
            segments: inverted lists, with the arrays `starts`, `codes` and `ids`, and a Segment of these, `native`.
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
        given = (Segment * len(segments))(*parts)
        request = _Scan(
            address(queries_QD), address(probes_QP), address(bases_QP), ctypes.addressof(given), len(queries_QD),
            len(segments), probes_QP.shape[1], num_short, nprobe, *map(address, results),
        )  # fmt: skip
        looked_up = sum(len(segment.ids) for segment in segments) * probes_QP.shape[1] / self.num_lists * self.steps
        operations = len(queries_QD) * (looked_up + 2.0 * self.steps * ENTRIES * self.dim)
        kept = request, given, segments, admitted, queries_QD, probes_QP, bases_QP, results
        failed = run(lambda: compiled().qinco_scan_lists(self.scanner, byref(kept[0]), threads), operations)
        check_memory(failed, _REMEDY)
        return results

    def norms(self, codes_NM: np.ndarray, lists_N: np.ndarray, threads: int) -> np.ndarray:
        """2 <c, r> + |r|^2 of codes and their lists' centroids c, r being the sum of a code's rows: float32 (N,)."""
        return self._sums(codes_NM, lists_N, threads, 1)[0]

    def compare(self, codes_NM: np.ndarray, lists_N: np.ndarray, decoded_ND: np.ndarray, threads: int) -> np.ndarray:
        """Norms of codes; |x' - centre|^2, x' being origin + c + r; and <x - x', x - mean> of other reconstructions x.

        Float32 (3, N).
        """
        assert len(decoded_ND) == len(codes_NM) and len(self.compared) == 3
        return self._sums(codes_NM, lists_N, threads, 3, (self._rows(decoded_ND), *self.compared))

    def _sums(self, codes_NM, lists_N, threads: int, count: int, compared: Sequence[np.ndarray | None] = (None,) * 4):
        codes_NM, lists_N = np.ascontiguousarray(codes_NM, np.uint8), np.ascontiguousarray(lists_N, np.int32)
        assert codes_NM.shape == (len(lists_N), self.steps)
        assert lists_N.view(np.uint32).max(initial=0) < self.num_lists
        sums_CN = np.empty((count, len(lists_N)), np.float32)
        addresses = address(codes_NM), address(lists_N), len(lists_N), *map(address, compared), address(sums_CN)
        request = _Sums(*addresses)
        failed = run(
            lambda: compiled().qinco_sum_codes(self.scanner, byref(request), threads),
            4.0 * codes_NM.size * self.dim,
        )
        check_memory(failed, _REMEDY)
        return sums_CN

    def _rows(self, queries_QD: np.ndarray) -> np.ndarray:
        assert queries_QD.ndim == 2 and queries_QD.shape[1] == self.dim
        return np.ascontiguousarray(queries_QD, np.float32)

    def _segment(self, segment, admitted: np.ndarray | None) -> Segment:
        assert len(segment.starts) == self.num_lists + 1 and len(segment.codes) == (self.steps + 1) * len(segment.ids)
        native: Segment = segment.native
        if admitted is None:
            return native
        assert admitted.dtype == np.uint64 and admitted.flags.c_contiguous
        assert admitted.shape == (num_words(len(segment.ids)),)
        return Segment(native.starts, native.codes, native.ids, address(admitted), native.ids_are_wide)
