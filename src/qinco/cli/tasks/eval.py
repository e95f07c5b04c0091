"""`qinco eval`, `eval_valset` and `eval_time`: the error and the speed of a codec."""

import time

import qinco
from qinco.cli import open as inputs
from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Settings, task

_IMPORTS = ("qinco.codec", "qinco.search.index")


@task("eval", "mean squared error over the database", required=("model", "db"), imports=_IMPORTS, keys=[
    f"model db ds.db {ENCODING} prefix decoder index pairwise_decoder trainset ds.trainset",
    f"search.aq_training_samples seed mse_scale {MACHINE} enc_max_bs",
])  # fmt: skip
def eval_database(settings, console) -> None:
    codec, source = inputs.open_codec(settings), inputs.open_database(settings)
    codec.check_dim(source)
    decoder = inputs.open_decoder(settings, codec, console.progress)
    if decoder is None:
        return _evaluate(settings, console, codec, source)
    options = inputs.encode_options(settings, codec)
    done = qinco.evaluate_decoder(codec, source, decoder, options, progress=console.progress)
    result = {"decoder": settings["decoder"], "mse": done.mse * inputs.mse_scale(settings)}
    _print(settings, console, result, done.num_vectors, done.seconds)


@task("eval_valset", "mean squared error over the validation vectors", required=("model", "trainset|db"),
      imports=_IMPORTS, keys=[f"model {TRAINSET} ds.valset {ENCODING} prefix mse_scale {MACHINE} enc_max_bs"],
)  # fmt: skip
def eval_validation(settings, console) -> None:
    from qinco.codec.plan import rows_shuffled, split_validation

    codec = inputs.open_codec(settings)
    is_shuffled = rows_shuffled(codec.provenance)
    source = inputs.open_trainset(settings, is_shuffled)
    codec.check_dim(source)
    wanted = settings["ds.valset"] if settings.given("ds.valset") else None
    _evaluate(settings, console, codec, split_validation(source, wanted, 1, is_shuffled)[1])


@task("eval_time", "microseconds per vector, encoding and decoding", required=("model", "db"), imports=_IMPORTS,
      keys=[f"model db ds.db {ENCODING} {MACHINE} enc_max_bs"],
)  # fmt: skip
def eval_time(settings, console) -> None:
    codec, source, begun = inputs.open_codec(settings), inputs.open_database(settings), time.monotonic()
    codec.check_dim(source)
    times = qinco.measure_time(codec, source, inputs.encode_options(settings, codec), inputs.decode_precision(settings))
    result = dict(zip(("encode_us", "decode_us"), times, strict=True))
    _print(settings, console, result, len(source), time.monotonic() - begun)


def _evaluate(settings: Settings, console, codec: "qinco.Codec", source: "qinco.VectorSource") -> None:
    options, steps = inputs.encode_options(settings, codec), settings["prefix"]
    done, scale = qinco.evaluate(codec, source, options, steps, progress=console.progress), inputs.mse_scale(settings)
    result = {"mse": done.mse * scale, "mse_per_step": [mse * scale for mse in done.mse_per_step]}
    _print(settings, console, result, done.num_vectors, done.seconds)


def _print(settings: Settings, console, result: dict, num_vectors: int, seconds: float) -> None:
    result |= {"num_vectors": num_vectors, "seconds": seconds} | inputs.conditions(settings)
    console.print_result(result, settings["json"])
