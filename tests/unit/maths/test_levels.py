import numpy as np
import pytest

from qinco.maths.levels import fit_levels, nearest_level

GENERATOR = np.random.default_rng(0)


def error(values_N, levels):
    return np.square(values_N - levels[nearest_level(values_N, levels)]).mean()


@pytest.mark.parametrize("kind", ["normal", "uniform", "lognormal", "two far heaps", "offset", "one outlier"])
def test_levels_lose_less_than_equal_steps(kind):
    values_N = {
        "normal": GENERATOR.standard_normal(20_000),
        "uniform": GENERATOR.uniform(-3, 5, 20_000),
        "lognormal": GENERATOR.lognormal(0, 1, 20_000),
        "two far heaps": np.concatenate([GENERATOR.standard_normal(10_000), 1e4 + GENERATOR.standard_normal(10_000)]),
        "offset": 1e3 + GENERATOR.standard_normal(20_000),
        "one outlier": np.append(GENERATOR.standard_normal(20_000), 500),
    }[kind].astype(np.float32)
    levels = fit_levels(values_N)
    assert levels.dtype == np.float32 and levels.shape == (256,) and (np.diff(levels) >= 0).all()
    assert values_N.min() <= levels[0] and levels[-1] <= values_N.max()
    steps = np.linspace(values_N.min(), values_N.max(), 256, dtype=np.float32)
    assert error(values_N, levels) <= error(values_N, steps) * 1.01
    # what is far from the others is not far from its level either
    assert np.abs(values_N - levels[nearest_level(values_N, levels)]).max() <= np.ptp(values_N) / 100


@pytest.mark.parametrize("count", [1, 2, 255, 256])
def test_few_values_lose_nothing(count):
    values_N = GENERATOR.permutation(np.arange(count) * 0.5).repeat(3).astype(np.float32)
    levels = fit_levels(values_N)
    assert levels.shape == (256,) and error(values_N, levels) == 0


def test_no_values_have_levels():
    assert fit_levels(np.array([])).tolist() == [0] * 256
    assert nearest_level(np.array([]), fit_levels(np.array([]))).dtype == np.uint8


def test_the_nearest_level_is_found():
    levels = np.sort(GENERATOR.standard_normal(256)).astype(np.float32)
    values_N = GENERATOR.standard_normal(1000).astype(np.float32) * 2
    expected_N = np.abs(values_N[:, None].astype(np.float64) - levels).argmin(1)
    found_N = nearest_level(values_N, levels)
    assert found_N.dtype == np.uint8 and np.array_equal(found_N, expected_N)
    assert nearest_level(np.array([-np.inf, np.inf]), levels).tolist() == [0, 255]
