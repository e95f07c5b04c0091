"""The value of every key of a command line and where it comes from: for `--cfg`, and for interpolation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qinco import config
from qinco.cli.keys import Task, chosen_preset
from qinco.cli.tasks import KEYS, own_key
from qinco.config import AUTO_PRESET, EncodeOptions, ModelConfig, field_keys, find_preset
from qinco.datasets.catalogue import DATASETS
from qinco.search.options import SearchOptions
from qinco.training.options import TrainOptions

_SIZES = {key: field for field, key in field_keys(ModelConfig).items()}
_ENCODING = {key: field for field, key in field_keys(EncodeOptions).items() if key in ("A", "C", "B")}
_TRAINING = {key: field for field, key in field_keys(TrainOptions).items()}
_SEARCHED = {f"search.{key}": field for field, key in field_keys(SearchOptions).items()}
_DEFAULT_IF_NULL = {"model_args", "C", *_SIZES} - {"de"}
_MODEL = "the codec's own"
_READ_DATABASE = ("eval", "eval_time", "search", "encode", "compare")
_NOTES = {
    "lr": ", fitted to the run",
    "batch": ", fitted to the run",
    "ds.valset": ", at most a fortieth of the training vectors, or 1,000",
    "de": ", the dimension of the vectors",
}


class Resolved(NamedTuple):
    """The value of a key and its source, which begins with "missing" if the user must give it."""

    value: object
    source: str


def resolve(task: Task, given: Mapping[str, Any]) -> dict[str, Resolved]:
    """The values of all keys that a task reads, in the order of its help, by those of the command line."""
    values = {key.name: _resolve(key.name, task, given) for key in task.keys}
    for names in task.required:
        first, *others = names.split("|")
        # db has been looked up already if it names a data set; as a path it replaces nothing.
        if values[first].value is None and not any(given.get(name) for name in others if name != "db"):
            unless = ", unless db names a data set" if "db" in others else ""
            values[first] = Resolved(None, f"missing{unless}")
    return values


def effective(name: str, task: Task, given: Mapping[str, Any]) -> Resolved:
    """The value of a key that is not given; only the keys that it depends on are looked up in `given`."""
    if name in ("trainset", "queries", "queries_gt", "mse_scale", "ds.db"):
        return _of_dataset(name, task, given) or Resolved(_default(name, task), "default")
    if name == "model_args" and task.reads("L") and "model" not in given:
        return Resolved(chosen_preset(given), "default")
    if name in _SIZES:
        return _size(name, task, given)
    if name in _ENCODING and task.reads(name):
        return _encoding(name, task, given)
    if name in _TRAINING and task.name == "train":
        return _training(name, given)
    if name in _SEARCHED and task.name == "query":
        return Resolved((getattr(SearchOptions(), _SEARCHED[name]),), "default")
    if name == "device" and given.get("cpu"):
        return Resolved("cpu", "cpu=true")
    return Resolved(_default(name, task), "default" + _NOTES.get(name, ""))


def _default(name: str, task: Task) -> object:
    return (own_key(name, task) or KEYS[name]).default


def _resolve(name: str, task: Task, given: Mapping[str, Any]) -> Resolved:
    """The given value, unless a data set or another key overrides it."""
    if name in ("db", "ds.db") and (found := _of_dataset(name, task, given)):
        return found
    if name == "de" and given.get("qinco1_mode"):
        return _size(name, task, given)
    if name in given and not (name in _DEFAULT_IF_NULL and given[name] is None):
        return Resolved(given[name], "command line")
    return effective(name, task, given)


def _of_dataset(name: str, task: Task, given: Mapping[str, Any]) -> Resolved | None:
    """What the data set that `db` names says of a key; None if it says nothing."""
    dataset = DATASETS.get(given.get("db") or "")
    if dataset is None:
        return None
    values: dict[str, object] = {"mse_scale": dataset.mse_scale}
    if task.reads("ds.trainset") and (task.name != "encode" or given.get("encode_trainset")):
        values["trainset"] = dataset.trainset
    if task.reads("queries"):
        values |= {"queries": dataset.queries, "queries_gt": dataset.ground_truth}
    if task.name in _READ_DATABASE and not given.get("encode_trainset"):
        values["db"] = dataset.database
        limit = dataset.database_limit
        if limit is not None and (given.get("ds.db") is None or given["ds.db"] > limit):
            values["ds.db"] = limit
    return Resolved(values[name], f"data set {dataset.name}") if name in values else None


def _size(name: str, task: Task, given: Mapping[str, Any]) -> Resolved:
    makes_model = task.reads("L")
    preset = chosen_preset(given) if makes_model else given.get("model_args")
    if makes_model and "model" in given:
        return Resolved(None, _MODEL)
    if name == "de" and given.get("qinco1_mode"):
        return Resolved(None, "qinco1_mode" + _NOTES["de"])
    field, sizes = _SIZES[name], _sizes_of(preset)
    if field in sizes:
        is_open = preset == AUTO_PRESET and given.get("minutes") is not None
        return Resolved(sizes[field], f"preset {preset}{', or less, as the minutes allow' if is_open else ''}")
    if preset is None and not makes_model:
        return Resolved(None, "default")
    return Resolved(getattr(ModelConfig, field), "default" + _NOTES.get(name, ""))


def _sizes_of(preset: str | None) -> dict:
    return {} if preset is None else find_preset(preset)


def _encoding(name: str, task: Task, given: Mapping[str, Any]) -> Resolved:
    """A, B or C; of A and C only one has a value."""
    other = {"A": "C", "C": "A"}.get(name)
    if not task.reads("L") or "model" in given:
        if other is not None and given.get(other) is not None:
            return Resolved(None, f"{other} is used instead")
        return Resolved(None, _MODEL + (", or A=16 B=32 if it has C" if _is_checkpoint(given) else ""))
    if task.name == "bench" and all(given.get(key) is None for key in _ENCODING):
        return Resolved(None, "default, the usual options in turn")
    options, source = _default_encoding(given)
    if name == "B":
        return Resolved(options.beam_width, source)
    options = options.override(**{field: given.get(key) for key, field in _ENCODING.items()})
    value = getattr(options, _ENCODING[name])
    if value is None and options.preselects:
        return Resolved(None, f"{other} is used instead")
    return Resolved(0 if value is None and name == "A" else value, source)


def _default_encoding(given: Mapping[str, Any]) -> tuple[EncodeOptions, str]:
    """The options of a new model before A, C and B of the command line replace them, and their source."""
    preset = chosen_preset(given)
    if given.get("A") == 0:
        return EncodeOptions(), "A=0"
    if given.get("qinco1_mode") and given.get("A") is None and given.get("C") is None:
        return EncodeOptions(), "qinco1_mode"
    if not _sizes_of(preset).get("has_preselector", True):
        return EncodeOptions(), f"preset {preset}"
    if _is_checkpoint(given):
        size = given.get("K") or ModelConfig.codebook_size
        coarse = "ivf_centroids" in given
        return config.checkpoint_encode_options(size, starts_from_coarse=coarse), "default of .pt files"
    if given.get("recipe") == "paper":
        return config.PAPER_ENCODE_OPTIONS, "recipe paper"
    return config.DEFAULT_ENCODE_OPTIONS, "default"


def _is_checkpoint(given: Mapping[str, Any]) -> bool:
    """Whether the output is a checkpoint of the authors' code, which has no place for C."""
    return str(given.get("output", "")).lower().endswith(".pt")


def _training(name: str, given: Mapping[str, Any]) -> Resolved:
    minutes = given.get("minutes")

    def value_of(recipe: str, codeword_skip: bool):
        # A recipe depends on the model's codeword skip only; the dimension does not matter.
        end = {"minutes": minutes} if minutes is not None else {"epochs": TrainOptions.epochs}
        options = TrainOptions.from_recipe(recipe, ModelConfig(1, codeword_skip=codeword_skip), **end)
        return getattr(options, _TRAINING[name])

    recipe = given.get("recipe", "default")
    preset = _sizes_of(chosen_preset(given))
    if "model" in given and value_of(recipe, True) != value_of(recipe, False):
        return Resolved(None, f"recipe {recipe} of this kind of model")
    value = value_of(recipe, preset.get("codeword_skip", True) and not given.get("qinco1_mode"))
    if minutes is not None and name in ("epochs", "scheduler.name"):
        return Resolved(value, "fitted to minutes")
    if value != value_of("default", True):
        return Resolved(value, f"recipe {recipe}")
    if name == "ds.valset":
        share = ", at most a tenth of the training vectors" if recipe == "paper" else _NOTES[name]
        return Resolved(KEYS[name].default, f"default{share}")
    return Resolved(value, "default" + _NOTES.get(name, ""))
