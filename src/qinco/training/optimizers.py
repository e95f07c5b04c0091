"""The optimizers of a run: AdamW or Adam for all parameters, or Muon for the matrices of the network.

Muon moves a matrix along its momentum with all singular values made equal (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon). Codebooks are tables, whose rows are looked up and rarely move together:
they and the biases stay with AdamW (Liu et al., arXiv 2502.16982).

Shape suffixes: P matrices, R rows, C columns, R ≤ C.
"""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qinco.machine import num_threads
from qinco.model.qinco import Qinco
from qinco.native.library import is_available
from qinco.native.orthogonal import orthogonalize
from qinco.training.options import TrainOptions

# The factors of x, x³ and x⁵ that bring values between .05 and 1 nearest to 1 in so many iterations (arXiv 2505.16932).
# The first has room for values up to 1.08: the sum is steep there, and products in bf16 are rounded.
_POLYNOMIALS = (6.2522, -14.5677, 9.0268), (2.5379, -1.8747, 0.4413)
_MOMENTUM = 0.95
_FULL_BATCH, _MOST_STEPS = 1024, 2  # the iterations take as long for a small batch: matrices move for several at once
_ADAMW_LENGTH = 0.2  # about the root mean square of AdamW's updates, so that one learning rate serves both


class Optimizers:
    """What moves the parameters of a model; the order of `parameters` numbers them in files of a run."""

    def __init__(self, model: Qinco, options: TrainOptions, lr: float, precision: str, batch_size: int = _FULL_BATCH):
        self.steps_per_move = min(max(1, _FULL_BATCH // batch_size), _MOST_STEPS)  # of Muon
        self.parameters = list(model.parameters())
        self.weight_decay = 0.0 if options.optimizer == "adam" else options.weight_decay
        matrices = []
        if options.optimizer == "muon":
            matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
        chosen = set(map(id, matrices))
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        self._all: list[Optimizer] = [kind(others, lr, weight_decay=self.weight_decay, fused=True)]
        if matrices:
            self._all.append(Muon(matrices, lr, self.weight_decay, torch.bfloat16 if precision == "bf16" else None))

    def clear(self) -> None:
        """Drop all gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def step(self, lr: float, weight_decay: float, number: int) -> None:
        """Move parameters by their gradients, in step `number` of the run: matrices in some for those before, too."""
        moves, waits = self.steps_per_move, (number + 1) % self.steps_per_move > 0
        for optimizer in self._all:
            is_muon = isinstance(optimizer, Muon)
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = lr * moves if is_muon else lr, weight_decay
            optimizer.gather() if is_muon and waits else optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """The moments, by the number of a parameter and their name."""
        return {
            f"{i}.{name}": tensor
            for i, parameter in enumerate(self.parameters)
            for optimizer in self._all if parameter in optimizer.state
            for name, tensor in optimizer.state[parameter].items()
        }  # fmt: skip

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the moments of `tensors`."""
        for optimizer in self._all:
            saved, numbers = optimizer.state_dict(), {id(parameter): i for i, parameter in enumerate(self.parameters)}
            own = [numbers[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            for place, number in enumerate(own):
                found = {name.split(".")[1]: value for name, value in tensors.items() if name.startswith(f"{number}.")}
                if found:
                    saved["state"][place] = found
            optimizer.load_state_dict(saved)


class Muon(Optimizer):
    """Muon with Nesterov's momentum, whose updates are as long as those of AdamW."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, dtype: torch.dtype | None = None):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype  # to compute in, the matrices' own if None

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """Move all matrices by their gradients, which are overwritten."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            moved = all_orthogonalized([self._direction(matrix) for matrix in matrices], self.dtype)
            for matrix, update in zip(matrices, moved, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * _ADAMW_LENGTH * max(matrix.shape) ** 0.5)

    @torch.no_grad()
    def gather(self) -> None:
        """Add gradients to their running means, and move nothing."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._mean(matrix, matrix.grad)

    def _direction(self, matrix: Tensor) -> Tensor:
        """The gradient's running mean, a step ahead, in place of the gradient."""
        assert matrix.grad is not None
        return matrix.grad.lerp_(self._mean(matrix, matrix.grad), _MOMENTUM)

    def _mean(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        return state["momentum"].lerp_(gradient, 1 - _MOMENTUM)


def all_orthogonalized(matrices: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """`orthogonalized` of each matrix, in its own shape; they are overwritten where the compiled engine computes."""
    if is_available() and all(matrix.device.type == "cpu" and matrix.dtype == torch.float32 for matrix in matrices):
        matrices = [matrix.contiguous() for matrix in matrices]
        arrays = [matrix.numpy() for matrix in matrices]
        polynomials = np.array(_POLYNOMIALS, np.float32)
        orthogonalize(arrays, polynomials, in_bf16=dtype == torch.bfloat16, threads=num_threads())
        return matrices
    by_shape = defaultdict(list)
    for number, matrix in enumerate(matrices):
        by_shape[tuple(sorted(matrix.shape))].append(number)
    found = list(matrices)
    for numbers in by_shape.values():
        given_PRC = torch.stack([_lying(matrices[number], matrices[number]) for number in numbers])
        for number, one_RC in zip(numbers, orthogonalized(given_PRC, dtype), strict=True):
            found[number] = _lying(matrices[number], one_RC)
    return found


def _lying(matrix: Tensor, other: Tensor) -> Tensor:
    """`other`, transposed where `matrix` has more rows than columns."""
    return other.T if matrix.shape[0] > matrix.shape[1] else other


def orthogonalized(m_PRC: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Matrices of the same singular vectors, with singular values near 1 (by Newton and Schulz).

    The largest value is at most 1 in the beginning, and near it: the eighth root of the sum of all eighth powers is 1.
    """
    x_PRC = _divided(m_PRC, m_PRC.norm(dim=(1, 2))).to(dtype or m_PRC.dtype)
    a_PRR = x_PRC @ x_PRC.mT
    x_PRC = _divided(x_PRC, (a_PRR @ a_PRR).float().norm(dim=(1, 2)) ** 0.25)
    for a, b, c in _POLYNOMIALS:
        a_PRR = x_PRC @ x_PRC.mT
        x_PRC = torch.baddbmm(x_PRC, torch.baddbmm(a_PRR, a_PRR, a_PRR, beta=b, alpha=c), x_PRC, beta=a)
    return x_PRC.to(m_PRC.dtype)


def _divided(m_PRC: Tensor, by_P: Tensor) -> Tensor:
    return (m_PRC / (by_P[:, None, None] + 1e-20)).to(m_PRC.dtype)
