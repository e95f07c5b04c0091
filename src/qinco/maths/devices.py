"""Arrays on the way to a device, and the room that there is."""

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device: on the processor the same memory if it is writable and contiguous, or a copy.

    A copy to a GPU goes through page-locked memory, so that the caller need not wait for it.
    """
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if device.type == "cuda":
        with torch.cuda.device(device):  # a thread begins at the first GPU, and would take memory there
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def holds(device: torch.device, num_bytes: int) -> bool:
    """Whether so many bytes take at most half of what is free on a device; the processor's memory holds all."""
    return device.type != "cuda" or num_bytes <= torch.cuda.mem_get_info(device)[0] // 2
