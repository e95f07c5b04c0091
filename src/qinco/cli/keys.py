"""Every key of the command line, once: the parser and the help both read this table."""

from dataclasses import dataclass

from qinco.cli.tasks import SHELLS, TASKS
from qinco.config import ENGINES, PRECISIONS, PRESETS


@dataclass(frozen=True)
class Key:
    """One setting, written `name=value`.

    name:       what the user types, with a dot where it is nested
    kind:       "path", "paths", "text" and "texts" (taken verbatim, but for the ~/ that a path begins with), "integer",
                "integers" (a list), "number" (at least 0), "positive" (a number above 0), "switch", "choice", "device",
                "preset" or "share" (i/n)
    default:    the value where the key is not given
    summary:    one line of help
    tasks:      names of the tasks that read it
    everywhere: every other task accepts it without effect, because command lines are reused from task to task
    choices:    the values of a "choice"
    minimum:    the least value of an "integer" and of the elements of "integers"
    nullable:   whether `null` is a value; so too where the default is None, for what is neither text nor a choice
    null_value: what `null` means, and 0 where `zero_is_null`
    left_open:  keys whose `${key}` stays as it is where they are not given: the task knows what it stands for
    """

    name: str
    kind: str
    default: object
    summary: str
    tasks: frozenset[str]
    everywhere: bool = False
    choices: tuple[str, ...] = ()
    minimum: int = 1
    nullable: bool = False
    null_value: object = None
    zero_is_null: bool = False
    left_open: tuple[str, ...] = ()

    @property
    def accepts_null(self) -> bool:
        return self.nullable or (self.default is None and not self.is_verbatim and self.kind != "choice")

    @property
    def is_verbatim(self) -> bool:
        """Whether the value is the text that was typed, whatever it holds, but for a path's `~/`."""
        return self.kind in ("path", "paths", "text", "texts")

    @property
    def is_plural(self) -> bool:
        """Whether several words make one value."""
        return self.kind in ("paths", "texts")

    def is_accepted_by(self, task: str) -> bool:
        return self.everywhere or task in self.tasks


_TRAIN = frozenset({"train"})
_BUILDING = frozenset({"train", "bench"})  # they may make a model of given sizes
_INDEXING = frozenset({"build_index", "train_pairwise_decoder"})
_ENCODING = frozenset({"train", "eval", "eval_valset", "eval_time", "search", "encode"})
_RULING = _ENCODING | {"convert", "bench"}  # they take a search rule
_MEASURING = frozenset({"train", "eval", "eval_valset"}) | _INDEXING
_NETWORK = _ENCODING | _INDEXING | {"decode", "bench"}  # they run a model
_DECODING = frozenset({"eval", "search"})  # with any decoder
_WRITING = frozenset({"train", "encode", "decode", "ivf_centroids", "convert", "search"}) | _INDEXING
_ALL = frozenset(TASKS) - {"completion"}
_READING_TRAINSET = frozenset({"train", "eval_valset", "encode", "ivf_centroids"}) | _INDEXING | _DECODING
_READING_DATABASE = frozenset({"eval", "eval_time", "search", "encode"})

KEYS = {
    key.name: key
    for key in (
        # Files
        Key("model", "path", None, "codec file; for train: the one to go on from", _NETWORK | {"convert"}),
        Key("output", "path", None, "file or folder to write", _WRITING),
        Key("overwrite", "switch", False, "replace an existing output", _WRITING | {"download"}, everywhere=True),
        Key(
            "resume",
            "switch",
            False,
            "continue what was interrupted",
            frozenset({"train", "encode", "decode", "download", "search"}),
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
        Key(
            "ivf_centroids",
            "path",
            None,
            "coarse centroids: train an IVF codec; those of the lists",
            _TRAIN | _INDEXING,
        ),
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
        Key(
            "ds.db",
            "integer",
            None,
            "use so many database vectors at most",
            _READING_DATABASE | {"build_index"},
            everywhere=True,
        ),
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
        Key("M", "integer", None, "codes of a vector", _BUILDING | _INDEXING, everywhere=True),
        Key(
            "K",
            "integer",
            None,
            "codewords of a step: a power of two",
            _BUILDING | _INDEXING,
            everywhere=True,
            minimum=2,
        ),
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
        Key(
            "ivf_K",
            "integer",
            None,
            "number of coarse centroids",
            _TRAIN | {"ivf_centroids", "build_index"},
            everywhere=True,
        ),
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
            "what decodes; with index=: the last stage",
            _DECODING,
            choices=("neural", "lookup", "pairwise"),
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
            _TRAIN | _INDEXING | _DECODING | {"ivf_centroids"},
            everywhere=True,
            minimum=0,
        ),
        Key("mse_scale", "positive", 1.0, "factor on reported squared errors", _MEASURING, everywhere=True),
        Key("verbose", "switch", True, "say what is being done", _ALL, everywhere=True),
        Key("json", "switch", False, "the last line of the output is a JSON object", _ALL, everywhere=True),
        # The index
        Key("index", "path", None, "index to search: a folder or a .faissindex file", _DECODING),
        Key("pairwise_decoder", "path", None, "pairwise decoder to re-rank with", _DECODING | {"build_index"}),
        Key("encoded_db", "path", None, "codes of the database", frozenset({"build_index"})),
        Key("encoded_trainset", "path", None, "codes of the training set", _INDEXING),
        Key(
            "metric",
            "choice",
            "l2",
            "what near means",
            frozenset({"build_index"}),
            choices=("l2", "inner_product", "cosine"),
        ),
        Key(
            "n_pairwise_codebooks",
            "positive",
            2.0,
            "pairs of codes, times M, at most",
            frozenset({"train_pairwise_decoder"}),
        ),
        Key(
            "tables",
            "choice",
            "float32",
            "how the tables of pairs are held",
            frozenset({"train_pairwise_decoder"}),
            choices=("float32", "float16"),
        ),
        Key("plot", "path", None, "draw the front to a .png or .svg file", frozenset({"search"})),
        Key(
            "search.index_key",
            "text",
            "IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8",
            "kind of a .faissindex file",
            frozenset({"build_index"}),
            left_open=("ivf_K", "M", "K"),
        ),
        Key(
            "search.aq_training_samples",
            "integer",
            1_000_000,
            "vectors that look-up and pair tables are fitted to, at most",
            _INDEXING | _DECODING,
        ),
        Key("search.nthreads", "integer", 32, "threads that search an index, at most", frozenset({"search"})),
        Key("search.batch_size", "integer", 12288, "queries at a time, at most", frozenset({"search"})),
        Key("search.nshort", "integers", (4, 10), "vectors decoded by the network", frozenset({"search"})),
        Key("search.nprobe", "integers", (4,), "lists visited", frozenset({"search"})),
        Key(
            "search.quantizer_efSearch",
            "integers",
            (4,),
            "effort of the search for lists, where they are many",
            frozenset({"search"}),
        ),
        Key(
            "search.nmid_short",
            "integers",
            (1, 4),
            "vectors decoded by the pairwise decoder, in nshorts; 0 or 1: none",
            frozenset({"search"}),
            minimum=0,
        ),
    )
}

ALIASES = {name.removeprefix("search."): name for name in KEYS if name.startswith("search.")}
