"""The native engine against the readable one, at every instruction set that the processor has."""

import os
import subprocess
import sys
from copy import deepcopy
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
from qinco.engines.arrays import orthogonal_outputs
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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fitted", [1, 2, 3])
def test_a_model_may_have_one_fitted_ranker(fitted, level):
    problem = random_problem("ranked, projected")
    model = deepcopy(problem.model)
    for m, step in enumerate(model.steps):
        if step.ranker is not None and m != fitted:
            step.ranker.clear()
    check(Problem(model, problem.x_ND), level, RULES.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("threads", [1, 3])
def test_packed_for_one_batch_every_architecture_is_searched_and_decoded_as_by_the_reference(name, threads):
    problem = random_problem(name)
    with using_threads(threads):
        packed = pack(problem.model, "native", "float32", is_for_one_batch=True)
    for rule in RULES.values():
        if applies(rule, problem.model.config):
            problem.check_float32(rule, Encoder(packed, rule).encode, packed.decode_tensors)


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


def test_equal_models_are_packed_equally_whatever_number_of_threads_numpy_has():
    code = """
from hashlib import sha256
import numpy as np
from qinco.config import ModelConfig
from qinco.engines.arrays import step_arrays
from qinco.model.weights import random_weights
digest = sha256()
for dim, width in ((96, 96), (200, 128), (128, 384)):
    weights = random_weights(ModelConfig(dim, 2, 256, 2, width, 250))
    for field in vars(step_arrays(weights.step(1))).values():
        for array in field if isinstance(field, tuple) else [field]:
            digest.update(b"" if array is None else array.tobytes())
print(digest.hexdigest())
"""
    found = set()
    for count in ("1", "2", "3"):
        environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), count)
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
        found.add(run.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_outputs_become_orthogonal_and_stay_the_same(shape):
    for out_DE in (np.random.default_rng(0).standard_normal(shape), np.zeros(shape), np.ones(shape)):
        rotated_DE, basis_EE = orthogonal_outputs(out_DE)
        products_EE = rotated_DE.T @ rotated_DE
        np.testing.assert_allclose(products_EE, np.diag(np.diag(products_EE)), atol=1e-6)
        np.testing.assert_allclose(basis_EE.T @ basis_EE, np.eye(shape[1]), atol=1e-12)
        np.testing.assert_allclose(rotated_DE @ basis_EE.T, out_DE, atol=1e-12)


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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prefixes_are_those_of_the_module(name, level):
    model, generator = random_model(ARCHITECTURES[name]), np.random.default_rng(0)
    codes_NM = generator.integers(4, size=(COUNT, model.config.num_steps), dtype=np.uint8)
    lists_N = generator.integers(5, size=COUNT, dtype=np.int32) if model.config.starts_from_coarse else None
    start_ND = model.initial_reconstruction(COUNT, None if lists_N is None else torch.from_numpy(lists_N).long())
    wanted = model.reconstructions(torch.from_numpy(codes_NM).long(), start_ND)
    coder = pack_at(level, model).coder
    for steps, (found_ND, wanted_ND) in enumerate(zip(coder.prefixes(codes_NM, lists_N), wanted, strict=True), 1):
        wanted_ND = model.denormalize(wanted_ND).numpy()
        np.testing.assert_allclose(found_ND, wanted_ND, atol=1e-5 * np.abs(wanted_ND).max())
        assert found_ND.tobytes() == coder.decode(codes_NM[:, :steps], lists_N).tobytes()
    alone = [x_ND.tobytes() for x_ND in coder.prefixes(codes_NM, lists_N)]
    with using_threads(3):
        assert [x_ND.tobytes() for x_ND in coder.prefixes(codes_NM, lists_N)] == alone
    nothing = coder.prefixes(codes_NM[:0], None if lists_N is None else lists_N[:0])
    assert [x_ND.shape for x_ND in nothing] == [(0, model.config.dim)] * model.config.num_steps
