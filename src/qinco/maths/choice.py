"""Which of some candidates is chosen, as a function of their features: the conditional logit.

Shape suffixes: Q choices, C candidates of each, F features.
"""

import numpy as np

_ITERATIONS, _TOLERANCE = 50, 1e-9


def fit_choice(features_QCF: np.ndarray, chosen_Q: np.ndarray, penalty_F: np.ndarray) -> np.ndarray:
    """Weights w, float64 (F,), by which candidate i is chosen with probability ∝ exp(features_i · w).

    They maximise the likelihood of what was chosen, less Σ penalty · w² / 2, by Newton's method (McFadden,
    "Conditional logit analysis of qualitative choice behavior", 1974). The problem is convex.
    """
    features_QCF = np.asarray(features_QCF, np.float64)
    chosen_QF = features_QCF[np.arange(len(features_QCF)), chosen_Q]
    weights_F, value = np.zeros(features_QCF.shape[2]), np.inf
    for _ in range(_ITERATIONS):
        found, gradient_F, hessian_FF = _likelihood(features_QCF, chosen_QF, penalty_F, weights_F)
        if not found < value - _TOLERANCE * (1 + abs(found)):
            break
        value, best_F = found, weights_F
        step_F = np.linalg.lstsq(hessian_FF, gradient_F, rcond=None)[0]
        for _ in range(30):  # half a step, where a whole one leaves what the quadratic describes
            weights_F = best_F - step_F
            if _likelihood(features_QCF, chosen_QF, penalty_F, weights_F)[0] < value:
                break
            step_F = step_F / 2
    return best_F


def _likelihood(features_QCF, chosen_QF, penalty_F, weights_F) -> tuple[float, np.ndarray, np.ndarray]:
    """The negative logarithm of the penalised likelihood, its gradient and its Hessian matrix."""
    scores_QC = features_QCF @ weights_F
    highest_Q1 = scores_QC.max(1, keepdims=True)
    shares_QC = np.exp(scores_QC - highest_Q1)
    totals_Q1 = shares_QC.sum(1, keepdims=True)
    shares_QC /= totals_Q1
    value = float((np.log(totals_Q1) + highest_Q1).sum() - (chosen_QF @ weights_F).sum())
    means_QF = np.einsum("qc,qcf->qf", shares_QC, features_QCF)
    gradient_F = (means_QF - chosen_QF).sum(0) + penalty_F * weights_F
    weighted_QCF = shares_QC[..., None] * features_QCF
    hessian_FF = np.einsum("qcf,qcg->fg", weighted_QCF, features_QCF) - means_QF.T @ means_QF + np.diag(penalty_F)
    return value + float(penalty_F @ weights_F**2) / 2, gradient_F, hessian_FF
