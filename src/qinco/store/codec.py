"""Codec files: weights, architecture, encode options and provenance.

Ours are safetensors files; the authors' checkpoints (.pt) can be read and written instead.
"""

import os
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from qinco.compat.checkpoints import read_checkpoint, write_checkpoint
from qinco.compat.torch_files import is_torch_file
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.model.qinco import Qinco
from qinco.model.state import check_promise, check_scale, check_shapes, check_values, state_shapes
from qinco.store.tensors import read_header, read_tensors, write_tensors

KIND = "codec"
CHECKPOINT_SUFFIX = ".pt"
_ROTATION = "rotation"


def save_models(
    path, models: list[Qinco], rotation_DD: Tensor | None, options: EncodeOptions, provenance: dict
) -> None:
    """Write a codec file.

    Args:
        path: the file; one that ends in .pt is written as a checkpoint of the authors' code.
        models: one model, or one for each part of the columns (PQ-QINCo).
        rotation_DD: float32 (D, D), or None.
        options: for encoding.
        provenance: JSON values.

    Raises:
        ConfigError: a checkpoint of the authors' code cannot hold such a codec.
    """
    if Path(path).suffix.lower() == CHECKPOINT_SUFFIX:
        write_checkpoint(path, models, options, provenance)
        return
    header = {
        "model": models[0].config.to_dict(),
        "num_parts": len(models),
        "encode": options.to_dict(),
        "provenance": provenance,
    }
    tensors = {
        f"{_prefix(part, len(models))}{name}": tensor
        for part, model in enumerate(models)
        for name, tensor in model.state_dict().items()
    }
    if rotation_DD is not None:
        tensors[_ROTATION] = rotation_DD
    write_tensors(path, KIND, header, tensors)


def load_models(path: str | os.PathLike) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    """Read what `save_models` or the authors' code wrote, on the CPU.

    Returns:
        The models, the rotation or None, the encode options and the provenance.

    Raises:
        DataError: the file is no codec, or its tensors do not match its configuration.
    """
    if is_torch_file(path) or Path(path).suffix.lower() == CHECKPOINT_SUFFIX:
        return read_checkpoint(path)
    header, tensors = read_tensors(path, KIND)
    config = parse_config(path, ModelConfig, header.get("model"))
    options = parse_config(path, EncodeOptions, header.get("encode"))
    count, provenance = header.get("num_parts", 1), header.get("provenance", {})
    if not isinstance(count, int) or count < 1 or not isinstance(provenance, dict):
        raise DataError(f"{path} has a damaged qinco header")
    check_promise(path, config, len(tensors) // count)
    expected = {f"{_prefix(p, count)}{n}": t for p in range(count) for n, t in state_shapes(config).items()}
    if count > 1 and _ROTATION in tensors:
        expected[_ROTATION] = torch.empty(config.dim * count, config.dim * count, device="meta")
    check_shapes(path, tensors, expected)
    check_values(path, tensors)
    models = []
    for part in range(count):
        model = Qinco.empty(config)
        prefix = _prefix(part, count)
        model.load_state_dict({name: tensors[prefix + name] for name in model.state_dict()}, assign=True)
        check_scale(path, model)
        models.append(model.eval().requires_grad_(False))
    return models, tensors.get(_ROTATION), options, provenance


def describe_codec(path: str | os.PathLike) -> dict:
    """What the header of a codec or of the state of a training run says, as JSON values; raises DataError."""
    header = read_header(path)
    described = {"kind": header["kind"], "format_version": header["format_version"]}
    for name in ("model", "encode", "provenance", "progress", "best", "train"):
        if isinstance(header.get(name), dict):
            described[name] = header[name]
    config, parts = parse_config(path, ModelConfig, header.get("model")), header.get("num_parts", 1)
    if not isinstance(parts, int):
        raise DataError(f"{path} has a damaged qinco header: num_parts is {parts!r}")
    return described | {
        "num_parts": parts, "dim": config.dim * parts, "bytes_per_vector": config.bytes_per_vector * parts,
    }  # fmt: skip


def parse_config(path, kind: type, values):
    """A configuration dataclass from an object in a header; raises DataError if it does not fit."""
    try:
        known = {field.name for field in fields(kind)}
        if not isinstance(values, dict) or not set(values) <= known:
            raise DataError(f"{path} has a damaged or unknown {kind.__name__} in its header")
        return kind(**values)
    except (ConfigError, TypeError) as error:
        raise DataError(f"{path} has a damaged {kind.__name__} in its header: {str(error)[:200]}") from None


def _prefix(part: int, count: int) -> str:
    return "" if count == 1 else f"parts.{part}."
