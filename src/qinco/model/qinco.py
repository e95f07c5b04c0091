"""The whole quantizer: normalisation, starting points and the chain of steps.

Everything but `normalize` and `denormalize` is in normalised space.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from qinco.config import ModelConfig
from qinco.model.step import Step
from qinco.model.weights import Weights, random_weights


class Qinco(nn.Module):
    """A residual quantizer with implicit neural codebooks (QINCo, QINCo2), without files or search options."""

    mean: Tensor
    scale: Tensor
    coarse_centroids: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(()))
        if config.starts_from_coarse:
            self.register_buffer("coarse_centroids", torch.zeros(config.num_lists, config.dim))
        steps = (Step(config, m) for m in range(config.num_steps))
        self.steps: tuple[Step, ...] = nn.ModuleList(steps)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def empty(cls, config: ModelConfig) -> "Qinco":
        """A model on the meta device, without memory or values, to load a state dict into or to call `to_empty` on."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def of(cls, weights: Weights, device: str | torch.device = "cpu") -> "Qinco":
        """A model that is not trained, made once for each device; on the CPU it shares the memory of the weights."""
        key = str(device)
        if key not in weights.models or str(weights.models[key].device) != key:  # it may have been moved since
            # Arrays of a file that is only read cannot be shared.
            arrays = {name: np.require(array, requirements=["C", "W"]) for name, array in weights.arrays.items()}
            model = cls.empty(weights.config).eval().requires_grad_(False)
            model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
            weights.models[key] = model.to(device)
        return weights.models[key]

    def weights(self) -> Weights:
        """The current weights; on the CPU they share the model's memory."""
        state = self.state_dict().items()
        return Weights(self.config, {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in state})

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def normalize(self, x_ND: Tensor) -> Tensor:
        return (x_ND - self.mean) / self.scale

    def denormalize(self, x_ND: Tensor) -> Tensor:
        return x_ND * self.scale + self.mean

    def initial_reconstruction(self, num_vectors: int, lists_N: Tensor | None = None) -> Tensor:
        """The reconstructions before the first step, (N, D): zeros, or the coarse centroids of `lists_N` (int64)."""
        is_ivf = self.config.starts_from_coarse
        return self.coarse_centroids[lists_N] if is_ivf else self.mean.new_zeros(num_vectors, self.config.dim)

    def reconstructions(self, codes_NM: Tensor, start_ND: Tensor) -> Iterator[Tensor]:
        """Yield the reconstruction after each step of `codes_NM` (int64; fewer columns than M are a prefix): (N, D)."""
        x_ND = start_ND
        for m in range(codes_NM.shape[1]):
            x_ND = x_ND + self.steps[m](codes_NM[:, m], x_ND)
            yield x_ND

    def forward(self, codes_NM: Tensor, start_ND: Tensor) -> Tensor:
        """The reconstruction of `codes_NM` (int64; fewer columns than M are a prefix, one at least): (N, D)."""
        *_, x_ND = self.reconstructions(codes_NM, start_ND)
        return x_ND


def random_model(config: ModelConfig, seed: int = 0) -> Qinco:
    """A model of `random_weights`."""
    return Qinco.of(random_weights(config, seed))
