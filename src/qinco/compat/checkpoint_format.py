"""What the authors' checkpoints contain: configurations and names of tensors.

v2 (QINCo2) is a dictionary of weights and parameters; v1 (QINCo) is a pickled module, of which only the attributes and
tensors are read. In pairs of names ours comes first, the authors' second.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.model.state import check_promise

V1, V2 = "QINCo checkpoint (v1)", "QINCo2 checkpoint (v2)"
V1_MODULES = {  # the only classes that a checkpoint may name
    "model_qinco": ("QINCo", "IVFQINCo", "QINCoLR", "PQ_QINCo", "QINCoStep"),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.sparse": ("Embedding",),
    "torch.nn.modules.container": ("Sequential", "ModuleList"),
    "torch.nn.modules.activation": ("ReLU",),
}
_V1_MODELS, _V1_PARTS = ("QINCo", "IVFQINCo", "QINCoLR"), ("QINCo", "QINCoLR")
_V1_ATTRIBUTES = ("d", "K", "L", "M", "h", "K_IVF")
_V2_PARAMETERS = ("K", "M", "de", "dh", "L", "A", "B", "ivf_in_use", "ivf_K", "qinco1_mode")
_MAX_DEPTH = 4
_MAX_CANDIDATES = 65536


class Module:
    """A module of a v1 checkpoint: `state` holds its attributes, its subclass has the name of the original class."""

    state: dict

    def __setstate__(self, state):
        if type(state) is not dict:
            raise ValueError(f"a module has a {type(state).__name__} for its attributes")
        self.state = state

    @property
    def name(self) -> str:
        return type(self).__name__


def num_candidates(config: ModelConfig, options: EncodeOptions) -> int:
    """A, at most K."""
    return min(options.num_candidates or config.codebook_size, config.codebook_size)


def beam_width(config: ModelConfig, options: EncodeOptions) -> int:
    """B; 1 for a single codebook, where a beam changes nothing and the authors' code refuses more."""
    return options.beam_width if any(map(config.is_conditioned, range(config.num_steps))) else 1


@contextmanager
def errors_as_damage(path) -> Iterator[None]:
    """Raise DataError for any exception that unexpected content causes."""
    try:
        yield
    except DataError:
        raise
    except (ConfigError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, LookupError) else str(error)
        raise DataError(f"{path} is damaged: {reason:.200}") from None


def check_expressible(config: ModelConfig, options: EncodeOptions, num_parts: int = 1) -> None:
    """Raise ConfigError where the authors' code cannot hold a model or encode with its options."""
    reason = None
    size, beam, count = config.codebook_size, beam_width(config, options), num_candidates(config, options)
    # The first conditioned step expands one hypothesis with IVF, else those of the first codebook.
    max_beam = size if config.starts_from_coarse else min(beam, size) * count
    if num_parts > 1:
        reason = f"it holds one part, not the {num_parts} of a PQ-QINCo codec"
    elif config.concat_rank is not None:
        reason = f"it has no low-rank layers (concat_rank={config.concat_rank})"
    elif options.num_pairs is not None:
        reason = f"it has no C (num_pairs={options.num_pairs}): use A= and B="
    elif beam > 1 and not config.has_preselector:
        reason = f"without pre-selection the authors' code needs B=1, not {beam}"
    elif config.has_preselector and beam > max_beam:
        reason = f"B={beam} exceeds the {max_beam} candidates of the first step: use a smaller B or a larger A"
    elif config.has_preselector and beam * count > _MAX_CANDIDATES:
        reason = f"the authors' code fails above A · B = {_MAX_CANDIDATES}, here {beam * count}: use a smaller A or B"
    if reason:
        raise ConfigError(f"a .pt checkpoint cannot store this codec: {reason}, or save it as .safetensors")


# v2


def v2_parameters(path, content) -> tuple[ModelConfig, EncodeOptions, dict]:
    """Configuration, encode options and provenance."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(f"{path} is a PyTorch file but not a QINCo checkpoint: it has no 'model'")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or "data_dim" not in content:
        raise DataError(f"{path} has no 'parameters' or no 'data_dim', so its architecture is unknown")
    get = _numbers(path, parameters, _V2_PARAMETERS)
    is_ivf = bool(get("ivf_in_use"))
    config = ModelConfig(
        dim=_numbers(path, content, ("data_dim",))("data_dim"), num_steps=get("M"), codebook_size=get("K"),
        num_blocks=get("L"), embed_dim=get("de") or None, hidden_dim=get("dh"), has_preselector=bool(get("A")),
        codeword_skip=not get("qinco1_mode"), starts_from_coarse=is_ivf, num_lists=get("ivf_K") if is_ivf else 0,
    )  # fmt: skip
    check_promise(path, config, len(content["model"]))
    options = EncodeOptions(num_candidates=get("A") or None, beam_width=get("B") or 1)
    if options.beam_width * (options.num_candidates or 1) > _MAX_CANDIDATES:
        raise DataError(f"{path} is damaged: A · B of A={get('A')} and B={get('B')} exceeds {_MAX_CANDIDATES}")
    provenance = {"source": V2}
    if type(content.get("epoch")) is int and content["epoch"] >= 0:
        provenance["epoch"] = content["epoch"]
    return config, options, provenance


def v2_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Pairs of tensor names, ours and the authors'."""
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
    """The models of a PQ-QINCo module, or the one model."""
    is_product = content.name == "PQ_QINCo"
    modules = content.state["_modules"]
    parts = [modules[f"sub_quantizer_{m}"] for m in range(len(modules))] if is_product else [content]
    for part in parts:
        if not isinstance(part, Module) or part.name not in (_V1_PARTS if is_product else _V1_MODELS):
            kind = part.name if isinstance(part, Module) else type(part).__name__
            raise DataError(f"{path} is not a QINCo checkpoint: it holds a {kind}")
    if not parts:
        raise DataError(f"{path} is damaged: its PQ-QINCo model has no parts")
    return parts


def v1_config(path, module: Module, num_tensors: int) -> ModelConfig:
    """Configuration, from the attributes of the module."""
    is_ivf = module.name == "IVFQINCo"
    get = _numbers(path, module.state, _V1_ATTRIBUTES)
    config = ModelConfig(
        dim=get("d"), num_steps=get("M"), codebook_size=get("K"), num_blocks=get("L"), hidden_dim=get("h"),
        has_preselector=False, codeword_skip=False, concat_rank=get("h") if module.name == "QINCoLR" else None,
        starts_from_coarse=is_ivf, num_lists=get("K_IVF") if is_ivf else 0,
    )  # fmt: skip
    check_promise(path, config, num_tensors + 2)  # mean and scale are not among them
    return config


def v1_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Pairs of tensor names, ours and the authors'."""
    yield "coarse_centroids" if config.starts_from_coarse else "steps.0.codebook.weight", "codebook0.weight"
    outer, inner = ("MLPconcat", None) if config.concat_rank is None else ("MLPconcat.1", "MLPconcat.0")
    for m in range(config.num_steps):
        if not config.is_conditioned(m):
            continue
        ours, theirs = f"steps.{m}.", f"step{m}."
        yield ours + "codebook.weight", theirs + "codebook.weight"
        yield ours + "concat.outer.weight", f"{theirs}{outer}.weight"
        if config.concat_rank is None:
            yield ours + "concat.outer.bias", theirs + "MLPconcat.bias"
        else:
            yield ours + "concat.inner.weight", f"{theirs}{inner}.weight"
        for j in range(config.num_blocks):
            yield ours + f"blocks.{j}.up.weight", theirs + f"residual_block{j}.0.weight"
            yield ours + f"blocks.{j}.down.weight", theirs + f"residual_block{j}.2.weight"


def v1_state(module: Module, seen: set[int], prefix: str = "", depth: int = 0) -> dict:
    """Parameters and buffers by full name; `seen` collects the modules visited."""
    if depth > _MAX_DEPTH or id(module) in seen:
        raise ValueError("its modules are nested too deeply or shared")
    seen.add(id(module))
    state = {}
    for kind in ("_parameters", "_buffers"):
        state |= {f"{prefix}{name}": tensor for name, tensor in module.state[kind].items() if tensor is not None}
    for name, child in module.state["_modules"].items():
        state |= v1_state(child, seen, f"{prefix}{name}.", depth + 1)
    return state


# Both


def _numbers(path, values: dict, names: tuple[str, ...]) -> Callable[[str], Any]:
    """A function that gives the integer or boolean of a name; None if it has no value."""
    found = {name: values[name] for name in names if values.get(name) is not None}
    for name, value in found.items():
        if type(value) not in (int, bool) or abs(value) >> 63:
            raise DataError(f"{path} is damaged: {name} is not an integer of 63 bits")
    return found.get
