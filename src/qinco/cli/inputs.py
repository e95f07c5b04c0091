"""From keys of the command line to vectors, codecs and options."""

import dataclasses
import os
from pathlib import Path

import torch

from qinco.cli.overrides import Settings
from qinco.codec import Codec
from qinco.config import EncodeOptions, suggest
from qinco.datasets.catalogue import DATASETS, find_dataset
from qinco.errors import ConfigError, DataError
from qinco.maths.devices import choose_device
from qinco.vectors.formats import read_integers, split_part
from qinco.vectors.rows import VectorSource, open_vectors


def device_of(settings: Settings) -> torch.device:
    """The device that `device=` and `cpu=` name."""
    if settings["cpu"] and settings.given("device") and settings["device"] != "cpu":
        raise ConfigError(f"cpu=true contradicts device={settings['device']}: keep one of them")
    device = choose_device("cpu" if settings["cpu"] else settings["device"])
    if device.type == "cuda" and device.index is None:  # torchrun gives each process a GPU of its own
        device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return device


def open_codec(settings: Settings) -> Codec:
    """The codec of `model=`, on the chosen device, in blocks of `enc_max_bs` vectors at most."""
    return adapted(settings, Codec.load(settings["model"], device_of(settings)))


def adapted(settings: Settings, codec: Codec) -> Codec:
    """A codec with `engine=`, in blocks of `enc_max_bs` vectors at most."""
    codec = codec.with_options(codec.encode_options.override(engine=settings["engine"]))
    codec.block_rows = min(codec.block_rows, settings["enc_max_bs"])
    return codec


def encode_options(settings: Settings, codec: Codec) -> EncodeOptions:
    """The codec's own search rule with `A`, `C`, `B`, `precision` and `engine` of the command line in its place."""
    rule = codec.encode_options.override(
        settings["A"], settings["C"], settings["B"], settings["precision"], settings["engine"]
    )
    rule.check_model(codec.config)
    return rule


def prefix(settings: Settings, codec: Codec) -> int | None:
    """`prefix=`, the number of steps to use; None for all."""
    steps, wanted = codec.config.num_steps, settings["prefix"]
    if wanted is not None and wanted > steps:
        raise ConfigError(f"prefix={wanted} is above the model's {steps} steps")
    return wanted


def decode_precision(settings: Settings) -> str:
    """What is returned is float32 unless bf16 is asked for by name."""
    return "bf16" if settings["precision"] == "bf16" else "float32"


def open_database(settings: Settings) -> VectorSource:
    """The vectors of `db=`, a path or a data set's name, `ds.db` of them at most."""
    dataset = find_dataset(settings["db"])
    source = _open(settings["db"] if dataset is None else dataset.database)
    if dataset is not None and dataset.database_limit is not None:
        source = source.limit(dataset.database_limit)
    return source if settings["ds.db"] is None else source.limit(settings["ds.db"])


def open_trainset(settings: Settings) -> VectorSource:
    """The vectors of `trainset=`, or of the data set that `db=` names, `ds.trainset` of them at most."""
    path = settings["trainset"]
    if path is None:
        dataset = find_dataset(settings["db"])
        if dataset is None:
            raise ConfigError(
                f"db={settings['db']} is no data set with training vectors (those are {', '.join(DATASETS)}): "
                "give trainset=FILE"
            )
        path = dataset.trainset
    source = _open(path)
    return source if settings["ds.trainset"] is None else source.limit(settings["ds.trainset"])


def open_queries(settings: Settings, dim: int, num_vectors: int | None):
    """Queries, float32 (Q, D), and the number of each one's true nearest neighbour, int64 (Q,).

    num_vectors: that the numbers must be below; None for ids, which need not be
    """
    dataset = find_dataset(settings["db"])
    queries_path = settings["queries"] or (dataset and dataset.queries)
    truth_path = settings["queries_gt"] or (dataset and dataset.ground_truth)
    if queries_path is None or truth_path is None:
        raise ConfigError("task search needs queries= and queries_gt=, or db= with the name of a data set")
    queries, truth = _open(queries_path, "test"), read_integers(truth_path)
    if queries.dim != dim:
        raise DataError(f"{queries.name}: queries have {queries.dim} dimensions, the vectors that are searched {dim}")
    if len(queries) != len(truth):
        raise DataError(f"{truth_path} has {len(truth)} rows, {queries.name} has {len(queries)} queries")
    if num_vectors is not None and (truth[:, 0].max() >= num_vectors or truth[:, 0].min() < 0):
        raise DataError(
            f"{truth_path} names vector {truth[:, 0].max()}, the database has {num_vectors}: the ground truth is of "
            "another database, or ds.db leaves vectors out"
        )
    return next(block for _, block in queries.blocks(len(queries))), truth[:, 0]


def mse_scale(settings: Settings) -> float:
    """`mse_scale=`, or that of the data set that `db=` names."""
    dataset = None if settings.given("mse_scale") else find_dataset(settings["db"] or "")
    return settings["mse_scale"] if dataset is None else dataset.mse_scale


def files_read(settings: Settings, written: str = "output") -> list[str]:
    """The files that the command line names besides the one that is `written`, which must not replace them."""
    names = ("model", "db", "trainset", "codes", "lists", "ivf_centroids", "encoded_trainset", "encoded_db", "index")
    names += ("pairwise_decoder", "queries", "queries_gt")
    return [split_part(settings[name])[0] for name in names if name != written and settings[name] is not None]


def machine(settings: Settings) -> dict:
    """What a measurement ran on, for its report."""
    return {"threads": torch.get_num_threads(), "precision": settings["precision"]}


def _open(path: str, part: str = "train") -> VectorSource:
    try:
        return open_vectors(path, part)
    except DataError:
        if os.access(path, os.F_OK):
            raise
        of_dataset = [name for name, dataset in DATASETS.items() if path in dataclasses.astuple(dataset)]
        if of_dataset:
            raise DataError(f"No such file: {path}. Download it with: qinco download {of_dataset[0]}") from None
        if Path(path).suffix:
            raise
        hint = suggest(path, list(DATASETS), 0.8)
        raise DataError(f"No such file or data set: {path}. {hint}Data sets: {', '.join(DATASETS)}") from None
