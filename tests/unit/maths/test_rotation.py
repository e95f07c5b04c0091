import numpy as np
import pytest
from small_models import random_vectors

from qinco.maths.rotation import fit_rotation


@pytest.mark.parametrize("count", [9, 100, 400])
def test_the_rotation_is_one(capfd, count):
    rotation_DD = fit_rotation(random_vectors(count, 6), 2)
    assert rotation_DD.dtype == np.float32
    np.testing.assert_allclose(rotation_DD @ rotation_DD.T, np.eye(6), atol=1e-5)
    assert capfd.readouterr().err == ""  # faiss warns there about few vectors


def test_the_rotation_spreads_the_variance_over_the_parts():
    x_ND = random_vectors(400, 6) * np.array([9, 9, 9, 0.01, 0.01, 0.01], np.float32)
    variances_D = (x_ND @ fit_rotation(x_ND, 2).T).var(0)
    assert variances_D[3:].sum() > 0.1 * variances_D.sum()
