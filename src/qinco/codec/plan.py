"""What a training run consists of, put together and checked before any work."""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.compat.checkpoint_format import check_expressible
from qinco.config import DEFAULT_SEARCH, PAPER_SEARCH, EncodeOptions, ModelConfig, checkpoint_search, find_preset, named
from qinco.errors import ConfigError, DataError
from qinco.store.codec import CHECKPOINT_SUFFIX
from qinco.store.run_state import state_path
from qinco.training.options import TrainOptions
from qinco.vectors.rows import VectorSource, as_source, fingerprint

MODEL_FIELDS = tuple(
    field.name for field in fields(ModelConfig) if field.name not in ("dim", "starts_from_coarse", "num_lists")
)
ENCODE_FIELDS = ("num_candidates", "num_pairs", "beam_width")


@dataclass(frozen=True)
class Run:
    """Everything that defines a training run, decided before it begins."""

    model: ModelConfig
    encode: EncodeOptions
    train: TrainOptions
    coarse_VD: np.ndarray | None = None
    initial: Codec | None = None

    def fingerprint(self, source: VectorSource) -> str:
        """Of some of the training vectors and the coarse centroids: a run is not resumed on others."""
        return fingerprint(source, b"" if self.coarse_VD is None else self.coarse_VD.tobytes())

    def header(self) -> dict:
        return {"model": self.model.to_dict(), "encode": self.encode.to_dict(), "train": self.train.to_dict()}


def plan_run(
    source: VectorSource, preset, coarse_centroids, initial: Codec | None, recipe: str, settings: dict, output=None
) -> Run:
    """Sort the settings into the run's parts; raises ConfigError for unknown or contradicting ones.

    An output that the authors' code is to read is trained for a search that it can do.
    """
    train_fields = {field.name for field in fields(TrainOptions)}
    for name in settings:
        if name not in {*MODEL_FIELDS, *ENCODE_FIELDS, *train_fields}:
            near = get_close_matches(name, [*MODEL_FIELDS, *ENCODE_FIELDS, *train_fields], 1)
            raise ConfigError(f"unknown setting {name!r}" + (f": did you mean {near[0]}?" if near else ""))
    # Numbers that come out of numpy arrays are as good as Python's, but JSON does not know them.
    settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    sizes = {} if preset is None else find_preset(preset)
    if settings.get("num_candidates") == 0 and initial is None:
        settings = {"has_preselector": False, **settings}
    given = {name: settings[name] for name in MODEL_FIELDS if settings.get(name) is not None}
    coarse_VD = None if coarse_centroids is None else read_centroids(coarse_centroids, source.dim)
    if initial is not None:
        if not isinstance(initial, Codec):
            raise ConfigError(f"initial must be a Codec of one part, not {type(initial).__name__}: see Codec.load")
        if given or coarse_VD is not None:
            raise ConfigError(
                f"the architecture is the initial codec's: leave out {', '.join(map(named, given)) or 'the centroids'}"
            )
        initial.check_dim(source)
        config = initial.config
    else:
        lists = {} if coarse_VD is None else {"starts_from_coarse": True, "num_lists": len(coarse_VD)}
        config = ModelConfig(dim=source.dim, **(sizes | given | lists))
    is_checkpoint = output is not None and Path(output).suffix.lower() == CHECKPOINT_SUFFIX
    if initial is not None and not (is_checkpoint and initial.encode_options.num_pairs is not None):
        rule = initial.encode_options
    elif is_checkpoint:
        rule = checkpoint_search(config.codebook_size, config.has_preselector, config.starts_from_coarse)
    elif not config.has_preselector:
        rule = EncodeOptions()
    else:
        rule = PAPER_SEARCH if recipe == "paper" else DEFAULT_SEARCH
    rule = rule.override(**{name: settings.get(name) for name in ENCODE_FIELDS})
    rule.check_model(config)
    if is_checkpoint:
        check_expressible(config, rule)
    train_given = {name: value for name, value in settings.items() if name in train_fields}
    return Run(config, rule, TrainOptions.from_recipe(recipe, config, **train_given), coarse_VD, initial)


def read_centroids(coarse_centroids, dim: int) -> np.ndarray:
    """Coarse centroids as float32 (V, D); raises DataError for another dimension or values that are not finite."""
    source = as_source(coarse_centroids, "coarse centroids")
    if source.dim != dim or len(source) == 0:
        raise DataError(f"{source.name} have the shape {source.shape}: they must be vectors of {dim} dimensions")
    return np.concatenate([block for _, block in source.blocks(65536)])


def split_validation(source: VectorSource, num_valid: int | None, codebook_size: int):
    """The training vectors, and the last `num_valid` for validation; raises where too few are left."""
    if num_valid is not None and num_valid > len(source) // 2:
        raise ConfigError(
            f"num_valid (ds.valset) is {num_valid}, more than half of the {len(source)} vectors in {source.name}: "
            f"give at most {len(source) // 2}"
        )
    count = min(10_000, max(1, len(source) // 10)) if num_valid is None else num_valid
    num_train = len(source) - count
    if num_train < codebook_size:
        raise DataError(
            f"{source.name}: {max(num_train, 0)} training vectors ({len(source)} less {count} for validation) are "
            f"fewer than the {codebook_size} codewords of a step: give more vectors, a smaller codebook_size (K) "
            "or a smaller num_valid (ds.valset)"
        )
    return source.window(0, num_train), source.window(num_train, len(source))


def check_values(source: VectorSource) -> None:
    """Raise DataError naming the first row with a value that is not finite; integers need no look."""
    if "int" not in str(source.dtype):
        for _ in source.blocks(65536):
            pass


def check_same_run(output, header: dict, run: Run, num_vectors: int, fingerprint: str) -> None:
    """Raise ConfigError where the saved run of `output` is another one than this."""
    path = state_path(output)
    differences = [
        f"{named(name)}={header[part].get(name)!r} there, {value!r} here"
        for part, wanted in run.header().items()
        for name, value in wanted.items()
        if header[part].get(name) != value
    ]
    if header["num_vectors"] != num_vectors:
        differences.append(f"{header['num_vectors']} vectors there, {num_vectors} here")
    elif header["fingerprint"] != fingerprint:
        differences.append("other training vectors or coarse centroids there")
    if differences:
        raise ConfigError(
            f"{path} is the state of another run ({'; '.join(differences)}): resume with the same settings, or give "
            f"overwrite=true without resume, or go on from its codec with model={output} and another output"
        )
