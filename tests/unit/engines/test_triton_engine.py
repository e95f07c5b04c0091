"""The Triton engine: its kernels in Triton's interpreter, on a card where there is one, and where it is not chosen."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from search_problems import RULES, applies, random_problem
from small_models import ARCHITECTURES, Encoder, random_model

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import triton_engine
from qinco.engines.engine import choose_engine
from qinco.errors import ConfigError

SMALL = ARCHITECTURES["projected"]
RUN = Path(__file__).parents[2] / "triton_run.py"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: it is for Linux only")

QUICK = [["searched", "projected", "pairs"], ["selections"]]
SLOW = [
    ["searched", "qinco1", "everything"],
    ["searched", "projected, low rank", "fewer pairs than hypotheses"],
    ["searched", "projected, no blocks", "pairs"],
    ["searched", "coarse, projected", "pairs"],
    ["searched", "coarse, projected", "pairs", "float32", "layers"],
    ["searched", "ranked, projected", "pairs"],
    ["searched", "ranked, coarse", "candidates"],
    ["searched", "ranked", "pairs", "float32", None, 1],
    ["searched", "projected", "pairs", "bf16", "resident"],
    ["several_pieces", "float32", "streamed"],
    ["several_pieces", "float32", "layers"],
    ["codecs"],
    ["in_bf16"],
    ["defects"],
]


def interpreted(calls: list[list]) -> dict[str, str | None]:
    """What goes wrong in each call of a function of `triton_run`, in a process whose kernels are interpreted."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, RUN, json.dumps(calls)], env=environment, capture_output=True, text=True, timeout=900
    )
    found = list(map(json.loads, done.stdout.splitlines()))
    assert len(found) == len(calls), done.stderr
    return {json.dumps(call): wrong for call, wrong in zip(calls, found, strict=True)}


@pytest.fixture(scope="module")
def all_interpreted() -> dict[str, str | None]:
    return interpreted(SLOW)


@needs_triton
def test_kernels_give_what_torch_gives():
    assert interpreted(QUICK) == dict.fromkeys(map(json.dumps, QUICK))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("call", list(map(json.dumps, SLOW)))
def test_kernels_give_what_torch_gives_and_defects_are_found(all_interpreted, call):
    assert all_interpreted[call] is None


def test_without_triton_torch_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_engine.supports(SMALL, "cuda") == "triton is not installed"
    assert choose_engine("auto", SMALL, "cuda").name == "torch"
    with pytest.raises(ConfigError, match="triton is not installed; engine=auto"):
        choose_engine("triton", SMALL, "cuda")


@needs_triton
def test_it_is_for_gpus():
    assert "not on cpu" in triton_engine.supports(SMALL, "cpu")
    assert "not on twin" in triton_engine.supports(SMALL, "twin:0")


@needs_triton
def test_where_it_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_engine.supports(SMALL, "cuda:0") == "cuda:0 has compute capability 7.5, and 8.0 is needed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_engine("auto", SMALL, "cuda:0") is triton_engine
    assert choose_engine("torch", SMALL, "cuda:0").name == "torch"
    assert triton_engine.supports(ARCHITECTURES["one step"], "cuda:0") == "the model has no network"
    large = ModelConfig(dim=128, num_steps=16, codebook_size=65536, embed_dim=384, hidden_dim=384)
    assert "tables take" in triton_engine.supports(large, "cuda:0")


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["projected", "coarse, qinco1", "ranked, coarse", "low rank"])
def test_on_a_card(name, device):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    problem = random_problem(name)
    packed = triton_engine.TritonTensors(random_model(problem.model.config, 1).to(device), "float32")
    for rule in (RULES[name] for name in ("pairs", "candidates", "everything")):
        if not applies(rule, problem.model.config):
            continue

        def encode(x_ND, start_ND, rule=rule):
            found = Encoder(packed, rule).encode(x_ND.to(device), start_ND.to(device))
            return tuple(tensor.cpu() for tensor in found)

        def decode(codes_NM, start_ND):
            return packed.decode_tensors(codes_NM.to(device), start_ND.to(device)).cpu()

        assert packed.verdict(rule).fault is None
        problem.check_float32(rule, encode, decode)


@needs_triton
@pytest.mark.gpu
def test_a_model_of_real_size_on_a_card(device):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    config = ModelConfig(dim=128, num_steps=4, num_blocks=2, embed_dim=128, hidden_dim=256)
    packed = triton_engine.TritonTensors(random_model(config).to(device), "bf16")
    for rule in (EncodeOptions(num_pairs=64, beam_width=32), None):
        assert packed.verdict(rule).fault is None
