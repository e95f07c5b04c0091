"""What tasks of the command line are declared with: keys, tasks, and the settings that a command line gives them.

Keys that stand for fields of the library's options take their name, default, help and range from there. Nothing slow is
imported: the parser, the help, `--cfg` and completion read these declarations.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from qinco.config import (
    AUTO_PRESET,
    DECODERS,
    METRIC_SPELLINGS,
    METRICS,
    PRESETS,
    EncodeOptions,
    ModelConfig,
    field_keys,
)  # fmt: skip
from qinco.search.options import SearchOptions
from qinco.training.options import RECIPES, TrainOptions

OPTIONS = (ModelConfig, EncodeOptions, TrainOptions, SearchOptions)  # whose fields are keys


@dataclass(frozen=True)
class Key:
    """One setting, written `name=value`.

    Attributes:
        name: As typed, with a dot if it is nested.
        kind: "path", "paths", "text", "texts" (taken verbatim, except for a leading ~/ of a path), "integer",
            "integers" (a list), "names" (a list), "number" (at least 0), "positive" (above 0), "signed" (any number),
            "switch", "choice", "device", "preset" or "share" (i/n).
        default: Value if the key is not given.
        help: One line.
        choices: Values of a "choice", and of the elements of "names".
        spellings: Other names of choices: what is typed -> value.
        minimum: Of an "integer" and of the elements of "integers".
        nullable: Whether `null` is a value.
        null_value: What `null` means, and 0 if `zero_is_null`.
        open_references: Keys whose `${key}` is left in place if they are not given: the task fills them in.
    """

    name: str
    kind: str
    default: object
    help: str
    choices: tuple[str, ...] = ()
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    minimum: int = 1
    nullable: bool = False
    null_value: object = None
    zero_is_null: bool = False
    open_references: tuple[str, ...] = ()

    @property
    def accepts_null(self) -> bool:
        return self.nullable or (self.default is None and not self.is_verbatim and self.kind != "choice")

    @property
    def is_verbatim(self) -> bool:
        return self.kind in ("path", "paths", "text", "texts")

    @property
    def is_plural(self) -> bool:
        """Whether several words make one value."""
        return self.kind in ("paths", "texts")


@dataclass(frozen=True)
class Settings:
    """What one command line asks for: `settings["ds.db"]` is the given value of a key or else its default.

    Lists, the words of `file` and `name`, and `shard`, (i, n), are tuples. `A=null` is 0, `B=null` and `B=0` are 1, any
    other null is None.
    """

    task: str
    values: Mapping[str, Any]
    given_keys: frozenset[str]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def given(self, key: str) -> bool:
        """Whether the command line names `key`, with whatever value."""
        return key in self.given_keys

    @property
    def given_values(self) -> dict[str, Any]:
        """The values of the keys that the command line names."""
        return {name: self.values[name] for name in self.values if name in self.given_keys}

    def fields(self, *options: type) -> dict[str, Any]:
        """The given values of dataclasses of options, by field: `{"num_steps": 8}` for `M=8`."""
        return {field: self[key] for field, key in field_keys(*options).items() if self.given(key)}


@dataclass(frozen=True)
class Task:
    """One thing that `qinco` does; made by the decorator `task`.

    Attributes:
        name: As typed.
        help: One line.
        run: Does it: `run(settings, console)`.
        keys: Keys that it reads.
        required: Keys that must be given; "a|b" is satisfied by either, a switch by true.
        positional: Key whose values are the words without a key; all of them if its kind is "paths" or "texts".
        imports: Slow modules to import before it runs, while Ctrl-C may still end the process at once.
        is_distributed: Whether the processes of `torchrun` share its work; otherwise the first does it alone.
    """

    name: str
    help: str
    run: Callable
    keys: tuple[Key, ...]
    required: tuple[str, ...] = ()
    positional: str | None = None
    imports: tuple[str, ...] = ()
    is_distributed: bool = False

    def key(self, name: str) -> Key | None:
        """Its key of exactly this name."""
        return next((key for key in self.keys if key.name == name), None)

    def reads(self, key: str) -> bool:
        return self.key(key) is not None

    def accepts(self, key: str) -> bool:
        """Whether the key may be given, with or without effect."""
        return key in EVERYWHERE or self.reads(key)


def task(name: str, help: str, *, keys: Iterable[str | Key], reports: bool = True, **others) -> Callable[..., Task]:
    """Declare the decorated function as a `Task`; one that `reports` has the keys `verbose` and `json`.

    `keys` are names of shared keys, several in a string, and keys of its own, in the order of the help.
    """
    found = []
    for key in [*keys, *(["verbose json"] if reports else [])]:
        found += [SHARED[word] for word in key.split()] if isinstance(key, str) else [key]
    first = [word for names in others.get("required", ()) for word in names.split("|")]
    found.sort(key=lambda key: first.index(key.name) if key.name in first else len(first))
    return lambda run: Task(name, help, run, tuple(dict.fromkeys(found)), **others)


def key_of_field(options: type, name: str, **changes) -> Key:
    """The key of a field of a dataclass of options; `changes` are what differs on the command line."""
    field = options.__dataclass_fields__[name]
    declared, types = field.metadata, get_args(field.type) or (field.type,)
    kinds = {bool: "switch", int: "integer", float: "number" if declared["above"] is None else "positive"}
    kind = next((kinds[kind] for kind in types if kind in kinds), "choice")
    texts = {value: text for text, value in declared["spellings"].items()}
    key = Key(
        declared["key"], kind, None if options is ModelConfig else field.default, declared["help"],
        choices=tuple(texts.get(choice, choice) for choice in declared["choices"]), spellings=declared["spellings"],
        minimum=1 if declared["minimum"] is None else declared["minimum"], nullable=NoneType in types,
    )  # fmt: skip
    return dataclasses.replace(key, **changes)


def values_of_field(field: str, *default: int) -> Key:
    """The key of a list of values of a field of `SearchOptions`, several of which `qinco search` measures."""
    key = key_of_field(SearchOptions, field)
    return Key(f"search.{key.name}", "integers", default, key.help, minimum=key.minimum)


def chosen_preset(given: Mapping[str, Any]) -> str | None:
    """The preset of a new model, some sizes of which may be given: that of `model_args`, or one by the run's length."""
    default = "qinco2-S" if given.get("minutes") is None else AUTO_PRESET
    return given.get("model_args", None if "model" in given or given.get("qinco1_mode") else default)


# Keys that several tasks read.
SHARED = {
    key.name: key
    for key in (
        # Files
        Key("model", "path", None, "codec file"),
        Key("output", "path", None, "file or folder to write"),
        Key("overwrite", "switch", False, "replace an existing output"),
        Key("resume", "switch", False, "continue an interrupted run"),
        Key("ivf_centroids", "path", None, "coarse centroids, of an IVF codec or of the lists of an index"),
        Key("index", "path", None, "index: a folder or a .faissindex file"),
        Key("pairwise_decoder", "path", None, "pairwise decoder to re-rank with"),
        Key("encoded_trainset", "path", None, "codes of the training set"),
        # Vectors
        Key("trainset", "path", None, "training vectors"),
        Key("db", "path", None, "vectors of the database, or the name of a data set"),
        Key("ds.trainset", "integer", None, "use at most so many training vectors"),
        Key("ds.db", "integer", None, "use at most so many database vectors"),
        Key("mse_scale", "positive", 1.0, "factor on reported squared errors"),
        Key("queries", "path", None, "query vectors"),
        # Collections
        Key("collection", "path", None, "folder of a collection"),
        Key("source", "paths", None, "files of records: vectors, Parquet (text.parquet:embedding), folders, .jsonl"),
        Key("id", "text", None, "column of ids, or false: row numbers; by default guessed"),
        Key("payload", "text", None, "columns of payloads, such as title,year, or false: none; by default all others"),
        Key("vector", "text", None, "column of vectors, or by name, such as image:image_embedding,text:text_embedding; "
            "by default guessed"),
        Key("using", "text", None, "name of the vectors, of a collection that has several"),
        Key("ids", "text", None, "ids, such as 7 or a,b; as JSON to tell numbers from strings: [7,\"7\"]"),
        Key("where", "text", None, 'filter of payloads, as JSON: {"year": {"gte": 2010}}'),
        Key("with_vectors", "switch", False, "vectors, too: those that are compressed are decoded"),
        Key("format", "choice", None, "of results: table, the default on a terminal, or jsonl, elsewhere",
            choices=("table", "jsonl")),
        # Models, codes and training
        Key("model_args", "preset", None, f"preset: {', '.join((AUTO_PRESET, *PRESETS))}",
            choices=(AUTO_PRESET, *PRESETS)),
        Key("qinco1_mode", "switch", None, "a QINCo1 model"),
        Key("ivf_K", "integer", None, "number of coarse centroids"),
        Key("recipe", "choice", "default", "paper: the published recipe", choices=RECIPES),
        Key("decoder", "choice", "neural", "what decodes; with index=: the last stage", choices=DECODERS),
        Key("metric", "choice", None, "of neighbours; by default what an HDF5 file states, or else cosine for "
            "vectors of length 1, and l2 for others", choices=METRICS, spellings=METRIC_SPELLINGS),
        Key("prefix", "integer", None, "use only so many codes of each vector"),
        Key("search.aq_training_samples", "integer", 1_000_000, "vectors to fit look-up and pair tables to, at most"),
        values_of_field("nprobe", 4),
        values_of_field("num_short", 4, 10),
        *(key_of_field(options, name) for options in OPTIONS[:3] for name in field_keys(options)),
        # The preset, the recipe or the model decides about sizes and about A, C and B unless they are given.
        key_of_field(ModelConfig, "embed_dim", nullable=True, zero_is_null=True),
        key_of_field(EncodeOptions, "num_candidates", minimum=0, null_value=0),
        key_of_field(EncodeOptions, "beam_width", default=None, null_value=1, zero_is_null=True),
        key_of_field(TrainOptions, "num_valid", default=10_000),
        key_of_field(TrainOptions, "epochs", nullable=False),
        # Machine and report
        Key("device", "device", "auto", "auto, cpu, cuda or cuda:N"),
        Key("cpu", "switch", False, "the same as device=cpu"),
        Key("threads", "integer", None, "processor threads; null: all"),
        Key("cluster", "text", None, "work on a cluster of Ray: its address, or auto, which starts one if none runs"),
        Key("workers", "integer", None, "processes of the cluster; null: as many as it has cores for"),
        Key("enc_max_bs", "integer", 65536, "vectors encoded or decoded at a time, at most"),
        Key("verbose", "switch", True, "say what is being done"),
        Key("json", "switch", False, "print the result as one line of JSON"),
    )
}  # fmt: skip

ENCODING = "A C B"
MACHINE = "device cpu threads precision engine"
CLUSTER = "cluster workers"
TRAINSET = "trainset db ds.trainset"
TRAINING = " ".join(field_keys(TrainOptions).values())

# Accepted by all tasks, because command lines are reused from task to task.
EVERYWHERE = tuple(
    f"overwrite resume tensorboard ds.trainset ds.valset ds.db ds.loop model_args M K L de dh ivf_K qinco1_mode batch "
    f"{MACHINE} enc_max_bs seed mse_scale verbose json".split()
)
