"""Every task and every key of the command line, once: the parser and the help both read these two tables."""

from dataclasses import dataclass

from qinco.config import ENGINES, PRECISIONS, PRESETS


@dataclass(frozen=True)
class Task:
    """One thing that `qinco` does.

    name:       what the user types
    summary:    one line of help
    required:   keys that must be given; "a|b" is satisfied by either
    positional: the key whose values are the words without a key; all of them where its kind is "paths" or "texts"
    available:  whether this version does it
    """

    name: str
    summary: str
    required: tuple[str, ...]
    positional: str | None = None
    available: bool = True


@dataclass(frozen=True)
class Key:
    """One setting, written `name=value`.

    name:       what the user types, with a dot where it is nested
    kind:       "path", "paths", "text" and "texts" (taken verbatim), "integer", "integers" (a list), "number" (at
                least 0), "positive" (a number above 0), "switch", "choice", "device", "preset" or "share" (i/n)
    default:    the value where the key is not given
    summary:    one line of help
    tasks:      names of the tasks that read it
    everywhere: every other task accepts it without effect, because command lines are reused from task to task
    choices:    the values of a "choice"
    later:      values of a "choice" that this version does not have yet
    minimum:    the least value of an "integer" and of the elements of "integers"
    nullable:   whether `null` is a value; so too where the default is None, for what is neither text nor a choice
    null_value: what `null` means, and 0 where `zero_is_null`
    available:  whether this version has it
    """

    name: str
    kind: str
    default: object
    summary: str
    tasks: frozenset[str]
    everywhere: bool = False
    choices: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    minimum: int = 1
    nullable: bool = False
    null_value: object = None
    zero_is_null: bool = False
    available: bool = True

    @property
    def accepts_null(self) -> bool:
        return self.nullable or (self.default is None and not self.is_verbatim and self.kind != "choice")

    @property
    def is_verbatim(self) -> bool:
        """Whether the value is the text that was typed, whatever it holds."""
        return self.kind in ("path", "paths", "text", "texts")

    @property
    def is_plural(self) -> bool:
        """Whether several words make one value."""
        return self.kind in ("paths", "texts")

    def is_accepted_by(self, task: str) -> bool:
        return self.everywhere or task in self.tasks


SHELLS = ("bash", "zsh", "fish")

TASKS = {
    task.name: task
    for task in (
        Task("train", "train a codec", ("output", "trainset|db")),
        Task("eval", "mean squared error over the database", ("model", "db")),
        Task("eval_valset", "mean squared error over the last training vectors", ("model", "trainset|db")),
        Task("eval_time", "microseconds a vector, encoding and decoding", ("model", "db")),
        Task("search", "recall@1/10/100 over the decoded database", ("model", "db")),
        Task("encode", "vectors to codes", ("model", "db", "output")),
        Task("decode", "codes to vectors", ("model", "codes", "output")),
        Task("info", "what a file holds: qinco info FILE ...", ("file",), "file"),
        Task("ivf_centroids", "coarse centroids by k-means", ("ivf_K", "output", "trainset|db")),
        Task(
            "build_index",
            "look-up tables and an index of encoded vectors",
            ("ivf_centroids", "encoded_trainset", "encoded_db", "trainset|db", "output"),
            available=False,
        ),
        Task(
            "train_pairwise_decoder",
            "pairwise additive decoder",
            ("ivf_centroids", "encoded_trainset", "trainset|db", "output"),
            available=False,
        ),
        Task("convert", "checkpoints of the authors' code to ours and back", ("model", "output")),
        Task("download", "public data sets and models: qinco download NAME ...", ("name",), "name"),
        Task("doctor", "check the installation", ()),
        Task("bench", "encoding and decoding speed of this machine", ()),
        Task(
            "completion", f"completion of this command line: qinco completion {'|'.join(SHELLS)}", ("shell",), "shell"
        ),
    )
}

_TRAIN = frozenset({"train"})
_BUILDING = frozenset({"train", "bench"})  # they may make a model of given sizes
_INDEXING = frozenset({"build_index", "train_pairwise_decoder"})
_ENCODING = frozenset({"train", "eval", "eval_valset", "eval_time", "search", "encode"})
_RULING = _ENCODING | {"convert", "bench"}  # they take a search rule
_MEASURING = frozenset({"train", "eval", "eval_valset"})
_NETWORK = _ENCODING | _INDEXING | {"decode", "bench"}  # they run a model
_WRITING = frozenset({"train", "encode", "decode", "ivf_centroids", "convert"}) | _INDEXING
_ALL = frozenset(TASKS) - {"completion"}
_REPORTING = _ALL - _INDEXING
_READING_TRAINSET = frozenset({"train", "eval_valset", "encode", "ivf_centroids"}) | _INDEXING
_READING_DATABASE = frozenset({"eval", "eval_time", "search", "encode"})

KEYS = {
    key.name: key
    for key in (
        # Files
        Key("model", "path", None, "codec file; for train: the one to go on from", _RULING | {"decode"}),
        Key("output", "path", None, "file to write", _WRITING),
        Key("overwrite", "switch", False, "replace an existing output", _WRITING | {"download"}, everywhere=True),
        Key(
            "resume",
            "switch",
            False,
            "continue what was interrupted",
            frozenset({"train", "encode", "download"}),
            everywhere=True,
        ),
        Key("file", "paths", None, "files to describe", frozenset({"info"})),
        Key("name", "texts", None, "data sets and models to download", frozenset({"download"})),
        Key("small", "switch", False, "the first million vectors of a data set only", frozenset({"download"})),
        Key("mirror", "text", None, "address that serves the published files instead", frozenset({"download"})),
        Key("shard", "share", None, "encode share i of n only, written i/n", frozenset({"encode"})),
        Key("shell", "choice", None, "the shell to complete in", frozenset({"completion"}), choices=SHELLS),
        Key("codes", "path", None, "codes to decode", frozenset({"decode"})),
        Key("lists", "path", None, "list numbers of the codes, where they are not beside them", frozenset({"decode"})),
        Key("tensorboard", "path", None, "folder for TensorBoard", _TRAIN, everywhere=True),
        Key("ivf_centroids", "path", None, "coarse centroids: train an IVF codec", _TRAIN | _INDEXING),
        # Vectors
        Key("trainset", "path", None, "training vectors", _READING_TRAINSET),
        Key("db", "path", None, "vectors of the database, or a data set's name", _READING_DATABASE | _READING_TRAINSET),
        Key("queries", "path", None, "query vectors", frozenset({"search"})),
        Key("queries_gt", "path", None, "true neighbours of the queries", frozenset({"search"})),
        Key("ds.trainset", "integer", None, "use so many training vectors at most", _READING_TRAINSET, everywhere=True),
        Key(
            "ds.valset",
            "integer",
            10_000,
            "validate on so many of the last training vectors (at most a tenth unless given)",
            frozenset({"train", "eval_valset"}),
            everywhere=True,
        ),
        Key("ds.db", "integer", None, "use so many database vectors at most", _READING_DATABASE, everywhere=True),
        Key("ds.loop", "integer", 10_000_000, "training vectors of an epoch, at most", _TRAIN, everywhere=True),
        Key("encode_trainset", "switch", False, "encode the training set instead of db", frozenset({"encode"})),
        # Model
        Key(
            "model_args",
            "preset",
            None,
            f"size of the model: {', '.join(PRESETS)}",
            _BUILDING,
            everywhere=True,
            choices=tuple(PRESETS),
        ),
        Key("M", "integer", None, "codes of a vector", _BUILDING, everywhere=True),
        Key("K", "integer", None, "codewords of a step: a power of two", _BUILDING, everywhere=True, minimum=2),
        Key("L", "integer", None, "residual blocks of a step", _BUILDING, everywhere=True, minimum=0),
        Key(
            "de",
            "integer",
            None,
            "width of the embedding; 0 or null: the vectors' dimension",
            _BUILDING,
            everywhere=True,
            zero_is_null=True,
        ),
        Key("dh", "integer", None, "width inside a residual block", _BUILDING, everywhere=True),
        Key("concat_rank", "integer", None, "rank of the concatenation layer (QINCo-LR)", _TRAIN),
        Key("ivf_K", "integer", None, "number of coarse centroids", _TRAIN | {"ivf_centroids"}, everywhere=True),
        Key("qinco1_mode", "switch", None, "a QINCo1 model", _BUILDING, everywhere=True),
        Key("pq", "integer", None, "cut the vectors into so many parts, a codec for each (PQ-QINCo)", _TRAIN),
        Key("opq", "switch", False, "rotate the vectors before they are cut", _TRAIN),
        # Encoder
        Key(
            "A",
            "integer",
            None,
            "codewords proposed for each hypothesis (0 or null: all are tried); as in training unless given",
            _RULING,
            minimum=0,
            null_value=0,
        ),
        Key(
            "C",
            "integer",
            None,
            "codewords proposed over the whole beam, instead of A; as in training unless given",
            _RULING,
        ),
        Key(
            "B",
            "integer",
            None,
            "hypotheses kept (1, 0 or null: no beam); as in training unless given",
            _RULING,
            null_value=1,
            zero_is_null=True,
        ),
        Key(
            "prefix",
            "integer",
            None,
            "use the first codes only",
            frozenset({"eval", "eval_valset", "search", "decode"}),
        ),
        Key(
            "decoder",
            "choice",
            "neural",
            "what decodes",
            frozenset({"eval", "search"}),
            choices=("neural",),
            later=("lookup", "pairwise"),
        ),
        # Training
        Key("recipe", "choice", "default", "paper: the published recipe", _TRAIN, choices=("default", "paper")),
        Key("epochs", "integer", 60, "epochs, ramp included", _TRAIN),
        Key(
            "batch",
            "integer",
            None,
            "vectors of a step; null fits it to the run: 1024 or less",
            _TRAIN,
            everywhere=True,
        ),
        Key("lr", "positive", None, "learning rate; null fits it to the number of steps", _TRAIN),
        Key("wd", "number", 0.1, "weight decay", _TRAIN),
        Key("optimizer", "choice", "adamw", "optimiser", _TRAIN, choices=("adamw", "adam")),
        Key("grad_clip", "positive", 0.1, "gradients are clipped to this value; null: never", _TRAIN, nullable=True),
        Key("grad_accumulate", "integer", 1, "batches of a step", _TRAIN),
        Key("codebook_noise_init", "number", 0.0, "noise on the first codebooks, in standard deviations", _TRAIN),
        Key(
            "scheduler.name",
            "choice",
            "cosine",
            "learning rate schedule",
            _TRAIN,
            choices=("cosine", "reduce_lr_plateau"),
        ),
        Key("scheduler.ramp_epochs", "number", 3.0, "epochs of ramp, at most a tenth of the run", _TRAIN),
        Key("scheduler.lr_min_fact", "number", 1e-3, "the last learning rate is lr times this", _TRAIN),
        Key("scheduler.stop_patience", "integer", 10, "plateau: epochs without gain until the end", _TRAIN, minimum=0),
        Key("scheduler.reduce_fact", "positive", 0.1, "plateau: factor on the learning rate", _TRAIN),
        Key("scheduler.patience", "integer", 10, "plateau: epochs without gain until then", _TRAIN, minimum=0),
        Key("scheduler.threshold_frac", "number", 1e-4, "plateau: least relative gain that counts", _TRAIN),
        # Machine and report
        Key("device", "device", "auto", "auto, cpu, cuda or cuda:N", _NETWORK, everywhere=True),
        Key("cpu", "switch", False, "the same as device=cpu", _NETWORK, everywhere=True),
        Key("threads", "integer", None, "processor threads; null: all", _NETWORK | {"ivf_centroids"}, everywhere=True),
        Key(
            "precision",
            "choice",
            "auto",
            f"arithmetic: {', '.join(PRECISIONS)}",
            _NETWORK,
            everywhere=True,
            choices=PRECISIONS,
        ),
        Key("engine", "choice", "auto", f"{' or '.join(ENGINES)}", _NETWORK, everywhere=True, choices=ENGINES),
        Key(
            "enc_max_bs",
            "integer",
            65536,
            "vectors encoded or decoded at a time, at most",
            _NETWORK - {"bench"},
            everywhere=True,
        ),
        Key(
            "seed",
            "integer",
            0,
            "seed of everything random",
            _TRAIN | _INDEXING | {"ivf_centroids"},
            everywhere=True,
            minimum=0,
        ),
        Key("mse_scale", "positive", 1.0, "factor on reported squared errors", _MEASURING, everywhere=True),
        Key("verbose", "switch", True, "say what is being done", _ALL, everywhere=True),
        Key("json", "switch", False, "the last line of the output is a JSON object", _REPORTING, everywhere=True),
        # The index
        *(
            Key(name, kind, default, summary, frozenset(tasks), available=False)
            for name, kind, default, summary, *tasks in (
                ("index", "path", None, "index to search", "search"),
                ("pairwise_decoder", "path", None, "pairwise decoder to re-rank with", "search"),
                ("encoded_db", "path", None, "codes of the database", "build_index"),
                ("encoded_trainset", "path", None, "codes of the training set", *_INDEXING),
                ("n_pairwise_codebooks", "positive", 2.0, "pair codebooks, times M", "train_pairwise_decoder"),
                ("search.index_key", "text", "IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8", "kind of index", "build_index"),
                ("search.aq_training_samples", "integer", 1_000_000, "vectors the tables are fitted to", "build_index"),
                ("search.nthreads", "integer", 32, "threads that search", "search"),
                ("search.batch_size", "integer", 12288, "queries at a time", "search"),
                ("search.nshort", "integers", (4, 10), "vectors decoded by the network", "search"),
                ("search.nprobe", "integers", (4,), "lists visited", "search"),
                ("search.quantizer_efSearch", "integers", (4,), "effort of the search for lists", "search"),
                ("search.nmid_short", "integers", (1, 4), "shortlist's length, in nshorts", "search"),
            )
        ),
    )
}

ALIASES = {name.removeprefix("search."): name for name in KEYS if name.startswith("search.")}
