"""Fitting an index's ranking: some of its vectors are queries, and the others are what they search.

Shape suffixes: N vectors, n vectors of a sample, Q queries, C candidates of each, D dimension.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.columns import join
from qinco.codec.plan import check_values
from qinco.progress import Progress, silent
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.metric import L2
from qinco.search.pipeline import Decoder, NeuralDecoder, scaled_queries
from qinco.search.ranking import Ranking, Score, corrections, fit_score, squared_lengths
from qinco.search.sample import codes_of_codec, sample_rows
from qinco.search.tables import SearchTables
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource

_MAX_QUERIES, _CANDIDATES = 1000, 50
_PRIOR = 0.25  # κ of distances, where nothing is known: low rather than high
_OUTLIERS = 1e-3  # the share of corrections on either side that do not count for their limits
_MOST_SPREADS = 1e4  # times the variance of the codec's vectors: what some broken vectors lose must not hide all else
_MIN_ROWS = 100  # with fewer nothing is fitted
_MAX_ROWS, _MAX_VALUES = 1 << 16, 1 << 25  # of the sample that is searched


def mean_of(codec: Codec, tables: SearchTables) -> np.ndarray:
    """About the mean of vectors, float32 (D,): that of the codec's training vectors, or of the lists if it has none."""
    mean_D = join([part.mean_D[None].copy() for part in codec.weights], codec.rotation_DD)[0]
    return mean_D if mean_D.any() else tables.centroids_VD.mean(0, np.float64).astype(np.float32)


def corrections_of(
    codec: Codec, codes: Codes, source: VectorSource, mean_D: np.ndarray, report: Progress = silent
) -> np.ndarray:
    """The corrections of vectors, as they are encoded, by their codes: float32 (N,)."""
    found_N = np.empty(len(codes), np.float32)
    most = _MOST_SPREADS * sum(part.config.dim * float(part.scale) ** 2 for part in codec.weights)
    for first, decoded_nD in codec.decode_blocks(codes_of_codec(codec, codes), "auto"):
        part = slice(first, first + len(decoded_nD))
        x_nD = source[part]
        if not np.isfinite(x_nD).all():  # codes may be given
            check_values(source)  # names the row
        found_N[part] = np.clip(corrections(x_nD, decoded_nD, mean_D), -most, most)
        report("measuring what codes lose", part.stop, len(codes))
    return found_N


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
    sample = _Sample(tables, codes[rows_n], corrections_N[rows_n], source[rows_n], mean_D, seed)
    lookup = sample.fit(tables.lookup, sample.corrections_n)
    typical = float(sample.corrections_n.mean(dtype=np.float64))
    low, high = np.quantile(leveled[1].astype(np.float64), [_OUTLIERS, 1 - _OUTLIERS])
    limits = float(low - (high - low) / 2), float(high + (high - low) / 2)
    ranking = Ranking(mean_D, lookup, lookup, lookup, typical, *limits, len(codes))
    tables = tables.ranked(ranking, leveled[0].codes, leveled[0].lists, leveled[1])
    codes_nM, lists_n = (np.ascontiguousarray(part) for part in (sample.codes.codes, sample.codes.lists))
    # What the norm codes still know of the corrections.
    norm_codes_n = tables.norm_codes(codes_nM, lists_n, 1, sample.corrections_n)
    known_n = tables.corrections(codes_nM, norm_codes_n, lists_n)
    neural = sample.fit(NeuralDecoder(codec, keeps=False), known_n)
    pairs = Score() if pairwise is None else sample.fit(pairwise, known_n)
    report("calibrating", 1, 1, "ranking")
    return replace(tables, ranking=replace(ranking, neural=neural, pairwise=pairs))


def with_spread(corrections_T: np.ndarray, num_added: int, seed: int) -> np.ndarray:
    """Corrections of vectors, and such as vectors to come may have: spread wider, and more so where few are known."""
    generator, count = np.random.default_rng(seed), len(corrections_T)
    width = float(np.abs(corrections_T).mean(dtype=np.float64)) * _MIN_ROWS / (_MIN_ROWS + count)
    width += float(corrections_T.std(dtype=np.float64))
    added = generator.choice(corrections_T, num_added) + generator.uniform(-width, width, num_added)
    return np.concatenate([corrections_T, added], dtype=np.float32)


class _Sample:
    """Vectors that are searched, and others that are queries, with the true nearest of each."""

    def __init__(self, tables: SearchTables, codes: Codes, corrections_n, x_nD: np.ndarray, mean_D, seed: int):
        self.metric, self.mean_D = tables.metric if tables.metric.scans_inner_products else L2, mean_D
        is_query_n = np.zeros(len(x_nD), bool)
        if len(x_nD) >= _MIN_ROWS:
            is_query_n[sample_rows(len(x_nD), min(_MAX_QUERIES, len(x_nD) // 10), seed + 1)] = True
        self.codes, self.corrections_n = codes, corrections_n
        self._queries_QD, _ = scaled_queries(x_nD[is_query_n], self.metric, True)
        self._x_nD, self._rows_n = x_nD, np.flatnonzero(~is_query_n)
        self._nearest_Q1 = self._rows_n[self._search(x_nD[self._rows_n], 1)]

    def _search(self, x_nD: np.ndarray, k: int) -> np.ndarray:
        return nearest_in_blocks(self._queries_QD, [(0, x_nD)], min(k, len(x_nD)), metric=self.metric)[1]

    def fit(self, decoder: Decoder, corrections_n: np.ndarray) -> Score:
        """The score of what a decoder decodes, given the corrections that are known."""
        rows_n, lists_n = self._rows_n, np.asarray(self.codes.lists)
        decoded_nD: Any = decoder.decode(np.ascontiguousarray(self.codes.codes[rows_n]), lists_n[rows_n])
        found_QC = self._search(decoded_nD, _CANDIDATES)
        (count, width), numbers_N = found_QC.shape, found_QC.ravel()
        queries_ND = np.repeat(self._queries_QD, width, 0)

        def values(x_nD: np.ndarray) -> np.ndarray:
            return self.metric.values(queries_ND, x_nD).reshape(count, width)

        lengths_QC, prior = None, 0.0 if self.metric.scans_inner_products else _PRIOR
        if self.metric.scans_inner_products or not corrections_n.any():
            lengths_QC = squared_lengths(decoded_nD, self.mean_D)[found_QC]
        is_nearest_QC = rows_n[found_QC] == self._nearest_Q1
        nearest_Q = np.where(is_nearest_QC.any(1), is_nearest_QC.argmax(1), -1)
        true_QC = values(self._x_nD[rows_n][numbers_N])
        return fit_score(
            values(decoded_nD[numbers_N]), corrections_n[rows_n][found_QC], lengths_QC, true_QC, nearest_Q, prior
        )
