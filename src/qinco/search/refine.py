"""Exact refinement: results ranked again by the original vectors, of which only these are read, where they lie.

Shape suffixes: Q queries, S results of each, D dimension, P pairs of a query and a result, U vectors that are read.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.search.ids import ends
from qinco.search.lists import InvertedLists
from qinco.search.metric import Metric
from qinco.search.options import MAX_SHORTLIST
from qinco.search.parts import IndexParts
from qinco.search.scan import Shortlist
from qinco.vectors.rows import VectorSource, as_source, check_dim

log = logging.getLogger(__name__)
DEFAULT_RESULTS = 100
_LEAST_ROWS, _JUDGED_ROWS, _LEAST_SHARE = 8, 100, 0.75  # that are looked at, and of these that must be near
_READ_VALUES, _COMPARED_VALUES = 1 << 22, 1 << 17  # the latter stay in the cache


class Originals:
    """The vectors (N, D) that an index was built of: an id is a row number."""

    def __init__(self, vectors, dim: int):
        self.source: VectorSource = as_source(vectors, "refine")
        check_dim(self.source, dim, "the index")
        self._checked: Sequence | None = None  # the lists whose ids are known to be rows

    def check(self, parts: IndexParts) -> None:
        """Raise DataError unless each id of an index is a row; warn if these seem to be other vectors."""
        if parts.segments is self._checked:
            return
        low, high = ends(parts.ids, parts.next_id or None)  # what faiss scans has no next id
        if high >= len(self.source):
            low, high = ends(parts.ids, None)
        if low < 0 or high >= len(self.source):
            found = (
                f"id {low if low < 0 else high} of the index is no row of {self.source.name} ({len(self.source)} rows)"
            )
            raise DataError(f"{found}: give refine= the vectors that were indexed, whose row numbers are the ids, or "
                            "search with refine=False")  # fmt: skip
        if self._checked is None and self._are_others(parts):
            log.warning("%s seems to hold other vectors than the index, or in another order: refine= takes those that "
                        "were indexed, whose row numbers are the ids", self.source.name)  # fmt: skip
        self._checked = parts.segments

    def _are_others(self, parts: IndexParts) -> bool:
        """Whether some vectors are mostly no nearer than others to what their codes decode to."""
        lists, metric = max(parts.segments, key=len), parts.tables.metric
        if not isinstance(lists, InvertedLists) or len(lists) < _LEAST_ROWS:  # those of faiss give no codes
            return False
        places_N = np.linspace(0, len(lists) - 1, _JUDGED_ROWS).astype(np.int64)
        x_ND = metric.prepare(self.source[lists.ids[places_N]]).astype(np.float64)
        decoded_ND = parts.tables.lookup.decode(lists.rows(places_N)[0], lists.lists_of(places_N))
        with np.errstate(invalid="ignore"):  # a search refuses what is not finite
            distances_NN = np.square(x_ND).sum(1)[:, None] - 2 * x_ND @ decoded_ND.T  # less what a column has in common
            is_near_N = np.diag(distances_NN) < np.median(distances_NN, 0)
        return bool(np.isfinite(distances_NN).all()) and is_near_N.mean() < _LEAST_SHARE

    def ranked(self, metric: Metric, queries_QD: np.ndarray, found: Shortlist, k: int) -> Shortlist:
        """The k nearest of results for prepared queries, by exact values."""
        scale_Q1, width = metric.scale(queries_QD), found.ids.shape[1]
        queries_QD = queries_QD if scale_Q1 is None else queries_QD * scale_Q1
        pairs_P = np.flatnonzero(found.lists.ravel() >= 0)
        pairs_P = pairs_P[np.argsort(found.ids.ravel()[pairs_P])]  # each vector is read once, in the order of the file
        ids_P = found.ids.ravel()[pairs_P]
        is_first_P = np.diff(ids_P, prepend=-1) > 0
        places_P, values_P = np.cumsum(is_first_P) - 1, np.empty(len(pairs_P), np.float32)
        step = max(1, _COMPARED_VALUES // self.source.dim)
        for start, block in self.source.take(ids_P[is_first_P]).blocks(max(1, _READ_VALUES // self.source.dim)):
            x_UD = metric.prepare(block)
            begin, end = np.searchsorted(places_P, [start, start + len(x_UD)]).tolist()
            for first in range(begin, end, step):
                part = slice(first, min(first + step, end))
                values_P[part] = metric.values(queries_QD[pairs_P[part] // width], x_UD[places_P[part] - start])
        values_N = np.full(found.ids.size, np.inf, np.float32)
        values_N[pairs_P] = values_P
        best = found.ranked(values_N.reshape(found.ids.shape), k)
        return best if scale_Q1 is None else replace(best, values=best.values / scale_Q1)


def opened_originals(refine, parts: IndexParts) -> Originals | Literal[False] | None:
    """What is to rank the results of an index, checked; None and False, which stand for none, stay as they are."""
    if refine is None or refine is False:
        return refine
    originals = refine if isinstance(refine, Originals) else Originals(refine, parts.tables.lookup.dim)
    originals.check(parts)
    return originals


def choose_originals(
    refine, num_refine: int | None, k: int, own: Originals | None, parts: IndexParts
) -> tuple[Originals | None, int]:
    """What ranks the results of a search for k, of what it is given and an index's `own`, and how many it ranks."""
    originals = opened_originals(own if refine is None else refine, parts) or None
    if originals is None and num_refine is not None:
        raise ConfigError(f"num_refine={num_refine!r} is of results that the original vectors rank: give these as "
                          "refine=, or leave num_refine out")  # fmt: skip
    if num_refine is not None:
        require_int("num_refine", num_refine, k, MAX_SHORTLIST)
    return originals, 0 if originals is None else num_refine or max(k, DEFAULT_RESULTS)


def choosing_stages(length: int, stages: list) -> list:
    """The stages without the last ones that only order what they are given, `length` results or fewer.

    They have no margin, since it was fitted to what the first results are.
    """
    while stages and stages[-1].keep >= (stages[-2].keep if len(stages) > 1 else length):
        stages = stages[:-1]
    return [replace(stage, margin=None) for stage in stages]
