"""Models with random weights."""

import pytest
import torch

from qinco.codec import Codec
from qinco.config import PRESETS, EncodeOptions, ModelConfig
from qinco.model.qinco import random_model


@pytest.mark.parametrize("preset", PRESETS)
def test_values_neither_grow_nor_vanish(preset):
    config = ModelConfig(dim=32, num_steps=16, codebook_size=4, **PRESETS[preset] | {"hidden_dim": 64})
    codec = Codec(random_model(config), EncodeOptions())
    decoded = codec.decode(torch.randint(4, (50, 16), generator=torch.Generator().manual_seed(0)))
    assert 0.1 < decoded.std() < 100


def test_random_models_are_repeatable():
    config = ModelConfig(dim=3, num_steps=2, codebook_size=4, hidden_dim=5)
    first, second, other = (random_model(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["steps.0.codebook.weight"], other["steps.0.codebook.weight"])
