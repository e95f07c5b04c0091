"""Tensors and one JSON header in a safetensors file, written whole or not at all, read without executing anything."""

import json
import os
from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qinco.config import ModelConfig
from qinco.errors import DataError, ResourceError
from qinco.files import write_atomically
from qinco.model.qinco import Qinco
from qinco.storage.header import FORMAT_VERSION, KEY, open_tensors


def write_tensors(path: str | os.PathLike, kind: str, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write tensors and a header of JSON values to `path`, which is replaced only when all is on disk."""
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(plain, temporary, metadata={KEY: text})
        except SafetensorError as error:  # of a full disk, say, it has the text only
            raise ResourceError(f"cannot write {path}: {error}") from error


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a file of ours that holds a `kind`, on the CPU.

    Raises DataError where the file is missing, damaged, foreign, of another kind or of a newer format.
    """
    with open_tensors(path, "pt") as (header, file):
        if header["kind"] != kind:
            raise DataError(f"{path} holds a {header['kind']}, not a {kind}")
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def state_shapes(config: ModelConfig) -> dict[str, Tensor]:
    """Names of a model's tensors, and tensors without values that have their shapes; no model of M steps is built."""
    shapes = Qinco.empty(replace(config, num_steps=min(2, config.num_steps))).state_dict()
    second = {name.removeprefix("steps.1."): t for name, t in shapes.items() if name.startswith("steps.1.")}
    for step in range(2, config.num_steps):  # all alike
        shapes.update({f"steps.{step}.{name}": tensor for name, tensor in second.items()})
    return shapes


def check_shapes(path, tensors: dict, expected: dict[str, Tensor]) -> None:
    """Raise DataError unless `tensors` (whatever has a shape) has the names and shapes of `expected`."""
    for name in sorted(set(tensors) ^ set(expected)):
        state = "unexpected" if name in tensors else "missing"
        raise DataError(f"{path} does not fit its configuration: tensor {name} is {state}")
    for name, tensor in expected.items():
        found = tuple(tensors[name].shape)
        if found != tensor.shape:
            raise DataError(
                f"{path} does not fit its configuration: tensor {name} is {found}, not {tuple(tensor.shape)}"
            )


def check_values(path, tensors: dict[str, Tensor]) -> None:
    """Raise DataError unless all tensors are float32 and finite."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise DataError(
                f"{path} does not fit its configuration: tensor {name} is {tensor.dtype}, not torch.float32"
            )
        if not tensor.isfinite().all():
            raise DataError(f"{path} is damaged: tensor {name} holds values that are not finite")


def check_scale(path, model: Qinco) -> None:
    """Raise DataError unless the scale that vectors are divided by is positive and finite."""
    if not 0 < model.scale < torch.inf:
        raise DataError(f"{path} is damaged: its scale is {model.scale.item()}")
