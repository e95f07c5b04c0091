"""Comparison with centroids by products of bf16 halves: interpreted, and compiled ahead of time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled_kernels import SHARED_LIMIT, VERSIONS, compiled

from qinco.maths.distances import closest
from qinco.maths.split_products import CUTS, LEAST_CENTROIDS, prepared

SCRIPT = Path(__file__).parents[2] / "interpreted_closest.py"
ARGUMENTS = {
    **dict.fromkeys(("x_high", "x_low", "c_high", "c_low"), "*bf16"), "norms": "*fp32", "values": "*fp32",
    "numbers": "*i32", "count": "i32", "size": "i32", "D": "i32:16", "per_slice": "i32:16",
}  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> dict:
    pytest.importorskip("triton", reason="needs triton")
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_kernel_finds_the_nearest_centroids(interpreted):
    for found in interpreted["compared"]:
        assert found["same"] == found["same as float32"] == 1
        assert found["apart"] < 1e-6


def test_a_right_kernel_passes_the_check_without_a_word(interpreted):
    assert interpreted["whole"] == {"works": [True, True], "lines": []}


@pytest.mark.parametrize("defect", range(4))
def test_a_defect_is_found_at_first_use_and_told_once(interpreted, defect):
    seen = interpreted["defects"][defect]
    assert seen["works"] == [False, False] and len(seen["lines"]) == 1
    reasons = ("results are wrong", "results are wrong", "results are wrong", "out of resource")
    assert reasons[defect] in seen["lines"][0] and "float32" in seen["lines"][0]


def test_a_kernel_that_fails_later_gives_no_wrong_answer(interpreted):
    assert interpreted["late"] == {"works": [True, False], "same": True}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_compiles_without_spills(version):
    pytest.importorskip("triton", reason="needs triton")
    from qinco.maths.closest_kernel import closest_kernel

    constants = {name: value for name, value in CUTS.items() if name.isupper()}
    options = {name: value for name, value in CUTS.items() if name.islower()}
    made = compiled(closest_kernel, ARGUMENTS, constants, version, **options)
    assert made["spilled"] == 0 and not made["warnings"] and made["wgmma"] + made["mma"] >= 6
    assert made["shared"] <= SHARED_LIMIT[version]


def test_other_devices_compare_in_float32(device):
    generator = torch.Generator().manual_seed(0)
    x_ND, c_KD = torch.randn(5, 3, generator=generator), torch.randn(LEAST_CENTROIDS, 3, generator=generator)
    x_ND, c_KD = x_ND.to(device), c_KD.to(device)
    for found, wanted in zip(prepared(c_KD)(x_ND), closest(x_ND, c_KD), strict=True):
        torch.testing.assert_close(found.cpu(), wanted.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_finds_the_nearest_centroids(caplog):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    generator = torch.Generator().manual_seed(0)
    x_ND, c_KD = torch.randn(3000, 96, generator=generator), torch.randn(2 * LEAST_CENTROIDS, 96, generator=generator)
    found_N, distances_N = prepared(c_KD.cuda())(x_ND.cuda())
    least_N, wanted_N = torch.cdist(x_ND.double(), c_KD.double()).square().min(1)
    assert not caplog.records and torch.equal(found_N.cpu(), wanted_N)
    torch.testing.assert_close(distances_N.cpu().double(), least_N, rtol=1e-5, atol=1e-5)
