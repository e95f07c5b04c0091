"""Exhaustive search of an index: all of its vectors are decoded, and compared as its ranking says.

Shape suffixes: Q queries, R results, N vectors of a block, D dimension.
"""

from collections.abc import Iterator

import numpy as np

from qinco.config import RANKINGS, require_choice
from qinco.progress import Progress, silent
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.ids import MISSING
from qinco.search.metric import L2, Metric
from qinco.search.parts import IndexParts
from qinco.search.pipeline import Decoder, estimated, scaled, scaled_queries
from qinco.search.ranking import Score, origin_of
from qinco.search.refine import Originals
from qinco.search.scan import Shortlist
from qinco.search.selection import Selection
from qinco.vectors.rows import VectorSource

_BLOCK_ROWS = 1 << 15
_QUERY_VALUES = 1 << 24  # of queries for which vectors are decoded once


@np.errstate(over="ignore", invalid="ignore")
def search_decoded(
    parts: IndexParts, decoder: Decoder, queries_QD: np.ndarray, k: int, ranking: str, report: Progress = silent,
    selection: Selection | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Distances float32 (Q, k) and ids int64 (Q, k) of float32 queries, as `Index.search` returns them.

    With a selection only its vectors are decoded, each of them once.
    """
    require_choice("ranking", ranking, RANKINGS)
    tables, metric, score = parts.tables, parts.tables.metric, None
    if tables.ranking is not None and ranking == "calibrated":
        score = tables.ranking.lookup if decoder is tables.lookup else tables.ranking.neural
    some = None if selection is None else [selection.positions(number) for number in range(len(parts.segments))]
    parts_ids = parts.ids if some is None else [ids[rows] for ids, rows in zip(parts.ids, some, strict=True)]
    ids_N = np.concatenate([*parts_ids, [MISSING]], dtype=np.int64)  # the last one is that of row -1
    blocks, is_product = _blocks(parts, decoder, score, report, some), metric.scans_inner_products
    if score is None:
        distances_QR, rows_QR = nearest_in_blocks(queries_QD, blocks, k, metric=Metric(metric.name))
    else:
        prepared_QD, factors_Q1 = scaled_queries(metric.prepare(queries_QD), metric, True)
        values_QR, rows_QR = nearest_in_blocks(prepared_QD, blocks, k, metric=metric if is_product else L2, adds=True)
        values_QR = -values_QR if is_product else values_QR
        is_zero_QR = ~prepared_QD.any(1, keepdims=True) | np.isin(ids_N[rows_QR], parts.zeros)
        values_QR = estimated(metric, score, values_QR, is_zero_QR)
        distances_QR = metric.distances(values_QR if factors_Q1 is None else scaled(values_QR, factors_Q1))
    return distances_QR, ids_N[rows_QR]


def search_among(
    parts: IndexParts, decoder: Decoder, source: VectorSource, k: int, selection: Selection, ranking: str,
    refined: tuple[Originals | None, int] = (None, 0),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The k nearest of a selection, of which all vectors are decoded: what `Index.search_among` returns."""
    metric, (originals, num_refine) = parts.tables.metric, refined
    found = [(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
    for _, block_QD in source.blocks(max(1, _QUERY_VALUES // source.dim)):
        wanted = max(k, num_refine)
        distances_QR, ids_QR = search_decoded(parts, decoder, block_QD, wanted, ranking, selection=selection)
        if originals is not None:
            codes_QR0, none_Q = np.zeros((*ids_QR.shape, 0), np.uint8), np.zeros(len(ids_QR), np.int64)
            lists_QR, norm_codes_QR = np.minimum(ids_QR, 0).astype(np.int32), np.zeros(ids_QR.shape, np.uint8)
            shortlist = Shortlist(distances_QR, ids_QR, lists_QR, codes_QR0, norm_codes_QR, none_Q)
            best = originals.ranked(metric, metric.prepare(block_QD), shortlist, k)
            distances_QR, ids_QR = metric.distances(best.values), best.ids
        found.append((distances_QR, ids_QR))
    distances_QR, ids_QR = map(np.concatenate, zip(*found, strict=True))
    return distances_QR, ids_QR


def _blocks(
    parts: IndexParts, decoder: Decoder, score: Score | None, report: Progress, some: list[np.ndarray] | None
) -> Iterator[tuple]:
    """Yield numbers of first vectors and decoded vectors, (N, D); with a score what it adds to their values, too."""
    tables, first = parts.tables, 0
    origin_D = np.zeros(0, np.float32) if tables.ranking is None else origin_of(tables.metric, tables.ranking.mean_D)
    for number, segment in enumerate(parts.segments):
        places = None if some is None else some[number]
        for codes_NM, norm_codes_N, lists_N, ids_N in segment.blocks(_BLOCK_ROWS, places):
            decoded_ND, is_zero_N = np.asarray(decoder.decode(codes_NM, lists_N)), np.isin(ids_N, parts.zeros)
            decoded_ND[is_zero_N] = 0
            if score is None:
                yield first, decoded_ND
            else:
                known_N = tables.corrections(codes_NM, norm_codes_N, lists_N, decoded_ND)
                added_N = score.adjusted(np.zeros_like(known_N), decoded_ND, origin_D, known_N)
                added_N[is_zero_N] = tables.metric.unit_length**2 - score.offset  # similarity 0
                yield first, decoded_ND, added_N
            first += len(codes_NM)
            report("searching", first, len(parts))
