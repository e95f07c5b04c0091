"""Names, shapes and types of a model's tensors: files depend on them, so they never change."""

import pytest
import torch

from qinco.config import ModelConfig
from qinco.model.qinco import Qinco

D, K, E, H, R, V = 3, 4, 6, 5, 2, 7
SMALL = {"dim": D, "num_steps": 2, "codebook_size": K, "num_blocks": 1, "hidden_dim": H}
ALWAYS = {"mean": (D,), "scale": ()}
QINCO1 = {"has_preselector": False, "codeword_skip": False}
IVF = {"starts_from_coarse": True, "num_lists": V}


def bare(step):
    return {f"steps.{step}.codebook.weight": (K, D)}


def full(step, width=D, proposes=True, rank=None):
    names = {"codebook.weight": (K, D)}
    if proposes:
        names |= {"preselector.weight": (K, D)}
    if width != D:
        names |= {"project_in.weight": (width, D), "project_out.weight": (D, width)}
    if rank is None:
        names |= {"concat.outer.weight": (width, width + D), "concat.outer.bias": (width,)}
    else:
        names |= {"concat.inner.weight": (rank, width + D), "concat.outer.weight": (width, rank)}
    names |= {"blocks.0.up.weight": (H, width), "blocks.0.down.weight": (width, H)}
    return {f"steps.{step}.{name}": shape for name, shape in names.items()}


def ranker(step, width=D):
    shapes = {
        "codebook": (K, D), "offset": (K,), "map": (width, D), "slope": (D,), "hidden_map": (width, H),
        "hidden_slope": (H,), "hidden_square": (H,),
    }  # fmt: skip
    return {f"steps.{step}.ranker.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, bare(0) | full(1)),
        ({"embed_dim": E}, bare(0) | full(1, E)),
        (QINCO1, bare(0) | full(1, proposes=False)),
        ({**QINCO1, "concat_rank": R}, bare(0) | full(1, proposes=False, rank=R)),
        ({"embed_dim": E, "concat_rank": R}, bare(0) | full(1, E, rank=R)),
        (IVF, {"coarse_centroids": (V, D)} | full(0) | full(1)),
        ({**IVF, "embed_dim": E}, {"coarse_centroids": (V, D)} | full(0, E) | full(1, E)),
        ({"num_steps": 1}, bare(0)),
        ({"num_steps": 3, "has_ranker": True}, bare(0) | full(1) | full(2) | ranker(2)),
        (
            {**IVF, "embed_dim": E, "has_ranker": True},
            {"coarse_centroids": (V, D)} | full(0, E) | full(1, E) | ranker(1, E),
        ),
    ],
    ids=[
        "same width",
        "projected",
        "qinco1",
        "qinco1 low rank",
        "projected low rank",
        "ivf",
        "ivf projected",
        "one step",
        "ranked",
        "ranked ivf projected",
    ],
)
def test_state_names(fields, names):
    state = Qinco.empty(ModelConfig(**SMALL | fields)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == ALWAYS | names
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_fields_of_the_header():
    assert list(ModelConfig(dim=D).to_dict()) == [
        "dim", "num_steps", "codebook_size", "num_blocks", "embed_dim", "hidden_dim", "has_preselector",
        "codeword_skip", "concat_rank", "starts_from_coarse", "num_lists",
    ]  # fmt: skip
    ranked = ModelConfig(dim=D, has_ranker=True).to_dict()
    assert ranked.pop("has_ranker") is True and ranked == ModelConfig(dim=D).to_dict()  # left out where it is false
