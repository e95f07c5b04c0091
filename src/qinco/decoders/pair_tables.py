"""Tables of pairs of codes, fitted to what another decoder leaves: which pairs, and what their rows hold.

K² rows have few vectors each, whose plain mean is noisy: a row is the mean of its vectors and, with less weight, of
those of similar codewords, shrunk towards zero by as much as is best for held-out vectors.

Shape suffixes: N vectors, D dimension, d dimension of a sketch, K codewords, W streams of codes, P pairs, J = K² joint
codes, T vectors to fit to, U vectors held out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from qinco.errors import DataError
from qinco.machine import num_threads
from qinco.native.tables import multiply, sum_by_row
from qinco.progress import Progress

Pair = tuple[int, int]
_MAX_HELD_OUT, _MIN_HELD_OUT = 50_000, 1_000
_LARGEST = 256  # of a normalised residual: float16 holds rows of such values, and of much smaller ones
_PULLS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_NEIGHBOURS, _SKETCH_NEIGHBOURS = (2, 3, 5, 12), (3,)
_SKETCH_DIM = 32
_STANDARD_ERRORS, _HALVINGS = 2, 30
_MIN_WEIGHT = 1e-3  # products of less would be subnormal, with which processors are slow
_BLOCK_ROWS = 1024


def fit_pair_tables(
    streams_NW: np.ndarray, words_WKD: np.ndarray, residual_ND: np.ndarray, num_pairs: int, dtype: np.dtype, seed: int,
    report: Progress,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
    """Pairs of streams int64 (P, 2), their tables (P, K², D) of `dtype`, and the scale to multiply the tables by.

    P is at most num_pairs, and less where no other pair lowers the error of held-out vectors significantly.

    Args:
        streams_NW: integers below K.
        words_WKD: float32, the vectors of each stream's words; near ones are assumed to interact alike.
        residual_ND: float32, what the tables should add up to; it is overwritten.
    """
    scale = _normalize(residual_ND)
    fit = _Fit(streams_NW, words_WKD, residual_ND, np.random.default_rng(seed))
    num_pairs = min(num_pairs, len(fit.gains))
    tables_PJD = np.empty((num_pairs, fit.size**2, residual_ND.shape[1]), dtype)
    pairs: list[Pair] = []
    while len(pairs) < num_pairs and (pair := fit.next_pair()) is not None:
        rows = fit.best_rows(pair)
        if rows.gain <= 0:
            break
        tables_PJD[len(pairs)] = rows.table()
        fit.subtract(pair, rows)
        pairs.append(pair)
        mse = float(_products(fit.held.left_TD, fit.held.left_TD).mean()) * scale**2
        report("fitting pairs", len(pairs), num_pairs, "table", residual=mse)
    return np.array(pairs, np.int64).reshape(-1, 2), tables_PJD[: len(pairs)], scale


@dataclass
class _Part:
    """Some of the vectors: their streams int32 (T, W), and what is left of them, float32 (T, D)."""

    streams_TW: np.ndarray
    left_TD: np.ndarray

    def joint(self, pair: Pair, size: int) -> np.ndarray:
        return self.streams_TW[:, pair[0]] * np.int32(size) + self.streams_TW[:, pair[1]]

    def blocks(self, pair: Pair, size: int) -> Iterator[tuple[np.ndarray, ...]]:
        return _blocks(self.joint(pair, size), self.left_TD)


@dataclass
class _Rows:
    """A pair's table: a row is its sum / (its weight + pull). `gain`: a lower bound of how much it lowers the error."""

    sums_JD: np.ndarray
    weights_J: np.ndarray
    pull: float = 1.0
    gain: float = -np.inf

    def table(self) -> np.ndarray:
        return self.sums_JD / (self.weights_J + np.float32(self.pull))[:, None]

    def spread(self, first_KK: np.ndarray, second_KK: np.ndarray) -> "_Rows":
        """To each row those of similar codewords in both places are added, weighted."""
        size, threads = len(first_KK), num_threads()
        spread = []
        for values_J in (self.sums_JD, self.weights_J):
            mixed_1KC = multiply(first_KK, values_J.reshape(1, size, -1), threads=threads)
            spread.append(multiply(second_KK, mixed_1KC.reshape(size, size, -1), threads=threads))
        return _Rows(spread[0].reshape(size**2, -1), spread[1].ravel())

    def fit_pull(self, joint_U: np.ndarray, left_UD: np.ndarray) -> "_Rows":
        """Find the pull with the largest gain on held-out vectors, less some standard errors of it."""
        cross_U, square_U = np.empty((2, len(joint_U)))
        for joint_u, left_uD, cross_u, square_u in _blocks(joint_U, left_UD, cross_U, square_U):
            sums_uD = self.sums_JD[joint_u]
            cross_u[:], square_u[:] = _products(left_uD, sums_uD), _products(sums_uD, sums_uD)
        weights_U = self.weights_J[joint_U].astype(np.float64)
        for pull in _PULLS:
            gains_U = (2 * cross_U - square_U / (weights_U + pull)) / (weights_U + pull)
            gain = float(gains_U.sum() - _STANDARD_ERRORS * np.sqrt(np.square(gains_U).sum()))
            if gain > self.gain:
                self.pull, self.gain = pull, gain
        return self


class _Fit:
    """The state of a fit: what is left of all vectors, and the gain to expect of each pair."""

    def __init__(self, streams_NW, words_WKD, residual_ND, generator: np.random.Generator):
        self.size = words_WKD.shape[1]
        order_N = generator.permutation(len(residual_ND))
        count = len(residual_ND)  # a tenth is held out, but enough for an estimate where there are as many
        num_held = min(max(count // 10, min(count // 2, _MIN_HELD_OUT)), _MAX_HELD_OUT)
        self.held, self.fitted = (
            _Part(streams_NW[rows].astype(np.int32), residual_ND[rows])
            for rows in map(np.sort, (order_N[:num_held], order_N[num_held:]))
        )
        self.kernels = [_kernels(words_KD, {*_NEIGHBOURS, *_SKETCH_NEIGHBOURS}) for words_KD in words_WKD]
        dim = residual_ND.shape[1]  # a pair's gain along random directions is in proportion to its whole gain
        directions_Dd = np.linalg.qr(generator.standard_normal((dim, min(dim, _SKETCH_DIM))))[0]
        self.sketch_Dd = directions_Dd.astype(np.float32)
        self.gains = dict.fromkeys(combinations(range(len(words_WKD)), 2), np.inf)

    def next_pair(self) -> Pair | None:
        """The pair that lowers the error most, by a sketch of what is left; None if none does. None is returned twice.

        Other tables rarely raise a pair's gain, so the last known gains tell which to look at again.
        """
        fitted_Td, held_Ud = (part.left_TD @ self.sketch_Dd for part in (self.fitted, self.held))
        seen = set()
        while self.gains:
            pair = max(self.gains, key=self.gains.__getitem__)
            if self.gains[pair] <= 0:
                return None
            if pair in seen:
                del self.gains[pair]
                return pair
            seen.add(pair)
            self.gains[pair] = max(rows.gain for rows in self._rows(pair, fitted_Td, held_Ud, _SKETCH_NEIGHBOURS))
        return None

    def best_rows(self, pair: Pair) -> _Rows:
        """The table of a pair with the neighbourhood and the pull that lower the error of held-out vectors most."""
        best = _Rows(np.empty(0), np.empty(0))
        for rows in self._rows(pair, self.fitted.left_TD, self.held.left_TD, _NEIGHBOURS):
            if rows.gain < best.gain:  # larger neighbourhoods lose more
                break
            best = rows
        return best

    def subtract(self, pair: Pair, rows: _Rows) -> None:
        """Take a table off what is left: of a fitted vector, what its row would be without it.

        Otherwise the fitted vectors would keep less than unseen ones do, and the next tables would be too small.
        """
        table_JD = rows.table()
        for joint_t, left_tD in self.held.blocks(pair, self.size):
            left_tD -= table_JD[joint_t]
        for joint_t, left_tD in self.fitted.blocks(pair, self.size):
            weights_t = np.maximum(rows.weights_J[joint_t] - 1, 0) + np.float32(rows.pull)
            others_tD = rows.sums_JD[joint_t]
            others_tD -= left_tD
            others_tD /= weights_t[:, None]
            left_tD -= others_tD

    def _rows(self, pair: Pair, fitted_TD: np.ndarray, held_UD: np.ndarray, neighbours) -> Iterator[_Rows]:
        """A pair's tables of what is left: without neighbours, then with more and more of them."""
        joint_T, joint_U = self.fitted.joint(pair, self.size), self.held.joint(pair, self.size)
        sums_JD = np.zeros((self.size**2, fitted_TD.shape[1]), np.float32)
        sum_by_row(fitted_TD, joint_T[:, None], len(sums_JD), sums_JD, threads=num_threads())
        alone = _Rows(sums_JD, np.bincount(joint_T, minlength=len(sums_JD)).astype(np.float32))
        yield alone.fit_pull(joint_U, held_UD)
        for count in neighbours:
            yield alone.spread(*(self.kernels[stream][count] for stream in pair)).fit_pull(joint_U, held_UD)


def _normalize(residual_ND: np.ndarray) -> float:
    """Divide by a power of two, which is returned, so that the largest value is between half of _LARGEST and that."""
    largest = float(np.abs(residual_ND).max(initial=0))
    if not np.isfinite(largest):
        raise DataError("the vectors to fit the pairwise decoder to hold values that are not finite")
    if largest < np.finfo(np.float32).tiny:
        residual_ND[:] = 0
        return 1.0
    scale = float(2.0 ** np.ceil(np.log2(largest / _LARGEST)))
    residual_ND /= np.float32(scale)
    return scale


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Some rows of all arrays at a time, which stay in the cache."""
    for first in range(0, len(arrays[0]), _BLOCK_ROWS):
        yield tuple(array[first : first + _BLOCK_ROWS] for array in arrays)


def _products(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """Inner products of rows, float64 (N,)."""
    return np.einsum("nd,nd->n", a_ND, b_ND).astype(np.float64)


def _kernels(words_KD: np.ndarray, numbers: Iterable[int]) -> dict[int, np.ndarray]:
    """Weights of all words for each, (K, K): exp(−distance² / width), the width such that they sum to each number."""
    words_KD = words_KD - words_KD.mean(0, dtype=np.float64)
    squares_K = _products(words_KD, words_KD)
    distances_KK = np.maximum(squares_K[:, None] + squares_K - 2 * words_KD @ words_KD.T, 0)
    np.fill_diagonal(distances_KK, 0)
    distances_KK = (distances_KK / max(distances_KK.mean(), np.finfo(np.float64).tiny)).astype(np.float32)
    return {number: _kernel(distances_KK, number) for number in numbers}


def _kernel(distances_KK: np.ndarray, neighbours: int) -> np.ndarray:
    low_K1, high_K1 = (np.full((len(distances_KK), 1), bound, np.float32) for bound in (1e-6, 1e3))
    for _ in range(_HALVINGS):
        width_K1 = np.sqrt(low_K1 * high_K1)
        is_wide = np.exp(-distances_KK / width_K1).sum(1, keepdims=True) > neighbours
        low_K1, high_K1 = np.where(is_wide, low_K1, width_K1), np.where(is_wide, width_K1, high_K1)
    weights_KK = np.exp(-distances_KK / width_K1)
    weights_KK[weights_KK < _MIN_WEIGHT] = 0
    return weights_KK
