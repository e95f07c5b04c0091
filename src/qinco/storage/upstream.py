"""Checkpoints of the authors' code: both of its formats are read, the second is written.

v2 (QINCo2) is a dictionary of weights and parameters; v1 (QINCo) is a pickled module, of which only the attributes and
tensors are taken. Names on the left are ours, on the right theirs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.files import write_atomically
from qinco.model.qinco import Qinco
from qinco.storage.tensor_file import check_promise, check_scale, check_shapes, check_values, state_shapes
from qinco.storage.torch_file import Module, StoredTensor, read_torch_file

V1, V2 = "QINCo checkpoint (v1)", "QINCo2 checkpoint (v2)"
_V1_MODELS, _V1_PARTS = ("QINCo", "IVFQINCo", "QINCoLR"), ("QINCo", "QINCoLR")
_V1_ATTRIBUTES = ("d", "K", "L", "M", "h", "K_IVF")
_V2_PARAMETERS = ("K", "M", "de", "dh", "L", "A", "B", "ivf_in_use", "ivf_K", "qinco1_mode")
_MAX_DEPTH = 4
_MAX_CANDIDATES = 65536


def read_checkpoint(path: str | os.PathLike) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    """Models, rotation or None, search rule and provenance of a checkpoint of the authors' code, on the CPU.

    Executes nothing. Raises DataError where the file is something else or damaged.
    """
    content = read_torch_file(path)
    with _told_as_damage(path):
        if isinstance(content, Module):
            return _read_v1(path, content)
        return _read_v2(path, content)


def check_expressible(config: ModelConfig, options: EncodeOptions, num_parts: int = 1) -> None:
    """Raise ConfigError, with the reason, where the authors' code cannot hold a model or search with its rule."""
    if num_parts > 1:
        raise ConfigError(f"a PQ-QINCo codec of {num_parts} parts has no place in a .pt checkpoint: use .safetensors")
    if config.concat_rank is not None:
        raise ConfigError("a QINCo-LR model (concat_rank) has no place in a .pt checkpoint: use .safetensors")
    if options.num_pairs is not None:
        raise ConfigError(
            f"a .pt checkpoint knows no C (num_pairs={options.num_pairs}), only A and B: give A= and B=, or use "
            ".safetensors"
        )
    size, beam = config.codebook_size, _beam_width(config, options)
    if not config.has_preselector:
        if beam > 1:
            raise ConfigError(
                f"the authors' code cannot search with B={beam} where no candidates are pre-selected: give B=1, or "
                "use .safetensors"
            )
        return
    count = _num_candidates(config, options)
    # The first conditioned step proposes for the whole beam: from one hypothesis with IVF, else from the first codes.
    most = size if config.starts_from_coarse else min(beam, size) * count
    if beam > most:
        raise ConfigError(
            f"the authors' code cannot keep B={beam} of {most} candidates: give a smaller B or a larger A"
        )
    if beam * count > _MAX_CANDIDATES:
        raise ConfigError(f"the authors' code fails above A · B = {_MAX_CANDIDATES}, here {beam * count}: give less")


def write_checkpoint(path, models: list[Qinco], options: EncodeOptions, provenance: dict) -> None:
    """Write a v2 checkpoint, which the authors' `run.py` loads; raises ConfigError for what it cannot express."""
    config = models[0].config
    check_expressible(config, options, len(models))
    own = models[0].state_dict()
    state = {theirs: own[ours].detach().cpu().clone() for ours, theirs in _v2_names(config)}
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
        "A": _num_candidates(config, options) if config.has_preselector else 0,
        "B": _beam_width(config, options),
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
        torch.save(content, file)


def describe_checkpoint(path: str | os.PathLike, content) -> dict:
    """Kind, models' configurations, search rule and provenance of what `read_torch_file` found at `path`.

    The values of the tensors are not read. Raises DataError where it is no checkpoint or damaged.
    """
    with _told_as_damage(path):
        if isinstance(content, Module):
            seen = set()
            configs = [_v1_config(path, part, len(_v1_state(part, seen))) for part in _v1_parts(path, content)]
            return {"kind": V1, "models": configs, "options": EncodeOptions(), "provenance": {"source": V1}}
        config, options, provenance = _v2_parameters(path, content)
        return {"kind": V2, "models": [config], "options": options, "provenance": provenance}


def _num_candidates(config: ModelConfig, options: EncodeOptions) -> int:
    return min(options.num_candidates or config.codebook_size, config.codebook_size)


def _beam_width(config: ModelConfig, options: EncodeOptions) -> int:
    """B; 1 where it changes nothing, for a bare codebook, which the authors' code cannot search with more."""
    return options.beam_width if any(map(config.is_conditioned, range(config.num_steps))) else 1


@contextmanager
def _told_as_damage(path) -> Iterator[None]:
    """Turn what a foreign structure makes us raise into DataError."""
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path} is a damaged checkpoint: {error} is missing") from None
    except (ConfigError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is a damaged checkpoint: {error}") from None


# v2


def _read_v2(path, content: dict) -> tuple[list[Qinco], None, EncodeOptions, dict]:
    config, options, provenance = _v2_parameters(path, content)
    state = {str(name).removeprefix("module."): tensor for name, tensor in content["model"].items()}
    needed = {name: tensor for name, tensor in state.items() if not name.endswith((".xtarget_mean", ".xtarget_var"))}
    model = _fill(path, config, needed, dict(_v2_names(config)))
    check_scale(path, model)
    return [model], None, options, provenance


def _v2_parameters(path, content) -> tuple[ModelConfig, EncodeOptions, dict]:
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(f"{path} is a PyTorch file, but no checkpoint of QINCo: it holds no model")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or "data_dim" not in content:
        raise DataError(f"{path} is a checkpoint without parameters, from a conversion of the authors' own: convert it")
    get = _numbers(path, parameters, _V2_PARAMETERS).get
    config = ModelConfig(
        dim=_numbers(path, content, ("data_dim",))["data_dim"],
        num_steps=get("M"),
        codebook_size=get("K"),
        num_blocks=get("L"),
        embed_dim=get("de") or None,
        hidden_dim=get("dh"),
        has_preselector=bool(get("A")),
        codeword_skip=not get("qinco1_mode"),
        starts_from_coarse=bool(get("ivf_in_use")),
        num_lists=get("ivf_K") if get("ivf_in_use") else 0,
    )
    check_promise(path, config, len(content["model"]))
    options = EncodeOptions(num_candidates=get("A") or None, beam_width=get("B") or 1)
    if options.beam_width * (options.num_candidates or 1) > _MAX_CANDIDATES:
        raise DataError(f"{path} is a damaged checkpoint: A={get('A')} and B={get('B')} are more than can be searched")
    provenance = {"source": V2}
    if type(content.get("epoch")) is int and content["epoch"] >= 0:
        provenance["epoch"] = content["epoch"]
    return config, options, provenance


def _v2_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "mean", "data_mean"
    yield "scale", "data_std"
    if config.starts_from_coarse:
        yield "coarse_centroids", "steps.0.ivf_centroids.weight"
    for m in range(config.num_steps):
        ours, theirs = f"steps.{m}.", f"steps.{m + config.starts_from_coarse}."
        yield ours + "codebook.weight", theirs + "codebook.weight"
        if not config.is_conditioned(m):
            continue
        if config.has_preselector:
            yield ours + "preselector.weight", theirs + "substep.codebook.weight"
        if config.projects:
            yield ours + "project_in.weight", theirs + "in_proj.weight"
            yield ours + "project_out.weight", theirs + "out_proj.weight"
        yield ours + "concat.outer.weight", theirs + "concat.mlp.weight"
        yield ours + "concat.outer.bias", theirs + "concat.mlp.bias"
        for j in range(config.num_blocks):
            yield ours + f"blocks.{j}.up.weight", theirs + f"residual_blocks.{j}.up_proj.weight"
            yield ours + f"blocks.{j}.down.weight", theirs + f"residual_blocks.{j}.down_proj.weight"


# v1


def _read_v1(path, content: Module) -> tuple[list[Qinco], Tensor | None, EncodeOptions, dict]:
    models, seen = [], set()
    for part in _v1_parts(path, content):
        state = _v1_state(part, seen)
        config = _v1_config(path, part, len(state))
        model = _fill(path, config, state, dict(_v1_names(config)))
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


def _v1_parts(path, content: Module) -> list[Module]:
    is_product = content.name == "PQ_QINCo"
    modules = content.state["_modules"]
    parts = [modules[f"sub_quantizer_{m}"] for m in range(len(modules))] if is_product else [content]
    for part in parts:
        if not isinstance(part, Module) or part.name not in (_V1_PARTS if is_product else _V1_MODELS):
            kind = part.name if isinstance(part, Module) else type(part).__name__
            raise DataError(f"{path} is no checkpoint of QINCo: it holds a {kind}")
    if not parts:
        raise DataError(f"{path} is a PQ-QINCo model without parts")
    return parts


def _v1_config(path, module: Module, num_tensors: int) -> ModelConfig:
    is_ivf = module.name == "IVFQINCo"
    get = _numbers(path, module.state, _V1_ATTRIBUTES).get
    config = ModelConfig(
        dim=get("d"),
        num_steps=get("M"),
        codebook_size=get("K"),
        num_blocks=get("L"),
        hidden_dim=get("h"),
        has_preselector=False,
        codeword_skip=False,
        concat_rank=get("h") if module.name == "QINCoLR" else None,
        starts_from_coarse=is_ivf,
        num_lists=get("K_IVF") if is_ivf else 0,
    )
    check_promise(path, config, num_tensors + 2)  # mean and scale are not among them
    return config


def _v1_scale(path, module: Module) -> Tensor:
    scale = module.state.get("db_scale", 1.0)
    if isinstance(scale, StoredTensor) and scale.shape in ((), (1,)):
        scale = scale.read().item()
    if type(scale) not in (int, float):
        raise DataError(f"{path} is a damaged checkpoint: its db_scale is no number")
    return torch.tensor(float(scale), dtype=torch.float32)


def _v1_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "coarse_centroids" if config.starts_from_coarse else "steps.0.codebook.weight", "codebook0.weight"
    concat = ("MLPconcat",) if config.concat_rank is None else ("MLPconcat.1", "MLPconcat.0")
    for m in range(config.num_steps):
        if not config.is_conditioned(m):
            continue
        ours, theirs = f"steps.{m}.", f"step{m}."
        yield ours + "codebook.weight", theirs + "codebook.weight"
        yield ours + "concat.outer.weight", f"{theirs}{concat[0]}.weight"
        if config.concat_rank is None:
            yield ours + "concat.outer.bias", theirs + "MLPconcat.bias"
        else:
            yield ours + "concat.inner.weight", f"{theirs}{concat[1]}.weight"
        for j in range(config.num_blocks):
            yield ours + f"blocks.{j}.up.weight", theirs + f"residual_block{j}.0.weight"
            yield ours + f"blocks.{j}.down.weight", theirs + f"residual_block{j}.2.weight"


def _v1_state(module: Module, seen: set[int], prefix: str = "", depth: int = 0) -> dict[str, StoredTensor]:
    """Parameters and buffers by their full names. `seen` are the modules that other names have."""
    if depth > _MAX_DEPTH or id(module) in seen:
        raise ValueError("its modules are nested too deeply or repeat")
    seen.add(id(module))
    state = {}
    for kind in ("_parameters", "_buffers"):
        state |= {f"{prefix}{name}": tensor for name, tensor in module.state[kind].items() if tensor is not None}
    for name, child in module.state["_modules"].items():
        state |= _v1_state(child, seen, f"{prefix}{name}.", depth + 1)
    return state


# Both


def _numbers(path, values: dict, names: tuple[str, ...]) -> dict[str, int | bool]:
    """The integers and switches among `values` that are called so; raises DataError where one is something else."""
    found = {name: values[name] for name in names if values.get(name) is not None}
    for name, value in found.items():
        if type(value) not in (int, bool) or abs(value) >> 63:
            raise DataError(f"{path} is a damaged checkpoint: its {name} is no number, or an impossible one")
    return found


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
