"""Codec files: weights, architecture, encode options and provenance.

Ours are safetensors files; the authors' checkpoints (.pt) can be read and written instead.
"""

import os
from dataclasses import fields
from pathlib import Path

import numpy as np

from qinco.compat.checkpoints import read_checkpoint, write_checkpoint
from qinco.compat.torch_files import is_torch_file
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.model.weights import Weights, check_promise, check_scale, check_shapes, check_values, weight_shapes
from qinco.store.tensors import read_header, read_tensors, write_tensors

KIND = "codec"
CHECKPOINT_SUFFIX = ".pt"
SUFFIXES = (".safetensors", CHECKPOINT_SUFFIX)
_ROTATION = "rotation"


def save_models(
    path, weights: list[Weights], rotation_DD: np.ndarray | None, options: EncodeOptions, provenance: dict
) -> None:
    """Write a codec of one model, or of one for each part of the columns (PQ-QINCo) and perhaps their rotation (D, D).

    A path that ends in .pt is written as a checkpoint of the authors' code, or ConfigError if that has no such codec.
    """
    if Path(path).suffix.lower() == CHECKPOINT_SUFFIX:
        write_checkpoint(path, weights, options, provenance)
        return
    header = {"model": weights[0].config.to_dict(), "num_parts": len(weights), "encode": options.to_dict()}
    header["provenance"] = provenance
    parts = [(_prefix(part, len(weights)), each.arrays) for part, each in enumerate(weights)]
    arrays = {prefix + name: array for prefix, part in parts for name, array in part.items()}
    if rotation_DD is not None:
        arrays[_ROTATION] = rotation_DD
    write_tensors(path, KIND, header, arrays)


def load_models(path: str | os.PathLike) -> tuple[list[Weights], np.ndarray | None, EncodeOptions, dict]:
    """Weights, rotation or None, encode options and provenance that `save_models` or the authors' code wrote.

    Raises:
        DataError: the file is no codec, or its tensors do not match its configuration.
    """
    if is_torch_file(path) or Path(path).suffix.lower() == CHECKPOINT_SUFFIX:
        return read_checkpoint(path)
    header, arrays = read_tensors(path, KIND)
    config = parse_config(path, ModelConfig, header.get("model"))
    options = parse_config(path, EncodeOptions, header.get("encode"))
    count, provenance = header.get("num_parts", 1), header.get("provenance", {})
    if not isinstance(count, int) or count < 1 or not isinstance(provenance, dict):
        raise DataError(f"{path} has a damaged qinco header")
    check_promise(path, config, len(arrays) // count)
    shapes = weight_shapes(config)
    expected = {f"{_prefix(part, count)}{name}": shape for part in range(count) for name, shape in shapes.items()}
    if count > 1 and _ROTATION in arrays:
        expected[_ROTATION] = config.dim * count, config.dim * count
    check_shapes(path, arrays, expected)
    check_values(path, arrays)
    weights = [Weights(config, {n: arrays[_prefix(part, count) + n] for n in shapes}) for part in range(count)]
    for part in weights:
        check_scale(path, part)
    return weights, arrays.get(_ROTATION), options, provenance


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
