"""The processes of a run, each with a share of every batch: one, or several that torchrun and accelerate connect."""

import os
from typing import TYPE_CHECKING, Any

from qinco.errors import needs_extra

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Processes:
    """This process's rank among all, and sums over them."""

    def __init__(self, device: "torch.device"):
        self.rank, self.count = 0, 1
        self.device: Any = device  # torch.device
        if self.count_by_environment() > 1:
            with needs_extra("a run of several processes", "accelerate", "train"):
                from accelerate import PartialState

            state = PartialState(cpu=device.type == "cpu")
            self.rank, self.count, self.device = state.process_index, state.num_processes, state.device
        self.is_main = self.rank == 0

    @staticmethod
    def count_by_environment() -> int:
        """Number of processes that torchrun started, 1 without it."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @staticmethod
    def is_main_by_environment() -> bool:
        """Whether this is the only process or torchrun's first."""
        return os.environ.get("RANK", "0") == "0"

    def share(self, count: int) -> slice:
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def sum(self, tensor: "Tensor") -> "Tensor":
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, "sum")  # pyright: ignore[reportReturnType]  (a tensor for a tensor)

    def sum_gradients(self, parameters: "list[torch.nn.Parameter]") -> None:
        """Replace every gradient by its sum over all processes, in one message."""
        if self.count == 1:
            return
        import torch

        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        for parameter, grad, part in zip(parameters, grads, flat.split([grad.numel() for grad in grads]), strict=True):
            parameter.grad = grad.copy_(part.view_as(grad))

    def from_main(self, value):
        """The main process's value, a plain one, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        if self.count > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()

    def copy_from_main(self, module: "torch.nn.Module") -> None:
        """Copy the weights and buffers of the main process to all others."""
        if self.count > 1:
            from accelerate.utils import broadcast

            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.data.copy_(broadcast(tensor.data))
