"""Tiny models with random weights, and tiny sets of vectors, for tests."""

import numpy as np
import torch

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.model.qinco import Qinco

_TINY = {"dim": 3, "num_steps": 3, "codebook_size": 4, "num_blocks": 2, "hidden_dim": 5}
_IVF = {"starts_from_coarse": True, "num_lists": 5}
_QINCO1 = {"has_preselector": False, "codeword_skip": False}
ARCHITECTURES = {
    "same width": ModelConfig(**_TINY),
    "projected": ModelConfig(**_TINY, embed_dim=6),
    "qinco1": ModelConfig(**_TINY, **_QINCO1),
    "low rank": ModelConfig(**_TINY, **_QINCO1, concat_rank=2),
    "projected, low rank": ModelConfig(**_TINY, embed_dim=2, concat_rank=2),
    "no blocks": ModelConfig(**_TINY | {"num_blocks": 0}),
    "projected, no blocks": ModelConfig(**_TINY | {"num_blocks": 0}, embed_dim=5),
    "coarse": ModelConfig(**_TINY, **_IVF),
    "coarse, projected": ModelConfig(**_TINY, **_IVF, embed_dim=6),
    "coarse, qinco1": ModelConfig(**_TINY, **_IVF, **_QINCO1),
    "ranked": ModelConfig(**_TINY, has_ranker=True),
    "ranked, projected": ModelConfig(**_TINY | {"num_steps": 4}, embed_dim=6, has_ranker=True),
    "ranked, narrow": ModelConfig(**_TINY, embed_dim=2, has_ranker=True),
    "ranked, coarse": ModelConfig(**_TINY, **_IVF, has_ranker=True),
    "one dimension": ModelConfig(**_TINY | {"dim": 1}),
    "one step": ModelConfig(**_TINY | {"num_steps": 1}),
}


def random_model(config: ModelConfig, seed: int = 0) -> Qinco:
    """A model whose weights are all random and far from a start at a residual quantizer."""
    generator = torch.Generator().manual_seed(seed)
    model = Qinco.empty(config).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6)
        model.scale.fill_(1.7)
        for step in model.steps:
            if step.ranker is not None:
                step.ranker.offset += 50  # some estimates are below zero, others are not
    return model.eval().requires_grad_(False)


class Encoder:
    """Encodes normalised tensors with a packed model and some options."""

    def __init__(self, packed, options: EncodeOptions):
        self.packed, self.options = packed, options

    def encode(self, x_ND, start_ND, num_steps: int | None = None):
        return self.packed.encode_tensors(x_ND, start_ND, self.options, num_steps)


def torch_encoder(model: Qinco, options: EncodeOptions, precision: str = "float32") -> Encoder:
    """What encodes with the torch engine, which the others are compared with."""
    return Encoder(torch_engine.pack_tensors(model, precision), options)


def torch_decode(model: Qinco, codes_NM, start_ND, precision: str = "float32") -> torch.Tensor:
    """What the torch engine decodes normalised tensors to."""
    return torch_engine.pack_tensors(model, precision).decode_tensors(codes_NM, start_ND)


def random_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """float32 (count, dim): correlated, in clusters, away from zero."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((6, dim)) * 3
    mixing = generator.standard_normal((dim, dim))
    noise = generator.standard_normal((count, dim)) @ mixing
    return (centers[generator.integers(6, size=count)] + noise + 5).astype(np.float32)
