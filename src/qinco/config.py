"""Options of models and of encoding, and the presets that combine them.

Others are in `qinco.training.options` and `qinco.search.options`. A field is declared once, with `option`: the command
line derives its keys from these declarations.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral
from types import MappingProxyType, NoneType
from typing import Any, get_args

from qinco.errors import ConfigError

MAX_CODEBOOK_SIZE = 65536
MAX_WIDTH = 1 << 24
MAX_DEPTH = 1024
MAX_LISTS = (1 << 31) - 1
MAX_INTEGER = (1 << 63) - 1
PRECISIONS = ("auto", "float32", "bf16")
ENGINE_MODULES = {name: f"qinco.engines.{name}_engine" for name in ("native", "triton", "torch", "numpy")}  # best first
ENGINES = ("auto", *ENGINE_MODULES)
DECODERS = ("neural", "lookup", "pairwise")
RANKINGS = ("calibrated", "decoded")
METRICS = ("l2", "inner_product", "cosine")
# As faiss, ann-benchmarks and others call them, in lower case and with underscores.
METRIC_SPELLINGS = {
    **dict.fromkeys(("euclidean", "euclid", "squared_l2", "l2_squared", "sqeuclidean", "metric_l2", "1"), "l2"),
    **dict.fromkeys(("ip", "dot", "dot_product", "mips", "metric_inner_product", "0"), "inner_product"),
    **dict.fromkeys(("angular", "cos", "cosine_similarity"), "cosine"),
}
EXACT_BELOW = 20_000  # vectors that collections train a codec on at least
MULTIPLE = "nmid_short"  # counts in multiples of nshort, and its field does not
# What the arguments of calls are called on the command line, where that is not the key of a field.
KEYS_OF_ARGUMENTS = {
    "preset": "model_args", "num_parts": "pq", "rotate": "opq", "coarse_centroids": "ivf_centroids",
    "centroids": "ivf_centroids", "num_lists": "ivf_K", "num_centroids": "ivf_K", "initial": "model",
    "codec": "model", "pairwise": "pairwise_decoder", "ground_truth": "queries_gt", "progress": "verbose",
    "num_training": "search.aq_training_samples",
}  # fmt: skip
# What other libraries call them.
_ELSEWHERE = {
    "codebook_size": "n_clusters ksub num_codewords n_codewords",
    "num_steps": "n_subquantizers num_subquantizers n_codebooks num_codebooks num_quantizers code_size",
    "num_lists": "nlist nlists n_lists ncentroids n_centroids",
    "embed_dim": "d_model embedding_dim",
    "metric": "distance metric_type space",
    "nprobe": "n_probe n_probes nprobes num_probes",
    "epochs": "num_epochs n_epochs max_epochs max_iter n_iter niter",
    "minutes": "max_minutes time_budget time_limit budget max_time",
    "lr": "learning_rate learning_rate_init",
    "batch_size": "batchsize minibatch_size",
    "seed": "random_state random_seed",
    "threads": "num_threads n_threads nthreads n_jobs num_workers",
    "k": "top_k topk n_neighbors num_neighbors",
    "output": "out output_path out_path save_path",
    "overwrite": "force",
}
_SYNONYMS = {name: field for field, names in _ELSEWHERE.items() for name in names.split()}
_SYNONYMS |= {key.rpartition(".")[2].lower(): name for name, key in reversed(KEYS_OF_ARGUMENTS.items())}


def option(
    default: Any = dataclasses.MISSING, *, key: str | None = None, help: str = "", minimum: float | None = None,
    maximum: float | None = None, above: float | None = None, choices: tuple[str, ...] = (),
    spellings: Mapping[str, str] = MappingProxyType({}),
) -> Any:  # fmt: skip
    """Declare a field of options: its `key` and `help` on the command line, and the values that it may have.

    Integers must be at least 1 unless `minimum` says otherwise; `above` is an exclusive minimum. `spellings` are other
    names of the choices on the command line: name there -> value here.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata={"key": key, "help": help, "spellings": spellings, **limits})


def documented(cls):
    """List the fields of a dataclass of options in its docstring, from their help; `null` is None in Python."""
    lines = [f"        {f.name}: {f.metadata['help'].replace('null', 'None')}" for f in dataclasses.fields(cls)]
    cls.__doc__ = "\n".join([cls.__doc__.rstrip(), "", "    Attributes:", *lines, "    "])
    cls.__init__ = accepts_keys(cls)(cls.__init__)
    return cls


def accepts_keys(*options: type, **others: str) -> Callable:
    """Let arguments of a function be named as on the command line, too: `M=8` for `num_steps=8`.

    These are the keys of fields of `options`, and `others`: key -> argument.
    """

    def decorate(function):
        @wraps(function)
        def call(*args, **settings):
            return function(*args, **by_field(settings, *options, **others))

        return call

    return decorate


def by_field(settings: dict, *options: type, **others: str) -> dict:
    """Settings of which some are named by keys, by the names of fields; ConfigError if two that are one differ."""
    fields = _fields_by_key(*options)
    fields = fields | others if others else fields
    if settings.keys().isdisjoint(fields):
        return settings
    named: dict = {}
    for name, value in settings.items():
        field = fields.get(name, name)
        if field in named and named[field] != value:
            raise ConfigError(f"{field} is given twice, as {named[field]!r} and as {value!r}: keep one of them")
        named[field] = value
    return named


@cache  # options are made for each search
def _fields_by_key(*options: type) -> dict[str, str]:
    return {key: field for field, key in field_keys(*options).items() if key != MULTIPLE}


@cache
def _declared(cls) -> list[tuple[str, str, Mapping, tuple]]:
    """The name of each field, its name in messages, its limits and its types."""
    keys = [(f, f.metadata.get("key")) for f in dataclasses.fields(cls)]
    labelled = [(f, f.name if key in (None, f.name) else f"{f.name} ({key})") for f, key in keys]
    return [(f.name, label, f.metadata, get_args(f.type) or (f.type,)) for f, label in labelled]


def check_fields(options) -> None:
    """Raise ConfigError for a field whose value has another type than declared, or is out of its range or choices."""
    for field, name, limits, types in _declared(type(options)):
        value = getattr(options, field)
        if NoneType in types and value is None:
            continue
        if bool in types:
            require_bool(name, value)
        elif int in types:
            require_int(name, value, 1 if limits["minimum"] is None else limits["minimum"], limits["maximum"])
            if value > MAX_INTEGER:
                raise ConfigError(f"{name} must be at most {MAX_INTEGER}, not {value}")
            object.__setattr__(options, field, int(value))
        elif float in types:
            require_number(name, value, limits["minimum"], limits["maximum"], limits["above"])
        elif limits["choices"]:
            require_choice(name, value, limits["choices"])


def require_int(name: str, value, minimum: int = 1, maximum: int | None = None) -> None:
    """Raise ConfigError unless `value` is an integer between `minimum` and `maximum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if value < minimum or (maximum is not None and not value <= maximum):
        bound = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ConfigError(f"{name} must be {bound}, not {value}")


def require_bool(name: str, value) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")


def require_choice(name: str, value, choices: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def require_number(name: str, value, minimum: float | None = None, maximum=None, above: float | None = None) -> None:
    """Raise ConfigError unless `value` is a finite number in these bounds; `above` is an exclusive minimum."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    is_high_enough = value > above if above is not None else minimum is None or value >= minimum
    if not (is_high_enough and value < float("inf") and (maximum is None or value <= maximum)):
        bound = f"above {above}" if above is not None else f"at least {minimum}"
        bound = bound if maximum is None else f"between {minimum} and {maximum}"
        raise ConfigError(f"{name} must be {bound}, not {value}")


def is_zero(value) -> bool:
    """Whether a value is the number 0, which `== 0` says of False, too."""
    return not isinstance(value, bool) and isinstance(value, Integral) and value == 0


@documented
@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one residual quantizer with implicit neural codebooks.

    Example:
        >>> ModelConfig(dim=128, num_steps=8, num_blocks=2).bytes_per_vector
        8.0
    """

    dim: int = option(help="dimension of the vectors", maximum=MAX_WIDTH)
    num_steps: int = option(8, key="M", help="codes per vector", maximum=MAX_DEPTH)
    codebook_size: int = option(256, key="K", help="codewords per step, a power of two", minimum=2,
                                maximum=MAX_CODEBOOK_SIZE)  # fmt: skip
    num_blocks: int = option(2, key="L", help="residual blocks per step", minimum=0, maximum=MAX_DEPTH)
    embed_dim: int = option(None, key="de", help="width of the residual stream; 0 or null: the vectors' dimension",
                            maximum=MAX_WIDTH)  # fmt: skip
    hidden_dim: int = option(256, key="dh", help="width inside a residual block", maximum=MAX_WIDTH)
    has_preselector: bool = option(True, help="a second codebook per step proposes candidates cheaply (QINCo2)")
    has_ranker: bool = option(False, help="pre-selected pairs are ranked by the network's first hidden layer")
    codeword_skip: bool = option(True, help="the codeword is added to the network's output (QINCo2)")
    concat_rank: int | None = option(None, key="concat_rank", help="rank of the concatenation layer (QINCo-LR)",
                                     maximum=MAX_WIDTH)  # fmt: skip
    starts_from_coarse: bool = option(False, help="start from the nearest coarse centroid (IVF) instead of zero")
    num_lists: int = option(0, help="coarse centroids; 0 without them", minimum=0, maximum=MAX_LISTS)

    def __post_init__(self):
        if self.embed_dim is None:
            object.__setattr__(self, "embed_dim", self.dim)
        check_fields(self)
        if self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(f"codebook_size (K) must be a power of two, not {self.codebook_size}")
        if self.starts_from_coarse != (self.num_lists > 0):
            raise ConfigError(f"starts_from_coarse={self.starts_from_coarse} contradicts num_lists={self.num_lists}")
        if not self.codeword_skip and self.embed_dim != self.dim:
            widths = f"{self.embed_dim} and {self.dim}"
            raise ConfigError(f"a model without a codeword skip (QINCo1) needs embed_dim = dim, not {widths}")
        if self.has_ranker and not (self.has_preselector and self.num_blocks):
            raise ConfigError("has_ranker=true needs a pre-selector and a residual block: leave it out")

    @property
    def projects(self) -> bool:
        """Whether the stream has a width of its own, with projections in and out."""
        return self.embed_dim != self.dim

    @property
    def bits_per_step(self) -> int:
        return self.codebook_size.bit_length() - 1

    @property
    def bytes_per_vector(self) -> float:
        """Size of one vector's packed code, the list number of an IVF codec apart."""
        return self.num_steps * self.bits_per_step / 8

    def is_conditioned(self, step: int) -> bool:
        """Whether `step` (from 0) has a network; the first has none unless it starts from a coarse centroid."""
        return step > 0 or self.starts_from_coarse

    def is_ranked(self, step: int) -> bool:
        """Whether `step` has a ranker: those do that follow a step with a network."""
        return self.has_ranker and step > 0 and self.is_conditioned(step - 1)

    def to_dict(self) -> dict:
        fields = dataclasses.asdict(self)
        if not self.has_ranker:  # files and fingerprints of models without rankers are older than these
            del fields["has_ranker"]
        return fields


@documented
@dataclass(frozen=True)
class EncodeOptions:
    """How codes are searched for (QINCo2 paper, section 3.2) and what computes it.

    With neither `num_candidates` nor `num_pairs`, every codeword is tried.
    """

    num_candidates: int | None = option(None, key="A", help="candidates per hypothesis; 0 or null: all codewords")
    num_pairs: int | None = option(None, key="C", help="candidates over the whole beam, instead of A")
    beam_width: int = option(1, key="B", help="beam width; 1, 0 or null: no beam")
    precision: str = option("auto", key="precision", help=f"arithmetic: {', '.join(PRECISIONS)}", choices=PRECISIONS)
    engine: str = option("auto", key="engine", help=f"engine: {', '.join(ENGINES)}", choices=ENGINES)

    def __post_init__(self):
        check_fields(self)
        if self.num_candidates is not None and self.num_pairs is not None:
            given = f"num_candidates (A={self.num_candidates}) and num_pairs (C={self.num_pairs})"
            raise ConfigError(f"{given} exclude each other: give one of them")

    @property
    def preselects(self) -> bool:
        return self.num_candidates is not None or self.num_pairs is not None

    def override(self, num_candidates=None, num_pairs=None, beam_width=None, precision=None, engine=None):
        """These options with some replaced: num_candidates replaces num_pairs and the reverse, 0 means neither."""
        fields = dataclasses.asdict(self)
        if num_candidates is not None or num_pairs is not None:
            fields.update(num_candidates=None if is_zero(num_candidates) else num_candidates, num_pairs=num_pairs)
        given = {"beam_width": beam_width, "precision": precision, "engine": engine}
        fields.update({name: value for name, value in given.items() if value is not None})
        fields["beam_width"] = 1 if is_zero(beam_width) else fields["beam_width"]
        return EncodeOptions(**fields)

    def check_model(self, config: ModelConfig) -> None:
        """Raise ConfigError if these options need a pre-selector and the model has none."""
        if self.preselects and not config.has_preselector:
            name = "num_candidates (A)" if self.num_candidates is not None else "num_pairs (C)"
            raise ConfigError(f"{name} needs a pre-selector, and this model has none: omit it to try all codewords")

    def to_dict(self) -> dict:
        """What a codec file stores: the search parameters without engine and precision."""
        return {name: getattr(self, name) for name in ("num_candidates", "num_pairs", "beam_width")}


@cache
def field_keys(*classes: type) -> dict[str, str]:
    """Names of fields on the command line: `{"num_steps": "M", ...}`."""
    declared = (field for options in classes for field in dataclasses.fields(options))
    return {field.name: field.metadata["key"] for field in declared if field.metadata.get("key")}


def named(name: str) -> str:
    """A field of models or of encoding as both kinds of users know it: `num_steps (M)`."""
    key = field_keys(ModelConfig, EncodeOptions).get(name, name)
    return name if key == name else f"{name} ({key})"


# Fields of ModelConfig: the published sizes, and two smaller ones, which decode 2.5 to 4 times as fast.
PRESETS = {
    "qinco1": {"num_blocks": 16, "hidden_dim": 256, "has_preselector": False, "codeword_skip": False},
    "qinco2-XXS": {"num_blocks": 1, "embed_dim": 64, "hidden_dim": 128},
    "qinco2-XS": {"num_blocks": 2, "embed_dim": 64, "hidden_dim": 128},
    "qinco2-S": {"num_blocks": 2, "embed_dim": 128, "hidden_dim": 256},
    "qinco2-M": {"num_blocks": 4, "embed_dim": 384, "hidden_dim": 384},
    "qinco2-L": {"num_blocks": 16, "embed_dim": 384, "hidden_dim": 384},
}
AUTO_PRESET = "auto"  # qinco2-XS for runs of few minutes, else qinco2-S
# For models with a pre-selector unless other options are given. Pre-selecting over the whole beam does a sixth of the
# paper's network evaluations. After 15 minutes of training its error is within .1 % of that of the paper's rule,
# on SIFT with rankers and on sentence embeddings without.
DEFAULT_ENCODE_OPTIONS = EncodeOptions(num_pairs=80, beam_width=40)
PAPER_ENCODE_OPTIONS = EncodeOptions(num_candidates=16, beam_width=32)


def checkpoint_encode_options(codebook_size: int, has_preselector=True, starts_from_coarse=False) -> EncodeOptions:
    """The paper's options, but no more candidates than codewords, and no wider beam than the authors' code can keep."""
    if not has_preselector:
        return EncodeOptions()
    count = min(PAPER_ENCODE_OPTIONS.num_candidates or codebook_size, codebook_size)
    most = codebook_size * (1 if starts_from_coarse else count)
    return EncodeOptions(num_candidates=count, beam_width=min(PAPER_ENCODE_OPTIONS.beam_width, most))


def find_preset(name: str) -> dict:
    """The ModelConfig fields of the preset called `name`; raises ConfigError with the nearest name.

    Those of "auto" are qinco2-S's: what else it may be depends on the run.
    """
    known = [AUTO_PRESET, *PRESETS]
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}. {suggest(name, known, 0.4)}There are {', '.join(known)}")
    return PRESETS["qinco2-S" if name == AUTO_PRESET else name]


def suggest(name: str, known: Iterable[str] | Mapping[str, str], likeness: float = 0.8) -> str:
    """ "Did you mean X? " for the known name (or that of a known spelling) that `name` stands for, or nothing.

    That is what other libraries call it, or what is spelled nearly so; single letters are like no others.
    """
    from difflib import get_close_matches

    names = {spelling.lower(): known[spelling] if isinstance(known, Mapping) else spelling for spelling in known}
    name = str(name).lower()
    meant = _SYNONYMS.get(name, "")
    near = [meant.lower()] if meant in known else []  # k is not K
    near = near or (get_close_matches(name, names, 1, likeness) if len(name) > 1 else [])
    return f"Did you mean {names[near[0]]}? " if near else ""
