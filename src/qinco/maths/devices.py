"""Devices by name, and arrays on the way to them."""

import numpy as np
import torch
from torch import Tensor

from qinco.errors import ConfigError

CPU = torch.device("cpu")
DEVICE_TYPES = {"cpu", "cuda"}  # that codecs compute on


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device called `device`: "auto" is the first GPU, or the processor where there is none.

    Raises:
        ConfigError: torch does not know the name, or the GPU is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {device!r}: give auto, cpu, cuda or cuda:N") from None
    if chosen.type not in DEVICE_TYPES:
        raise ConfigError(f"device={device} is not supported: give auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ConfigError(f"device={device} is not there: this machine has {count} GPUs; device=cpu runs anywhere")
    return chosen


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bf16; emulated, they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


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
