"""The model's and the encoder's settings, and the presets that combine them.

Settings live apart on purpose: `ModelConfig` is stored in every checkpoint, `EncodeOptions` belong to a call,
`TrainOptions` (in `qinco.training.options`) to a run.
"""

import dataclasses
from dataclasses import dataclass
from numbers import Integral

from qinco.errors import ConfigError

MAX_CODEBOOK_SIZE = 65536
MAX_WIDTH = 1 << 24
MAX_DEPTH = 1024
MAX_LISTS = (1 << 31) - 1
PRECISIONS = ("auto", "float32", "bf16")
ENGINE_MODULES = {"native": "qinco.engines.native_engine", "torch": "qinco.engines.torch_engine"}  # best first
ENGINES = ("auto", *ENGINE_MODULES)


LETTERS = {"num_steps": "M", "codebook_size": "K", "num_blocks": "L", "embed_dim": "de", "hidden_dim": "dh",
           "num_candidates": "A", "num_pairs": "C", "beam_width": "B"}  # fmt: skip


def named(name: str) -> str:
    """A field as both of its users know it: `num_steps (M)`."""
    return f"{name} ({LETTERS[name]})" if name in LETTERS else name


def require_int(name: str, value, minimum: int = 1, maximum: int | None = None) -> None:
    """Raise ConfigError unless `value` is an integer between `minimum` and `maximum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if value < minimum or (maximum is not None and value > maximum):
        bound = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ConfigError(f"{name} must be {bound}, not {value}")


def require_bool(name: str, value) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one residual quantizer with implicit neural codebooks.

    dim:                D, dimension of the vectors
    num_steps:          M, codes per vector
    codebook_size:      K, codewords per step, a power of two up to 65536
    num_blocks:         L, residual blocks of a step's network
    embed_dim:          d_e, width of the residual stream; D where it is None
    hidden_dim:         d_h, width inside a residual block
    has_preselector:    a second codebook per step proposes candidates cheaply (QINCo2)
    codeword_skip:      the codeword is added to the network's output (QINCo2); QINCo1 starts the stream at it instead
    concat_rank:        rank of the concatenation layer's product form (QINCo-LR); full and with a bias where it is None
    starts_from_coarse: the reconstruction starts at the nearest coarse centroid (IVF) instead of zero
    num_lists:          V, the number of coarse centroids; 0 without them
    """

    dim: int
    num_steps: int = 8
    codebook_size: int = 256
    num_blocks: int = 2
    embed_dim: int | None = None
    hidden_dim: int = 256
    has_preselector: bool = True
    codeword_skip: bool = True
    concat_rank: int | None = None
    starts_from_coarse: bool = False
    num_lists: int = 0

    def __post_init__(self):
        if self.embed_dim is None:
            object.__setattr__(self, "embed_dim", self.dim)
        for name in ("dim", "embed_dim", "hidden_dim"):
            require_int(named(name), getattr(self, name), 1, MAX_WIDTH)
        for name in ("has_preselector", "codeword_skip", "starts_from_coarse"):
            require_bool(name, getattr(self, name))
        require_int(named("num_steps"), self.num_steps, 1, MAX_DEPTH)
        require_int(named("num_blocks"), self.num_blocks, 0, MAX_DEPTH)
        require_int("num_lists", self.num_lists, 0, MAX_LISTS)
        require_int(named("codebook_size"), self.codebook_size, 2, MAX_CODEBOOK_SIZE)
        if self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(f"codebook_size (K) must be a power of two, not {self.codebook_size}")
        if self.concat_rank is not None:
            require_int("concat_rank", self.concat_rank, 1, MAX_WIDTH)
        if self.starts_from_coarse != (self.num_lists > 0):
            raise ConfigError(f"starts_from_coarse={self.starts_from_coarse} contradicts num_lists={self.num_lists}")
        if not self.codeword_skip and self.embed_dim != self.dim:
            raise ConfigError(
                f"a model without a codeword skip (QINCo1) needs embed_dim = dim, not {self.embed_dim} and {self.dim}"
            )

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

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class EncodeOptions:
    """How codes are searched for.

    num_candidates: A, codewords that the pre-selector proposes for each hypothesis (QINCo2 paper, section 3.2)
    num_pairs:      C, (hypothesis, codeword) pairs that it proposes over the whole beam; instead of num_candidates.
                    With neither, every codeword is tried.
    beam_width:     B, hypotheses kept (fewer where fewer candidates exist)
    precision:      "float32"; "bf16"; "auto": candidates in bf16 where the processor multiplies it fast and the
                    model's layers are not too small to gain, and everything that is returned in float32
    engine:         "native" (compiled kernels for processors), "torch", or "auto": native where it is there
    """

    num_candidates: int | None = None
    num_pairs: int | None = None
    beam_width: int = 1
    precision: str = "auto"
    engine: str = "auto"

    def __post_init__(self):
        if self.num_candidates is not None and self.num_pairs is not None:
            raise ConfigError(
                f"num_candidates (A={self.num_candidates}) and num_pairs (C={self.num_pairs}) exclude each other: "
                "give one of them"
            )
        for name in ("num_candidates", "num_pairs", "beam_width"):
            if getattr(self, name) is not None or name == "beam_width":
                require_int(named(name), getattr(self, name))
                object.__setattr__(self, name, int(getattr(self, name)))
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.engine not in ENGINES:
            raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, not {self.engine!r}")

    @property
    def preselects(self) -> bool:
        return self.num_candidates is not None or self.num_pairs is not None

    def override(self, num_candidates=None, num_pairs=None, beam_width=None, precision=None, engine=None):
        """These options with the given fields replaced; one pre-selection rule replaces the other.

        num_candidates=0 means no pre-selection.
        """
        fields = dataclasses.asdict(self)
        if num_candidates is not None and num_pairs is not None:
            fields.update(num_candidates=num_candidates, num_pairs=num_pairs)
        elif num_candidates is not None:
            fields.update(num_candidates=num_candidates or None, num_pairs=None)
        elif num_pairs is not None:
            fields.update(num_candidates=None, num_pairs=num_pairs)
        given = {"beam_width": beam_width, "precision": precision, "engine": engine}
        fields.update({name: value for name, value in given.items() if value is not None})
        return EncodeOptions(**fields)

    def check_model(self, config: ModelConfig) -> None:
        """Raise ConfigError where these options ask for what the model does not have."""
        if self.preselects and not config.has_preselector:
            rule = "A (num_candidates)" if self.num_candidates is not None else "C (num_pairs)"
            raise ConfigError(
                f"{rule} needs a pre-selector, which this model has not: leave it out, every codeword is tried"
            )

    def to_dict(self) -> dict:
        """What a codec file stores: the search rule, not the machine's engine and precision."""
        return {name: getattr(self, name) for name in ("num_candidates", "num_pairs", "beam_width")}


# The published sizes: fields of ModelConfig.
PRESETS = {
    "qinco1": {"num_blocks": 16, "hidden_dim": 256, "has_preselector": False, "codeword_skip": False},
    "qinco2-S": {"num_blocks": 2, "embed_dim": 128, "hidden_dim": 256},
    "qinco2-M": {"num_blocks": 4, "embed_dim": 384, "hidden_dim": 384},
    "qinco2-L": {"num_blocks": 16, "embed_dim": 384, "hidden_dim": 384},
}
# Models with a pre-selector are searched so unless told otherwise. The whole-beam rule does an eighth of the paper's
# network evaluations; the error is the same after short trainings and 2 % higher after long ones, where C=128 B=64
# closes the gap.
DEFAULT_SEARCH = EncodeOptions(num_pairs=64, beam_width=32)
PAPER_SEARCH = EncodeOptions(num_candidates=16, beam_width=32)


def checkpoint_search(
    codebook_size: int, has_preselector: bool = True, starts_from_coarse: bool = False
) -> EncodeOptions:
    """The paper's search, as far as the authors' code can do it.

    It can neither propose more codewords than there are nor keep more hypotheses than it proposes.
    """
    if not has_preselector:
        return EncodeOptions()
    count = min(PAPER_SEARCH.num_candidates, codebook_size)
    most = codebook_size * (1 if starts_from_coarse else count)
    return EncodeOptions(num_candidates=count, beam_width=min(PAPER_SEARCH.beam_width, most))


def find_preset(name: str) -> dict:
    """The ModelConfig fields of the preset called `name`; raises ConfigError with the nearest name."""
    if name in PRESETS:
        return PRESETS[name]
    from difflib import get_close_matches

    near = get_close_matches(str(name), PRESETS, 1, 0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"unknown preset {name!r}: {hint}There are {', '.join(PRESETS)}")
