"""Models with random weights, to measure speed without training."""

import math

import torch

from qinco.config import ModelConfig
from qinco.model.qinco import Qinco


def random_model(config: ModelConfig, seed: int = 0) -> Qinco:
    """A model on the CPU with random weights, scaled so that values neither grow nor vanish with depth."""
    generator = torch.Generator().manual_seed(seed)
    model = Qinco.empty(config).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            width = tensor.shape[-1] if tensor.ndim else 1
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.5 / math.sqrt(width)))
        model.scale.fill_(1.0)
    return model
