"""Checks of the tensors in a file before a model is made of them."""

from dataclasses import replace

import torch
from torch import Tensor

from qinco.config import ModelConfig
from qinco.errors import DataError
from qinco.model.qinco import Qinco


def check_promise(path, config: ModelConfig, num_tensors: int) -> None:
    """Raise DataError if a file has fewer tensors than its configuration needs, before anything is allocated."""
    conditioned = config.num_steps - (not config.starts_from_coarse)
    if config.num_steps + 2 * conditioned * config.num_blocks > num_tensors:
        raise DataError(f"{path} does not fit its configuration: it has only {num_tensors} tensors")


def state_shapes(config: ModelConfig) -> dict[str, Tensor]:
    """Names of a model's tensors, with meta tensors of their shapes. Builds two steps only, not M."""
    shapes = Qinco.empty(replace(config, num_steps=min(2, config.num_steps))).state_dict()
    second = {name.removeprefix("steps.1."): t for name, t in shapes.items() if name.startswith("steps.1.")}
    for step in range(2, config.num_steps):  # all alike
        shapes.update({f"steps.{step}.{name}": tensor for name, tensor in second.items()})
    return shapes


def check_shapes(path, tensors: dict, expected: dict[str, Tensor]) -> None:
    """Raise DataError unless `tensors` (whatever has a shape) has the names and shapes of `expected`."""
    misfit = f"{path} does not fit its configuration: tensor"
    for name in sorted(set(tensors) ^ set(expected)):
        raise DataError(f"{misfit} {name} is {'unexpected' if name in tensors else 'missing'}")
    for name, tensor in expected.items():
        found, wanted = tuple(tensors[name].shape), tuple(tensor.shape)
        if found != wanted:
            raise DataError(f"{misfit} {name} is {found}, not {wanted}")


def check_values(path, tensors: dict[str, Tensor]) -> None:
    """Raise DataError unless all tensors are float32 and finite."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise DataError(f"{path} does not fit its configuration: tensor {name} is {tensor.dtype}, not float32")
        if not tensor.isfinite().all():
            raise DataError(f"{path} is damaged: tensor {name} holds values that are not finite")


def check_scale(path, model: Qinco) -> None:
    """Raise DataError unless the scale that vectors are divided by is positive and finite."""
    if not 0 < model.scale < torch.inf:
        raise DataError(f"{path} is damaged: its scale is {model.scale.item()}")
