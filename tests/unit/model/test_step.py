import pytest
import torch
from small_models import ARCHITECTURES, random_model

from qinco.config import ModelConfig
from qinco.model.qinco import Qinco
from qinco.model.step import Concat, Step


def started(config: ModelConfig, exact: bool):
    """A model at the start of training, and the codebooks (M, K, D) that it was started with."""
    model = Qinco.empty(config).to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(float("nan"))  # whatever `initialize` leaves out is found
    generator = torch.Generator().manual_seed(3)
    books_MKD = torch.randn(config.num_steps, config.codebook_size, config.dim, generator=generator)
    for step, book_KD in zip(model.steps, books_MKD, strict=True):
        step.initialize(book_KD, exact, generator)
    return model, books_MKD


def values(step: Step, config: ModelConfig):
    """f(c, x̂) for all codewords, at a random reconstruction."""
    codes_K = torch.arange(config.codebook_size)
    x_KD = torch.randn(config.codebook_size, config.dim, generator=torch.Generator().manual_seed(4))
    return step(codes_K, x_KD).detach()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_exact_start_is_the_residual_quantizer_bit_for_bit(name):
    config = ARCHITECTURES[name]
    model, books_MKD = started(config, exact=True)
    for step, book_KD in zip(model.steps, books_MKD, strict=True):
        assert torch.equal(values(step, config), book_KD)
        if step.preselector is not None:
            assert torch.equal(step.preselector.weight, book_KD)


@pytest.mark.parametrize("name", ["same width", "low rank", "projected"])
def test_the_exact_start_can_learn(name):
    """A gradient reaches something in every conditioned step: zeros do not meet zeros everywhere."""
    model, _ = started(ARCHITECTURES[name], exact=True)
    x_ND = torch.randn(8, 3, generator=torch.Generator().manual_seed(5))
    (model(torch.zeros(8, 3, dtype=torch.int64), torch.zeros(8, 3)) - x_ND).square().sum().backward()
    for step in model.steps[1:]:
        beyond = [p.grad.abs().sum() for n, p in step.named_parameters() if "codebook" not in n and p.grad is not None]
        assert sum(beyond) > 0


@pytest.mark.parametrize("name", ["same width", "no blocks", "coarse", "qinco1", "projected"])
def test_the_published_start(name):
    """Twice the codeword without projections, the codeword in QINCo1, and the codeword and noise with projections."""
    config = ARCHITECTURES[name]
    model, books_MKD = started(config, exact=False)
    for step, book_KD in zip(model.steps, books_MKD, strict=True):
        if name == "projected" and step.conditioned:
            assert (values(step, config) - book_KD).abs().max() > 0.01
        else:
            factor = 2 if step.conditioned and config.codeword_skip else 1
            assert torch.equal(values(step, config), factor * book_KD)


def formula(step: Step, codes_N, x_ND):
    """Section 3.1 of the paper, written down without any rearrangement."""
    c_ND = step.codebook.weight[codes_N]
    e_NE = c_ND if step.project_in is None else c_ND @ step.project_in.weight.T
    z = torch.cat([e_NE, x_ND], 1)
    if step.concat.inner is None:
        e_NE = e_NE + z @ step.concat.outer.weight.T + step.concat.outer.bias
    else:
        e_NE = e_NE + z @ step.concat.inner.weight.T @ step.concat.outer.weight.T
    for block in step.blocks:
        e_NE = e_NE + torch.relu(e_NE @ block.up.weight.T) @ block.down.weight.T
    f_ND = e_NE if step.project_out is None else e_NE @ step.project_out.weight.T
    return f_ND + c_ND if step.codeword_skip else f_ND


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_is_the_papers_formula(name):
    config = ARCHITECTURES[name]
    codes_N = torch.tensor([0, 3, 1, 1])
    x_ND = torch.randn(4, config.dim, generator=torch.Generator().manual_seed(6))
    for step in random_model(config).steps:
        wanted = formula(step, codes_N, x_ND) if step.conditioned else step.codebook.weight[codes_N]
        torch.testing.assert_close(step(codes_N, x_ND), wanted)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_two_parts_of_the_concatenation_sum_to_the_whole(rank):
    concat = Concat(5, 3, rank)
    z_NE, x_ND = torch.randn(4, 5), torch.randn(4, 3)
    whole = torch.cat([z_NE, x_ND], 1)
    whole = concat.outer(whole if concat.inner is None else concat.inner(whole))
    torch.testing.assert_close(concat.from_codeword(z_NE) + concat.from_reconstruction(x_ND), whole)


@pytest.mark.parametrize("name", ["projected", "coarse"])
def test_the_chain_yields_every_prefix(name):
    model = random_model(ARCHITECTURES[name])
    codes_NM = torch.tensor([[0, 3, 1], [2, 2, 2]])
    start_ND = model.initial_reconstruction(2, torch.tensor([4, 0]))
    reached = list(model.reconstructions(codes_NM, start_ND))
    assert len(reached) == 3
    for m, x_ND in enumerate(reached, 1):
        assert torch.equal(model(codes_NM[:, :m], start_ND), x_ND)
    torch.testing.assert_close(reached[0], start_ND + model.steps[0](codes_NM[:, 0], start_ND))


def test_normalisation_is_undone():
    model = random_model(ARCHITECTURES["same width"])
    x_ND = torch.randn(5, 3) * 9
    torch.testing.assert_close(model.denormalize(model.normalize(x_ND)), x_ND)


def test_an_empty_model_takes_no_memory():
    assert {p.device.type for p in Qinco.empty(ModelConfig(dim=4096, codebook_size=65536)).parameters()} == {"meta"}
