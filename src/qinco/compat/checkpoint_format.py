"""What checkpoints of the authors' code say of themselves, and what they can hold; read without torch.

v2 (QINCo2) is a dictionary of weights and parameters; v1 (QINCo) is a pickled module, of which only the attributes and
tensors are taken. Names on the left are ours, on the right theirs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from qinco.compat.torch_file import Module, StoredTensor
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.model.state import check_promise

V1, V2 = "QINCo checkpoint (v1)", "QINCo2 checkpoint (v2)"
_V1_MODELS, _V1_PARTS = ("QINCo", "IVFQINCo", "QINCoLR"), ("QINCo", "QINCoLR")
_V1_ATTRIBUTES = ("d", "K", "L", "M", "h", "K_IVF")
_V2_PARAMETERS = ("K", "M", "de", "dh", "L", "A", "B", "ivf_in_use", "ivf_K", "qinco1_mode")
_MAX_DEPTH = 4
_MAX_CANDIDATES = 65536


def describe_checkpoint(path: str | os.PathLike, content) -> dict:
    """Kind, models' configurations, search rule and provenance of what `read_torch_file` found at `path`.

    The values of the tensors are not read. Raises DataError where it is no checkpoint or damaged.
    """
    with told_as_damage(path):
        if isinstance(content, Module):
            seen = set()
            configs = [v1_config(path, part, len(v1_state(part, seen))) for part in v1_parts(path, content)]
            return {"kind": V1, "models": configs, "options": EncodeOptions(), "provenance": {"source": V1}}
        config, options, provenance = v2_parameters(path, content)
        return {"kind": V2, "models": [config], "options": options, "provenance": provenance}


def num_candidates(config: ModelConfig, options: EncodeOptions) -> int:
    return min(options.num_candidates or config.codebook_size, config.codebook_size)


def beam_width(config: ModelConfig, options: EncodeOptions) -> int:
    """B; 1 where it changes nothing, for a bare codebook, which the authors' code cannot search with more."""
    return options.beam_width if any(map(config.is_conditioned, range(config.num_steps))) else 1


@contextmanager
def told_as_damage(path) -> Iterator[None]:
    """Turn what a foreign structure makes us raise into DataError."""
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path} is a damaged checkpoint: {error} is missing") from None
    except (ConfigError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is a damaged checkpoint: {error}") from None


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
    size, beam = config.codebook_size, beam_width(config, options)
    if not config.has_preselector:
        if beam > 1:
            raise ConfigError(
                f"the authors' code cannot search with B={beam} where no candidates are pre-selected: give B=1, or "
                "use .safetensors"
            )
        return
    count = num_candidates(config, options)
    # The first conditioned step proposes for the whole beam: from one hypothesis with IVF, else from the first codes.
    most = size if config.starts_from_coarse else min(beam, size) * count
    if beam > most:
        raise ConfigError(
            f"the authors' code cannot keep B={beam} of {most} candidates: give a smaller B or a larger A"
        )
    if beam * count > _MAX_CANDIDATES:
        raise ConfigError(f"the authors' code fails above A · B = {_MAX_CANDIDATES}, here {beam * count}: give less")


# v2


def v2_parameters(path, content) -> tuple[ModelConfig, EncodeOptions, dict]:
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


def v2_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
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


def v1_parts(path, content: Module) -> list[Module]:
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


def v1_config(path, module: Module, num_tensors: int) -> ModelConfig:
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


def v1_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
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


def v1_state(module: Module, seen: set[int], prefix: str = "", depth: int = 0) -> dict[str, StoredTensor]:
    """Parameters and buffers by their full names. `seen` are the modules that other names have."""
    if depth > _MAX_DEPTH or id(module) in seen:
        raise ValueError("its modules are nested too deeply or repeat")
    seen.add(id(module))
    state = {}
    for kind in ("_parameters", "_buffers"):
        state |= {f"{prefix}{name}": tensor for name, tensor in module.state[kind].items() if tensor is not None}
    for name, child in module.state["_modules"].items():
        state |= v1_state(child, seen, f"{prefix}{name}.", depth + 1)
    return state


# Both


def _numbers(path, values: dict, names: tuple[str, ...]) -> dict[str, int | bool]:
    """The integers and switches among `values` that are called so; raises DataError where one is something else."""
    found = {name: values[name] for name in names if values.get(name) is not None}
    for name, value in found.items():
        if type(value) not in (int, bool) or abs(value) >> 63:
            raise DataError(f"{path} is a damaged checkpoint: its {name} is no number, or an impossible one")
    return found
