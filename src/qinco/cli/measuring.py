"""The tasks that measure a codec: eval, eval_valset, eval_time and search over decoded vectors."""

import time

import numpy as np

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.decoding import open_decoder
from qinco.cli.overrides import Settings
from qinco.codec import Codec
from qinco.codec.evaluate import evaluate, measure_time
from qinco.codec.plan import split_validation
from qinco.errors import DataError
from qinco.maths.metrics import recall
from qinco.search import exhaustive
from qinco.vectors.rows import VectorSource


def eval_database(settings: Settings, console: Console) -> None:
    """Mean squared error over the database."""
    codec = inputs.open_codec(settings)
    source = inputs.open_database(settings)
    if settings["decoder"] == "neural" and settings["index"] is None and settings["pairwise_decoder"] is None:
        _report_evaluation(settings, console, codec, source)
    else:
        _report_decoder(settings, console, codec, source)


def eval_validation(settings: Settings, console: Console) -> None:
    """Mean squared error over the last training vectors."""
    codec = inputs.open_codec(settings)
    wanted = settings["ds.valset"] if settings.given("ds.valset") else None
    _, valid = split_validation(inputs.open_trainset(settings), wanted, 1)
    _report_evaluation(settings, console, codec, valid)


def _report_evaluation(settings: Settings, console: Console, codec: Codec, source: VectorSource) -> None:
    codec.check_dim(source)
    rule, scale = inputs.encode_options(settings, codec), inputs.mse_scale(settings)
    done = evaluate(codec, source, rule, inputs.prefix(settings, codec), progress=console.progress)
    result = {
        "mse": done.mse * scale,
        "mse_per_step": [mse * scale for mse in done.mse_per_step],
        "num_vectors": done.num_vectors,
        "seconds": done.seconds,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _report_decoder(settings: Settings, console: Console, codec: Codec, source: VectorSource) -> None:
    """The error of another decoder than the codec itself."""
    codec.check_dim(source)
    if not len(source):
        raise DataError(f"{source.name} holds no vectors to evaluate on")
    rule, decode = inputs.encode_options(settings, codec), open_decoder(settings, console, codec)
    begun, error = time.monotonic(), 0.0
    with console.progress(len(source), "vector", "evaluating") as progress:
        for first, codes in codec.encode_blocks(source, rule):
            x_ND = source[first : first + len(codes)]
            error += np.square(decode(codes.codes, codes.lists) - x_ND, dtype=np.float64).sum()
            progress.update(first + len(codes))
    result = {
        "decoder": settings["decoder"],
        "mse": error / len(source) * inputs.mse_scale(settings),
        "num_vectors": len(source),
        "seconds": time.monotonic() - begun,
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
    rule, steps = inputs.encode_options(settings, codec), inputs.prefix(settings, codec)
    decode = open_decoder(settings, console, codec)
    begun = time.monotonic()
    with console.progress(len(source), "vector", "encoding and searching") as progress:

        def decoded():
            for first, codes in codec.encode_blocks(source, rule, steps):
                yield first, decode(codes.codes, codes.lists)
                progress.update(first + len(codes))

        _, ids_QR = exhaustive.search(queries_QD, decoded(), 100, inputs.device_of(settings))
    result = {
        "decoder": settings["decoder"],
        "recall": {str(rank): share for rank, share in recall(ids_QR, nearest_Q).items()},
        "num_vectors": len(source),
        "num_queries": len(queries_QD),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])
