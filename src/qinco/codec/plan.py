"""What a training run consists of, put together and checked before any work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qinco.compat.checkpoints import check_expressible
from qinco.config import (
    AUTO_PRESET,
    DEFAULT_ENCODE_OPTIONS,
    PAPER_ENCODE_OPTIONS,
    EncodeOptions,
    ModelConfig,
    by_field,
    checkpoint_encode_options,
    field_keys,
    find_preset,
    is_zero,
    named,
    suggest,
)  # fmt: skip
from qinco.errors import ConfigError, DataError, differences
from qinco.progress import Progress, silent
from qinco.store.codec import CHECKPOINT_SUFFIX
from qinco.store.run_state import load_state, state_path
from qinco.training.options import EARLIER, TrainOptions
from qinco.vectors.rows import VectorSource, as_source, check_dim, fingerprint, stratified_rows

MODEL_FIELDS = tuple(
    field.name for field in fields(ModelConfig) if field.name not in ("dim", "starts_from_coarse", "num_lists")
)
ENCODE_FIELDS = ("num_candidates", "num_pairs", "beam_width")
TRAIN_FIELDS = tuple(field.name for field in fields(TrainOptions))
SIZES = {"num_blocks", "embed_dim", "hidden_dim"}  # what a preset decides
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that defines a training run, decided before it begins; `initial` is a Codec to continue from."""

    model_config: ModelConfig
    encode_options: EncodeOptions
    train_options: TrainOptions
    coarse_VD: np.ndarray | None = None
    initial: Any = None

    def header(self, source: VectorSource) -> dict:
        """What a resumed run must share, as plain values by the names of the state file."""
        centroids = b"" if self.coarse_VD is None else self.coarse_VD.tobytes()
        return {
            "model": self.model_config.to_dict(),
            "encode": self.encode_options.to_dict(),
            "train": self.train_options.to_dict(),
            "num_vectors": len(source),
            "fingerprint": fingerprint(source, centroids),
        }


def plan_training(
    source: VectorSource, preset: str | None, settings: dict, *, coarse_centroids=None, initial=None,
    recipe: str = "default", output=None, arguments: Iterable[str] = (),
) -> TrainingPlan:  # fmt: skip
    """Sort the settings of `fit` into the options of a run; the arguments are those of `fit`, and all their names."""
    known = (*MODEL_FIELDS, *ENCODE_FIELDS, *TRAIN_FIELDS)
    # JSON headers hold Python numbers only.
    settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    settings = by_field(settings, ModelConfig, EncodeOptions, TrainOptions)
    for name in settings:
        if name not in known:
            keys = field_keys(ModelConfig, EncodeOptions, TrainOptions)  # those of the command line are known, too
            spellings = {field: field for field in (*known, *arguments)}
            spellings |= {keys[field]: field for field in known if field in keys}
            raise ConfigError(f"unknown setting {name!r}. {suggest(name, spellings)}See qinco.Codec.fit")
    if settings.get("embed_dim", 1) is None or is_zero(settings.get("embed_dim")):
        settings = {**settings, "embed_dim": source.dim}
    sizes = {} if preset is None else find_preset(preset)
    if is_zero(settings.get("num_candidates")) and initial is None:
        settings = {"has_preselector": False, **settings}
    given = {name: settings[name] for name in MODEL_FIELDS if settings.get(name) is not None}
    coarse_VD = None if coarse_centroids is None else read_centroids(coarse_centroids, source.dim)
    is_checkpoint = output is not None and Path(output).suffix.lower() == CHECKPOINT_SUFFIX
    if initial is not None:
        config = _initial_config(source, initial, given, coarse_VD)
    else:
        lists = {} if coarse_VD is None else {"starts_from_coarse": True, "num_lists": len(coarse_VD)}
        is_published = recipe == "paper" or is_checkpoint or preset is None
        config = ModelConfig(dim=source.dim, **(sizes | given | lists))
        if "has_ranker" not in given and not is_published and _pays_to_rank(config):
            config = replace(config, has_ranker=True)
    options = _default_encode_options(config, initial, recipe, is_checkpoint)
    options = options.override(**{name: settings.get(name) for name in ENCODE_FIELDS})
    options.check_model(config)
    if is_checkpoint:
        check_expressible(config, options)
    train_given = {name: value for name, value in settings.items() if name in TRAIN_FIELDS}
    if train_given.get("num_valid", 0) is None:
        del train_given["num_valid"]
    if initial is not None:
        train_given = held_out_before(initial.provenance, len(source)) | train_given
    train = TrainOptions.from_recipe(recipe, config, **train_given)
    if train.num_valid is None and not train.rows_shuffled and len(source) > 1:
        train = replace(train, num_valid=usual_num_valid(len(source)))
    return TrainingPlan(config, options, train, coarse_VD, initial)


def _pays_to_rank(config: ModelConfig) -> bool:
    """Whether a model can have rankers, and they are known to save more time than they take.

    They do with two blocks on SIFT. With 384 dimensions and a stream of 128, C=48 with a ranker takes longer than C=64
    without, at the same error. Deeper networks, of which the first layer says less, were not measured.
    """
    return config.has_preselector and 1 <= config.num_blocks <= 2 and config.embed_dim >= config.dim


def _initial_config(source: VectorSource, initial, given: dict, coarse_VD) -> ModelConfig:
    weights = getattr(initial, "weights", ())
    if len(weights) != 1:
        raise ConfigError(f"initial must be a Codec of one model (see Codec.load), not {initial!r:.80}")
    if given or coarse_VD is not None:
        names = ", ".join(map(named, given)) or "coarse_centroids"
        raise ConfigError(f"the initial codec determines the architecture: leave out {names}")
    config = weights[0].config
    check_dim(source, config.dim, "the initial codec")
    return config


def _default_encode_options(config: ModelConfig, initial, recipe: str, is_checkpoint: bool) -> EncodeOptions:
    if initial is not None and not (is_checkpoint and initial.encode_options.num_pairs is not None):
        return initial.encode_options
    if is_checkpoint:
        return checkpoint_encode_options(config.codebook_size, config.has_preselector, config.starts_from_coarse)
    if not config.has_preselector:
        return EncodeOptions()
    return PAPER_ENCODE_OPTIONS if recipe == "paper" else DEFAULT_ENCODE_OPTIONS


def read_centroids(coarse_centroids, dim: int) -> np.ndarray:
    """Coarse centroids as float32 (V, D); raises DataError for another dimension or values that are not finite."""
    source = as_source(coarse_centroids, "coarse centroids")
    if source.dim != dim or len(source) == 0:
        raise DataError(f"{source.name} must be vectors of dimension {dim}, not of the shape {source.shape}")
    return np.concatenate([block for _, block in source.blocks(_BLOCK_ROWS)])


def rows_shuffled(header: dict) -> bool:
    """Whether a run took the rows as shuffled, as the authors' and those of first versions did.

    `header` is the provenance of a codec or that of a state.
    """
    options = header.get("train")
    return not isinstance(options, dict) or options.get("rows_shuffled", True) is not False


def usual_num_valid(num_vectors: int) -> int:
    """How many vectors are for validation unless somebody says: a fortieth, 1,000 at least if they are a tenth at most.

    They are lost for training, which few vectors need most: with 1,000 of 70,000 of text, and not 7,000, the error of
    others is 1.2 % lower (docs/log.md).
    """
    return min(max(1000, num_vectors // 40), _earlier_num_valid(num_vectors))


def _earlier_num_valid(num_vectors: int) -> int:
    """What `num_valid=None` means in the paper's recipe, and did in all others."""
    return min(10_000, max(1, num_vectors // 10))


def held_out_before(header: dict, num_vectors: int) -> dict:
    """The settings that choose the validation vectors of a run, or of the training that it continues.

    `header` is the provenance of a codec or that of a state, and says `num_vectors`, which may be others now.
    """
    is_shuffled, train = rows_shuffled(header), header.get("train")
    if is_shuffled or not isinstance(train, dict) or header.get("num_vectors") != num_vectors:
        return {"rows_shuffled": is_shuffled}
    num_valid = train.get("num_valid") or _earlier_num_valid(num_vectors)
    return {"rows_shuffled": is_shuffled, "num_valid": num_valid}


def split_validation(
    source: VectorSource, num_valid: int | None, codebook_size: int, is_shuffled: bool = False
) -> tuple[VectorSource, VectorSource]:
    """The vectors to train on, and `num_valid` for validation (None: a tenth, 10,000 at most).

    These are the last ones if the rows are shuffled, else some of all parts, whatever the order of the rows is.
    """
    if num_valid is not None and num_valid > len(source) // 2:
        raise ConfigError(
            f"num_valid (ds.valset) must be at most {len(source) // 2}, not {num_valid}: half of {len(source)}, the "
            f"length of {source.name}"
        )
    count = _earlier_num_valid(len(source)) if num_valid is None else num_valid
    num_train = len(source) - count
    if num_train < codebook_size:
        raise DataError(
            f"{source.name} must hold at least {codebook_size} vectors to train on, one for each codeword of a step, "
            f"not {max(num_train, 0)} ({len(source)} less {count} for validation): give more vectors, a smaller "
            "codebook_size (K) or a smaller num_valid (ds.valset)"
        )
    if is_shuffled:
        return source.window(0, num_train), source.window(num_train, len(source))
    chosen = stratified_rows(len(source), count)
    return source.without(chosen), source.take(chosen)


def check_values(source: VectorSource, report: Progress = silent) -> None:
    """Raise DataError naming the first row with a value that is not finite; integers are not read."""
    if "int" not in str(source.dtype):
        for start, block in source.blocks(_BLOCK_ROWS):
            report("checking vectors", start + len(block), len(source), "vector")


def begun_with(
    output, is_new_model: bool = False, given: Mapping = MappingProxyType({}), preset: str | None = None
) -> dict:
    """The settings of the run of an output, if one is begun, that older versions did not have or chose otherwise.

    Those of the optimizer and of validation are left out where they are `given`, as they must be the same. With the
    preset "auto" they hold the sizes that were chosen.
    """
    states = filter(None, map(load_state, (output, f"{output}.part_0")))
    for header, _ in states:
        ranks = {"has_ranker": header["model"].get("has_ranker", False)} if is_new_model else {}
        earlier = {name: value for name, value in EARLIER.items() if name not in header["train"]}
        chosen = held_out_before(header, header["num_vectors"])
        if given.get("num_valid") is not None:
            chosen.pop("num_valid", None)
        if "optimizer" not in given and "optimizer" in header["train"]:
            chosen["optimizer"] = header["train"]["optimizer"]
        if is_new_model and preset == AUTO_PRESET and not SIZES & given.keys():
            chosen |= {name: header["model"][name] for name in SIZES}
        return earlier | ranks | chosen
    return {}


def check_same_run(output, saved: dict, header: dict) -> None:
    """Raise ConfigError where the saved state of `output` belongs to another run."""
    before = EARLIER | saved["train"] | held_out_before(saved, saved["num_vectors"])
    found, saved = [], saved | {"train": before}
    for part in ("model", "encode", "train"):
        there, here = ({named(name): of[part].get(name) for name in header[part]} for of in (saved, header))
        found += differences(there, here)
    there, here = ({name: of[name] for name in ("num_vectors", "fingerprint")} for of in (saved, header))
    found += differences(there, here, {"fingerprint": "other training vectors or coarse centroids"})
    if found:
        raise ConfigError(
            f"{state_path(output)} is the state of another run ({'; '.join(found)}): resume with the same settings, or "
            "give overwrite=true without resume, or train on from its best codec with initial=Codec.load(...) "
            f"(model={output}) and another output, where epochs counts from the beginning of the first run"
        )
