"""The training loss and its gradients: by torch on any device, or by the compiled engine.

Shape suffixes: N vectors, D dimension, M steps, K codewords, E stream width.
"""

import numpy as np
import torch
from torch import Tensor

from qinco.engines.engine import choose_engine
from qinco.engines.native_engine import sizes_of
from qinco.machine import num_threads
from qinco.model.qinco import Qinco
from qinco.model.step import Step
from qinco.native.gradient import GradientKernel, Layers
from qinco.training.codebooks import CodewordUse


def prefix_losses(model: Qinco, x_ND: Tensor, start_ND: Tensor, codes_NM: Tensor, use: CodewordUse) -> Tensor:
    """The squared errors of all prefixes, and of the pre-selectors, summed over vectors and averaged over dimensions.

    Training minimises their sum over steps (QINCo2 paper, section 3.3). Returns a scalar with its gradient.
    """
    total, reached_ND = x_ND.new_zeros(()), start_ND
    for m, reconstructed_ND in enumerate(model.reconstructions(codes_NM, start_ND)):
        targets_ND = x_ND - reached_ND.detach()
        use.add(m, codes_NM[:, m], targets_ND)
        preselector = model.steps[m].preselector
        if preselector is not None:
            total = total + (preselector(codes_NM[:, m]) - targets_ND).square().sum()
        total = total + (reconstructed_ND - x_ND).square().sum()
        reached_ND = reconstructed_ND
    return total / x_ND.shape[1]


class TorchGradients:
    """Gradients by autograd, which others are compared with."""

    def __init__(self, model: Qinco, precision: str):
        self.model, self.precision = model, precision

    def add(self, x_ND: Tensor, start_ND: Tensor, codes_NM: Tensor, use: CodewordUse, scale: float) -> Tensor:
        """Add the gradients of `scale` times the loss to those of the parameters, and return it, (), without its own.

        Vectors and their starts are normalised, codes int64; `use` counts them.
        """
        with torch.autocast(x_ND.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = prefix_losses(self.model, x_ND, start_ND, codes_NM, use) * scale
        loss.backward()
        return loss.detach()


class NativeGradients:
    """Gradients by the compiled engine.

    What comes from a codeword alone is computed and differentiated once for each codeword of a batch. torch multiplies
    the two matrices of a low-rank concatenation, and differentiates that.
    """

    def __init__(self, model: Qinco, precision: str):
        self.model, self.kernel = model, GradientKernel(sizes_of(model.config, precision))

    def add(self, x_ND: Tensor, start_ND: Tensor, codes_NM: Tensor, use: CodewordUse, scale: float) -> Tensor:
        """As `TorchGradients.add`."""
        computed, gradients = [], []  # tensors that are computed from parameters, and their gradients
        weights, wanted = zip(*(_layers(step, computed, gradients) for step in self.model.steps), strict=True)
        losses_M = self.kernel.add(
            list(weights), list(wanted), x_ND.numpy(), start_ND.numpy(), codes_NM.numpy().astype(np.int32),
            scale=scale / x_ND.shape[1], counts_MK=use.counts_MK.numpy(), sums_MD=use.sums_MD.numpy(),
            squares_MD=use.squares_MD.numpy(), threads=num_threads(),
        )  # fmt: skip
        if computed:
            torch.autograd.backward(computed, gradients)
        return torch.tensor(losses_M.sum(), dtype=torch.float32)


def _layers(step: Step, computed: list[Tensor], gradients: list[Tensor]) -> tuple[Layers, Layers]:
    """The arrays of a step, and those of their gradients; lists what is computed from parameters, and its gradients."""

    def pair(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
        gradient = torch.zeros_like(tensor) if not tensor.is_leaf or tensor.grad is None else tensor.grad
        if tensor.is_leaf:
            tensor.grad = gradient
        else:
            computed.append(tensor)
            gradients.append(gradient)
        return tensor.detach().numpy(), gradient.numpy()

    tensors, blocks = {"codebook": step.codebook.weight}, []
    if step.preselector is not None:
        tensors["preselector"] = step.preselector.weight
    if step.conditioned:
        tensors["concat"] = step.concat.matrix()
        blocks = [(pair(block.up.weight), pair(block.down.weight)) for block in step.blocks]
        if step.concat.outer.bias is not None:
            tensors["bias"] = step.concat.outer.bias
        if step.project_in is not None and step.project_out is not None:
            tensors |= {"project_in": step.project_in.weight, "project_out": step.project_out.weight}
    pairs = {name: pair(tensor) for name, tensor in tensors.items()}
    weights, wanted = (
        Layers(
            up=tuple(up[which] for up, _ in blocks), down=tuple(down[which] for _, down in blocks),
            **{name: of[which] for name, of in pairs.items()},
        )
        for which in (0, 1)
    )  # fmt: skip
    return weights, wanted


def gradients_of(model: Qinco, engine: str, precision: str) -> TorchGradients | NativeGradients:
    """What computes gradients where batches are encoded by the engine that `engine` chooses."""
    is_native = choose_engine(engine, model.config, str(model.device)).name == "native"
    return (NativeGradients if is_native else TorchGradients)(model, precision)
