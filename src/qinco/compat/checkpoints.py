"""The authors' checkpoints: v1 (QINCo, a pickled module) is read, v2 (QINCo2, a dictionary) is read and written."""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from qinco.compat.torch_files import (
    Module,
    as_tensor,
    check_tensors,
    errors_as_damage,
    read_torch_file,
    write_torch_file,
)
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.model.weights import Weights, check_promise, check_scale, check_shapes, check_values, weight_shapes

V1, V2 = "QINCo checkpoint (v1)", "QINCo2 checkpoint (v2)"
PAIRWISE_KEYS = ("ivf_code_map", "combine_mvals_m", "codebook_MKD")  # of a pairwise decoder
_V1_MODELS, _V1_PARTS = {"QINCo", "IVFQINCo", "QINCoLR"}, {"QINCo", "QINCoLR"}
_V2_UNUSED = (".xtarget_mean", ".xtarget_var")  # statistics that training updates before it reads them
_V2_MODULES = {  # parts of names, ours and the authors'
    "preselector": "substep.codebook", "project_in": "in_proj", "project_out": "out_proj", "concat.outer": "concat.mlp",
    "blocks": "residual_blocks", "up": "up_proj", "down": "down_proj",
}  # fmt: skip
_MAX_CANDIDATES = 65536


def read_checkpoint(path: str | os.PathLike) -> tuple[list[Weights], np.ndarray | None, EncodeOptions, dict]:
    """Weights, rotation (D, D) or None, encode options and provenance of an authors' checkpoint."""
    content = read_torch_file(path)
    with errors_as_damage(path):
        parts, rotation_DD, options, provenance = _parse(path, content)
        name_of = _v1_name if provenance["source"] == V1 else _v2_name
        weights = [_weights(path, config, state, name_of) for config, state in parts]
        if rotation_DD is not None:
            dim = len(weights) * weights[0].config.dim
            rotation_DD = _copies(path, {"opq_matrix": rotation_DD}, {"opq_matrix": (dim, dim)})["opq_matrix"]
    return weights, rotation_DD, options, provenance


def describe_checkpoint(path: str | os.PathLike) -> dict:
    """Kind, configuration and sizes of a checkpoint or pairwise decoder of the authors, without reading the tensors."""
    content = read_torch_file(path)
    if isinstance(content, dict) and set(PAIRWISE_KEYS) <= set(content):
        shapes = {name: list(t.shape) for name, t in content.items() if hasattr(t, "shape")}
        return {"kind": "pairwise decoder of QINCo2"} | shapes
    with errors_as_damage(path):
        parts, _, options, provenance = _parse(path, content)
    configs = [config for config, _ in parts]
    return {
        "kind": provenance["source"], "model": configs[0].to_dict(), "encode": options.to_dict(),
        "provenance": provenance, "num_parts": len(configs), "dim": sum(config.dim for config in configs),
        "bytes_per_vector": sum(config.bytes_per_vector for config in configs),
    }  # fmt: skip


def write_checkpoint(path, weights: list[Weights], options: EncodeOptions, provenance: dict) -> None:
    """Write a v2 checkpoint, which the authors' `run.py` loads; raises ConfigError as `check_expressible` does."""
    config = weights[0].config
    check_expressible(config, options, len(weights))
    count, beam = _search_sizes(config, options)
    shared = {name: array for name, array in weights[0].arrays.items() if ".ranker." not in name}  # they have none
    arrays = {_v2_name(name, config): array for name, array in shared.items()}
    for step in range(config.starts_from_coarse, config.num_steps + config.starts_from_coarse):
        arrays[f"steps.{step}.xtarget_mean"] = np.zeros(config.dim, np.float32)
        arrays[f"steps.{step}.xtarget_var"] = np.ones(config.dim, np.float32)
    state = {name: as_tensor(array) for name, array in arrays.items()}
    parameters = {
        "K": config.codebook_size, "M": config.num_steps, "de": config.embed_dim if config.projects else None,
        "dh": config.hidden_dim, "L": config.num_blocks, "B": beam, "A": count if config.has_preselector else 0,
        "ivf_in_use": config.starts_from_coarse or None, "ivf_K": config.num_lists or None,
        "qinco1_mode": None if config.codeword_skip else True,
    }  # fmt: skip
    epoch = provenance.get("epoch")
    content = {
        "epoch": epoch if type(epoch) is int else None, "model": state,
        "optimizer": None, "scheduler": None, "logger": None,
        "parameters": {name: value for name, value in parameters.items() if value is not None}, "data_dim": config.dim,
    }  # fmt: skip
    write_torch_file(path, content)


def check_expressible(config: ModelConfig, options: EncodeOptions, num_parts: int = 1) -> None:
    """Raise ConfigError where the authors' code cannot hold a model or encode with its options."""
    size, (count, beam) = config.codebook_size, _search_sizes(config, options)
    # The first conditioned step expands one hypothesis with IVF, else those of the first codebook.
    max_beam = size if config.starts_from_coarse else min(beam, size) * count
    pairs = beam * count if config.has_preselector else 0
    for is_refused, reason in (
        (num_parts > 1, f"it holds one part, not the {num_parts} of a PQ-QINCo codec"),
        (config.concat_rank is not None, f"it has no low-rank layers (concat_rank={config.concat_rank})"),
        (options.num_pairs is not None, f"it has no C (num_pairs={options.num_pairs}): use A= and B="),
        (beam > 1 and not config.has_preselector, f"without pre-selection the authors' code needs B=1, not {beam}"),
        (beam > max_beam, f"B={beam} exceeds the {max_beam} candidates of the first step: use a smaller B or larger A"),
        (pairs > _MAX_CANDIDATES, f"its A · B is at most {_MAX_CANDIDATES}, not {pairs}: use a smaller A or B"),
    ):
        if is_refused:
            raise ConfigError(f"a .pt checkpoint cannot store this codec: {reason}, or save it as .safetensors")


def _search_sizes(config: ModelConfig, options: EncodeOptions) -> tuple[int, int]:
    """A, at most K, and B; 1 for a single codebook, where a beam changes nothing and the authors' code refuses more."""
    count = min(options.num_candidates or config.codebook_size, config.codebook_size)
    return count, options.beam_width if any(map(config.is_conditioned, range(config.num_steps))) else 1


def _weights(path, config: ModelConfig, state: dict, name_of: Callable[[str, ModelConfig], str]) -> Weights:
    shapes = weight_shapes(config)
    names = {ours: name_of(ours, config) for ours in shapes}
    copies = _copies(path, state, {names[ours]: shape for ours, shape in shapes.items()})
    weights = Weights(config, {ours: copies[theirs] for ours, theirs in names.items()})
    check_scale(path, weights)
    return weights


def _copies(path, tensors: dict, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 arrays, independent of the file, of tensors that are checked."""
    check_tensors(path, tensors)
    check_shapes(path, tensors, expected)
    copies = {name: np.array(tensor.detach().float().numpy(), order="C") for name, tensor in tensors.items()}
    check_values(path, copies)
    return copies


def _parse(path, content) -> tuple[list[tuple[ModelConfig, dict]], Any, EncodeOptions, dict]:
    """Configurations and tensors (by the authors' names) of the parts, rotation, encode options and provenance."""
    if isinstance(content, Module):
        return *_parse_v1(path, content), EncodeOptions(), {"source": V1}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(f"{path} is a PyTorch file but not a QINCo checkpoint: it has no 'model'")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or "data_dim" not in content:
        raise DataError(f"{path} has no 'parameters' or no 'data_dim', so its architecture is unknown")
    get = _numbers(path, parameters | {"data_dim": content["data_dim"]})
    is_ivf = bool(get("ivf_in_use"))
    config = ModelConfig(
        dim=get("data_dim"), num_steps=get("M"), codebook_size=get("K"), num_blocks=get("L"),
        embed_dim=get("de") or get("data_dim"), hidden_dim=get("dh"), has_preselector=bool(get("A")),
        codeword_skip=not get("qinco1_mode"), starts_from_coarse=is_ivf, num_lists=get("ivf_K") if is_ivf else 0,
    )  # fmt: skip
    check_promise(path, config, len(content["model"]))
    options = EncodeOptions(num_candidates=get("A") or None, beam_width=get("B") or 1)
    if options.beam_width * (options.num_candidates or 1) > _MAX_CANDIDATES:
        raise DataError(f"{path} is damaged: A · B of A={get('A')} and B={get('B')} exceeds {_MAX_CANDIDATES}")
    named = {name: tensor for name, tensor in content["model"].items() if not name.endswith(_V2_UNUSED)}
    state = {name.removeprefix("module."): tensor for name, tensor in named.items()}  # of several processes
    epoch = content.get("epoch")
    provenance = {"source": V2} | ({"epoch": epoch} if type(epoch) is int and epoch >= 0 else {})
    return [(config, state)], None, options, provenance


def _parse_v1(path, content: Module) -> tuple[list[tuple[ModelConfig, dict]], Any]:
    is_product = type(content).__name__ == "PQ_QINCo"
    children = content.state["_modules"]
    modules = [children[f"sub_quantizer_{m}"] for m in range(len(children))] if is_product else [content]
    kinds = {type(module).__name__ for module in modules}
    if not modules or not kinds <= (_V1_PARTS if is_product else _V1_MODELS):
        raise DataError(f"{path} is not a QINCo checkpoint: it holds {', '.join(sorted(kinds)) or 'no parts'}")
    seen: set[int] = set()
    parts = [_parse_v1_part(path, module, _v1_state(module, seen)) for module in modules]
    if any(config != parts[0][0] for config, _ in parts):
        raise DataError(f"{path} is a PQ-QINCo model whose parts differ in architecture, which is not supported")
    rotation = content.state["_parameters"].get("opq_matrix") if is_product else None
    if rotation is not None and len(parts) == 1:
        raise DataError(f"{path} is a PQ-QINCo model of one part with a rotation, which is not supported")
    return parts, rotation


def _parse_v1_part(path, module: Module, state: dict) -> tuple[ModelConfig, dict]:
    kind = type(module).__name__
    get = _numbers(path, module.state)
    config = ModelConfig(
        dim=get("d"), num_steps=get("M"), codebook_size=get("K"), num_blocks=get("L"), hidden_dim=get("h"),
        has_preselector=False, codeword_skip=False, concat_rank=get("h") if kind == "QINCoLR" else None,
        starts_from_coarse=kind == "IVFQINCo", num_lists=get("K_IVF") if kind == "IVFQINCo" else 0,
    )  # fmt: skip
    scale = module.state.get("db_scale", 1.0)
    scale = as_tensor(np.float64(scale)) if type(scale) in (int, float) else scale
    check_tensors(path, {"db_scale": scale})
    mean = as_tensor(np.zeros(1, np.float32)).expand(config.dim)
    state |= {"mean": mean, "db_scale": scale[0] if scale.shape == (1,) else scale}
    check_promise(path, config, len(state))
    return config, state


def _v1_state(module: Module, seen: set[int], prefix: str = "", depth: int = 0) -> dict:
    """Parameters and buffers by full name; `seen` collects the modules visited."""
    if depth > 4 or id(module) in seen:
        raise ValueError("its modules are nested too deeply or shared")
    seen.add(id(module))
    named = [item for kind in ("_parameters", "_buffers") for item in module.state[kind].items()]
    state = {f"{prefix}{name}": tensor for name, tensor in named if tensor is not None}
    for name, child in module.state["_modules"].items():
        state |= _v1_state(child, seen, f"{prefix}{name}.", depth + 1)
    return state


def _v1_name(name: str, config: ModelConfig) -> str:
    """The authors' name of one of our tensors."""
    if name == "scale":
        return "db_scale"
    if name == "coarse_centroids" or (name == "steps.0.codebook.weight" and not config.starts_from_coarse):
        return "codebook0.weight"
    name = re.sub(r"^steps\.(\d+)", r"step\1", name)
    name = re.sub(r"blocks\.(\d+)\.(up|down)", lambda m: f"residual_block{m[1]}.{0 if m[2] == 'up' else 2}", name)
    outer = "MLPconcat" if config.concat_rank is None else "MLPconcat.1"
    return name.replace("concat.outer", outer).replace("concat.inner", "MLPconcat.0")


def _v2_name(name: str, config: ModelConfig) -> str:
    """The authors' name of one of our tensors."""
    if not name.startswith("steps."):
        return {"mean": "data_mean", "scale": "data_std", "coarse_centroids": "steps.0.ivf_centroids.weight"}[name]
    _, step, rest = name.split(".", 2)
    for ours, theirs in _V2_MODULES.items():
        rest = re.sub(rf"\b{ours}\b", theirs, rest)
    return f"steps.{int(step) + config.starts_from_coarse}.{rest}"


def _numbers(path, values: dict) -> Callable:
    """A function that gives the integer or boolean of a name; None if it has no value."""

    def get(name: str) -> int | None:
        value = values.get(name)
        if value is not None and (type(value) not in (int, bool) or abs(value) >> 63):
            raise DataError(f"{path} is damaged: {name} is not an integer of 63 bits")
        return value

    return get
