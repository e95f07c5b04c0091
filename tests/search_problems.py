"""Models with vectors to encode, and how what any engine makes of them is compared with the readable one."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors, torch_decode, torch_encoder

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.model.qinco import Qinco

UPSTREAM = Path(__file__).parent / "data" / "upstream"
PUBLISHED = ("v2_proj", "v1_qinco", "v1_qinco_lr")
COUNT = 300
RULES = {
    "everything": EncodeOptions(beam_width=3),
    "greedy": EncodeOptions(),
    "candidates": EncodeOptions(num_candidates=2, beam_width=3),
    "pairs": EncodeOptions(num_pairs=6, beam_width=4),
    "fewer pairs than hypotheses": EncodeOptions(num_pairs=1, beam_width=33),
    "more than there are": EncodeOptions(num_pairs=99, beam_width=70),
}
TRAINED = {
    "same width": {"embed_dim": 32, "num_blocks": 2},
    "projected": {"embed_dim": 16, "num_blocks": 1},
    "wider": {"embed_dim": 40, "num_blocks": 1},
    "qinco1": {"embed_dim": 32, "num_blocks": 2, "num_candidates": 0, "codeword_skip": False, "lr": 4e-4},
}
TRAINED_RULES = [
    EncodeOptions(num_candidates=8, beam_width=8),
    EncodeOptions(num_pairs=24, beam_width=12),
    EncodeOptions(beam_width=2),
]


class Problem:
    """A model, normalised vectors, their starts, and what the reference makes of them on the processor.

    `encode` and `decode` of a check are those of an engine: (x, start) to codes and reconstructions, and (codes,
    start) to reconstructions, all on the processor.
    """

    def __init__(self, model: Qinco, x_ND: torch.Tensor, lists_N: torch.Tensor | None = None):
        self.model, self.x_ND = model, x_ND
        self.start_ND = model.initial_reconstruction(len(x_ND), lists_N)
        self.searched = cache(self._searched)

    def _searched(self, rule: EncodeOptions):
        """The reference's codes, what it decodes them to, and each vector's squared error."""
        codes_NM, _ = torch_encoder(self.model, rule).encode(self.x_ND, self.start_ND)
        decoded_ND = torch_decode(self.model, codes_NM, self.start_ND)
        return codes_NM, decoded_ND, self.errors(decoded_ND)

    def errors(self, decoded_ND) -> torch.Tensor:
        return (decoded_ND - self.x_ND).square().sum(1)

    def check_float32(self, rule: EncodeOptions, encode, decode_with, rel: float = 1e-6) -> None:
        """The same codes but for ties, the same error, and the same vectors from the same codes."""
        wanted_NM, wanted_ND, errors_N = self.searched(rule)
        codes_NM, reached_ND = encode(self.x_ND, self.start_ND)
        assert codes_NM.dtype == torch.int64 and codes_NM.shape == wanted_NM.shape
        assert (codes_NM == wanted_NM).all(1).float().mean() >= 0.99
        decoded_ND = torch_decode(self.model, codes_NM, self.start_ND)
        assert float(self.errors(decoded_ND).mean()) == pytest.approx(float(errors_N.mean()), rel=rel)
        scale = float(errors_N.mean().sqrt())
        assert distance(reached_ND, decoded_ND) <= 1e-5 * scale
        assert distance(decode_with(wanted_NM, self.start_ND), wanted_ND) <= 1e-5 * scale

    def check_bf16(self, rule: EncodeOptions, encode, decode_with) -> None:
        """Within a thousandth of the error, and a hundredth of its scale between the decoded vectors."""
        wanted_NM, wanted_ND, errors_N = self.searched(rule)
        codes_NM, _ = encode(self.x_ND, self.start_ND)
        error = self.errors(torch_decode(self.model, codes_NM, self.start_ND)).mean()
        assert float(error) == pytest.approx(float(errors_N.mean()), rel=1e-3)
        decoded_ND = decode_with(wanted_NM, self.start_ND)
        assert 0 < distance(decoded_ND, wanted_ND) <= 1e-2 * float(errors_N.mean().sqrt())


def distance(ours_ND, theirs_ND) -> float:
    """The root of the mean squared distance of vectors."""
    return float((ours_ND - theirs_ND).double().square().sum(1).mean().sqrt())


def applies(rule: EncodeOptions, config: ModelConfig) -> bool:
    return config.has_preselector or not rule.preselects


@cache
def random_problem(name: str) -> Problem:
    config = ARCHITECTURES[name]
    model = random_model(config, 1)
    x_ND = model.normalize(torch.from_numpy(random_vectors(COUNT, config.dim)))
    return Problem(model, x_ND, torch.arange(COUNT) % 5 if config.starts_from_coarse else None)


@cache
def trained_problem(name: str) -> Problem:
    """A codec trained for a moment, from networks that are not zero, and vectors that it has not seen."""
    x_ND = random_vectors(5000, 32)
    search = {} if name == "qinco1" else {"num_candidates": 4, "beam_width": 4}
    codec = Codec.fit(
        x_ND[:3000], None, recipe="paper", epochs=4, batch_size=256, num_steps=4, codebook_size=64, hidden_dim=64,
        device="cpu", **{"lr": 4e-3} | search | TRAINED[name],
    )  # fmt: skip
    assert codec.provenance["epoch"] > 0
    return Problem(
        codec.models[0].eval().requires_grad_(False), codec.models[0].normalize(torch.from_numpy(x_ND[3000:]))
    )


@cache
def published_problem(name: str) -> tuple[Problem, EncodeOptions]:
    """A model that the authors' code wrote, some of its vectors, and its search rule."""
    codec = Codec.load(UPSTREAM / f"{name}.pt")
    base_ND = torch.from_numpy(np.load(UPSTREAM / "base.npy"))
    return Problem(codec.models[0], codec.models[0].normalize(base_ND)), codec.encode_options
