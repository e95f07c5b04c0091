"""The native engine against the readable one, at every instruction set that the processor has."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from native_levels import LEVELS, needs_bf16, needs_native, pack_at
from parity_files import PARITY
from search_problems import (
    COUNT,
    PUBLISHED,
    RULES,
    TRAINED,
    TRAINED_RULES,
    Problem,
    applies,
    published_problem,
    random_problem,
    trained_problem,
)
from small_models import ARCHITECTURES, Encoder, random_model, torch_encoder

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import native_engine
from qinco.engines.tensors import pack
from qinco.machine import using_threads

pytestmark = needs_native


def check(problem: Problem, level: str, rules, precision="float32") -> None:
    packed = pack_at(level, problem.model, precision)
    compare = problem.check_float32 if precision == "float32" else problem.check_bf16
    for rule in rules:
        if applies(rule, problem.model.config):
            compare(rule, Encoder(packed, rule).encode, packed.decode_tensors)


def encode(problem: Problem, packed, rule: EncodeOptions):
    return Encoder(packed, rule).encode(problem.x_ND, problem.start_ND)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_searched_and_decoded_as_by_the_reference(name, level):
    check(random_problem(name), level, RULES.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_without_its_instructions_is_float32(name):
    problem, rule = random_problem(name), RULES["everything"]
    for level in set(LEVELS) - {"avx512_bf16"}:
        found = [encode(problem, pack_at(level, problem.model, each), rule) for each in ("float32", "bf16")]
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_steps_of_a_search_are_a_shorter_search(name):
    problem = random_problem(name)
    packed = pack_at(LEVELS[-1], problem.model)
    for steps in range(1, problem.model.config.num_steps + 1):
        encoders = Encoder(packed, RULES["everything"]), torch_encoder(problem.model, RULES["everything"])
        (codes_NM, reached_ND), (wanted_NM, _) = (
            encoder.encode(problem.x_ND, problem.start_ND, steps) for encoder in encoders
        )
        assert codes_NM.shape == (COUNT, steps)
        assert (codes_NM == wanted_NM).all(1).float().mean() >= 0.99
        torch.testing.assert_close(packed.decode_tensors(codes_NM, problem.start_ND), reached_ND, rtol=1e-4, atol=1e-4)


SLOW_LEVELS = [*(pytest.param(level, marks=pytest.mark.slow) for level in LEVELS[:-1]), *LEVELS[-1:]]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("level", SLOW_LEVELS)
def test_trained_models_in_float32(name, level):
    check(trained_problem(name), level, TRAINED_RULES)


@needs_bf16
@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_in_bf16(name):
    check(trained_problem(name), "avx512_bf16", TRAINED_RULES, "bf16")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("level", LEVELS)
def test_published_forms_of_a_model(name, level):
    problem, rule = published_problem(name)
    check(problem, level, [rule])


@cache
def sift_problem() -> Problem:
    """The first SIFT vectors and a model of eight bytes."""
    model, base = PARITY / "v2_sift_8x8.pt", PARITY.parent / "data" / "sift" / "base.bvecs"
    if not (model.exists() and base.exists()):
        pytest.skip(f"{model} or {base} is missing")
    codec = Codec.load(model)
    x_ND = np.fromfile(base, np.uint8, 132 * 3000).reshape(-1, 132)[:, 4:].astype(np.float32)
    return Problem(codec.models[0], codec.models[0].normalize(torch.from_numpy(x_ND)))


SIFT_RULES = [EncodeOptions(num_candidates=4, beam_width=4), EncodeOptions(num_pairs=64, beam_width=32)]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_sift(level):
    check(sift_problem(), level, SIFT_RULES)
    if level == "avx512_bf16":
        check(sift_problem(), level, SIFT_RULES, "bf16")


def test_packing_does_not_change_or_follow_the_model():
    problem = random_problem("projected")
    model = random_model(problem.model.config, 1).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = pack(model, "native", "float32")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    wanted = encode(problem, packed, RULES["pairs"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(map(torch.equal, encode(problem, packed, RULES["pairs"]), wanted))
    codes_NM, _ = encode(problem, pack(model, "native", "float32"), RULES["pairs"])
    assert not codes_NM.any()


@pytest.mark.parametrize("embed_dim", [96, 128], ids=["same width", "projected"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_equal_models_are_packed_equally_by_any_number_of_threads(embed_dim, precision):
    config = ModelConfig(dim=96, embed_dim=embed_dim, num_steps=2, codebook_size=16, num_blocks=2, hidden_dim=128)
    model = random_model(config)
    x_ND = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3):
        with using_threads(count):
            packed = pack(model, "native", precision)
            results.append(Encoder(packed, EncodeOptions(beam_width=3)).encode(x_ND, model.initial_reconstruction(20)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("embed_dim", [30, 6], ids=["same width", "projected"])
def test_weights_that_are_no_numbers_are_packed(embed_dim, value):
    """A training that has diverged must be able to say so."""
    config = ModelConfig(dim=30, embed_dim=embed_dim, num_steps=2, codebook_size=4, num_blocks=1, hidden_dim=5)
    for name, _ in random_model(config).named_parameters():
        model = random_model(config)
        model.get_parameter(name).flatten()[:3] = value
        packed = pack(model, "native", "float32")
        codes_NM, _ = Encoder(packed, EncodeOptions(num_pairs=9, beam_width=4)).encode(
            torch.ones(3, 30), model.initial_reconstruction(3)
        )
        assert int(codes_NM.min()) >= 0 and int(codes_NM.max()) < 4


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["same width", "projected"])
def test_codewords_that_are_no_numbers_are_never_chosen(name, level):
    model, x_ND = random_model(ARCHITECTURES[name]), random_problem(name).x_ND
    for step in model.steps:
        step.codebook.weight[2] = float("nan")
        if step.preselector is not None:
            step.preselector.weight[2] = float("nan")
    problem, rule = Problem(model, x_ND), EncodeOptions(num_candidates=3, beam_width=3)
    codes_NM, _ = encode(problem, pack_at(level, model), rule)
    assert (codes_NM != 2).all()
    assert (codes_NM == problem.searched(rule)[0]).all(1).float().mean() >= 0.99


def test_what_the_engine_cannot_serve():
    large = {"codebook_size": 65536, "hidden_dim": 16}
    for config in (ModelConfig(dim=128), ModelConfig(dim=1536, embed_dim=384), ModelConfig(8, 2, **large)):
        assert native_engine.supports(config, "cpu") is None
    assert native_engine.supports(ModelConfig(128, 16, **large), "cpu")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
def test_the_largest_codebook_takes_little_memory():
    config = ModelConfig(dim=8, num_steps=2, codebook_size=65536, num_blocks=1, hidden_dim=16)
    model = random_model(config)
    x_ND, start_ND = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), model.initial_reconstruction(3)
    before = resident_bytes()
    packed = pack(model, "native", "float32")
    for rule in (EncodeOptions(beam_width=4), EncodeOptions(num_pairs=64, beam_width=32)):
        codes_NM, reached_ND = Encoder(packed, rule).encode(x_ND, start_ND)
        wanted_NM, wanted_ND = torch_encoder(model, rule).encode(x_ND, start_ND)
        assert torch.equal(codes_NM, wanted_NM)
        torch.testing.assert_close(reached_ND, wanted_ND, rtol=1e-4, atol=1e-4)
    assert resident_bytes() - before < 1 << 29
