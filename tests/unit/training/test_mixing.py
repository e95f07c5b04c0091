import numpy as np
import pytest
from small_models import random_vectors

from qinco import Codec
from qinco.config import ModelConfig
from qinco.maths.clustering import quantize_residually, residual_kmeans
from qinco.training.augmentation import fitted_mixing, mixed
from qinco.training.options import TrainOptions


def test_few_vectors_of_many_dimensions_are_mixed_and_many_are_not():
    shares = [fitted_mixing(count, ModelConfig(dim=384)) for count in (4_500, 7_000, 18_000, 300_000)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and shares[2:] == [0, 0]
    assert fitted_mixing(300_000, ModelConfig(dim=128)) == 0
    assert fitted_mixing(5_000, ModelConfig(dim=4)) == 0  # where codewords differ by much more than chance
    assert fitted_mixing(4_500, ModelConfig(dim=384, codebook_size=16)) == 0


def test_a_vector_moves_towards_one_of_the_three_nearest():
    x_ND = random_vectors(40, 6)
    moved_ND = mixed(x_ND, 0.5, (1, 2)) - x_ND
    towards_NND = x_ND[None] - x_ND[:, None]
    near_NJ = np.square(towards_NND).sum(2).argsort(1)[:, 1:4]
    ways_NJD = np.take_along_axis(towards_NND, near_NJ[..., None], 1)
    shares_NJ = (moved_ND[:, None] * ways_NJD).sum(2) / np.square(ways_NJD).sum(2)
    left_NJ = np.square(moved_ND[:, None] - shares_NJ[..., None] * ways_NJD).sum(2)
    chosen_N = left_NJ.argmin(1)
    assert left_NJ.min(1).max() < 1e-9 and len(set(chosen_N)) == 3
    taken_N = shares_NJ[np.arange(40), chosen_N]
    assert 0 <= taken_N.min() < 0.1 and 0.4 < taken_N.max() <= 0.5


def test_the_seed_decides_and_what_is_given_stays_as_it_is():
    x_ND = random_vectors(40, 6)
    before_ND = x_ND.copy()
    one, two, other = (mixed(x_ND, 1.0, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert np.array_equal(one, two) and not np.array_equal(one, other) and np.array_equal(x_ND, before_ND)
    assert np.array_equal(mixed(x_ND, 0.0, (0,)), x_ND)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_so_few_vectors_have_fewer_neighbours(count):
    assert mixed(random_vectors(count, 3), 1.0, (0,)).shape == (count, 3)


@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_neighbours_do_not_depend_on_the_scale(scale):
    x_ND = random_vectors(40, 6)
    np.testing.assert_allclose(mixed(x_ND * np.float32(scale), 1.0, (3,)) / scale, mixed(x_ND, 1.0, (3,)), rtol=1e-3)


def test_the_papers_recipe_knows_neither():
    options = TrainOptions.from_recipe("paper", ModelConfig(dim=8))
    assert options.mixing == 0 and not options.shrinks


def test_a_codec_of_few_vectors_is_better_than_a_residual_quantizer():
    """Of 600 vectors with 8 of 40 dimensions that matter, on others."""
    generator = np.random.default_rng(0)
    basis = generator.standard_normal((8, 40))
    noisy = [generator.standard_normal((n, 8)) @ basis + generator.standard_normal((n, 40)) for n in (600, 1000)]
    x_ND, unseen_ND = (np.asarray(of, np.float32) for of in noisy)
    settings = {"num_steps": 4, "codebook_size": 32, "num_blocks": 1, "hidden_dim": 32, "embed_dim": 16}
    codec = Codec.fit(x_ND, preset=None, epochs=10, num_valid=60, device="cpu", progress=False, **settings)
    plain_ND = quantize_residually(unseen_ND, residual_kmeans(x_ND, 4, 32))
    errors = (np.square(found - unseen_ND).sum() for found in (codec.decode(codec.encode(unseen_ND)), plain_ND))
    ours, plain = (float(error) for error in errors)
    assert ours < 0.95 * plain
