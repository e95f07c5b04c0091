"""Choosing devices, and copying arrays to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from qinco.errors import ConfigError
from qinco.machine import usable_cores

CPU = torch.device("cpu")
_usable_cores = cache(usable_cores)  # searches ask each time
DEVICE_TYPES = {"cpu", "cuda"}  # that codecs compute on


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device called `device`; "auto" is the first GPU, or the CPU if there is none."""
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
            raise ConfigError(f"device={device} does not exist: this machine has {count} GPUs; device=cpu always works")
    return chosen


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bf16; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def num_threads(most: int | None = None) -> int:
    """Threads of compiled code: `most`, by default as many as torch uses, but no more than a container has cores."""
    return min(most or torch.get_num_threads(), _usable_cores())


@contextmanager
def within_cores() -> Iterator[None]:
    """Let torch use no more threads than `num_threads` for calls inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a GPU, through page-locked memory and asynchronously; the CPU shares a contiguous one."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if device.type == "cuda":
        with torch.cuda.device(device):  # new threads start on the first GPU and would allocate memory there
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def holds(device: torch.device, num_bytes: int) -> bool:
    """Whether `num_bytes` fit into half of the free memory of a GPU; always true on the CPU."""
    return device.type != "cuda" or num_bytes <= torch.cuda.mem_get_info(device)[0] // 2
