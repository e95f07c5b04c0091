"""`qinco eval`, `eval_valset` and `eval_time`: the error and the speed of a codec."""

import time

import qinco
from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Settings, task
from qinco.cli.open import (
    conditions,
    decode_precision,
    encode_options,
    mse_scale,
    open_codec,
    open_database,
    open_decoder,
    open_trainset,
)  # fmt: skip

_IMPORTS = ("qinco.codec", "qinco.search.index")


@task(
    "eval",
    "mean squared error over the database",
    keys=[
        f"model db ds.db {ENCODING} prefix decoder index pairwise_decoder trainset ds.trainset",
        f"search.aq_training_samples seed mse_scale {MACHINE} enc_max_bs",
    ],
    required=("model", "db"),
    imports=_IMPORTS,
)
def eval_database(settings, console) -> None:
    codec, source = open_codec(settings), open_database(settings)
    codec.check_dim(source)
    decoder = open_decoder(settings, codec, console.progress)
    if decoder is None:
        return _report_evaluation(settings, console, codec, source)
    done = qinco.evaluate_decoder(codec, source, decoder, encode_options(settings, codec), progress=console.progress)
    result = {
        "decoder": settings["decoder"],
        "mse": done.mse * mse_scale(settings),
        "num_vectors": done.num_vectors,
        "seconds": done.seconds,
    }
    console.print_result(result | conditions(settings), settings["json"])


@task(
    "eval_valset",
    "mean squared error over the last training vectors",
    keys=[f"model {TRAINSET} ds.valset {ENCODING} prefix mse_scale {MACHINE} enc_max_bs"],
    required=("model", "trainset|db"),
    imports=_IMPORTS,
)
def eval_validation(settings, console) -> None:
    from qinco.codec.plan import split_validation

    codec = open_codec(settings)
    wanted = settings["ds.valset"] if settings.given("ds.valset") else None
    _, valid = split_validation(open_trainset(settings), wanted, 1)
    _report_evaluation(settings, console, codec, valid)


@task(
    "eval_time",
    "microseconds per vector, encoding and decoding",
    keys=[f"model db ds.db {ENCODING} {MACHINE} enc_max_bs"],
    required=("model", "db"),
    imports=_IMPORTS,
)
def eval_time(settings, console) -> None:
    codec, source, begun = open_codec(settings), open_database(settings), time.monotonic()
    codec.check_dim(source)
    options = encode_options(settings, codec)
    encode_us, decode_us = qinco.measure_time(codec, source, options, decode_precision(settings))
    result = {
        "encode_us": encode_us,
        "decode_us": decode_us,
        "num_vectors": len(source),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | conditions(settings), settings["json"])


def _report_evaluation(settings: Settings, console, codec: "qinco.Codec", source: "qinco.VectorSource") -> None:
    codec.check_dim(source)
    options, steps = encode_options(settings, codec), settings["prefix"]
    done, scale = qinco.evaluate(codec, source, options, steps, progress=console.progress), mse_scale(settings)
    result = {
        "mse": done.mse * scale,
        "mse_per_step": [mse * scale for mse in done.mse_per_step],
        "num_vectors": done.num_vectors,
        "seconds": done.seconds,
    }
    console.print_result(result | conditions(settings), settings["json"])
