import numpy as np
import pytest

from qinco.errors import ConfigError
from qinco.search.metric import METRICS, Metric

GENERATOR = np.random.default_rng(0)
Q_ND, X_ND = (GENERATOR.standard_normal((50, 7)).astype(np.float32) * scale for scale in (2, 3))


def exact(name, q_ND, x_ND):
    q_ND, x_ND = q_ND.astype(np.float64), x_ND.astype(np.float64)
    if name == "l2":
        return np.square(q_ND - x_ND).sum(1)
    products = (q_ND * x_ND).sum(1)
    return (
        products if name == "inner_product" else products / np.linalg.norm(q_ND, axis=1) / np.linalg.norm(x_ND, axis=1)
    )


@pytest.mark.parametrize("name", METRICS)
def test_values_order_as_users_know_them(name):
    metric = Metric(name, 4.0 if name == "cosine" else 1.0)
    values_N = metric.values(metric.prepare(Q_ND), X_ND)
    expected_N = exact(name, Q_ND, X_ND)
    assert values_N.dtype == np.float32
    np.testing.assert_allclose(metric.distances(values_N), expected_N, rtol=1e-5, atol=1e-5)
    assert metric.distances(values_N).dtype == np.float32
    sign = 1 if name == "l2" else -1
    assert np.array_equal(np.argsort(values_N), np.argsort(sign * expected_N))


def test_what_is_not_found_is_infinitely_far():
    for name in METRICS:
        expected = np.inf if name == "l2" else -np.inf
        assert Metric(name).distances(np.array([np.inf], np.float32)).tolist() == [expected]


def test_only_cosine_prepares():
    for name in ("l2", "inner_product"):
        assert Metric(name).prepare(X_ND) is X_ND
    prepared_ND = Metric("cosine", 2.5).prepare(X_ND)
    assert prepared_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(prepared_ND, axis=1), 2.5, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e18, 1e38])
def test_cosine_knows_no_scale(scale):
    x_ND = (X_ND / np.abs(X_ND).max() * np.float32(scale)).astype(np.float32)
    np.testing.assert_allclose(Metric("cosine").prepare(x_ND), Metric("cosine").prepare(X_ND), rtol=1e-5, atol=1e-6)


def test_cosine_of_a_zero_vector_is_zero():
    metric, zero_ND = Metric("cosine", 3.0), np.zeros((2, 7), np.float32)
    assert not metric.prepare(zero_ND).any()
    for q_ND, x_ND in ((zero_ND, X_ND[:2]), (metric.prepare(X_ND[:2]), zero_ND), (zero_ND, zero_ND)):
        np.testing.assert_allclose(metric.distances(metric.values(q_ND, x_ND)), 0, atol=1e-6)


def test_values_that_are_not_finite_stay_so():
    x_ND = X_ND[:3].copy()
    x_ND[0, 1], x_ND[1, 2] = np.nan, -np.inf
    prepared_ND = Metric("cosine").prepare(x_ND)
    assert np.isnan(prepared_ND[0, 1]) and prepared_ND[1, 2] == -np.inf and np.isfinite(prepared_ND[2]).all()


def test_shortlists_of_cosine_are_those_of_distances():
    assert [Metric(name).scans_inner_products for name in METRICS] == [False, True, False]


def test_unknown_metrics_are_refused():
    with pytest.raises(ConfigError, match="l2, inner_product, cosine, not 'hamming'"):
        Metric("hamming")
