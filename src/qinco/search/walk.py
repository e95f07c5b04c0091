"""Which vectors of shortlists a slower decoder is to decode: those that may still come among the first.

Shape suffixes: Q queries, A of them that go on, S shortlist, N vectors of all shortlists.
"""

from collections.abc import Iterator

import numpy as np

from qinco.engines.native_engine import NativeCoder
from qinco.machine import num_threads
from qinco.native.walker import Rounds, Valuation
from qinco.native.walker import walk as walk_natively
from qinco.search.ranking import Score
from qinco.search.scan import Shortlist
from qinco.search.tables import ROUNDING, SearchTables

_CHUNK = 8  # vectors of a query in a round, or a quarter of what it has decoded, so that rounds stay few
_LEAST = 48  # vectors of a round: a round of fewer takes hardly less time
_LEAST_COMPILED = 16


def walk(shortlist: Shortlist, values_QS: np.ndarray, wanted: int, margin: float | None) -> Iterator[np.ndarray]:
    """Numbers in the flattened shortlists of the vectors to value next, int64 (N,), in rounds over all queries.

    A query goes on while the value of its next vector, less the margin, is below that of the last of the `wanted` best.

    Args:
        shortlist: ascending by values.
        values_QS: +inf; the caller puts in what it finds for a round before it asks for the next.
        wanted: results of each query.
        margin: by how much a vector's value may be found smaller; None: all vectors are valued, in one round.
    """
    num_queries, width = shortlist.lists.shape
    rows_A, begin = np.arange(num_queries), 0
    end = width if margin is None else _end(wanted, _CHUNK, num_queries, width)
    while len(rows_A) and begin < end:
        places_A, places_S = np.nonzero(shortlist.lists[rows_A, begin:end] >= 0)
        yield rows_A[places_A] * width + begin + places_S
        begin, end = end, _end(end, max(_CHUNK, end // 4), len(rows_A), width)
        if begin == width or margin is None:
            return
        worst_A = np.partition(values_QS[rows_A], wanted - 1, axis=1)[:, wanted - 1]
        is_lost_A = shortlist.values[rows_A, begin] - np.float32(margin) >= worst_A  # not of values that are NaN
        rows_A = rows_A[~is_lost_A & (shortlist.lists[rows_A, begin] >= 0)]


def walked_values(
    coder: NativeCoder, tables: SearchTables, score: Score, queries_QD: np.ndarray, shortlist: Shortlist, wanted: int,
    margin: float | None,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """What the rounds of `walk` end with where the compiled engine decodes and values; None where it cannot.

    Returns:
        The values by a score, float32 (Q, S), +inf of vectors that are not decoded; and the seconds of decoding and of
        valuing, float64 (2,).
    """
    scanner, ranking, weights = tables.scanner.native, tables.ranking, coder.weights
    if scanner is None or ranking is None or wanted > shortlist.lists.shape[1]:
        return None
    table = ranking.lookup
    limits = ranking.typical, ranking.low, ranking.high, ROUNDING
    return walk_natively(
        scanner, coder.packed, queries_QD, shortlist, Rounds(wanted, _CHUNK, _LEAST_COMPILED, margin),
        Valuation(score.correction, score.length, table.correction, table.length, *limits),
        starts_VD=weights.coarse_centroids_VD if weights.config.starts_from_coarse else None,
        shift_D=weights.mean_D, scale=float(weights.scale), threads=num_threads(),
    )  # fmt: skip


def _end(begin: int, chunk: int, num_queries: int, width: int) -> int:
    """Where a round ends: after a chunk of each query, or later where it would be short, or what is left would be."""
    end = begin + max(chunk, -(-_LEAST // max(1, num_queries)))
    return width if end + _CHUNK > width else end
