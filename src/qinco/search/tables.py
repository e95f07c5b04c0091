"""The fitted part of an index: centroids, look-up tables and norm levels, and the scan of lists by them.

Shape suffixes: N vectors, V lists, D dimension, M codes of a vector, K codewords, Q queries, L lists scanned.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qinco.decoders.lookup import LookupDecoder
from qinco.errors import DataError
from qinco.machine import num_threads
from qinco.maths.assignment import NearestCentroids, search_effort
from qinco.maths.levels import fit_levels, nearest_level
from qinco.native.graph import Links
from qinco.search.lists import InvertedLists
from qinco.search.metric import L2, Metric
from qinco.search.options import SearchOptions
from qinco.search.ranking import Ranking, Score, origin_of
from qinco.search.scan import Scanner, Shortlist
from qinco.search.selection import Selection
from qinco.store.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

    from qinco.search.device_tables import DeviceTables

LEVEL_ROWS = 200_000
MIN_GRAPH_LISTS = 4096  # so many centroids are searched through a graph
GRAPH_KIND, FAISS_SUFFIX = "graph", ".faissindex"
_LINKS = "levels", "offsets", "neighbors"
ROUNDING = 8 * float(np.finfo(np.float32).eps)
_SPARE_LISTS = 1.5  # times as many as hold the wanted vectors on average
_GATHERED_QUERIES = 16  # for fewer, copying what is selected does not pay
MAX_PROBES = 1 << 22  # of the queries that are searched again at a time


class CoarseGraph(NearestCentroids):
    """An HNSW graph over the coarse centroids."""

    def probe(
        self, queries_QD: np.ndarray, nprobe: int, ef_search: int | None = None, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `nprobe` nearest centroids as `search` gives them; HNSW's efSearch is fitted to nprobe if None."""
        nprobe = min(nprobe, self.num_lists)
        return self.search(queries_QD, nprobe, search_effort(nprobe, ef_search), threads)

    def save(self, path: str | os.PathLike) -> None:
        """Write the graph without the centroids."""
        assert self.links is not None
        arrays = {name: getattr(self.links, name) for name in _LINKS}
        header = {"entry": self.links.entry, "links": self.links.links, "inner_product": self.inner_product}
        write_tensors(path, GRAPH_KIND, header, arrays)

    @classmethod
    def read(cls, path: str | os.PathLike, centroids_VD: np.ndarray, *, inner_product: bool = False) -> "CoarseGraph":
        """Read a file of `save`, or one of faiss without its vectors, for the same centroids."""
        if Path(path).suffix == FAISS_SUFFIX:
            from qinco.compat.faiss_files import read_links

            links = read_links(path, len(centroids_VD), centroids_VD.shape[1], inner_product)
        else:
            links, (header, arrays) = None, read_tensors(path, GRAPH_KIND)
            entry, most = header.get("entry"), header.get("links")
            is_graph = set(arrays) == set(_LINKS) and header.get("inner_product") is inner_product
            if is_graph and isinstance(entry, int) and isinstance(most, int):
                links = Links(arrays["levels"], arrays["offsets"], arrays["neighbors"], entry, most)
        if links is None or len(links.levels) != len(centroids_VD) or not links.are_sound():
            raise DataError(f"{path} is damaged, or no HNSW graph of these centroids")
        return cls(centroids_VD, inner_product=inner_product, links=links)


@dataclass(frozen=True, eq=False)
class SearchTables:
    """The fitted part of an index.

    Attributes:
        lookup: LookupDecoder, with the centroids (V, D) of an IVF codec's lists, or without.
        levels: float32 (256,), the values of the norm codes.
        graph: HNSW graph over the centroids; built when needed if None, from `min_graph_lists` lists on.
        partition_VD: float32, centroids of lists that the look-up decoder does not know; None where it has some.
    """

    lookup: LookupDecoder
    levels: np.ndarray
    metric: Metric = L2
    graph: CoarseGraph | None = None
    partition_VD: np.ndarray | None = None
    min_graph_lists: int = MIN_GRAPH_LISTS
    ranking: Ranking | None = None

    @classmethod
    def fit(
        cls, lookup: LookupDecoder, codes_NM, lists_N, metric: Metric, partition_VD=None, level_rows: int = LEVEL_ROWS
    ) -> "SearchTables":
        """Tables whose levels are fitted to the codes and lists of at least `level_rows` vectors, if there are."""
        tables = cls(lookup, np.zeros(256, np.float32), metric, None, partition_VD)
        step = max(1, len(codes_NM) // level_rows)
        return tables.ranked(None, codes_NM[::step], lists_N[::step])

    def ranked(self, ranking: Ranking | None, codes_NM, lists_N, corrections_N=None) -> "SearchTables":
        """These tables with another ranking, whose levels are fitted to some vectors."""
        tables = replace(self, ranking=ranking)
        return replace(tables, levels=fit_levels(tables._added(codes_NM, lists_N, 1, corrections_N)))

    @property
    def centroids_VD(self) -> np.ndarray:
        centroids_VD = self.lookup.centroids_VD if self.partition_VD is None else self.partition_VD
        assert centroids_VD is not None
        return centroids_VD

    @property
    def num_lists(self) -> int:
        return len(self.centroids_VD)

    @cached_property
    def scanner(self) -> Scanner:
        tables_MKD, origins_VD = self.lookup.tables_MKD, self.lookup.centroids_VD
        if origins_VD is None:
            tables_MKD = tables_MKD - self._origin_D / np.float32(len(tables_MKD))
            origins_VD = np.broadcast_to(self._origin_D, self.centroids_VD.shape)
        mean_D, is_product = None if self.ranking is None else self.ranking.mean_D, self.metric.scans_inner_products
        return Scanner(origins_VD, tables_MKD, self.levels, inner_product=is_product, mean_D=mean_D)

    @cached_property
    def _prober(self) -> Scanner:
        if self.partition_VD is None:
            return self.scanner
        unused_MKD = self.lookup.tables_MKD[:1, :1]
        return Scanner(self.partition_VD, unused_MKD, self.levels, inner_product=self.metric.scans_inner_products)

    @cached_property
    def _origin_D(self) -> np.ndarray:
        """Of tables that are added to no centroid: near the vectors, so that sums stay small."""
        mean_D = self.centroids_VD.mean(0, np.float64).astype(np.float32)
        return np.zeros_like(mean_D) if self.metric.scans_inner_products else mean_D

    @cached_property
    def coarse(self) -> CoarseGraph | None:
        """The graph over the centroids; None where so few are all compared."""
        if self.graph is not None or self.num_lists < self.min_graph_lists:
            return self.graph
        return CoarseGraph(self.centroids_VD, inner_product=self.metric.scans_inner_products)

    def norm_codes(self, codes_NM: np.ndarray, lists_N: np.ndarray, threads: int, corrections_N=None) -> np.ndarray:
        """The norm code of each vector, the number of its level: uint8 (N,)."""
        return nearest_level(self._added(codes_NM, lists_N, threads, corrections_N), self.levels)

    def corrections(
        self, codes_NM: np.ndarray, norm_codes_N: np.ndarray, lists_N: np.ndarray, decoded_ND=None
    ) -> np.ndarray:
        """The corrections of vectors, as far as their norm codes tell: float32 (N,).

        They are those of what the tables decode, or of what another decoder has decoded: an array, or a tensor.
        """
        if self.ranking is None or not self.ranking.lookup.correction:
            return np.zeros(len(codes_NM), np.float32)
        ranking, threads = self.ranking, num_threads()
        if decoded_ND is None:
            known_N = self._added(codes_NM, lists_N, threads, np.zeros(len(codes_NM), np.float32))
            return self._read(ranking, norm_codes_N, known_N)
        if isinstance(decoded_ND, np.ndarray):
            known_N, squares_N, shared_N = self.scanner.compare(codes_NM, lists_N, decoded_ND, threads)
        else:
            known_N, squares_N, shared_N = self._on(decoded_ND.device).compare(codes_NM, lists_N, decoded_ND)
        if ranking.lookup.length:
            known_N = known_N + np.float32(ranking.lookup.length) * squares_N
        return self._read(ranking, norm_codes_N, known_N) - shared_N

    def _on(self, device: "torch.device") -> "DeviceTables":
        """These tables on a device, where they stay."""
        if device not in self._on_devices:
            from qinco.search.device_tables import DeviceTables

            assert self.ranking is not None
            given = self.scanner, self.lookup.centroids_VD, self.ranking.mean_D
            self._on_devices[device] = DeviceTables(*given, device)
        return self._on_devices[device]

    @cached_property
    def _on_devices(self) -> "dict[torch.device, DeviceTables]":
        return {}

    def _read(self, ranking: Ranking, norm_codes_N: np.ndarray, known_N: np.ndarray) -> np.ndarray:
        """What norm codes hold besides what is known of them, the corrections of the tables: float32 (N,)."""
        found_N = (self.levels[norm_codes_N] - known_N) / np.float32(ranking.lookup.correction)
        is_unlikely_N = ~((found_N >= ranking.low) & (found_N <= ranking.high))
        if is_unlikely_N.any():
            codes_n, known_n = norm_codes_N[is_unlikely_N], known_N[is_unlikely_N]
            found_N[is_unlikely_N] = self._likely(ranking, codes_n, known_n, found_N[is_unlikely_N])
        return found_N

    def _likely(
        self, ranking: Ranking, norm_codes_N: np.ndarray, known_N: np.ndarray, found_N: np.ndarray
    ) -> np.ndarray:
        """What to take for corrections beyond the likely ones, of `found_N`: float32 (N,).

        Where the norm code rules out all likely corrections it is the one found, else the typical one if that is left
        open, and the nearest likely one if not.
        """
        correction, low, high = ranking.lookup.correction, ranking.low, ranking.high
        edges = np.concatenate([[-np.inf], self.levels[1:] / 2 + self.levels[:-1] / 2, [np.inf]])
        rounding_N = ROUNDING * (np.abs(known_N) + np.abs(self.levels[norm_codes_N]))
        least_N = (edges[norm_codes_N] - known_N - rounding_N) / correction
        most_N = (edges[norm_codes_N + np.intp(1)] - known_N + rounding_N) / correction
        if correction < 0:
            least_N, most_N = most_N, least_N
        tells_other_N = (least_N > ranking.typical) | (ranking.typical > most_N)  # not if they are NaN
        likely_N = np.where(tells_other_N, np.clip(found_N, low, high), np.float32(ranking.typical))
        return np.where((least_N > high) | (most_N < low), found_N, likely_N)

    def values(self, score: Score | None, queries_ND, decoded_ND, corrections_N: np.ndarray | None) -> np.ndarray:
        """The values of pairs of a prepared query and a reconstruction, by a score or by their distance: (N,)."""
        if score is None or self.ranking is None or corrections_N is None:
            return self.metric.values(queries_ND, decoded_ND)
        metric = self.metric if self.metric.scans_inner_products else L2
        values_N = metric.values(queries_ND, decoded_ND)
        return score.adjusted(values_N, decoded_ND, origin_of(metric, self.ranking.mean_D), corrections_N)

    def _added(self, codes_NM, lists_N, threads: int, corrections_N: np.ndarray | None) -> np.ndarray:
        """What the scan adds to a vector's value besides its tables' entries, float32 (N,)."""
        norms_N = self.scanner.norms(codes_NM, lists_N, threads)
        if self.ranking is None:
            return norms_N
        score, origin_D = self.ranking.lookup, origin_of(self.metric, self.ranking.mean_D)
        if corrections_N is None:
            corrections_N = np.full(len(norms_N), self.ranking.typical, np.float32)
        decoded_ND = self.lookup.decode(codes_NM, lists_N) if score.length else None
        return score.adjusted(norms_N, decoded_ND, origin_D, corrections_N)

    def shortlist(
        self, queries_QD: np.ndarray, num_short: int, options: SearchOptions, segments: Sequence[InvertedLists],
        selection: Selection | None, threads: int, least: int = 0, max_probes: int = MAX_PROBES,
        scan_lists: Callable[..., Shortlist | None] | None = None,
    ) -> Shortlist:  # fmt: skip
        """The `num_short` nearest of prepared queries by the tables, among the vectors of `nprobe` lists.

        More lists are scanned while a query has fewer than `least` vectors, of a selection than `num_short`. Where few
        are selected, their lists are scanned and no others. `scan_lists` does what `Scanner.scan` does, elsewhere; it
        gives None where its time is over, and then what was found before is all.
        """
        admitted = None if selection is None else selection.words
        if selection is not None:
            rows = max(1, max_probes // self._num_scanned(num_short, options, selection))
            if len(queries_QD) > rows:
                given = num_short, options, segments, selection, threads, least
                pieces = np.split(queries_QD, range(rows, len(queries_QD), rows))
                found = (vars(self.shortlist(piece, *given, max_probes, scan_lists)).values() for piece in pieces)
                return Shortlist(*map(np.concatenate, zip(*found, strict=True)))
            if selection.is_small:
                return self._shortlist_among(queries_QD, num_short, segments, selection, threads)

        def scan(queries_QD, scanned: int) -> Shortlist | None:
            probes = self.probe(queries_QD, scanned, options.ef_search, threads)
            limits = {"nprobe": min(options.nprobe, scanned), "admitted": admitted, "threads": threads}
            return (scan_lists or self.scanner.scan)(queries_QD, *probes, segments, num_short, **limits)

        scanned = self._num_scanned(num_short, options, selection)
        least = num_short if selection is not None else least
        result = scan(queries_QD, scanned)
        if result is None:
            return self._nothing_found(len(queries_QD), num_short)
        while least and scanned < self.num_lists:
            if result.lists[:, least - 1].min(initial=0) >= 0:
                break
            unfilled_U = np.flatnonzero(result.lists[:, least - 1] < 0)
            scanned = min(4 * scanned, self.num_lists)
            rows = max(1, max_probes // scanned)
            for part in np.split(unfilled_U, range(rows, len(unfilled_U), rows)):
                if (wider := scan(queries_QD[part], scanned)) is None:
                    return result
                # Of lists elsewhere those that did not answer this time may be more than before.
                is_fuller_Q = (wider.lists >= 0).sum(1) >= (result.lists[part] >= 0).sum(1)
                for name, array in vars(wider).items():
                    getattr(result, name)[part[is_fuller_Q]] = array[is_fuller_Q]
        return result

    def _nothing_found(self, num_queries: int, num_short: int) -> Shortlist:
        empty_QS, none_QS = np.full((2, num_queries, num_short), -1, np.int32)
        codes_QSM = np.zeros((num_queries, num_short, self.lookup.num_codes), np.uint8)
        values_QS, scanned_Q = np.full_like(empty_QS, np.inf, np.float32), np.zeros(num_queries, np.int64)
        return Shortlist(values_QS, empty_QS.astype(np.int64), none_QS, codes_QSM, codes_QSM[..., 0].copy(), scanned_Q)

    def _num_scanned(self, num_short: int, options: SearchOptions, selection: Selection | None) -> int:
        """How many lists are chosen for each query, before any is scanned; of a selection so many as may be needed."""
        wanted = options.nprobe
        if selection is not None:
            wanted = max(wanted, int(_SPARE_LISTS * num_short * self.num_lists / max(1, selection.count)))
            wanted = selection.count if selection.is_small else wanted
        return max(1, min(wanted, self.num_lists))

    def _shortlist_among(self, queries_QD, num_short, segments, selection: Selection, threads: int) -> Shortlist:
        """The nearest of a selection by the tables, whose values are computed for all of it."""
        if self.partition_VD is not None and (len(queries_QD) >= _GATHERED_QUERIES or selection.is_scanned_again):
            return self._shortlist_gathered(queries_QD, num_short, selection, threads)
        probes_QL = np.broadcast_to(selection.lists, (len(queries_QD), len(selection.lists)))
        bases_QL = self._bases(queries_QD, selection.lists)
        limits = {"admitted": selection.words, "threads": threads}
        return self.scanner.scan(queries_QD, probes_QL, bases_QL, segments, num_short, **limits)

    def _shortlist_gathered(self, queries_QD, num_short: int, selection: Selection, threads: int) -> Shortlist:
        """`_shortlist_among` where values do not depend on lists: blocks are full, not of a vector or two of a list."""
        gathered, lists_N, ids_N = selection.gathered
        probes_QL, bases_QL = np.zeros((len(queries_QD), 1), np.int32), self._same_bases(queries_QD, 1)
        found = self.scanner.scan(queries_QD, probes_QL, bases_QL, (gathered,), num_short, threads=threads)
        is_found_QS = found.ids >= 0
        for of, own_N in ((found.lists, lists_N), (found.ids, ids_N)):
            of[is_found_QS] = own_N[found.ids[is_found_QS]]
        return found

    def _bases(self, queries_QD: np.ndarray, lists_L: np.ndarray) -> np.ndarray:
        """The bases of the vectors' values in some lists, float32 (Q, L), as `probe` gives them for the nearest."""
        is_product = self.metric.scans_inner_products
        if self.partition_VD is not None:
            return self._same_bases(queries_QD, len(lists_L))
        centroids_LD = self.centroids_VD[lists_L]
        if is_product:
            return -(queries_QD @ centroids_LD.T)
        middle_D = centroids_LD.mean(0, np.float64).astype(np.float32) if len(lists_L) else 0
        queries_QD, centroids_LD = queries_QD - middle_D, centroids_LD - middle_D
        squares_Q1, squares_L = np.square(queries_QD).sum(1, keepdims=True), np.square(centroids_LD).sum(1)
        return np.maximum(squares_Q1 + squares_L - 2 * (queries_QD @ centroids_LD.T), 0)

    def probe(self, queries_QD, nprobe: int, ef_search: int | None, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The lists nearest to prepared queries, int32 (Q, nprobe), and the bases of their vectors' values."""
        if self.coarse is None or nprobe == self.num_lists:
            lists_QL, values_QL = self._prober.probe(queries_QD, nprobe, threads)
        else:
            values_QL, lists_QL = self.coarse.probe(queries_QD, nprobe, ef_search, threads)
        if self.partition_VD is not None:
            values_QL = self._same_bases(queries_QD, lists_QL.shape[1])
        return lists_QL.astype(np.int32, copy=False), values_QL

    def _same_bases(self, queries_QD: np.ndarray, count: int) -> np.ndarray:
        """Those of lists that the tables do not know: the same for all."""
        if self.metric.scans_inner_products:
            return np.zeros((len(queries_QD), count), np.float32)
        return np.repeat(np.square(queries_QD - self._origin_D).sum(1, keepdims=True), count, 1)
