from copy import deepcopy

import pytest
import torch
from search_problems import (
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
from small_models import ARCHITECTURES, random_model, torch_decode, torch_encoder

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.engines.engine import candidate_precision
from qinco.maths.devices import multiplies_bf16_fast
from qinco.model.step import StepTables


def vectors(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 2


def on_device(problem: Problem, device, rule: EncodeOptions, precision="float32"):
    """Encoding and decoding of a problem's model on a device, from and to the processor."""
    model = deepcopy(problem.model).to(device)
    encoder = torch_encoder(model, rule, precision)

    def encode(x_ND, start_ND):
        codes_NM, reached_ND = encoder.encode(x_ND.to(device), start_ND.to(device))
        assert codes_NM.device.type == reached_ND.device.type == device.type
        return codes_NM.cpu(), reached_ND.cpu()

    def decode(codes_NM, start_ND):
        return torch_decode(model, codes_NM.to(device), start_ND.to(device), precision).cpu()

    return encode, decode


def check_float32(problem: Problem, device, rules) -> None:
    """Sums in another order: a code in a hundred may tie, and the error hardly changes."""
    for rule in rules:
        if applies(rule, problem.model.config):
            problem.check_float32(rule, *on_device(problem, device, rule), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "rule", "wanted"),
    [
        ("same width", EncodeOptions(num_candidates=2, beam_width=3), [6, 6]),
        ("same width", EncodeOptions(num_pairs=5, beam_width=3), [5, 5]),
        ("same width", EncodeOptions(beam_width=3), [12, 12]),
        ("same width", EncodeOptions(), [4, 4]),
        ("same width", EncodeOptions(num_candidates=9), [4, 4]),
        ("same width", EncodeOptions(num_pairs=99, beam_width=2), [8, 8]),
        ("same width", EncodeOptions(num_pairs=1, beam_width=3), [1, 1]),
        # From one hypothesis, enough are proposed to fill the beam.
        ("coarse", EncodeOptions(num_candidates=2, beam_width=3), [3, 6, 6]),
        ("coarse", EncodeOptions(num_candidates=3, beam_width=2), [3, 6, 6]),
        ("coarse", EncodeOptions(num_candidates=2, beam_width=16), [4, 8, 16]),
        ("coarse", EncodeOptions(num_pairs=2, beam_width=3), [2, 2, 2]),
    ],
)
def test_as_many_candidates_are_evaluated_as_the_options_say(monkeypatch, name, rule, wanted):
    counts, evaluate = [], StepTables.evaluate
    monkeypatch.setattr(StepTables, "evaluate", lambda *given: counts.append(len(given[1])) or evaluate(*given))
    model = random_model(ARCHITECTURES[name])
    torch_encoder(model, rule).encode(vectors(1, 3), model.initial_reconstruction(1, torch.tensor([2])))
    assert counts == wanted


def test_the_preselector_decides_what_is_proposed():
    """With one candidate the code is the pre-selector's nearest, whatever the network makes of it."""
    model = random_model(ARCHITECTURES["same width"])
    x_ND = vectors(20, 3)
    codes_NM, _ = torch_encoder(model, EncodeOptions(num_candidates=1)).encode(x_ND, model.initial_reconstruction(20))
    reached_ND = model.initial_reconstruction(20)
    for m, step in enumerate(model.steps):
        book_KD = step.codebook.weight if m == 0 else step.preselector.weight
        assert torch.equal(codes_NM[:, m], torch.cdist(x_ND - reached_ND, book_KD).argmin(1))
        reached_ND = reached_ND + step(codes_NM[:, m], reached_ND)


def test_large_codebooks_are_not_tabulated_and_give_the_same(monkeypatch, device):
    model = random_model(ModelConfig(dim=4, num_steps=2, codebook_size=2048, embed_dim=6, hidden_dim=5)).to(device)
    x_ND, rule = vectors(5, 4).to(device), EncodeOptions(num_pairs=8, beam_width=4)
    with_tables = torch_encoder(model, rule).encode(x_ND, model.initial_reconstruction(5))
    monkeypatch.setattr(torch_engine, "TABLE_BYTES", 0)
    without = torch_encoder(model, rule)
    assert without.packed.tables[1].table_KE is None
    codes_NM, reached_ND = without.encode(x_ND, model.initial_reconstruction(5))
    assert torch.equal(codes_NM, with_tables[0])
    torch.testing.assert_close(reached_ND, with_tables[1])


def test_bf16_candidates_lose_little():
    model = random_model(ARCHITECTURES["projected"])
    x_ND, rule = vectors(500, 3), EncodeOptions(num_pairs=8, beam_width=4)
    errors = []
    for precision in ("float32", "bf16"):
        codes_NM, _ = torch_encoder(model, rule, precision).encode(x_ND, model.initial_reconstruction(500))
        errors.append(
            float((torch_decode(model, codes_NM, model.initial_reconstruction(500)) - x_ND).square().sum(1).mean())
        )
    exact, rough = errors
    assert rough == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("name", ["same width", "qinco1", "projected, low rank", "coarse"])
def test_bf16_decoding_is_close_and_returns_float32(name):
    model = random_model(ARCHITECTURES[name])
    codes_NM = torch.randint(4, (50, 3), generator=torch.Generator().manual_seed(0))
    start_ND = model.initial_reconstruction(50, torch.zeros(50, dtype=torch.int64))
    rough_ND = torch_decode(model, codes_NM, start_ND, "bf16")
    assert rough_ND.dtype == torch.float32
    torch.testing.assert_close(rough_ND, torch_decode(model, codes_NM, start_ND), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_searched_and_decoded_elsewhere(name, elsewhere):
    check_float32(random_problem(name), elsewhere, RULES.values())


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_elsewhere(name, elsewhere):
    problem = trained_problem(name)
    check_float32(problem, elsewhere, TRAINED_RULES)
    for rule in TRAINED_RULES:
        if applies(rule, problem.model.config):
            problem.check_bf16(rule, *on_device(problem, elsewhere, rule, "bf16"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_elsewhere(name, elsewhere):
    problem, rule = published_problem(name)
    check_float32(problem, elsewhere, [rule])


def test_an_encoder_does_not_change_the_model(device):
    model = random_model(ARCHITECTURES["projected"]).to(device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_encoder(model, EncodeOptions(num_pairs=8, beam_width=4)).encode(
        vectors(9, 3).to(device), model.initial_reconstruction(9)
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_precisions_by_name():
    small, large = ARCHITECTURES["projected"], ModelConfig(dim=128, hidden_dim=256)
    assert candidate_precision("bf16", "cpu", small) == "bf16"
    assert candidate_precision("float32", "cpu", large) == "float32"
    assert candidate_precision("auto", "cpu", small) == "float32"  # nothing to gain
    assert candidate_precision("auto", "cpu", large) == ("bf16" if multiplies_bf16_fast("cpu") else "float32")
