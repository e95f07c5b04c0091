"""The conditional logit finds the weights by which choices were made."""

import numpy as np

from qinco.maths.choice import fit_choice

GENERATOR = np.random.default_rng(0)


def test_weights_by_which_choices_were_made_are_found():
    true_F, features_QCF = np.array([1.5, -0.5, 0.0]), GENERATOR.standard_normal((4000, 6, 3))
    noise_QC = GENERATOR.gumbel(size=(4000, 6))  # of which the largest sum is chosen with the logit's probabilities
    chosen_Q = (features_QCF @ true_F + noise_QC).argmax(1)
    found_F = fit_choice(features_QCF, chosen_Q, np.zeros(3))
    np.testing.assert_allclose(found_F, true_F, atol=0.08)
    # It is a maximum: chosen features are as expected under the model.
    shares_QC = np.exp(features_QCF @ found_F)
    shares_QC /= shares_QC.sum(1, keepdims=True)
    expected_F = (shares_QC[..., None] * features_QCF).sum((0, 1))
    np.testing.assert_allclose(features_QCF[np.arange(4000), chosen_Q].sum(0), expected_F, atol=0.05)


def test_choices_that_features_decide_stay_finite_under_a_penalty():
    features_QCF = GENERATOR.standard_normal((50, 4, 1))
    found_F = fit_choice(features_QCF, features_QCF[..., 0].argmax(1), np.array([1e-3]))
    assert 5 < found_F[0] < 1e4
    strict_F = fit_choice(features_QCF, features_QCF[..., 0].argmax(1), np.array([10.0]))
    assert 0 < strict_F[0] < found_F[0]


def test_features_that_say_nothing_have_no_weight():
    np.testing.assert_allclose(
        fit_choice(np.ones((9, 3, 2)), np.zeros(9, int), np.array([1.0, 1.0])), [0, 0], atol=1e-9
    )
