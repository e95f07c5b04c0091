"""Range search: the vectors in the lists near a query whose distance, decoded, is within a radius.

Shape suffixes: Q queries, L lists visited, D dimension, N vectors of a list, F pairs that were found.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from qinco.config import RANKINGS, require_choice
from qinco.errors import ResourceError
from qinco.machine import free_memory, num_threads
from qinco.search.options import SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.pipeline import Decoder, estimated, scaled, scaled_queries
from qinco.search.ranking import Score
from qinco.search.selection import Selection
from qinco.vectors.rows import VectorSource

_MAX_VISITS = 1 << 20  # of lists, by the queries of a batch
_BLOCK_ROWS = 1 << 13  # vectors that are decoded at a time
_PAIR_BYTES, _LARGE_BYTES = 60, 1 << 28  # of a result while results are put in order


@np.errstate(over="ignore", invalid="ignore")
def search_ranges(
    parts: IndexParts,
    decoder: Decoder,
    source: VectorSource,
    radius: float,
    options: SearchOptions,
    selection: Selection | None = None,
    ranking: str = "calibrated",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `Index.range_search` returns. A batch decodes each vector once."""
    require_choice("ranking", ranking, RANKINGS)
    metric, nprobe, fitted = parts.tables.metric, min(options.nprobe, parts.tables.num_lists), parts.tables.ranking
    score = None
    if fitted is not None and ranking == "calibrated":
        score = fitted.lookup if decoder is parts.tables.lookup else fitted.neural
    none, num_found, checked = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)), 0, _LARGE_BYTES
    counts, found = [np.zeros(1, np.int64)], [none[1:]]
    for _, block in source.blocks(max(1, _MAX_VISITS // nprobe)):
        queries_QD = metric.prepare(block)
        queries_QD, factors_Q1 = scaled_queries(queries_QD, metric, fitted is not None)
        probes_QL, _ = parts.tables.probe(queries_QD, nprobe, options.ef_search, num_threads())
        near = [none]
        for pairs in _near(parts, decoder, score, queries_QD, factors_Q1, probes_QL, radius, selection):
            near.append(pairs)
            num_found += len(pairs[0])
            if (size := _PAIR_BYTES * num_found) > checked:
                checked = 1.25 * size
                if size > free_memory():
                    raise ResourceError(f"more than {num_found:,} results do not fit in memory: search for fewer "
                                        f"queries at a time, or with another radius than {radius:g}")  # fmt: skip
        rows_F, distances_F, ids_F = map(np.concatenate, zip(*near, strict=True))
        order = np.lexsort((ids_F, distances_F if metric.name == "l2" else -distances_F, rows_F))
        counts.append(np.bincount(rows_F, minlength=len(queries_QD)))
        found.append((distances_F[order], ids_F[order]))
    distances_F, ids_F = map(np.concatenate, zip(*found, strict=True))
    return np.cumsum(np.concatenate(counts)), distances_F, ids_F


def _near(
    parts: IndexParts,
    decoder: Decoder,
    score: Score | None,
    queries_QD,
    factors_Q1,
    probes_QL,
    radius,
    selection: Selection | None,
) -> Iterator[tuple]:
    """Yield rows of queries (scaled), distances and ids of pairs within the radius, list by list."""
    tables, metric, width = parts.tables, parts.tables.metric, probes_QL.shape[1]
    visits = np.argsort(probes_QL, axis=None, kind="stable")
    lists, firsts = np.unique(probes_QL.ravel()[visits], return_index=True)
    for number, rows_Q in zip(lists.tolist(), np.split(visits // width, firsts[1:]), strict=True):
        for place, segment in enumerate(parts.segments) if number >= 0 else ():  # -1: a query has no more lists
            begin, end = segment.starts[number : number + 2].tolist()
            for start in range(begin, end, _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, end)
                positions_N = np.arange(start, stop)
                if selection is not None:
                    positions_N = positions_N[selection.mask(place, start, stop)]
                if not len(positions_N):
                    continue
                ids_N = segment.ids[positions_N].astype(np.int64)
                lists_N = np.full(len(positions_N), number, np.int32)
                codes_NM, norm_codes_N = segment.rows(positions_N, lists_N)
                decoded_ND: Any = decoder.decode(codes_NM, lists_N)
                is_zero_N = np.isin(ids_N, parts.zeros)
                decoded_ND[is_zero_N] = 0
                known = codes_NM, norm_codes_N, lists_N, decoded_ND
                corrections_N = None if score is None else tables.corrections(*known)
                for row in rows_Q:
                    query_ND = np.repeat(queries_QD[row : row + 1], len(decoded_ND), axis=0)
                    values_N = tables.values(score, query_ND, decoded_ND, corrections_N)
                    if score is not None:
                        values_N = estimated(metric, score, values_N, is_zero_N | ~queries_QD[row].any())
                    values_N = values_N if factors_Q1 is None else scaled(values_N, factors_Q1[row])
                    distances_N = metric.distances(values_N)
                    is_near = distances_N < radius if metric.name == "l2" else distances_N > radius
                    yield np.full(is_near.sum(), row), distances_N[is_near], ids_N[is_near]
