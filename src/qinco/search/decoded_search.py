"""Exhaustive search of an index: all of its vectors are decoded, and compared as its ranking says.

Shape suffixes: Q queries, R results, N vectors of a block, D dimension.
"""

from collections.abc import Iterator

import numpy as np

from qinco.config import RANKINGS, require_choice
from qinco.progress import Progress, silent
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.ids import MISSING
from qinco.search.metric import Metric
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
    blocks = _blocks(parts, decoder, score, report, some)
    if score is None:
        distances_QR, rows_QR = nearest_in_blocks(queries_QD, blocks, k, metric=Metric(metric.name))
    else:
        prepared_QD, factors_Q1 = scaled_queries(metric.prepare(queries_QD), metric, True)
        values_QR, rows_QR = _least_values(parts, prepared_QD, blocks, k)
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
    """Yield numbers of first vectors and decoded vectors, (N, D); with a score (N, D + 1), what it adds at the end."""
    tables, first = parts.tables, 0
    origin_D = np.zeros(0, np.float32) if tables.ranking is None else origin_of(tables.metric, tables.ranking.mean_D)
    for number, segment in enumerate(parts.segments):
        places = None if some is None else some[number]
        for codes_NM, norm_codes_N, lists_N, ids_N in segment.blocks(_BLOCK_ROWS, places):
            decoded_ND, is_zero_N = np.asarray(decoder.decode(codes_NM, lists_N)), np.isin(ids_N, parts.zeros)
            decoded_ND[is_zero_N] = 0
            if score is not None:
                known_N = tables.corrections(codes_NM, norm_codes_N, lists_N, decoded_ND)
                added_N = score.adjusted(np.zeros_like(known_N), decoded_ND, origin_D, known_N)
                added_N[is_zero_N] = tables.metric.unit_length**2 - score.offset  # similarity 0
                decoded_ND = np.concatenate([decoded_ND, added_N[:, None]], 1)
            yield first, decoded_ND
            first += len(codes_NM)
            report("searching", first, len(parts))


def _least_values(parts: IndexParts, queries_QD: np.ndarray, blocks, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The least ‖q − x̂‖² + added, or −⟨q, x̂⟩ + added, by inner products with one dimension more: ⟨(q, 1), (x̂, …)⟩.

    Origins in the middle keep what is subtracted small.
    """
    metric, ranking = parts.tables.metric, parts.tables.ranking
    assert ranking is not None
    is_product, origin_D = metric.scans_inner_products, origin_of(metric, ranking.mean_D)

    def turned():
        for first, extended_ND in blocks:
            x_ND, added_N = extended_ND[:, :-1] - origin_D, extended_ND[:, -1]
            if not is_product:
                added_N = (np.einsum("nd,nd->n", x_ND, x_ND) + added_N) / 2
            yield first, np.concatenate([x_ND, -added_N[:, None]], 1, dtype=np.float32)

    centred_QD = queries_QD - origin_D
    given_QD = np.concatenate([centred_QD, np.ones((len(centred_QD), 1))], 1, dtype=np.float32)
    products_QR, rows_QR = nearest_in_blocks(given_QD, turned(), k, metric=Metric("inner_product"))
    if is_product:
        return -products_QR, rows_QR
    squares_Q1 = np.square(centred_QD, dtype=np.float64).sum(1, keepdims=True)
    return (squares_Q1 - 2 * products_QR.astype(np.float64)).astype(np.float32), rows_QR
