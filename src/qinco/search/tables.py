"""What an index knows besides its vectors: centroids, look-up tables and levels, and how they give shortlists.

Shape suffixes: N vectors, V lists, D dimension, M codes of a vector, K codewords, Q queries, P lists visited.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qinco.decoders.lookup import LookupDecoder
from qinco.maths.clustering import faiss_threads
from qinco.maths.levels import fit_levels, nearest_level
from qinco.native.scanner import Filter
from qinco.search.coarse import MIN_GRAPH_LISTS, CoarseGraph
from qinco.search.lists import InvertedLists
from qinco.search.metric import L2, Metric
from qinco.search.options import SearchOptions
from qinco.search.scan import Scanner, Shortlist

_LEVEL_ROWS = 200_000
_MOST_PROBES = 1 << 22


@dataclass(frozen=True, eq=False)
class SearchTables:
    """The fitted part of an index.

    lookup: LookupDecoder, with the centroids (V, D) of an IVF codec's lists, or without
    levels: float32 (256,), what the scalar bytes of vectors stand for
    metric: what "near" means
    graph:  finds the nearest of many centroids (HNSW); made when it is needed where it is None
    partition_VD: float32, the centroids of lists that the look-up decoder does not know; None where it has some
    min_graph_lists: lists from which on the graph is used
    """

    lookup: LookupDecoder
    levels: np.ndarray
    metric: Metric = L2
    graph: CoarseGraph | None = None
    partition_VD: np.ndarray | None = None
    min_graph_lists: int = MIN_GRAPH_LISTS

    @classmethod
    def fit(
        cls, lookup: LookupDecoder, codes_NM, lists_N, metric: Metric, partition_VD: np.ndarray | None = None
    ) -> "SearchTables":
        """Tables whose levels are fitted to the codes and lists of some vectors."""
        tables = cls(lookup, np.zeros(256, np.float32), metric, None, partition_VD)
        if metric.scans_inner_products:
            return tables
        step = max(1, len(codes_NM) // _LEVEL_ROWS)
        return replace(tables, levels=fit_levels(tables.scanner.norms(codes_NM[::step], lists_N[::step])))

    @property
    def centroids_VD(self) -> np.ndarray:
        """The centroids whose lists are visited."""
        return self.lookup.centroids_VD if self.partition_VD is None else self.partition_VD

    @property
    def num_lists(self) -> int:
        return len(self.centroids_VD)

    @cached_property
    def scanner(self) -> Scanner:
        """What scans lists, by what the look-up decoder makes of their vectors."""
        tables_MKD, origins_VD = self.lookup.tables_MKD, self.lookup.centroids_VD
        if origins_VD is None:
            tables_MKD = tables_MKD - self._origin_D / np.float32(len(tables_MKD))
            origins_VD = np.broadcast_to(self._origin_D, self.partition_VD.shape)
        return Scanner(origins_VD, tables_MKD, self.levels, inner_product=self.metric.scans_inner_products)

    @cached_property
    def _prober(self) -> Scanner:
        """What compares all centroids."""
        if self.partition_VD is None:
            return self.scanner
        unused_MKD = self.lookup.tables_MKD[:1, :1]
        return Scanner(self.partition_VD, unused_MKD, self.levels, inner_product=self.metric.scans_inner_products)

    @cached_property
    def _origin_D(self) -> np.ndarray:
        """What stands for a centroid where the tables are added to none: near the vectors, so that sums are small."""
        mean_D = self.partition_VD.mean(0, np.float64).astype(np.float32)
        return np.zeros_like(mean_D) if self.metric.scans_inner_products else mean_D

    @cached_property
    def coarse(self) -> CoarseGraph | None:
        """The graph over the centroids; None where they are so few that all are compared."""
        if self.graph is not None or self.num_lists < self.min_graph_lists:
            return self.graph
        return CoarseGraph(self.centroids_VD, inner_product=self.metric.scans_inner_products)

    def norm_codes(self, codes_NM: np.ndarray, lists_N: np.ndarray, threads: int) -> np.ndarray:
        """The norm code of each vector, the number of its level: uint8 (N,)."""
        return nearest_level(self.scanner.norms(codes_NM, lists_N, threads), self.levels)

    def shortlist(
        self,
        queries_QD: np.ndarray,
        num_short: int,
        options: SearchOptions,
        segments: Sequence[InvertedLists],
        admitted: Filter | None,
        threads: int,
    ) -> Shortlist:
        """The `num_short` nearest of prepared queries by the tables, among the vectors of `nprobe` lists.

        With a filter further lists are visited until a query has `num_short` vectors or has seen all lists.
        """
        nprobe = min(options.nprobe, self.num_lists)
        result = self._scan(queries_QD, nprobe, num_short, options, segments, admitted, threads)
        visited = nprobe
        while admitted is not None and visited < self.num_lists:
            unfilled_U = np.flatnonzero(result.found < num_short)
            if not len(unfilled_U):
                break
            visited = min(4 * visited, self.num_lists)
            rows = max(1, _MOST_PROBES // visited)
            for part in np.split(unfilled_U, range(rows, len(unfilled_U), rows)):
                again = self._scan(queries_QD[part], visited, num_short, options, segments, admitted, threads)
                for name in ("values", "ids", "lists", "codes", "scanned"):
                    getattr(result, name)[part] = getattr(again, name)
        return result

    def _scan(self, queries_QD, visited, num_short, options, segments, admitted, threads) -> Shortlist:
        probes_QP, bases_QP = self._probe(queries_QD, visited, options.ef_search, threads)
        nprobe = min(options.nprobe, visited)
        return self.scanner.scan(
            queries_QD, probes_QP, bases_QP, segments, num_short, nprobe=nprobe, admitted=admitted, threads=threads
        )

    def _probe(self, queries_QD, nprobe: int, ef_search: int | None, threads: int) -> tuple[np.ndarray, np.ndarray]:
        if self.coarse is None or nprobe == self.num_lists:
            lists_QP, values_QP = self._prober.probe(queries_QD, nprobe, threads)
        else:
            with faiss_threads(threads):
                values_QP, lists_QP = self.coarse.probe(queries_QD, nprobe, ef_search)
        if self.partition_VD is not None:  # the same base for all lists
            square_Q = np.square(queries_QD - self._origin_D).sum(1) * (not self.metric.scans_inner_products)
            values_QP = np.broadcast_to(square_Q[:, None], lists_QP.shape)
        return lists_QP.astype(np.int32, copy=False), values_QP
