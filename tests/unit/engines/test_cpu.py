"""The native engine against the readable one, at every instruction set that the processor has."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from native_levels import LEVELS, needs_bf16, needs_native, pack_at
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec, load_codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import cpu
from qinco.engines.reference import Encoder, decode
from qinco.model.qinco import Qinco

pytestmark = needs_native

UPSTREAM = Path(__file__).parents[2] / "data" / "upstream"
COUNT = 300
RULES = {
    "everything": EncodeOptions(beam_width=3),
    "greedy": EncodeOptions(),
    "candidates": EncodeOptions(num_candidates=2, beam_width=3),
    "pairs": EncodeOptions(num_pairs=6, beam_width=4),
    "fewer pairs than hypotheses": EncodeOptions(num_pairs=1, beam_width=33),
    "more than there are": EncodeOptions(num_pairs=99, beam_width=70),
}


class Problem:
    """A model, normalised vectors, their starts, and what the reference makes of them."""

    def __init__(self, model: Qinco, x_ND: torch.Tensor, lists_N: torch.Tensor | None = None):
        self.model, self.x_ND = model, x_ND
        self.start_ND = model.start(len(x_ND), lists_N)
        self.searched = cache(self._searched)

    def _searched(self, rule: EncodeOptions):
        """The reference's codes, what it decodes them to, and each vector's squared error."""
        codes_NM, _ = Encoder(self.model, rule).encode(self.x_ND, self.start_ND)
        decoded_ND = decode(self.model, codes_NM, self.start_ND)
        return codes_NM, decoded_ND, self.errors(decoded_ND)

    def errors(self, decoded_ND) -> torch.Tensor:
        return (decoded_ND - self.x_ND).square().sum(1)

    def encode(self, packed, rule: EncodeOptions):
        return cpu.NativeEncoder(packed, rule).encode(self.x_ND, self.start_ND)

    def check_float32(self, packed, rule: EncodeOptions) -> None:
        """The same codes but for ties, the same error, and the same vectors from the same codes."""
        wanted_NM, wanted_ND, errors_N = self.searched(rule)
        codes_NM, reached_ND = self.encode(packed, rule)
        assert codes_NM.dtype == torch.int64 and codes_NM.shape == wanted_NM.shape
        assert (codes_NM == wanted_NM).all(1).float().mean() >= 0.99
        decoded_ND = decode(self.model, codes_NM, self.start_ND)
        assert float(self.errors(decoded_ND).mean()) == pytest.approx(float(errors_N.mean()), rel=1e-6)
        scale = float(errors_N.mean().sqrt())
        assert distance(reached_ND, decoded_ND) <= 1e-5 * scale
        assert distance(cpu.decode(packed, wanted_NM, self.start_ND), wanted_ND) <= 1e-5 * scale

    def check_bf16(self, packed, rule: EncodeOptions) -> None:
        """Within a thousandth of the error, and a hundredth of its scale between the decoded vectors."""
        wanted_NM, wanted_ND, errors_N = self.searched(rule)
        codes_NM, _ = self.encode(packed, rule)
        error = self.errors(decode(self.model, codes_NM, self.start_ND)).mean()
        assert float(error) == pytest.approx(float(errors_N.mean()), rel=1e-3)
        decoded_ND = cpu.decode(packed, wanted_NM, self.start_ND)
        assert 0 < distance(decoded_ND, wanted_ND) <= 1e-2 * float(errors_N.mean().sqrt())


def distance(ours_ND, theirs_ND) -> float:
    """The root of the mean squared distance of vectors."""
    return float((ours_ND - theirs_ND).double().square().sum(1).mean().sqrt())


@cache
def random_problem(name: str) -> Problem:
    config = ARCHITECTURES[name]
    model = random_model(config, 1)
    x_ND = model.normalize(torch.from_numpy(random_vectors(COUNT, config.dim)))
    return Problem(model, x_ND, torch.arange(COUNT) % 5 if config.starts_from_coarse else None)


def applies(rule: EncodeOptions, config: ModelConfig) -> bool:
    return config.has_preselector or not rule.preselects


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_searched_and_decoded_as_by_the_reference(name, level):
    problem = random_problem(name)
    packed = pack_at(level, problem.model)
    for rule in RULES.values():
        if applies(rule, problem.model.config):
            problem.check_float32(packed, rule)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_without_its_instructions_is_float32(name):
    problem = random_problem(name)
    rule = RULES["everything"]
    for level in set(LEVELS) - {"avx512_bf16"}:
        codes_NM, reached_ND = problem.encode(pack_at(level, problem.model), rule)
        packed = pack_at(level, problem.model, torch.bfloat16)
        assert all(map(torch.equal, problem.encode(packed, rule), (codes_NM, reached_ND)))
        problem.check_float32(packed, rule)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_steps_of_a_search_are_a_shorter_search(name):
    problem = random_problem(name)
    packed = pack_at(LEVELS[-1], problem.model)
    for steps in range(1, problem.model.config.num_steps + 1):
        encoders = cpu.NativeEncoder(packed, RULES["everything"]), Encoder(problem.model, RULES["everything"])
        (codes_NM, reached_ND), (wanted_NM, _) = (
            encoder.encode(problem.x_ND, problem.start_ND, steps) for encoder in encoders
        )
        assert codes_NM.shape == (COUNT, steps)
        assert (codes_NM == wanted_NM).all(1).float().mean() >= 0.99
        torch.testing.assert_close(cpu.decode(packed, codes_NM, problem.start_ND), reached_ND, rtol=1e-4, atol=1e-4)


TRAINED = {
    "same width": {"embed_dim": 32, "num_blocks": 2},
    "projected": {"embed_dim": 16, "num_blocks": 1},
    "wider": {"embed_dim": 40, "num_blocks": 1},
    "qinco1": {"embed_dim": 32, "num_blocks": 2, "num_candidates": 0, "codeword_skip": False},
}


@cache
def trained_problem(name: str) -> Problem:
    """A codec trained for a moment, from networks that are not zero, and vectors that it has not seen."""
    x_ND = random_vectors(5000, 32)
    search = {} if name == "qinco1" else {"num_candidates": 4, "beam_width": 4}
    codec = Codec.fit(
        x_ND[:3000], None, recipe="paper", lr=4e-3, epochs=2, batch_size=256, num_steps=4, codebook_size=64,
        hidden_dim=64, **search | TRAINED[name],
    )  # fmt: skip
    return Problem(codec.model.eval().requires_grad_(False), codec.model.normalize(torch.from_numpy(x_ND[3000:])))


TRAINED_RULES = [
    EncodeOptions(num_candidates=8, beam_width=8),
    EncodeOptions(num_pairs=24, beam_width=12),
    EncodeOptions(beam_width=2),
]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("level", LEVELS)
def test_trained_models_in_float32(name, level):
    problem = trained_problem(name)
    packed = pack_at(level, problem.model)
    for rule in TRAINED_RULES:
        if applies(rule, problem.model.config):
            problem.check_float32(packed, rule)


@needs_bf16
@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_in_bf16(name):
    problem = trained_problem(name)
    packed = pack_at("avx512_bf16", problem.model, torch.bfloat16)
    for rule in TRAINED_RULES:
        if applies(rule, problem.model.config):
            problem.check_bf16(packed, rule)


@pytest.mark.parametrize("name", ["v2_proj", "v1_qinco", "v1_qinco_lr"])
@pytest.mark.parametrize("level", LEVELS)
def test_published_forms_of_a_model(name, level):
    codec = load_codec(UPSTREAM / f"{name}.pt")
    base_ND = torch.from_numpy(np.load(UPSTREAM / "base.npy"))
    problem = Problem(codec.model, codec.model.normalize(base_ND))
    problem.check_float32(pack_at(level, codec.model), codec.encode_options)


@cache
def sift_problem() -> Problem:
    """The first SIFT vectors and a model of eight bytes: in the folders that QINCO_PARITY names."""
    folder = Path(os.environ.get("QINCO_PARITY", "missing"))
    model, base = folder / "v2_sift_8x8.pt", folder.parent / "data" / "sift" / "base.bvecs"
    if not (model.exists() and base.exists()):
        pytest.skip("QINCO_PARITY names no folder with v2_sift_8x8.pt and, beside it, data/sift/base.bvecs")
    codec = load_codec(model)
    x_ND = np.fromfile(base, np.uint8, 132 * 3000).reshape(-1, 132)[:, 4:].astype(np.float32)
    return Problem(codec.model, codec.model.normalize(torch.from_numpy(x_ND)))


SIFT_RULES = [EncodeOptions(num_candidates=4, beam_width=4), EncodeOptions(num_pairs=64, beam_width=32)]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rule", SIFT_RULES, ids=["candidates", "pairs"])
def test_sift_in_float32(rule, level):
    problem = sift_problem()
    problem.check_float32(pack_at(level, problem.model), rule)


@pytest.mark.slow
@needs_bf16
@pytest.mark.parametrize("rule", SIFT_RULES, ids=["candidates", "pairs"])
def test_sift_in_bf16(rule):
    problem = sift_problem()
    problem.check_bf16(pack_at("avx512_bf16", problem.model, torch.bfloat16), rule)


def test_packing_does_not_change_or_follow_the_model():
    problem = random_problem("projected")
    model = random_model(problem.model.config, 1).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = cpu.pack(model, torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    wanted = problem.encode(packed, RULES["pairs"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(map(torch.equal, problem.encode(packed, RULES["pairs"]), wanted))
    codes_NM, _ = problem.encode(cpu.pack(model, torch.float32), RULES["pairs"])
    assert not codes_NM.any()


@pytest.mark.parametrize("embed_dim", [96, 128], ids=["same width", "projected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_equal_models_are_packed_equally_by_any_number_of_threads(embed_dim, dtype):
    config = ModelConfig(dim=96, embed_dim=embed_dim, num_steps=2, codebook_size=16, num_blocks=2, hidden_dim=128)
    model = random_model(config)
    x_ND = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            packed = cpu.pack(model, dtype)
            results.append(cpu.NativeEncoder(packed, EncodeOptions(beam_width=3)).encode(x_ND, model.start(20)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("embed_dim", [30, 6], ids=["same width", "projected"])
def test_weights_that_are_no_numbers_are_packed(embed_dim, value):
    """A training that has diverged must be able to say so."""
    config = ModelConfig(dim=30, embed_dim=embed_dim, num_steps=2, codebook_size=4, num_blocks=1, hidden_dim=5)
    for name, _ in random_model(config).named_parameters():
        model = random_model(config)
        model.get_parameter(name).flatten()[:3] = value
        packed = cpu.pack(model, torch.float32)
        codes_NM, _ = cpu.NativeEncoder(packed, EncodeOptions(num_pairs=9, beam_width=4)).encode(
            torch.ones(3, 30), model.start(3)
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
    codes_NM, _ = problem.encode(pack_at(level, model), rule)
    assert (codes_NM != 2).all()
    assert (codes_NM == problem.searched(rule)[0]).all(1).float().mean() >= 0.99


def test_what_the_engine_cannot_serve(monkeypatch):
    host, small = torch.device("cpu"), ARCHITECTURES["projected"]
    assert cpu.can_run(small, host)
    assert cpu.can_run(ModelConfig(dim=128), host) and cpu.can_run(ModelConfig(dim=1536, embed_dim=384), host)
    assert cpu.can_run(ModelConfig(dim=8, num_steps=2, codebook_size=65536, hidden_dim=16), host)
    assert not cpu.can_run(ModelConfig(dim=128, num_steps=16, codebook_size=65536), host)
    assert not cpu.can_run(small, torch.device("cuda"))
    monkeypatch.setattr(cpu, "is_available", lambda: False)
    assert not cpu.can_run(small, host)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
def test_the_largest_codebook_takes_little_memory():
    config = ModelConfig(dim=8, num_steps=2, codebook_size=65536, num_blocks=1, hidden_dim=16)
    model = random_model(config)
    x_ND, start_ND = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), model.start(3)
    before = resident_bytes()
    packed = cpu.pack(model, torch.float32)
    for rule in (EncodeOptions(beam_width=4), EncodeOptions(num_pairs=64, beam_width=32)):
        codes_NM, reached_ND = cpu.NativeEncoder(packed, rule).encode(x_ND, start_ND)
        wanted_NM, wanted_ND = Encoder(model, rule).encode(x_ND, start_ND)
        assert torch.equal(codes_NM, wanted_NM)
        torch.testing.assert_close(reached_ND, wanted_ND, rtol=1e-4, atol=1e-4)
    assert resident_bytes() - before < 1 << 29
