"""Fitting an index's ranking: some of its vectors are queries, and the others are what they search.

Shape suffixes: N vectors, n vectors of a sample, Q queries, C candidates of each, D dimension.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.columns import join
from qinco.codec.plan import check_values
from qinco.decoders.lookup import LookupDecoder
from qinco.progress import Progress, silent
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.metric import L2
from qinco.search.pipeline import Decoder, NeuralDecoder, scaled_queries
from qinco.search.ranking import Ranking, Score, corrections, fit_score, origin_of, shared_part, squared_lengths
from qinco.search.sample import sample_rows
from qinco.search.tables import SearchTables
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource

_MAX_QUERIES, _CANDIDATES = 1000, 50
# κ of distances, where nothing is known. Few vectors lie far apart, and queries know little of any: among 90 recall@1
# is .525 and .634 with κ = .25 and .8 (text), .760 and .780 (sift), .338 and .386 (Gaussian), among 300 the same.
_PRIOR = 0.8
_OUTLIERS = 1e-3  # the share of corrections on either side that do not count for their limits
_MOST_SPREADS = 1e4  # times the variance of the codec's vectors: what some broken vectors lose must not hide all else
_FIRST, _MARGIN = 10, 0.98  # the share of the first ten results that are within the margin
_MIN_ROWS = 100  # with fewer nothing is fitted
_BLOCK_ROWS = 1 << 14  # of vectors that are compared with what they decode to
_MAX_ROWS, _MAX_VALUES = 1 << 16, 1 << 25  # of the sample that is searched


def mean_of(codec: Codec, tables: SearchTables) -> np.ndarray:
    """About the mean of vectors, float32 (D,): that of the codec's training vectors, or of the lists if it has none."""
    mean_D = join([part.mean_D[None].copy() for part in codec.weights], codec.rotation_DD)[0]
    return mean_D if mean_D.any() else tables.centroids_VD.mean(0, np.float64).astype(np.float32)


def corrections_of(
    codec: Codec, lookup: LookupDecoder, codes: Codes, source: VectorSource, mean_D: np.ndarray,
    report: Progress = silent,
) -> np.ndarray:  # fmt: skip
    """The look-up decoder's corrections of vectors, as they are encoded, by their codes: float32 (N,)."""
    found_N = np.empty(len(codes), np.float32)
    most = _MOST_SPREADS * sum(part.config.dim * float(part.scale) ** 2 for part in codec.weights)
    for first, block in codes.blocks(_BLOCK_ROWS):
        part = slice(first, first + len(block))
        x_nD = source[part]
        if not np.isfinite(x_nD).all():  # codes may be given
            check_values(source)  # names the row
        found_N[part] = np.clip(corrections(x_nD, lookup.decode(block.codes, block.lists), mean_D), -most, most)
        report("measuring what codes lose", part.stop, len(codes))
    return found_N


def with_other_tables(
    corrections_N: np.ndarray, codes: Codes, old: LookupDecoder, new: LookupDecoder, mean_D: np.ndarray
) -> np.ndarray:
    """The corrections of other tables, float32 (N,), where vectors are not known: but for what no tables decode."""
    if old is new or (np.array_equal(old.tables_MKD, new.tables_MKD) and old.centroids_VD is new.centroids_VD):
        return corrections_N
    changed_N = np.empty_like(corrections_N)
    for first, block in codes.blocks(_BLOCK_ROWS):
        part = slice(first, first + len(block))
        old_nD, new_nD = (of.decode(block.codes, block.lists) for of in (old, new))
        changed_N[part] = corrections_N[part] - shared_part(new_nD, old_nD, mean_D)
    return changed_N


def calibrated(
    tables: SearchTables, codec: Codec, codes: Codes, corrections_N: np.ndarray, source: VectorSource,
    mean_D: np.ndarray, leveled: tuple[Codes, np.ndarray], seed: int, pairwise: Decoder | None = None,
    report: Progress = silent,
) -> SearchTables:  # fmt: skip
    """Tables with a ranking that is fitted to vectors, as they are encoded, their codes in lists and corrections.

    Levels are fitted to other codes and corrections (`with_spread`).
    """
    report("calibrating", 0, 1, "ranking")
    rows_n = sample_rows(len(codes), min(_MAX_ROWS, max(1, _MAX_VALUES // source.dim)), seed)
    sample, own_n = _Sample(tables, codes[rows_n], source[rows_n], mean_D, seed), corrections_N[rows_n]
    lookup_ND, neural_ND = sample.decode(tables.lookup), sample.decode(NeuralDecoder(codec, keeps=False))
    lookup = sample.fit(lookup_ND, own_n[sample.rows_N])
    typical = float(own_n.mean(dtype=np.float64))
    low, high = np.quantile(leveled[1].astype(np.float64), [_OUTLIERS, 1 - _OUTLIERS])
    limits = float(low - (high - low) / 2), float(high + (high - low) / 2)
    ranking = Ranking(mean_D, lookup, lookup, lookup, typical, *limits, len(codes))
    tables = tables.ranked(ranking, leveled[0].codes, leveled[0].lists, leveled[1])
    codes_NM, lists_N = sample.searched()
    norm_codes_N = tables.norm_codes(codes_NM, lists_N, 1, own_n[sample.rows_N])

    def known(decoded_ND: np.ndarray) -> np.ndarray:
        """What the norm codes still know of the corrections."""
        return tables.corrections(codes_NM, norm_codes_N, lists_N, decoded_ND)

    neural = sample.fit(neural_ND, known(neural_ND))
    last = neural, neural_ND, known(neural_ND)
    scores = {"neural": neural, "pairwise": Score()}
    margins = {"margin": sample.margin((lookup, lookup_ND, known(lookup_ND)), last)}
    if pairwise is not None:
        pairs_ND = sample.decode(pairwise)
        scores["pairwise"] = pairs = sample.fit(pairs_ND, known(pairs_ND))
        margins["pairwise_margin"] = sample.margin((pairs, pairs_ND, known(pairs_ND)), last)
    report("calibrating", 1, 1, "ranking")
    return replace(tables, ranking=replace(ranking, **scores, **margins))


def with_spread(corrections_T: np.ndarray, num_added: int, seed: int) -> np.ndarray:
    """Corrections of vectors, and such as vectors to come may have: spread wider, and more so where few are known."""
    generator, count = np.random.default_rng(seed), len(corrections_T)
    width = float(np.abs(corrections_T).mean(dtype=np.float64)) * _MIN_ROWS / (_MIN_ROWS + count)
    width += float(corrections_T.std(dtype=np.float64))
    added = generator.choice(corrections_T, num_added) + generator.uniform(-width, width, num_added)
    return np.concatenate([corrections_T, added], dtype=np.float32)


class _Sample:
    """Vectors that are searched, and others that are queries, with the true nearest of each."""

    def __init__(self, tables: SearchTables, codes: Codes, x_nD: np.ndarray, mean_D, seed: int):
        self.metric = tables.metric if tables.metric.scans_inner_products else L2
        self._origin_D = origin_of(tables.metric, mean_D)
        is_query_n = np.zeros(len(x_nD), bool)
        if len(x_nD) >= _MIN_ROWS:
            is_query_n[sample_rows(len(x_nD), min(_MAX_QUERIES, len(x_nD) // 10), seed + 1)] = True
        self._codes = codes
        self._queries_QD, _ = scaled_queries(x_nD[is_query_n], self.metric, True)
        self.rows_N = np.flatnonzero(~is_query_n)
        self._x_ND = x_nD[self.rows_N]
        self._nearest_Q1 = self._search(self._x_ND, 1)

    def _search(self, x_nD: np.ndarray, k: int) -> np.ndarray:
        return nearest_in_blocks(self._queries_QD, [(0, x_nD)], min(k, len(x_nD)), metric=self.metric)[1]

    def decode(self, decoder: Decoder) -> Any:
        """What the searched vectors decode to."""
        return decoder.decode(*self.searched())

    def searched(self) -> tuple[np.ndarray, np.ndarray]:
        """The codes (N, M) and lists (N,) of the searched vectors."""
        codes_NM, lists_N = (np.asarray(part)[self.rows_N] for part in (self._codes.codes, self._codes.lists))
        return np.ascontiguousarray(codes_NM), np.ascontiguousarray(lists_N)

    def fit(self, decoded_ND: np.ndarray, corrections_N: np.ndarray) -> Score:
        """The score of what the searched vectors decode to, given the corrections that are known."""
        found_QC = self._search(decoded_ND, _CANDIDATES)
        lengths_QC, prior = None, 0.0 if self.metric.scans_inner_products else _PRIOR
        if self.metric.scans_inner_products or not corrections_N.any():
            lengths_QC = squared_lengths(decoded_ND, self._origin_D)[found_QC]
        is_known_Q = (found_QC == self._nearest_Q1).any(1)
        values_QC, true_QC = self._values(decoded_ND, found_QC), self._values(self._x_ND, found_QC)
        return fit_score(values_QC, corrections_N[found_QC], lengths_QC, true_QC, is_known_Q, prior)

    @np.errstate(over="ignore", invalid="ignore")  # of queries of very large values
    def margin(self, first: tuple[Score, Any, np.ndarray], second: tuple[Score, Any, np.ndarray]) -> float | None:
        """How far behind the last of the first ten by a second score nearly all of them are by a first score.

        Each score comes with what its decoder decodes and the corrections of that. None where nothing can be compared.
        """
        if not len(self._queries_QD):
            return None
        found_QC = self._search(first[1], _CANDIDATES)
        first_QC, second_QC = (self._scored(*each, found_QC) for each in (first, second))
        last_Q1 = np.sort(second_QC, 1)[:, min(_FIRST, second_QC.shape[1]) - 1, None]
        behind_N = (first_QC - last_Q1)[second_QC <= last_Q1]
        behind_N = behind_N[np.isfinite(behind_N)]
        return float(np.quantile(behind_N, _MARGIN)) if len(behind_N) else None

    def _scored(self, score: Score, decoded_ND, corrections_N: np.ndarray, found_QC: np.ndarray) -> np.ndarray:
        nothing_N = np.zeros(len(decoded_ND), np.float32)
        added_N = score.adjusted(nothing_N, decoded_ND, self._origin_D, corrections_N)
        return self._values(decoded_ND, found_QC) + added_N[found_QC]

    def _values(self, x_ND: np.ndarray, found_QC: np.ndarray) -> np.ndarray:
        queries_PD = np.repeat(self._queries_QD, found_QC.shape[1], 0)
        return self.metric.values(queries_PD, x_ND[found_QC.ravel()]).reshape(found_QC.shape)
