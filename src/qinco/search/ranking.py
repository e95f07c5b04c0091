"""Calibrated ranking: distances to vectors, estimated from their codes and one number more of each.

With x̂ what a code decodes to and μ the mean of vectors, a vector's correction is T = ⟨x − x̂, x − μ⟩, and vectors are
ranked by ‖q − x̂‖² + κ T (docs/ranking.md has the derivation). κ is fitted for each stage of a search. An index stores T
of the look-up decoder; that of another decoder follows from it but for a small part.

Shape suffixes: N vectors or pairs of a query and a vector, D dimension, Q queries, C candidates.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from qinco.maths.choice import fit_choice
from qinco.maths.devices import to_device
from qinco.search.metric import Metric, products

SCORES = ("lookup", "neural", "pairwise")  # of a Ranking
_MIN_SHARE = 0.02  # of the spread of values: corrections that change them by less are left out
_PRIOR_QUERIES = 10.0  # how many queries the prior counts for
_RANKS = 3  # how many of the nearest are chosen in turn
_ESTIMATED = 10  # results whose distances are compared with the true ones


@dataclass(frozen=True)
class Score:
    """How one stage values a vector: its decoded value + correction · T + length · ‖x̂ − μ‖².

    The decoded value is ‖q − x̂‖², or −⟨q, x̂⟩ for a query of length 1, and then the length is that of x̂ itself. value +
    offset estimates the true one.
    """

    correction: float = 0.0
    length: float = 0.0
    offset: float = 0.0

    def adjusted(self, values_N: np.ndarray, decoded_ND, origin_D: np.ndarray, corrections_N: np.ndarray) -> np.ndarray:
        """Values of pairs, float32 (N,), from their decoded ones; `origin_D` is that of lengths, μ or 0."""
        values_N = values_N + np.float32(self.correction) * corrections_N
        if self.length:
            values_N = values_N + np.float32(self.length) * squared_lengths(decoded_ND, origin_D)
        return values_N.astype(np.float32, copy=False)

    def estimates(self, values: np.ndarray) -> np.ndarray:
        return (values + np.float32(self.offset)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Ranking:
    """The fitted part of an index's ranking.

    Attributes:
        mean_D: μ, float32.
        lookup, neural, pairwise: the Score of each stage.
        typical: the mean correction of the look-up decoder, for vectors whose own is not known.
        low, high: limits of likely corrections. What a norm code tells beyond them counts if the code rules out all
            likely ones; else the vector's value is far from any level.
        num_vectors: how many it was fitted to.
        margin: what is left of a shortlist is not decoded where look-up values, less this, are beyond all results;
            None where it is not known.
        pairwise_margin: the same of a shortlist in the pairwise decoder's order.
    """

    mean_D: np.ndarray
    lookup: Score = field(default_factory=Score)
    neural: Score = field(default_factory=Score)
    pairwise: Score = field(default_factory=Score)
    typical: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    num_vectors: int = 0
    margin: float | None = None
    pairwise_margin: float | None = None


def corrections(x_ND: np.ndarray, decoded_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """T = ⟨x − x̂, x − μ⟩ of vectors and what they are decoded to: float64 (N,)."""
    x_ND = x_ND.astype(np.float64)
    return np.einsum("nd,nd->n", x_ND - decoded_ND, x_ND - mean_D)


def origin_of(metric: Metric, mean_D: np.ndarray) -> np.ndarray:
    """What lengths are measured from: 0 for inner products, which single it out, else μ."""
    return np.zeros_like(mean_D) if metric.scans_inner_products else mean_D


def squared_lengths(decoded_ND, origin_D: np.ndarray) -> np.ndarray:
    """Squared distances of an array or a tensor to an origin, float32 (N,)."""
    centred_ND = decoded_ND - _like(decoded_ND, origin_D)
    return products(centred_ND, centred_ND)


def shared_part(decoded_ND, lookup_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """⟨x̂ − x̂', x̂ − μ⟩ of x̂, an array or a tensor, and what the tables decode, x̂': about T' − T, float32 (N,)."""
    return products(decoded_ND - _like(decoded_ND, lookup_ND), decoded_ND - _like(decoded_ND, mean_D))


def _like(decoded_ND, array: np.ndarray):
    return array if isinstance(decoded_ND, np.ndarray) else to_device(array, decoded_ND.device)


def fit_score(
    values_QC: np.ndarray, corrections_QC: np.ndarray, lengths_QC: np.ndarray | None, true_QC: np.ndarray,
    is_known_Q: np.ndarray, prior: float,
) -> Score:  # fmt: skip
    """The score by which the nearest candidates of a query are most likely to come first, in order.

    That is a conditional logit whose choices are the nearest one, the second nearest among the others, and the third
    (Plackett and Luce). With the nearest alone recall@1 is the same, and what is fitted to few queries varies more.

    Args:
        values_QC: decoded values of some candidates of each query.
        corrections_QC: their corrections; all zero where none are known.
        lengths_QC: their squared lengths; None: length stays 0.
        true_QC: their true values.
        is_known_Q: whether the nearest vector of all is among them; other queries do not count.
        prior: κ where queries tell nothing.
    """
    is_finite_Q = np.isfinite(values_QC).all(1)  # not those of a query of very large values
    if not is_finite_Q.any():
        return Score(prior)
    if not is_finite_Q.all():
        lengths_QC = None if lengths_QC is None else lengths_QC[is_finite_Q]
        part = values_QC[is_finite_Q], corrections_QC[is_finite_Q], lengths_QC, true_QC[is_finite_Q]
        return fit_score(*part, is_known_Q[is_finite_Q], prior)
    columns = [values_QC + prior * corrections_QC, corrections_QC, *([] if lengths_QC is None else [lengths_QC])]
    features_QCF = np.stack(columns, -1).astype(np.float64)
    centred_QCF = features_QCF - features_QCF.mean(1, keepdims=True)
    scales_F = np.median(np.abs(centred_QCF), (0, 1))  # a few broken vectors have corrections of any size
    scales_F[scales_F == 0] = 1
    penalty_F = np.array([1e-3, *[_PRIOR_QUERIES] * (len(columns) - 1)])
    order_KC = np.argsort(true_QC[is_known_Q], 1, kind="stable")
    sorted_KCF = np.take_along_axis(-centred_QCF[is_known_Q] / scales_F, order_KC[..., None], 1)
    ranks = min(_RANKS, sorted_KCF.shape[1] - 1)
    score = Score(prior)
    if ranks > 0 and len(sorted_KCF):
        left = sorted_KCF.shape[1] - ranks + 1  # candidates of each choice, of which the first is chosen
        choices_QCF = np.concatenate([sorted_KCF[:, rank : rank + left] for rank in range(ranks)])
        weights_F = fit_choice(choices_QCF, np.zeros(len(choices_QCF), int), penalty_F) / scales_F
        if weights_F[0] > 0:
            others = weights_F[1:] / weights_F[0]
            score = Score(float(prior + others[0]), float(others[1]) if len(others) > 1 else 0.0)
        if abs(score.correction) * scales_F[1] < _MIN_SHARE * scales_F[0]:
            score = Score(0.0, score.length)
    values_QC = values_QC + score.correction * corrections_QC
    values_QC = values_QC if lengths_QC is None else values_QC + score.length * lengths_QC
    first_QE = np.argsort(values_QC, 1, kind="stable")[:, :_ESTIMATED]
    missing_QE = np.take_along_axis(np.asarray(true_QC, np.float64) - values_QC, first_QE, 1)
    missing_N = missing_QE[np.isfinite(missing_QE)]
    if not len(missing_N):
        return score
    low, high = np.quantile(missing_N, [0.25, 0.75])
    is_usual_N = (missing_N >= low - 3 * (high - low)) & (missing_N <= high + 3 * (high - low))
    return replace(score, offset=float(missing_N[is_usual_N].mean()))
