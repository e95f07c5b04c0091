"""Muon, beside AdamW and the decomposition that it approximates."""

from dataclasses import replace

import pytest
import torch
from small_models import ARCHITECTURES, random_model
from torch import nn

from qinco.config import ModelConfig
from qinco.training.optimizers import Muon, Optimizers, all_orthogonalized, orthogonalized
from qinco.training.options import TrainOptions


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 24, 24), (5, 2, 5)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_singular_values_become_one_and_their_vectors_stay(shape, dtype):
    m_PRC = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found_PRC = orthogonalized(m_PRC, dtype)
    u_PRR, before_PR, v_PRC = torch.linalg.svd(m_PRC, full_matrices=False)
    in_their_base = u_PRR.mT @ found_PRC @ v_PRC.mT
    values = in_their_base.diagonal(dim1=1, dim2=2)
    is_large = before_PR > 0.05 * before_PR.norm(8, dim=1, keepdim=True)
    assert found_PRC.dtype == torch.float32 and values.min() > 0 and values.max() < 1.3
    assert is_large.sum() > len(m_PRC) and values[is_large].min() > 0.7
    assert (in_their_base - torch.diag_embed(values)).abs().max() < (1e-4 if dtype is None else 0.05)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_compiled_iterations_agree_with_those_of_torch(dtype):
    """Matrices of several shapes, also of more rows than columns, whose values are not in order."""
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in [(8, 20), (20, 8), (6, 6)]]
    given.append(torch.randn(9, 30, generator=torch.Generator().manual_seed(1)).T)
    with_rows_first = [matrix.T if len(matrix) > matrix.shape[1] else matrix for matrix in given]
    expected = [orthogonalized(matrix[None], dtype)[0] for matrix in with_rows_first]
    for found, matrix, wanted in zip(all_orthogonalized(given, dtype), given, expected, strict=True):
        wanted = wanted.T if len(matrix) > matrix.shape[1] else wanted
        assert (found - wanted).norm() / wanted.norm() < (1e-4 if dtype is None else 0.15)


def test_no_gradient_moves_nothing_and_makes_no_number_that_is_not_finite():
    weight = nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros(4, 6)
    Muon([weight], 0.1, 0.0).step()
    assert torch.equal(weight.detach(), torch.ones(4, 6))


@pytest.mark.parametrize("shape", [(8, 32), (32, 8)])
def test_updates_are_as_long_as_those_of_adamw(shape):
    """For any size of the gradient: a root mean square of about .2, and weights decay as theirs do."""
    weight = nn.Parameter(torch.ones(shape))
    for size in (1e-4, 1e4):
        optimizer = Muon([weight], 0.01, 0.5)
        weight.data.fill_(1.0)
        weight.grad = size * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        moved = weight.detach() - (1 - 0.01 * 0.5)
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_matrices_of_the_network_have_momentum_and_all_others_the_moments_of_adamw(name):
    model = random_model(ARCHITECTURES[name])
    optimizers = Optimizers(model, TrainOptions(optimizer="muon"), 1e-3, "float32")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(1e-3, 0.1, 0)
    found = optimizers.tensors()
    for i, (path, parameter) in enumerate(model.named_parameters()):
        is_matrix = path.endswith("weight") and not path.endswith(("codebook.weight", "preselector.weight"))
        names = {n.split(".")[1] for n in found if n.startswith(f"{i}.")}
        assert names == ({"momentum"} if is_matrix else {"step", "exp_avg", "exp_avg_sq"}), path
        assert is_matrix <= (parameter.ndim == 2)


@pytest.mark.parametrize(("batch_size", "steps"), [(4096, 1), (1024, 1), (512, 2), (8, 2)])
def test_matrices_move_once_for_several_small_batches(batch_size, steps):
    """By as much as for one large batch of the same gradients, whose running mean is that of all batches."""
    model, options = random_model(ModelConfig(dim=3, num_steps=2, codebook_size=4, num_blocks=1)), TrainOptions()
    optimizers = Optimizers(model, replace(options, optimizer="muon"), 1e-2, "float32", batch_size)
    matrix, codebook = model.steps[1].blocks[0].up.weight, model.steps[1].codebook.weight
    begun, table = matrix.detach().clone(), codebook.detach().clone()
    for number in range(steps):
        assert torch.equal(matrix.detach(), begun)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers.step(1e-2, 0.0, number)
        assert not torch.equal(codebook.detach(), table)
    length = float((matrix.detach() - begun).norm()) / max(matrix.shape) ** 0.5
    assert length == pytest.approx(0.2 * 1e-2 * steps, rel=0.25)


def test_moments_are_restored():
    model, again = (random_model(ModelConfig(dim=3, num_steps=2, codebook_size=4, num_blocks=1)) for _ in range(2))
    again.load_state_dict(model.state_dict())
    options = TrainOptions(optimizer="muon")
    first, second = (Optimizers(one, options, 1e-2, "float32") for one in (model, again))

    def move(one, optimizers, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in one.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(1e-2, 0.1, 0)

    move(model, first, 1)
    move(again, second, 1)
    third = Optimizers(again, options, 1e-2, "float32")
    third.restore({name: tensor.clone() for name, tensor in second.tensors().items()})
    move(model, first, 2)
    move(again, third, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
