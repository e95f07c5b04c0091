"""The authors' checkpoints: both formats are read, v2 is written. PyTorch reads the files, executing nothing."""

import os
import re
import warnings
import zipfile
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from qinco.atomic import write_atomically
from qinco.compat.checkpoint_format import (
    V1,
    V1_MODULES,
    V2,
    Module,
    beam_width,
    check_expressible,
    errors_as_damage,
    num_candidates,
    v1_config,
    v1_names,
    v1_parts,
    v1_state,
    v2_names,
    v2_parameters,
)
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import DataError, ResourceError
from qinco.model.qinco import Qinco
from qinco.model.state import check_scale, check_shapes, check_values, state_shapes
from qinco.vectors.mapped import file_size

_PAIRWISE_KEYS = ("ivf_code_map", "combine_mvals_m", "codebook_MKD")
_MAX_NAME = 256
_LOADING = Lock()  # torch's list of safe classes and Python's filters of warnings are those of the process


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file begins as those of `torch.save` do; False if it cannot be read."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            head = file.read(1024)
    except (OSError, ValueError):
        return False
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name.endswith(b"/data.pkl")


def read_torch_file(path: str | os.PathLike):
    """The object that `torch.save` wrote: containers, numbers, memory-mapped tensors and `Module`; nothing is executed.

    Raises:
        DataError: the file is missing, damaged, written by PyTorch before 1.6, or names any other class or function.
    """
    path = Path(path)
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # a damaged directory of entries can raise nearly anything
        raise DataError(
            f"{path} is not a PyTorch file, or damaged; one of PyTorch before 1.6 must be loaded and saved again"
        ) from None
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise DataError(f"{path} is damaged: its entries are compressed or overlap, as those of torch.save never do")
    misnamed = path.suffix.lower() == ".safetensors"  # torch would not look into the file, and maps no open files
    try:
        with _LOADING, warnings.catch_warnings(), torch.serialization.safe_globals(_safe_globals()):
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                return torch.load(file if misnamed else path, "cpu", weights_only=True, mmap=not misnamed)
    except Exception as error:  # damage can raise nearly anything
        foreign = re.search(r"GLOBAL (\S{1,100})", str(error))
        if foreign and foreign[1].isprintable():
            raise DataError(f"{path} refers to {foreign[1]}, as no QINCo file does: nothing was executed") from None
        raise DataError(f"{path} is damaged: PyTorch cannot read it ({type(error).__name__})") from None


def check_tensors(path: str | os.PathLike, tensors: dict) -> None:
    """Raise DataError unless all values are plain tensors that fit in memory twice the size of the file."""
    for name, tensor in tensors.items():
        if type(name) is not str or not name.isprintable() or len(name) > _MAX_NAME:
            raise DataError(f"{path} is damaged: it has a tensor without a proper name")
        is_plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_quantized or tensor.is_nested or tensor.is_complex():
            raise DataError(f"{path} is damaged: {name} is not a tensor")
    # Tensors that share their values could make a small file fill the memory.
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * Path(path).stat().st_size:
        raise DataError(f"{path} is damaged: its tensors share their values")


def write_torch_file(path: str | os.PathLike, content: dict) -> None:
    """Write `content` with `torch.save`, whole or not at all."""
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise ResourceError(f"cannot write {path}: {error.__context__ or error}") from error


def read_checkpoint(path: str | os.PathLike) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    """Models, rotation (D, D) or None, encode options and provenance of an authors' checkpoint, on the CPU.

    Raises:
        DataError: the file is not a checkpoint, or damaged.
    """
    content = read_torch_file(path)
    with errors_as_damage(path):
        if isinstance(content, Module):
            return _read_v1(path, content)
        config, options, provenance = v2_parameters(path, content)
        unused = (".xtarget_mean", ".xtarget_var")
        named = {name: tensor for name, tensor in content["model"].items() if not name.endswith(unused)}
        state = {name.removeprefix("module."): tensor for name, tensor in named.items()}  # of several processes
        model = _filled(path, config, state, dict(v2_names(config)))
        check_scale(path, model)
        return [model], None, options, provenance


def describe_checkpoint(path: str | os.PathLike) -> dict:
    """Kind, configuration and sizes of a checkpoint or pairwise decoder of the authors, without reading the tensors.

    Raises:
        DataError: the file is neither, or damaged.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and set(_PAIRWISE_KEYS) <= set(content):
        shapes = {name: list(t.shape) for name, t in content.items() if isinstance(t, Tensor)}
        return {"kind": "pairwise decoder of QINCo2"} | shapes
    with errors_as_damage(path):
        if isinstance(content, Module):
            seen: set[int] = set()
            configs = [v1_config(path, part, len(v1_state(part, seen))) for part in v1_parts(path, content)]
            kind, options, provenance = V1, EncodeOptions(), {"source": V1}
        else:
            config, options, provenance = v2_parameters(path, content)
            kind, configs = V2, [config]
    return {
        "kind": kind,
        "model": configs[0].to_dict(),
        "encode": options.to_dict(),
        "provenance": provenance,
        "num_parts": len(configs),
        "dim": sum(config.dim for config in configs),
        "bytes_per_vector": sum(config.bytes_per_vector for config in configs),
    }


def write_checkpoint(path, models: list[Qinco], options: EncodeOptions, provenance: dict) -> None:
    """Write a v2 checkpoint, which the authors' `run.py` loads.

    Raises:
        ConfigError: their code cannot hold the models or encode with the options.
    """
    config = models[0].config
    check_expressible(config, options, len(models))
    own = models[0].state_dict()
    state = {theirs: own[ours].detach().cpu().clone() for ours, theirs in v2_names(config)}
    first = 1 if config.starts_from_coarse else 0
    for step in range(first, config.num_steps + first):  # statistics that training updates before it reads them
        state[f"steps.{step}.xtarget_mean"] = torch.zeros(config.dim)
        state[f"steps.{step}.xtarget_var"] = torch.ones(config.dim)
    parameters = {
        "K": config.codebook_size, "M": config.num_steps, "de": config.embed_dim if config.projects else None,
        "dh": config.hidden_dim, "L": config.num_blocks, "B": beam_width(config, options),
        "A": num_candidates(config, options) if config.has_preselector else 0,
        "ivf_in_use": config.starts_from_coarse or None, "ivf_K": config.num_lists or None,
        "qinco1_mode": None if config.codeword_skip else True,
    }  # fmt: skip
    epoch = provenance.get("epoch")
    content = dict.fromkeys(("epoch", "model", "optimizer", "scheduler", "logger")) | {
        "epoch": epoch if type(epoch) is int else None,
        "model": state,
        "parameters": {name: value for name, value in parameters.items() if value is not None},
        "data_dim": config.dim,
    }
    write_torch_file(path, content)


# What v1 pickles may name


class _DType:
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *_):
        self.dtype = np.dtype({"f2": "<f2", "f4": "<f4", "f8": "<f8", "i4": "<i4", "i8": "<i8"}[code])

    def __setstate__(self, state):
        if state[1] not in ("<", "|"):
            raise ValueError("a number has another byte order")


def _scalar(dtype: _DType, content: bytes) -> int | float:
    """Stands for numpy's function that makes a scalar."""
    return np.frombuffer(content, dtype.dtype, 1)[0].item()


@cache
def _safe_globals() -> list:
    modules = [(type(name, (Module,), {}), f"{home}.{name}") for home, names in V1_MODULES.items() for name in names]
    scalars = [(_scalar, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")]
    return [*modules, *scalars, (_DType, "numpy.dtype")]


# v1


def _read_v1(path, content: Module) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    models, seen = [], set()
    for part in v1_parts(path, content):
        state = v1_state(part, seen)
        config = v1_config(path, part, len(state))
        model = _filled(path, config, state, dict(v1_names(config)))
        model.mean, model.scale = torch.zeros(config.dim), _v1_scale(path, part)
        check_scale(path, model)
        models.append(model)
    if any(model.config != models[0].config for model in models):
        raise DataError(f"{path} is a PQ-QINCo model whose parts differ in architecture, which is not supported")
    rotation_DD = _v1_rotation(path, content, len(models) * models[0].config.dim)
    if rotation_DD is not None and len(models) == 1:
        raise DataError(f"{path} is a PQ-QINCo model of one part with a rotation, which is not supported")
    return models, rotation_DD, EncodeOptions(), {"source": V1}


def _v1_rotation(path, content: Module, dim: int) -> Tensor | None:
    rotation = content.state["_parameters"].get("opq_matrix") if content.name == "PQ_QINCo" else None
    if rotation is None:
        return None
    check_tensors(path, {"opq_matrix": rotation})
    if rotation.shape != (dim, dim):
        raise DataError(f"{path} has a rotation of shape {tuple(rotation.shape)}: only {(dim, dim)} is supported")
    rotation_DD = _in_memory(rotation)
    check_values(path, {"opq_matrix": rotation_DD})
    return rotation_DD


def _v1_scale(path, module: Module) -> Tensor:
    scale = module.state.get("db_scale", 1.0)
    if isinstance(scale, Tensor) and scale.shape in ((), (1,)):
        check_tensors(path, {"db_scale": scale})
        scale = scale.item()
    if type(scale) not in (int, float):
        raise DataError(f"{path} is damaged: db_scale is not a number")
    return torch.tensor(float(scale), dtype=torch.float32)


def _filled(path, config: ModelConfig, state: dict, names: dict[str, str]) -> Qinco:
    """A model with the tensors of `state`, by `names` (ours to theirs); parameters not named stay without values."""
    check_tensors(path, state)
    check_shapes(path, state, {names[ours]: shape for ours, shape in state_shapes(config).items() if ours in names})
    tensors = {ours: _in_memory(state[theirs]) for ours, theirs in names.items()}
    check_values(path, {names[ours]: tensor for ours, tensor in tensors.items()})
    model = Qinco.empty(config)
    model.load_state_dict(tensors, assign=True, strict=False)
    return model.eval().requires_grad_(False)


def _in_memory(tensor: Tensor) -> Tensor:
    """A float32 copy, independent of the file."""
    return tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
