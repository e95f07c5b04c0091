"""Choosing devices, which are strings ("cpu", "cuda:0"), and copying arrays to them."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from qinco.errors import ConfigError, needs_extra
from qinco.machine import cpuinfo, num_openmp_threads

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CPU = "cpu"
DEVICE_TYPES = {"cpu", "cuda"}  # that codecs compute on
_DRIVERS = "/dev/nvidiactl", "/dev/dxg", "/dev/kfd", r"C:\Windows\System32\nvcuda.dll"  # where there is a GPU


def choose_device(device: "str | torch.device" = "auto") -> str:
    """The device called `device`; "auto" is the first GPU that torch can use, or the CPU if there is none."""
    name = str(device)
    kind, _, number = name.partition(":")
    if name == CPU:
        return CPU
    if name == "auto":
        if not any(map(os.path.exists, _DRIVERS)) or find_spec("torch") is None:
            return CPU
        import torch

        return "cuda" if torch.cuda.is_available() else CPU
    if kind not in DEVICE_TYPES or (number and not number.isdigit()) or not isinstance(device, str | _torch_device()):
        raise ConfigError(f"device={device!r:.80} is not supported: give auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        with needs_extra("device=cuda", "torch", "gpu"):
            import torch
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise ConfigError(f"device={name} does not exist: this machine has {count} GPUs; device=cpu always works")
    return CPU if kind == CPU else name


def device_type(device: str) -> str:
    """The kind of a device, "cpu" or "cuda"."""
    return device.partition(":")[0]


def device_name(device: str) -> str:
    """The name of a GPU; "cpu" for the processor."""
    if device_type(device) != "cuda":
        return device
    import torch

    return torch.cuda.get_device_name(device)


def _torch_device() -> type:
    torch = sys.modules.get("torch")
    return str if torch is None else torch.device


def multiplies_bf16_fast(device: str = CPU) -> bool:
    """Whether the device has matrix instructions for bf16; emulated ones are slower than float32."""
    if device_type(device) == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _processor_multiplies_bf16()


@cache
def _processor_multiplies_bf16() -> bool:
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpuinfo().get("flags", "").split())


@contextmanager
def within_cores() -> Iterator[None]:
    """Let torch use as many threads as `num_openmp_threads` says for calls inside the block, and numpy one.

    The other threads of numpy's OpenBLAS stay awake for some milliseconds after every product: training, which packs
    its weights for each step, would take 1.6 times as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_openmp_threads())
    try:
        with _single_blas_thread():
            yield
    finally:
        torch.set_num_threads(before)


def _single_blas_thread() -> AbstractContextManager:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # torch was installed without the extra: training is slower
        return nullcontext()
    return threadpool_limits(1, user_api="blas")


def to_device(array: np.ndarray, device: "str | torch.device") -> "Tensor":
    """Copy an array to a GPU, through page-locked memory and asynchronously; the CPU shares a contiguous one."""
    import torch

    tensor, target = torch.from_numpy(np.require(array, requirements=["C", "W"])), torch.device(device)
    if target.type == "cuda":
        with torch.cuda.device(target):  # new threads start on the first GPU and would allocate memory there
            return tensor.pin_memory().to(target, non_blocking=True)
    return tensor.to(target)


def holds(device: "str | torch.device", num_bytes: int) -> bool:
    """Whether `num_bytes` fit into half of the free memory of a GPU; always true on the CPU."""
    import torch

    target = torch.device(device)
    return target.type != "cuda" or num_bytes <= torch.cuda.mem_get_info(target)[0] // 2
