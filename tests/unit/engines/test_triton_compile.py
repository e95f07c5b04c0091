"""The kernels as they ship, compiled for cards that nobody here has.

Default is what is quick; the slow ones are those of the published sizes. QINCO_ALL_KERNELS=1 compiles them for every
capability: that takes minutes, and is for a new version of Triton.
"""

import os

import pytest
import torch

from qinco.config import PRESETS, ModelConfig

pytest.importorskip("triton", reason="triton is not installed: it has wheels for Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

from compiled_kernels import SHARED_LIMIT
from triton_compiler import compiled

from qinco.engines.triton.decode import decode_kernel
from qinco.engines.triton.launches import arithmetic, decode_fused, evaluate_by_layers, evaluate_resident
from qinco.engines.triton.layers import distance_kernel, layer_kernel
from qinco.engines.triton.network import network_kernel, resident_kernel
from qinco.engines.triton.packed import LARGEST_CHUNK, LARGEST_PIECE, padded
from qinco.engines.triton.ranking import estimate_kernel
from qinco.engines.triton.selection import choose_kernel, propose_kernel, shorten_kernel
from qinco.engines.triton.ways import ways_for

S, M = "qinco2-S", "qinco2-M"
EVERYTHING = os.environ.get("QINCO_ALL_KERNELS") == "1"


def of_way(preset: str, name: str, part: str, dtype: torch.dtype, sm: int, dim: int = 128, **layer):
    """A kernel of a way of computing a preset's network, and how it is cut for a card."""
    config = ModelConfig(dim, **PRESETS[preset])
    way = next(way for way in ways_for(config, dtype, sm) if way.name == name)
    plan = way.decode_plan if part == "decode" else way.plan
    if way.evaluate is evaluate_by_layers:
        kernel = layer_kernel
    elif part == "decode":
        assert way.decode is decode_fused
        kernel = decode_kernel
    else:
        kernel = resident_kernel if way.evaluate is evaluate_resident else network_kernel
    constants = {
        "K": 256, "E": padded(config.embed_dim, LARGEST_PIECE), "H": padded(config.hidden_dim, LARGEST_CHUNK),
        "BLOCKS": config.num_blocks, "SKIP": config.codeword_skip, "PROJECTS": config.projects, "BARE": True,
        **{"GATHERS": False, "ADDS": 0, "RELU": True} | layer, **plan.of(kernel), **arithmetic(dtype),
    }  # fmt: skip
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    return kernel, constants, "bf16" if dtype is torch.bfloat16 else "fp32", sm, warps, stages


BF16, FLOAT32 = torch.bfloat16, torch.float32
FIRST, ADDING = {"GATHERS": True, "ADDS": 2, "RELU": False}, {"ADDS": 1, "RELU": False}
SIZES = {"K": 256, "E": 128, "SKIP": True}
QUICK = {
    "propose C=64 of B=32": (propose_kernel, 8, {"BEAM": 32, "K": 256, "WANTED": 64, "ROWS": 32, "PART": 8}),
    "propose 320 of B=40": (propose_kernel, 16, {"BEAM": 40, "K": 256, "WANTED": 320, "ROWS": 64, "PART": 8}),
    "propose A=16": (propose_kernel, 1, {"BEAM": 1, "K": 256, "WANTED": 16, "ROWS": 1, "PART": 1}),
    "choose 32 of 64": (
        choose_kernel, 4, SIZES | {"C": 64, "WANTED": 32, "PROJECTS": False, "PADDED": 64, "COLUMNS": 32}),
    "choose 40 of 80": (
        choose_kernel, 4, SIZES | {"C": 80, "WANTED": 40, "PROJECTS": False, "PADDED": 128, "COLUMNS": 32}),
    "choose 32 of 1024": (
        choose_kernel, 16, SIZES | {"C": 1024, "WANTED": 32, "PROJECTS": True, "PADDED": 1024, "COLUMNS": 16}),
    "estimate": (estimate_kernel, 4, {"K": 256, "TILE": 64, "CHUNK": 32}),
    "shorten": (shorten_kernel, 1, {"C": 320, "WANTED": 80, "PADDED": 512}),
    "distance": (distance_kernel, 8, SIZES | {"PROJECTS": True, "TILE": 128, "COLUMNS": 32}),
}  # fmt: skip
# (preset, way, what of it, dtype, compute capability, constants of a layer)
CHOSEN = [
    (S, "resident", "encode", BF16, 90, {}),
    (S, "streamed", "encode", BF16, 90, {}),
    (S, "streamed", "encode", BF16, 80, {}),
    (S, "streamed", "encode", FLOAT32, 90, {}),
    (M, "layers", "encode", BF16, 90, FIRST),
    (M, "layers", "encode", BF16, 89, ADDING),
    (M, "layers", "encode", FLOAT32, 80, ADDING),
    (S, "streamed", "decode", BF16, 90, {}),
    (S, "streamed", "decode", BF16, 89, {}),
    (S, "streamed", "decode", FLOAT32, 90, {}),
]
REST = [
    *((preset, "streamed", part, BF16, sm, {}) for preset in ("qinco2-XS", S, "qinco1") for part in ("encode", "decode")
      for sm in (80, 89, 90)),
    *((M, "layers", "encode", dtype, sm, layer) for dtype in (BF16, FLOAT32) for sm in (80, 89, 90)
      for layer in ({}, FIRST, ADDING, {"ADDS": 3, "RELU": False})),
]  # fmt: skip
CASES = [*CHOSEN, *(case for case in REST if EVERYTHING and case not in CHOSEN)]


def check(kernel, constants, dtype, sm, warps, stages) -> None:
    found = compiled(kernel, constants, dtype, sm, warps, stages)
    assert found["spilled"] == 0, found
    assert found["shared"] <= SHARED_LIMIT[sm]  # Triton itself asks only when it loads the kernel
    assert not found["warnings"]  # such as that matrix instructions are serialised
    has_products = "DOT" in constants
    assert (found["wgmma"] > 0) == (has_products and sm == 90)
    assert (found["mma"] > 0) == (has_products and sm < 90)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("name", QUICK)
def test_kernels_of_a_step_compile_without_spills(name, sm):
    kernel, warps, constants = QUICK[name]
    check(kernel, constants, "bf16", sm, warps, 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(map(str, case)))
def test_kernels_of_networks_compile_without_spills(case):
    *of, layer = case
    check(*of_way(*of, **layer))


def test_a_kernel_that_has_too_few_registers_is_found():
    """One warp for what needs eight."""
    _, _, constants = QUICK["propose C=64 of B=32"]
    assert compiled(propose_kernel, constants, "bf16", 80, 1, 1)["spilled"] > 0
