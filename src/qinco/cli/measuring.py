"""The tasks that measure a codec: eval, eval_valset, eval_time and search over decoded vectors."""

import time

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.codec.codec import Codec
from qinco.codec.evaluate import evaluate, measure_time
from qinco.codec.plan import split_validation
from qinco.datasets.catalogue import find_dataset
from qinco.errors import ConfigError, DataError
from qinco.search.faiss_index import FaissSearcher
from qinco.search.fit import fit_lookup_decoder, open_pairwise
from qinco.search.measure.decoders import evaluate_decoder, exhaustive_recall
from qinco.search.measure.sweep import open_searcher
from qinco.vectors.rows import VectorSource


def eval_database(settings: Settings, console: Console) -> None:
    """Mean squared error over the database."""
    codec = inputs.open_codec(settings)
    source = inputs.open_database(settings)
    codec.check_dim(source)
    if (decoder := _open_decoder(settings, console, codec)) is None:
        return _report_evaluation(settings, console, codec, source)
    options = inputs.encode_options(settings, codec)
    done = evaluate_decoder(codec, source, decoder, options, progress=console.progress)
    result = {
        "decoder": settings["decoder"],
        "mse": done.mse * inputs.mse_scale(settings),
        "num_vectors": done.num_vectors,
        "seconds": done.seconds,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def eval_validation(settings: Settings, console: Console) -> None:
    """Mean squared error over the last training vectors."""
    codec = inputs.open_codec(settings)
    wanted = settings["ds.valset"] if settings.given("ds.valset") else None
    _, valid = split_validation(inputs.open_trainset(settings), wanted, 1)
    _report_evaluation(settings, console, codec, valid)


def _report_evaluation(settings: Settings, console: Console, codec: Codec, source: VectorSource) -> None:
    codec.check_dim(source)
    options, scale = inputs.encode_options(settings, codec), inputs.mse_scale(settings)
    done = evaluate(codec, source, options, inputs.prefix(settings, codec), progress=console.progress)
    result = {
        "mse": done.mse * scale,
        "mse_per_step": [mse * scale for mse in done.mse_per_step],
        "num_vectors": done.num_vectors,
        "seconds": done.seconds,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def eval_time(settings: Settings, console: Console) -> None:
    """Microseconds a vector, encoding and decoding."""
    codec = inputs.open_codec(settings)
    source = inputs.open_database(settings)
    codec.check_dim(source)
    begun = time.monotonic()
    encode_us, decode_us = measure_time(
        codec, source, inputs.encode_options(settings, codec), inputs.decode_precision(settings)
    )
    result = {
        "encode_us": encode_us,
        "decode_us": decode_us,
        "num_vectors": len(source),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def search(settings: Settings, console: Console) -> None:
    """Recall of the exact neighbours among decoded vectors, exhaustively."""
    codec = inputs.open_codec(settings)
    source = inputs.open_database(settings)
    codec.check_dim(source)
    queries_QD, nearest_Q = inputs.open_queries(settings, codec.dim, len(source))
    decoder, begun = _open_decoder(settings, console, codec), time.monotonic()
    found = exhaustive_recall(
        codec, source, queries_QD, nearest_Q, decoder=decoder, options=inputs.encode_options(settings, codec),
        num_steps=inputs.prefix(settings, codec), precision=inputs.decode_precision(settings),
        device=inputs.device_of(settings), progress=console.progress,
    )  # fmt: skip
    result = {
        "decoder": settings["decoder"],
        "recall": {str(rank): share for rank, share in found.items()},
        "num_vectors": len(source),
        "num_queries": len(queries_QD),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _open_decoder(settings: Settings, console: Console, codec: Codec):
    """What `decoder=` names: the LookupDecoder of `index=` or one fitted to `trainset=`, or a PairwiseDecoder; None
    for the network."""
    name, path, pairs = settings["decoder"], settings["index"], settings["pairwise_decoder"]
    if name == "neural":
        for key in ("index", "pairwise_decoder"):
            if settings[key] is not None:
                raise ConfigError(f"{key}= has no effect with decoder=neural: give decoder=lookup or decoder=pairwise")
        return None
    if settings["prefix"] is not None:
        raise ConfigError(f"prefix= shortens codes for the network, and decoder={name} takes whole ones: leave it out")
    index = None if path is None else open_searcher(path, codec, pairs if name == "pairwise" else None)
    if name == "pairwise":
        sizes = codec.num_codes, codec.config.codebook_size, codec.dim
        decoder = open_pairwise(pairs, *sizes, codec.coarse_centroids) if index is None else index.pairwise
        if decoder is None:
            raise ConfigError("decoder=pairwise needs pairwise_decoder=FILE, which task train_pairwise_decoder writes")
        return decoder
    if index is not None:
        return index.lookup if isinstance(index, FaissSearcher) else index.tables.lookup
    if settings["trainset"] is None and find_dataset(settings["db"]) is None:
        raise ConfigError("decoder=lookup needs index=, whose tables are taken, or trainset=, vectors to fit tables to")
    source = inputs.open_trainset(settings)
    if not len(source):
        raise DataError(f"{source.name} holds no vectors to fit look-up tables to")
    given = settings.given("search.aq_training_samples")
    return fit_lookup_decoder(
        source, codec=codec, num_training=settings["search.aq_training_samples"] if given else None,
        seed=settings["seed"], progress=console.progress,
    ).decoder  # fmt: skip
