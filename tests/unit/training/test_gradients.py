"""The compiled gradients are those of autograd."""

import signal
from threading import Timer, main_thread

import pytest
import torch
from native_levels import LEVELS, needs_bf16, needs_native
from small_models import ARCHITECTURES, random_model

from qinco.config import ModelConfig
from qinco.machine import num_threads, set_num_threads
from qinco.training.codebooks import CodewordUse
from qinco.training.gradients import NativeGradients, TorchGradients, gradients_of

pytestmark = needs_native
WIDE = {  # more than a tile in every direction
    "wide": ModelConfig(dim=70, num_steps=3, codebook_size=16, num_blocks=2, embed_dim=135, hidden_dim=101),
    "wide, same width": ModelConfig(dim=131, num_steps=2, codebook_size=16, num_blocks=1, hidden_dim=70),
    "wide, low rank": ModelConfig(dim=70, num_steps=2, codebook_size=16, embed_dim=35, hidden_dim=64, concat_rank=20),
}


def batch(config: ModelConfig, count: int):
    """Normalised vectors, starts and codes."""
    random = torch.Generator().manual_seed(count)
    x_ND, start_ND = torch.randn(2, count, config.dim, generator=random)
    codes_NM = torch.randint(config.codebook_size, (count, config.num_steps), generator=random)
    return x_ND, start_ND if config.starts_from_coarse else torch.zeros_like(start_ND), codes_NM


def gradients(kind, config: ModelConfig, count: int, precision="float32", parts=1):
    """The loss, the codewords' use and the gradients by name, of a batch that is added in so many parts."""
    model = random_model(config).requires_grad_(True)
    for step in model.steps if config.dim > 10 else ():  # so that values neither grow nor vanish
        for name, parameter in step.named_parameters():
            parameter.data *= 1 if "codebook" in name or "preselector" in name else 1 / parameter.shape[-1] ** 0.5
    use, total, kernel = CodewordUse(model), 0.0, kind(model, precision)
    for part in zip(*(tensor.tensor_split(parts) for tensor in batch(config, count)), strict=True):
        total += float(kernel.add(*part, use, 1 / count))
    return total, use.flat, {name: parameter.grad for name, parameter in model.named_parameters()}


def check(found, wanted, tolerance: float) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    torch.testing.assert_close(found[1], wanted[1], rtol=tolerance, atol=tolerance * float(wanted[1].abs().max()))
    for name, gradient in wanted[2].items():
        atol = tolerance * float(gradient.abs().max())
        difference = (found[2][name] - gradient).abs()
        assert bool((difference <= atol + tolerance * gradient.abs()).all()), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", [*ARCHITECTURES, *WIDE])
def test_gradients_are_those_of_autograd(name, level, monkeypatch):
    monkeypatch.setenv("QINCO_NATIVE_LEVEL", level)
    config = (ARCHITECTURES | WIDE)[name]
    for count in (1, 5, 203) if name in WIDE else (1, 98):
        check(gradients(NativeGradients, config, count), gradients(TorchGradients, config, count), 1e-4)


@needs_bf16
@pytest.mark.parametrize("name", WIDE)
def test_gradients_in_bf16_err_no_more_than_those_of_autograd(name):
    """A rounded hidden value may cross zero, which changes single numbers by much: so norms of errors are compared."""
    runs = (TorchGradients, "float32"), (NativeGradients, "bf16"), (TorchGradients, "bf16")
    exact, found, theirs = (gradients(kind, WIDE[name], 3000, precision)[2] for kind, precision in runs)
    for parameter, gradient in exact.items():
        error, their_error = (float((other[parameter] - gradient).norm()) for other in (found, theirs))
        assert error <= 1.5 * their_error + 1e-3 * float(gradient.norm()), parameter
        assert error < 0.05 * float(gradient.norm()), parameter


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_threads_do_not_change_a_bit(precision):
    before, found = num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            found.append(gradients(NativeGradients, WIDE["wide"], 1000, precision))
    finally:
        set_num_threads(before)
    for other in found[1:]:
        assert other[0] == found[0][0] and torch.equal(other[1], found[0][1])
        assert all(torch.equal(other[2][name], gradient) for name, gradient in found[0][2].items())


def test_parts_of_a_batch_add_up():
    config = ARCHITECTURES["projected"]
    check(gradients(NativeGradients, config, 203, parts=3), gradients(TorchGradients, config, 203), 1e-4)


def test_large_batches_are_cut_to_what_memory_is_kept_for():
    config = ModelConfig(dim=2, num_steps=2, codebook_size=4, num_blocks=16, hidden_dim=2)
    check(gradients(NativeGradients, config, 9000), gradients(TorchGradients, config, 9000), 1e-3)


def test_the_engine_of_encoding_computes_gradients():
    model = random_model(ARCHITECTURES["projected"])
    assert isinstance(gradients_of(model, "auto", "float32"), NativeGradients)
    assert isinstance(gradients_of(model, "torch", "float32"), TorchGradients)


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_ends_gradients_of_many_vectors(threads):
    config = ModelConfig(dim=4, num_steps=4, codebook_size=16, hidden_dim=2048)
    kernel, use = (
        NativeGradients(random_model(config).requires_grad_(True), "float32"),
        CodewordUse(random_model(config)),
    )
    before = num_threads()
    set_num_threads(threads)
    try:
        Timer(0.1, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            kernel.add(*batch(config, 300_000), use, 1.0)
    finally:
        set_num_threads(before)
