"""Range search: the vectors in the lists near a query whose distance, decoded, is within a radius.

Shape suffixes: Q queries, L lists visited, D dimension, E visits (of a list by a query), V lists that are visited, N
vectors of some lists, P pairs of a query and a vector.
"""

from collections.abc import Iterator

import numpy as np
import torch

from qinco.search.ids import are_among
from qinco.search.options import SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.pipeline import Decoder
from qinco.vectors.rows import VectorSource

_MAX_VISITS = 1 << 20  # of the queries of a batch
_DECODED_ROWS = 1 << 13  # vectors that are decoded at a time
_BLOCK_VALUES = 1 << 19  # of vectors that are compared at a time: they stay in the cache


def search_ranges(
    parts: IndexParts, decoder: Decoder, source: VectorSource, radius: float, options: SearchOptions,
    allowed: np.ndarray | range | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """What `Index.range_search` returns; `allowed` ids as of `admitted_ids`. A batch decodes each vector once."""
    metric, nprobe = parts.tables.metric, min(options.nprobe, parts.tables.num_lists)
    none = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    counts, found = [np.zeros(1, np.int64)], [none[1:]]
    for _, block in source.blocks(max(1, _MAX_VISITS // nprobe)):
        queries_QD = metric.prepare(block)
        probes_QL, _ = parts.tables.probe(queries_QD, nprobe, options.ef_search, torch.get_num_threads())
        near = [none, *_near(parts, decoder, queries_QD, probes_QL, radius, allowed)]
        rows, distances, ids = map(np.concatenate, zip(*near, strict=True))
        order = np.lexsort((ids, distances if metric.name == "l2" else -distances, rows))
        counts.append(np.bincount(rows, minlength=len(queries_QD)))
        found.append((distances[order], ids[order]))
    distances, ids = map(np.concatenate, zip(*found, strict=True))
    return np.cumsum(np.concatenate(counts)), distances, ids


@np.errstate(over="ignore", invalid="ignore")
def _near(
    parts: IndexParts, decoder: Decoder, queries_QD: np.ndarray, probes_QL: np.ndarray, radius: float, allowed
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows of queries, distances and ids of pairs within the radius."""
    metric, step = parts.tables.metric, max(1, _BLOCK_VALUES // queries_QD.shape[1])
    order = np.argsort(probes_QL, axis=None, kind="stable")
    order = order[np.searchsorted(probes_QL.ravel()[order], 0) :]  # -1: there were no more lists
    queries_E, lists_E = order // probes_QL.shape[1], probes_QL.ravel()[order]
    lists_V, firsts_V, visits_V = np.unique(lists_E, return_index=True, return_counts=True)
    for segment in parts.segments:
        for of_N, number_N in _members(segment.starts[lists_V + 1] - segment.starts[lists_V], _DECODED_ROWS):
            positions_N = segment.starts[lists_V[of_N]] + number_N
            if allowed is not None:
                is_allowed = are_among(segment.ids[positions_N], allowed)
                positions_N, of_N = positions_N[is_allowed], of_N[is_allowed]
            codes_NM, _ = segment.rows(positions_N, lists_V[of_N])
            decoded_ND, ids_N = decoder.decode(codes_NM, lists_V[of_N]), segment.ids[positions_N].astype(np.int64)
            decoded_ND = decoded_ND.cpu().numpy() if isinstance(decoded_ND, torch.Tensor) else decoded_ND
            for vector_P, visit_P in _members(visits_V[of_N], step):
                query_P = queries_E[firsts_V[of_N[vector_P]] + visit_P]
                distances_P = metric.distances(metric.values(queries_QD[query_P], decoded_ND[vector_P]))
                is_near = distances_P < radius if metric.name == "l2" else distances_P > radius
                yield query_P[is_near], distances_P[is_near], ids_N[vector_P[is_near]]


def _members(sizes_N: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The members of groups of some sizes, `most` at a time: the group of each, and its number in it."""
    ends_N = np.cumsum(sizes_N)
    for start in range(0, int(ends_N[-1]) if len(ends_N) else 0, most):
        members = np.arange(start, min(start + most, ends_N[-1]))
        groups = np.searchsorted(ends_N, members, side="right")
        yield groups, members - (ends_N - sizes_N)[groups]
