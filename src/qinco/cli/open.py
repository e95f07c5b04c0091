"""From the keys of a command line to what they name: devices, codecs, vectors, options."""

import os
from dataclasses import astuple
from pathlib import Path

import qinco
from qinco.cli.keys import Settings
from qinco.config import EncodeOptions, suggest
from qinco.datasets.catalogue import DATASETS
from qinco.errors import ConfigError, DataError
from qinco.machine import num_threads
from qinco.progress import Progress

_READ = ("model", "db", "trainset", "codes", "lists", "ivf_centroids", "encoded_trainset", "encoded_db", "index",
         "pairwise_decoder", "queries", "queries_gt")  # fmt: skip


def find_device(settings: Settings):
    """The device that `device=` and `cpu=` name."""
    from qinco.maths.devices import choose_device

    if settings["cpu"] and settings.given("device") and settings["device"] != "cpu":
        raise ConfigError(f"cpu=true contradicts device={settings['device']}: keep one of them")
    device = choose_device("cpu" if settings["cpu"] else settings["device"])
    if device == "cuda":  # torchrun gives each process a GPU of its own
        device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return device


def open_codec(settings: Settings) -> "qinco.Codec":
    """The codec of `model=`, on the chosen device."""
    return adjust_codec(settings, qinco.Codec.load(settings["model"], find_device(settings)))


def adjust_codec(settings: Settings, codec: "qinco.Codec") -> "qinco.Codec":
    """The codec with `engine=`, in blocks of at most `enc_max_bs` vectors."""
    codec = codec.with_options(codec.encode_options.override(engine=settings["engine"]))
    codec.block_rows = min(codec.block_rows, settings["enc_max_bs"])
    return codec


def encode_options(settings: Settings, codec: "qinco.Codec") -> EncodeOptions:
    """The codec's own options, with `A`, `C`, `B`, `precision` and `engine` in their place if they are given."""
    options = codec.encode_options.override(*(settings[key] for key in ("A", "C", "B", "precision", "engine")))
    options.check_model(codec.config)
    return options


def decode_precision(settings: Settings) -> str:
    """Decoded vectors are float32 unless bf16 is asked for by name."""
    return "bf16" if settings["precision"] == "bf16" else "float32"


def open_database(settings: Settings) -> "qinco.VectorSource":
    """The vectors of `db=`, a path or the name of a data set; at most `ds.db` of them."""
    dataset = DATASETS.get(settings["db"])
    source = _open(settings["db"] if dataset is None else dataset.database)
    for limit in (dataset and dataset.database_limit, settings["ds.db"]):
        source = source if limit is None else source.limit(limit)
    return source


def open_trainset(settings: Settings, is_shuffled: bool = True) -> "qinco.VectorSource":
    """The vectors of `trainset=`, or of the data set that `db=` names; at most `ds.trainset` of them.

    These are the first ones if the rows are shuffled, or go with codes of the first ones; else some of all parts.
    """
    dataset = DATASETS.get(settings["db"] or "")
    if (path := settings["trainset"] or (dataset and dataset.trainset)) is None:
        found = "" if settings["db"] is None else f", and db={settings['db']} is none"
        raise ConfigError(f"give trainset=FILE, or db=NAME of a data set{found}: {', '.join(DATASETS)}")
    source, count = _open(path), settings["ds.trainset"]
    if count is None or is_shuffled or settings["trainset"] is None:
        return source if count is None else source.limit(count)
    from qinco.vectors.rows import stratified_rows

    return source.take(stratified_rows(len(source), count))


def open_queries(settings: Settings) -> tuple["qinco.VectorSource", str | None]:
    """The queries, and the path of their true nearest neighbours if there are any."""
    dataset = DATASETS.get(settings["db"] or "")
    queries = settings["queries"] or (dataset and dataset.queries)
    if queries is None:
        raise ConfigError("task search needs queries=, or db= with the name of a data set")
    return _open(queries, "test"), settings["queries_gt"] or (dataset and dataset.ground_truth)


def open_index(settings: Settings) -> tuple["qinco.Index", dict[str, str]]:
    """The index of `index=`, with `model=` and `pairwise_decoder=` in it, and the fingerprints of these files."""
    from qinco.search.measure.sweep import open_searcher

    codec = None if settings["model"] is None else open_codec(settings)
    device = str(find_device(settings))
    index, files = open_searcher(settings["index"], codec, settings["pairwise_decoder"], device)
    if codec is None and index.codec is not None:
        index.codec = adjust_codec(settings, index.codec)
    return index, files


def open_codes(settings: Settings, name: str, codec: "qinco.Codec | None"):
    """The codes that the key `name` names; `M` and `K` say how many there are if neither they nor a codec do."""
    from qinco.search.code_file import open_codes

    return open_codes(settings[name], codec, settings["M"], settings["K"])


def check_num_centroids(settings: Settings) -> None:
    """Raise ConfigError if `ivf_K=` is not the number of vectors in `ivf_centroids=`."""
    path, wanted = settings["ivf_centroids"], settings["ivf_K"]
    if path is not None and wanted is not None and (found := len(qinco.open_vectors(path))) != wanted:
        raise ConfigError(f"ivf_K must be {found}, the number of centroids in {path}, not {wanted}")


def open_decoder(settings: Settings, codec: "qinco.Codec", progress: Progress):
    """The decoder that `decoder=` names; None for the codec itself.

    Look-up tables are those of `index=`, or are fitted to `trainset=`; pairs come from `pairwise_decoder=` or `index=`.
    """
    from qinco.search.fit import open_pairwise
    from qinco.search.measure.sweep import open_searcher

    name, path, pairs = settings["decoder"], settings["index"], settings["pairwise_decoder"]
    if name == "neural":
        if path or pairs:
            key = "index" if path else "pairwise_decoder"
            raise ConfigError(f"{key}= has no effect with decoder=neural: give decoder=lookup or decoder=pairwise")
        return None
    if settings["prefix"] is not None:
        raise ConfigError(f"prefix= shortens codes for the network, and decoder={name} takes whole ones: leave it out")
    index = None if path is None else open_searcher(path, codec, pairs if name == "pairwise" else None)[0]
    if name == "pairwise":
        sizes = codec.num_codes, codec.config.codebook_size, codec.dim
        decoder = open_pairwise(pairs, *sizes, codec.coarse_centroids) if index is None else index.pairwise
        if decoder is None:
            raise ConfigError("decoder=pairwise needs pairwise_decoder=FILE, which task train_pairwise_decoder writes")
        return decoder
    if index is not None:
        return index.tables.lookup
    if settings["trainset"] is None and DATASETS.get(settings["db"]) is None:
        raise ConfigError("decoder=lookup needs index=, whose tables are taken, or trainset=, vectors to fit tables to")
    samples = settings.given_values.get("search.aq_training_samples")
    how = {"codec": codec, "num_training": samples, "seed": settings["seed"], "progress": progress}
    return qinco.fit_lookup_decoder(open_trainset(settings), **how).decoder


def executor_of(settings: Settings):
    """Where `cluster=` has work done, or None for this process."""
    if settings["cluster"] is None:
        if settings["workers"] is not None:
            raise ConfigError(f"workers={settings['workers']} are those of a cluster: give cluster=auto or its address")
        return None
    from qinco.distributed import WorkerPool

    return WorkerPool(settings["cluster"], settings["workers"], settings["threads"])


def mse_scale(settings: Settings) -> float:
    """`mse_scale=`, or that of the data set that `db=` names."""
    dataset = None if settings.given("mse_scale") else DATASETS.get(settings["db"] or "")
    return settings["mse_scale"] if dataset is None else dataset.mse_scale


def files_read(settings: Settings) -> list[Path]:
    """The files that the command line reads, which its output must not replace."""
    from qinco.vectors.formats import input_files

    return input_files(*(settings[name] for name in _READ))


def conditions(settings: Settings) -> dict:
    """What a measurement ran on, for its report."""
    return {"threads": num_threads(), "precision": settings["precision"]}


def _open(path: str, part: str = "train") -> "qinco.VectorSource":
    try:
        return qinco.open_vectors(path, part)
    except DataError:
        if os.access(path, os.F_OK):
            raise
        names = [name for name, dataset in DATASETS.items() if path in astuple(dataset)]
        if names:
            raise DataError(f"No such file: {path}. Download it with: qinco download {names[0]}") from None
        if Path(path).suffix:
            raise
        hint = suggest(path, list(DATASETS), 0.8)
        raise DataError(f"No such file or data set: {path}. {hint}Data sets: {', '.join(DATASETS)}") from None
