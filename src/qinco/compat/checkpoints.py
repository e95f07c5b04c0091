"""Checkpoints of the authors' code: both of its formats are read, the second is written."""

import os
from pathlib import Path

import torch
from torch import Tensor

from qinco.atomic import write_atomically
from qinco.compat.checkpoint_format import (
    V1,
    beam_width,
    check_expressible,
    num_candidates,
    told_as_damage,
    v1_config,
    v1_names,
    v1_parts,
    v1_state,
    v2_names,
    v2_parameters,
)
from qinco.compat.torch_file import Module, StoredTensor, read_torch_file
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import DataError, ResourceError
from qinco.model.qinco import Qinco
from qinco.model.state import check_scale, check_shapes, check_values, state_shapes


def read_checkpoint(path: str | os.PathLike) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    """Models, rotation or None, search rule and provenance of a checkpoint of the authors' code, on the CPU.

    Executes nothing. Raises DataError where the file is something else or damaged.
    """
    content = read_torch_file(path)
    with told_as_damage(path):
        if isinstance(content, Module):
            return _read_v1(path, content)
        return _read_v2(path, content)


def write_checkpoint(path, models: list[Qinco], options: EncodeOptions, provenance: dict) -> None:
    """Write a v2 checkpoint, which the authors' `run.py` loads; raises ConfigError for what it cannot express."""
    config = models[0].config
    check_expressible(config, options, len(models))
    own = models[0].state_dict()
    state = {theirs: own[ours].detach().cpu().clone() for ours, theirs in v2_names(config)}
    first = 1 if config.starts_from_coarse else 0
    for step in range(first, config.num_steps + first):  # statistics that training updates before it reads them
        state[f"steps.{step}.xtarget_mean"] = torch.zeros(config.dim)
        state[f"steps.{step}.xtarget_var"] = torch.ones(config.dim)
    parameters = {
        "K": config.codebook_size,
        "M": config.num_steps,
        "de": config.embed_dim if config.projects else None,
        "dh": config.hidden_dim,
        "L": config.num_blocks,
        "A": num_candidates(config, options) if config.has_preselector else 0,
        "B": beam_width(config, options),
        "ivf_in_use": config.starts_from_coarse or None,
        "ivf_K": config.num_lists or None,
        "qinco1_mode": None if config.codeword_skip else True,
    }
    epoch = provenance.get("epoch")
    content = {
        "epoch": epoch if type(epoch) is int else None,
        "model": state,
        "optimizer": None,
        "scheduler": None,
        "logger": None,
        "parameters": {name: value for name, value in parameters.items() if value is not None},
        "data_dim": config.dim,
    }
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise ResourceError(f"cannot write {path}: {error.__context__ or error}") from error


# v2


def _read_v2(path, content: dict) -> tuple[list[Qinco], None, EncodeOptions, dict]:
    config, options, provenance = v2_parameters(path, content)
    state = {str(name).removeprefix("module."): tensor for name, tensor in content["model"].items()}
    needed = {name: tensor for name, tensor in state.items() if not name.endswith((".xtarget_mean", ".xtarget_var"))}
    model = _fill(path, config, needed, dict(v2_names(config)))
    check_scale(path, model)
    return [model], None, options, provenance


# v1


def _read_v1(path, content: Module) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    models, seen = [], set()
    for part in v1_parts(path, content):
        state = v1_state(part, seen)
        config = v1_config(path, part, len(state))
        model = _fill(path, config, state, dict(v1_names(config)))
        model.mean, model.scale = torch.zeros(config.dim), _v1_scale(path, part)
        check_scale(path, model)
        models.append(model)
    if any(model.config != models[0].config for model in models):
        raise DataError(f"{path} is a PQ-QINCo model whose parts differ in architecture: that is not supported")
    rotation_DD = _v1_rotation(path, content, len(models) * models[0].config.dim)
    if rotation_DD is not None and len(models) == 1:
        raise DataError(f"{path} is a PQ-QINCo model of one part with a rotation: that is not supported")
    return models, rotation_DD, EncodeOptions(), {"source": V1}


def _v1_rotation(path, content: Module, dim: int) -> Tensor | None:
    rotation = content.state["_parameters"].get("opq_matrix") if content.name == "PQ_QINCo" else None
    if rotation is None:
        return None
    if not isinstance(rotation, StoredTensor) or rotation.shape != (dim, dim):
        shape = getattr(rotation, "shape", None)
        raise DataError(f"{path} rotates to another dimension ({shape}, not {(dim, dim)}): that is not supported")
    rotation_DD = torch.from_numpy(rotation.read()).float()
    check_values(path, {"opq_matrix": rotation_DD})
    return rotation_DD


def _v1_scale(path, module: Module) -> Tensor:
    scale = module.state.get("db_scale", 1.0)
    if isinstance(scale, StoredTensor) and scale.shape in ((), (1,)):
        scale = scale.read().item()
    if type(scale) not in (int, float):
        raise DataError(f"{path} is a damaged checkpoint: its db_scale is no number")
    return torch.tensor(float(scale), dtype=torch.float32)


def _fill(path, config: ModelConfig, state: dict, names: dict[str, str]) -> Qinco:
    """A model with the tensors of `state`; `names` says what ours are called there. Others keep no values yet."""
    for name, tensor in state.items():
        if not isinstance(tensor, StoredTensor):
            raise DataError(f"{path} is a damaged checkpoint: {name} is no tensor")
    check_shapes(path, state, {names[ours]: shape for ours, shape in state_shapes(config).items() if ours in names})
    # Half precision doubles in memory; a file whose tensors share their values could grow to any size.
    if sum(tensor.nbytes for tensor in state.values()) > 2 * Path(path).stat().st_size:
        raise DataError(f"{path} is a damaged checkpoint: its tensors share their values")
    tensors = {ours: torch.from_numpy(state[theirs].read()).float() for ours, theirs in names.items()}
    check_values(path, {names[ours]: tensor for ours, tensor in tensors.items()})
    model = Qinco.empty(config)
    model.load_state_dict(tensors, assign=True, strict=False)
    return model.eval().requires_grad_(False)
