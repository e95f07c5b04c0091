"""The scan of inverted lists by look-up tables: with the native kernels, or in numpy without them.

The value of a vector is the base of its list plus a table entry for each of its codes and for its norm code. With
x̂ = c + r, c the centroid of its list and r the sum of its codes' rows of the tables (QINCo2 paper, section 4):
    ‖q − x̂‖² = ‖q − c‖² − 2⟨q, r⟩ + s,  s = 2⟨c, r⟩ + ‖r‖²;   −⟨q, x̂⟩ = −⟨q, c⟩ − ⟨q, r⟩
The tables ⟨q, ·⟩ depend on the query alone, not on the list; s is quantized to one byte, the norm code.

Shape suffixes: V lists, D dimension, M codes of a vector, K codewords, Q queries, L lists scanned, S shortlist,
N vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qinco.native.bits import unpacked
from qinco.native.library import is_available
from qinco.native.scanner import ENTRIES, NativeScanner
from qinco.search.lists import InvertedLists


@dataclass(frozen=True)
class Shortlist:
    """Vectors near each query, nearest first; of equal ones the first scanned comes first.

    Where fewer vectors are found, the rest holds +inf, -1, -1 and zeros.

    Attributes:
        values: float32 (Q, S), squared L2 distances or negative inner products.
        ids, lists: int64 and int32 (Q, S).
        codes: uint8 (Q, S, M).
        norm_codes: uint8 (Q, S).
        scanned: int64 (Q,), vectors that were compared.
    """

    values: np.ndarray
    ids: np.ndarray
    lists: np.ndarray
    codes: np.ndarray
    norm_codes: np.ndarray
    scanned: np.ndarray

    def first(self, count: int) -> "Shortlist":
        """The first `count` vectors of each query, padded where there are fewer."""
        if count == self.values.shape[1]:
            return self
        columns = [array[:, :count] for array in self._columns()]
        if (missing := count - self.values.shape[1]) > 0:
            widths, filling = ((0, 0), (0, missing), (0, 0)), (np.inf, -1, -1, 0, 0)
            columns = [np.pad(a, widths[: a.ndim], constant_values=f) for a, f in zip(columns, filling, strict=True)]
        return Shortlist(*columns, scanned=self.scanned)

    def valued(self, values_QS: np.ndarray) -> "Shortlist":
        """The same vectors with other values (Q, S)."""
        return Shortlist(values_QS, self.ids, self.lists, self.codes, self.norm_codes, self.scanned)

    def ranked(self, values_QS: np.ndarray, keep: int) -> "Shortlist":
        """The `keep` vectors of least value by other values (Q, S); of equal ones the first stays first."""
        num_queries, width = values_QS.shape
        order_QS = np.argsort(values_QS, axis=1, kind="stable")[:, :keep]
        rows_QS = order_QS + np.arange(0, num_queries * width, width)[:, None]
        values_QS, ids_QS, lists_QS, norm_codes_QS = (
            array.take(rows_QS) for array in (values_QS, self.ids, self.lists, self.norm_codes)
        )
        codes_QSM = self.codes.reshape(num_queries * width, -1).take(rows_QS, 0)
        return Shortlist(values_QS, ids_QS, lists_QS, codes_QSM, norm_codes_QS, self.scanned)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.values, self.ids, self.lists, self.codes, self.norm_codes


class Scanner:
    """Look-up tables, K ≤ 256, centroids and norm levels, float32 (256,), ready to scan inverted lists made with them.

    `mean_D` is μ of `compare`. `native=False` avoids the native kernels; None uses them where they are available.
    Attributes: `tables_MKD`, of 256 entries each, and `levels` are what is looked up; `shift_D` is their origin.
    """

    def __init__(
        self, centroids_VD: np.ndarray, tables_MKD: np.ndarray, levels: np.ndarray, *, inner_product: bool = False,
        mean_D: np.ndarray | None = None, native: bool | None = None,
    ):  # fmt: skip
        assert tables_MKD.shape[1] <= ENTRIES
        # Distances do not change with the origin, and a near one keeps what is summed small and exact.
        shift_D = np.zeros(centroids_VD.shape[1]) if inner_product else centroids_VD.mean(0, np.float64)
        self.shift_D = shift_D.astype(np.float32)
        centroids_VD = np.asarray(centroids_VD, np.float32) - self.shift_D
        missing = ENTRIES - tables_MKD.shape[1]
        tables_MKD = np.asarray(tables_MKD, np.float32)
        if missing:
            tables_MKD = np.pad(tables_MKD, ((0, 0), (0, missing), (0, 0)), "edge")
        self.num_lists, self.inner_product, self.tables_MKD = len(centroids_VD), inner_product, tables_MKD
        self.levels = np.asarray(levels, np.float32)
        kind = NativeScanner if (is_available() if native is None else native) else _PlainScanner
        no_D = np.zeros_like(self.shift_D)
        given_D = no_D if mean_D is None else mean_D
        compared = self.shift_D, given_D, no_D if inner_product else given_D
        self._scanner = kind(centroids_VD, tables_MKD, self.levels, inner_product, compared)

    @property
    def native(self) -> NativeScanner | None:
        """What the compiled engine has packed, if it is used."""
        return self._scanner if isinstance(self._scanner, NativeScanner) else None

    def probe(self, queries_QD: np.ndarray, nprobe: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The nearest centroids of float32 queries (Q, D), all compared: lists int32 and bases float32, (Q, nprobe)."""
        return self._scanner.probe(self.shifted(queries_QD), min(nprobe, self.num_lists), threads)

    def scan(
        self, queries_QD: np.ndarray, probes_QL: np.ndarray, bases_QL: np.ndarray, segments: Sequence[InvertedLists],
        num_short: int, *, nprobe: int | None = None, admitted: Sequence[np.ndarray | None] | None = None,
        threads: int = 1,
    ) -> Shortlist:  # fmt: skip
        """The `num_short` vectors of least value in the lists that `probe` returned (−1: no more lists).

        Of the lists, `nprobe` (all if None) are scanned, and more only while a shortlist is not full. `admitted` are
        the bits of each segment's positions that may be found, or None for all of them: see `Selection`.
        """
        limits = {"nprobe": probes_QL.shape[1] if nprobe is None else nprobe, "admitted": admitted, "threads": threads}
        queries_QD = self.shifted(queries_QD)
        return Shortlist(*self._scanner.scan(queries_QD, probes_QL, bases_QL, segments, num_short, **limits))

    def norms(self, codes_NM: np.ndarray, lists_N: np.ndarray, threads: int = 1) -> np.ndarray:
        """s of codes uint8 (N, M) in their lists: float32 (N,); all zero for inner products, which need none."""
        if self.inner_product:
            return np.zeros(len(codes_NM), np.float32)
        return self._scanner.norms(codes_NM, lists_N, threads)

    def compare(
        self, codes_NM: np.ndarray, lists_N: np.ndarray, decoded_ND: np.ndarray, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What codes decode to by the tables, x̂', beside what they decode to otherwise, x̂, float32 (N, D).

        Returns s, ‖x̂' − μ‖² (‖x̂'‖² for inner products) and ⟨x̂ − x̂', x̂ − μ⟩, float32 (N,).
        """
        norms_N, squares_N, shared_N = self._scanner.compare(codes_NM, lists_N, decoded_ND, threads)
        return np.zeros_like(norms_N) if self.inner_product else norms_N, squares_N, shared_N

    def shifted(self, queries_QD: np.ndarray) -> np.ndarray:
        """Queries from the origin that the scan measures from."""
        return np.ascontiguousarray(queries_QD - self.shift_D, np.float32)


class _PlainScanner:
    """What `NativeScanner` computes, in numpy: slow, and what it is tested against."""

    def __init__(self, centroids_VD, tables_MKD, levels, inner_product, compared):
        self.centroids_VD, self.tables_MKD, self.levels = centroids_VD, tables_MKD, levels
        self.inner_product, self._compared = inner_product, compared

    @np.errstate(over="ignore", invalid="ignore")
    def probe(self, queries_QD, nprobe, threads):
        products_QV = queries_QD @ self.centroids_VD.T
        if self.inner_product:
            values_QV = -products_QV
        else:
            squares_V, squares_Q = (self.centroids_VD**2).sum(1), (queries_QD**2).sum(1)
            values_QV = np.maximum(squares_Q[:, None] + squares_V - 2 * products_QV, 0)
        values_QV[np.isnan(values_QV)] = np.inf
        probes_QL = np.argsort(values_QV, axis=1, kind="stable")[:, :nprobe]
        return probes_QL.astype(np.int32), np.take_along_axis(values_QV, probes_QL, 1)

    @np.errstate(over="ignore", invalid="ignore")
    def scan(self, queries_QD, probes_QL, bases_QL, segments, num_short, *, nprobe, admitted, threads):
        num_queries, steps = len(queries_QD), len(self.tables_MKD)
        values_QS = np.full((num_queries, num_short), np.inf, np.float32)
        ids_QS = np.full((num_queries, num_short), -1, np.int64)
        lists_QS = np.full((num_queries, num_short), -1, np.int32)
        codes_QSM = np.zeros((num_queries, num_short, steps), np.uint8)
        norm_codes_QS = np.zeros((num_queries, num_short), np.uint8)
        scanned_Q = np.zeros(num_queries, np.int64)
        factor = -1 if self.inner_product else -2
        for query in range(num_queries):
            table_MK = factor * (self.tables_MKD @ queries_QD[query])
            found = []
            for place, (probe, base) in enumerate(zip(probes_QL[query], bases_QL[query], strict=True)):
                if probe < 0 or (place >= nprobe and sum(len(part[0]) for part in found) >= num_short):
                    break
                for segment, words in zip(segments, admitted or [None] * len(segments), strict=True):
                    begin, end = segment.starts[probe : probe + 2].tolist()
                    rows = np.arange(begin, end)
                    scanned_Q[query] += len(rows)
                    rows = rows if words is None else rows[unpacked(words, begin, end)]
                    codes_NM, norm_codes_N = segment.rows(rows)
                    values_N = np.full(len(rows), base, np.float32)
                    for entries_K, codes_N in zip(table_MK, codes_NM.T, strict=True):  # in this order they are rounded
                        values_N += entries_K[codes_N]
                    values_N += self.levels[norm_codes_N]
                    numbers = segment.ids[rows].astype(np.int64), np.full(len(rows), probe)
                    columns = (values_N, *numbers, codes_NM, norm_codes_N)
                    found.append([column[np.isfinite(values_N)] for column in columns])
            if not found:
                continue
            columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
            best = np.argsort(columns[0], kind="stable")[:num_short]
            results = values_QS, ids_QS, lists_QS, codes_QSM, norm_codes_QS
            for target, column in zip(results, columns, strict=True):
                target[query, : len(best)] = column[best]
        return values_QS, ids_QS, lists_QS, codes_QSM, norm_codes_QS, scanned_Q

    @np.errstate(over="ignore", invalid="ignore")
    def norms(self, codes_NM, lists_N, threads):
        r_ND = self._sums_of_rows(codes_NM)
        return np.einsum("nd,nd->n", 2 * self.centroids_VD[lists_N] + r_ND, r_ND)

    @np.errstate(over="ignore", invalid="ignore")
    def compare(self, codes_NM, lists_N, decoded_ND, threads):
        origin_D, mean_D, centre_D = self._compared
        r_ND = self.centroids_VD[lists_N] + self._sums_of_rows(codes_NM)
        squares_N = np.square(origin_D - centre_D + r_ND).sum(1)
        shared_N = np.einsum("nd,nd->n", decoded_ND - origin_D - r_ND, decoded_ND - mean_D)
        return self.norms(codes_NM, lists_N, threads), squares_N, shared_N

    def _sums_of_rows(self, codes_NM) -> np.ndarray:
        r_ND = np.zeros((len(codes_NM), self.centroids_VD.shape[1]), np.float32)
        for table_KD, codes_N in zip(self.tables_MKD, codes_NM.T, strict=True):
            r_ND += table_KD[codes_N]
        return r_ND
