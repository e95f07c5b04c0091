"""What each key of a command line comes to, and where that comes from: for `--cfg`, and for interpolation."""

from collections.abc import Mapping
from dataclasses import dataclass

from qinco.cli.keys import KEYS, Key
from qinco.cli.overrides import required_keys
from qinco.cli.tasks import TASKS, Task
from qinco.config import DEFAULT_SEARCH, PAPER_SEARCH, PRESETS, EncodeOptions, ModelConfig, checkpoint_search
from qinco.datasets.catalogue import find_dataset
from qinco.training.options import TrainOptions

SIZES = {"M": "num_steps", "K": "codebook_size", "L": "num_blocks", "de": "embed_dim", "dh": "hidden_dim",
         "concat_rank": "concat_rank"}  # fmt: skip
RULE = {"A": "num_candidates", "C": "num_pairs", "B": "beam_width"}
TRAINING = {
    "epochs": "epochs", "batch": "batch_size", "grad_accumulate": "grad_accumulate", "optimizer": "optimizer",
    "lr": "lr", "wd": "weight_decay", "grad_clip": "grad_clip", "seed": "seed", "precision": "precision",
    "ds.loop": "epoch_size", "ds.valset": "num_valid", "codebook_noise_init": "codebook_noise",
    "scheduler.name": "schedule", "scheduler.ramp_epochs": "ramp_epochs", "scheduler.lr_min_fact": "lr_min_factor",
    "scheduler.stop_patience": "stop_patience", "scheduler.reduce_fact": "reduce_factor",
    "scheduler.patience": "patience", "scheduler.threshold_frac": "threshold",
}  # fmt: skip
SCHEDULES = {"cosine": "cosine", "plateau": "reduce_lr_plateau"}  # by the library's names
_OF_THE_MODEL = "the model's"
_READING_DATABASE = ("eval", "eval_time", "search", "encode")
_NOTES = {
    "lr": ", fitted to the run",
    "batch": ", fitted to the run",
    "ds.valset": ", a tenth of the training vectors at most",
    "de": ", the vectors' dimension",
}


@dataclass(frozen=True)
class Resolved:
    """A key's value, and where it comes from; `source` begins with "missing" where the user must still say it."""

    value: object
    source: str


def resolve(task: str, given: Mapping[str, object]) -> dict[str, Resolved]:
    """Every key that `task` reads, in the order of its help; `given` are the values of the command line."""
    values = {key.name: _resolve(key.name, task, given) for key in keys_of(TASKS[task])}
    for names in required_keys(TASKS[task], given):
        first, *others = names.split("|")
        # A data set that db names has been looked up already; a path of vectors stands for nothing else.
        if not any(given.get(name) is not None for name in others if name != "db"):
            values[first] = _or_missing(values[first], names)
    return values


def effective(name: str, task: str, given: Mapping[str, object]) -> Resolved:
    """What a key that is not given comes to; of `given`, only the keys that this depends on are looked at."""
    if name in ("trainset", "queries", "queries_gt", "mse_scale", "ds.db"):
        return _of_dataset(name, task, given) or Resolved(KEYS[name].default, "default")
    if name == "model_args" and task in KEYS["L"].tasks and "model" not in given:
        return Resolved(chosen_preset(task, given), "default")
    if name in SIZES:
        return _size(name, task, given)
    if name in RULE and task in KEYS["A"].tasks:
        return _rule_field(name, task, given)
    if name in TRAINING and task == "train":
        return _training_option(name, given)
    if name == "device" and given.get("cpu"):
        return Resolved("cpu", "cpu=true")
    return Resolved(KEYS[name].default, "default" + (_NOTES[name] if name == "ds.valset" else ""))


def chosen_preset(task: str, given: Mapping[str, object]) -> str | None:
    """The preset of `model_args`; where a model is made without any word about its size, qinco2-S."""
    named = given.get("model_args")
    if named is not None or task not in KEYS["L"].tasks or "model" in given or given.get("qinco1_mode"):
        return named
    return None if any(name in given for name in ("L", "de", "dh")) else "qinco2-S"


def default_rule(task: str, given: Mapping[str, object]) -> tuple[EncodeOptions, str]:
    """The search rule of a new model before A, C and B of the command line take their places in it, and its source."""
    preset = chosen_preset(task, given)
    if given.get("A") == 0:
        return EncodeOptions(), "A=0"
    if given.get("qinco1_mode") and given.get("A") is None and given.get("C") is None:
        return EncodeOptions(), "qinco1_mode"
    if not PRESETS.get(preset, {}).get("has_preselector", True):
        return EncodeOptions(), f"preset {preset}"
    if _is_checkpoint(given):
        size = given.get("K") or ModelConfig.codebook_size
        return checkpoint_search(size, starts_from_coarse="ivf_centroids" in given), "default of .pt files"
    if given.get("recipe") == "paper":
        return PAPER_SEARCH, "recipe paper"
    return DEFAULT_SEARCH, "default"


def keys_of(task: Task) -> list[Key]:
    """The keys that `task` reads in this version, required ones first."""
    required = [name for names in task.required for name in names.split("|")]
    keys = [key for key in KEYS.values() if task.name in key.tasks]
    return sorted(keys, key=lambda key: required.index(key.name) if key.name in required else len(required))


def _resolve(name: str, task: str, given: Mapping[str, object]) -> Resolved:
    """What a key comes to: what is given, unless a data set or another key stands above it."""
    if name in ("db", "ds.db") and (found := _of_dataset(name, task, given)):
        return found
    if name == "de" and given.get("qinco1_mode"):
        return _size(name, task, given)
    if name in given and not (name == "model_args" and given[name] is None):
        return Resolved(given[name], "command line")
    return effective(name, task, given)


def _or_missing(found: Resolved, names: str) -> Resolved:
    if found.value is not None:
        return found
    return Resolved(None, "missing, unless db names a data set" if names.endswith("|db") else "missing")


def _of_dataset(name: str, task: str, given: Mapping[str, object]) -> Resolved | None:
    """What the data set that `db` names says of a key; None where it says nothing."""
    dataset = find_dataset(given.get("db") or "")
    if dataset is None:
        return None
    reads_database = task in _READING_DATABASE and not given.get("encode_trainset")
    values = {"mse_scale": dataset.mse_scale}
    if task in KEYS["ds.trainset"].tasks and (task != "encode" or given.get("encode_trainset")):
        values["trainset"] = dataset.trainset
    if task == "search":
        values |= {"queries": dataset.queries, "queries_gt": dataset.ground_truth}
    if reads_database:
        values["db"] = dataset.database
    limit = dataset.database_limit
    if reads_database and limit is not None and (given.get("ds.db") is None or given["ds.db"] > limit):
        values["ds.db"] = limit
    return Resolved(values[name], f"data set {dataset.name}") if name in values else None


def _size(name: str, task: str, given: Mapping[str, object]) -> Resolved:
    makes_model, preset = task in KEYS["L"].tasks, chosen_preset(task, given)
    if makes_model and "model" in given:
        return Resolved(None, _OF_THE_MODEL)
    if name == "de" and given.get("qinco1_mode"):
        return Resolved(None, "qinco1_mode" + _NOTES["de"])
    field, sizes = SIZES[name], PRESETS.get(preset, {})
    if field in sizes:
        return Resolved(sizes[field], f"preset {preset}")
    if preset is None and not makes_model:
        return Resolved(None, "default")
    return Resolved(getattr(ModelConfig, field), "default" + _NOTES.get(name, ""))


def _rule_field(name: str, task: str, given: Mapping[str, object]) -> Resolved:
    """A, B or C: of two pre-selection rules only one counts."""
    other = {"A": "C", "C": "A"}.get(name)
    if task not in KEYS["L"].tasks or "model" in given:
        if other is not None and given.get(other) is not None:
            return Resolved(None, f"{other} counts instead")
        return Resolved(None, _OF_THE_MODEL + (", or A=16 B=32 where that has C" if _is_checkpoint(given) else ""))
    if task == "bench" and all(given.get(key) is None for key in RULE):
        return Resolved(None, "default, the usual rules in turn")
    rule, source = default_rule(task, given)
    if name == "B":
        return Resolved(rule.beam_width, source)
    rule = rule.override(**{RULE[key]: given.get(key) for key in RULE})
    value = getattr(rule, RULE[name])
    if value is None and rule.preselects:
        return Resolved(None, f"{other} counts instead")
    return Resolved(0 if value is None and name == "A" else value, source)


def _is_checkpoint(given: Mapping[str, object]) -> bool:
    """Whether the output is of the authors' form, which has no place for C."""
    return str(given.get("output", "")).lower().endswith(".pt")


def _training_option(name: str, given: Mapping[str, object]) -> Resolved:
    def value_of(recipe: str, has_skip: bool):
        # Of the model, a recipe asks for the skip only; the dimension does not matter.
        options = TrainOptions.from_recipe(recipe, ModelConfig(dim=1, codeword_skip=has_skip))
        value = getattr(options, TRAINING[name])
        return SCHEDULES[value] if name == "scheduler.name" else value

    recipe = given.get("recipe", "default")
    preset = PRESETS.get(chosen_preset("train", given), {})
    if "model" in given and value_of(recipe, True) != value_of(recipe, False):
        return Resolved(None, f"recipe {recipe} of this kind of model")
    value = value_of(recipe, preset.get("codeword_skip", True) and not given.get("qinco1_mode"))
    if value != value_of("default", True):
        return Resolved(value, f"recipe {recipe}")
    return Resolved(KEYS[name].default if name == "ds.valset" else value, "default" + _NOTES.get(name, ""))
