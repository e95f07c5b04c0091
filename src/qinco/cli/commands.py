"""What each task does."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.describe import describe
from qinco.cli.overrides import Settings
from qinco.cli.training import train
from qinco.codec.codec import Codec
from qinco.codec.evaluate import evaluate, measure_time
from qinco.codec.product import ProductCodec
from qinco.codec.run import split_validation
from qinco.codes import code_dtype
from qinco.errors import ConfigError
from qinco.files import check_output
from qinco.maths.metrics import recall
from qinco.search import exhaustive
from qinco.vectors.formats import VectorWriter, open_array
from qinco.vectors.source import VectorSource


def run(settings: Settings, console: Console) -> None:
    """Do what the command line asks for; results go to standard output, everything else to standard error."""
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    _TASKS[settings.task](settings, console)


def evaluate_database(settings: Settings, console: Console) -> None:
    """Mean squared error over the database."""
    codec = inputs.open_codec(settings)
    _evaluate(settings, console, codec, inputs.open_database(settings))


def evaluate_validation(settings: Settings, console: Console) -> None:
    """Mean squared error over the last training vectors."""
    codec = inputs.open_codec(settings)
    wanted = settings["ds.valset"] if settings.given("ds.valset") else None
    _, valid = split_validation(inputs.open_trainset(settings), wanted, 1)
    _evaluate(settings, console, codec, valid)


def _evaluate(settings: Settings, console: Console, codec: Codec | ProductCodec, source: VectorSource) -> None:
    codec.check_dim(source)
    rule, scale = inputs.encode_options(settings, codec), inputs.mse_scale(settings)
    with console.progress(len(source), "vector", "evaluating") as progress:
        done = evaluate(codec, source, rule, _prefix(settings, codec), progress.update)
    result = {
        "mse": done.mse * scale,
        "mse_per_step": [mse * scale for mse in done.mse_per_step],
        "num_vectors": done.num_vectors,
        "seconds": done.seconds,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def time_codec(settings: Settings, console: Console) -> None:
    """Microseconds a vector, encoding and decoding."""
    codec = inputs.open_codec(settings)
    source = inputs.open_database(settings)
    codec.check_dim(source)
    begun = time.monotonic()
    encode_us, decode_us = measure_time(
        codec, source, inputs.encode_options(settings, codec), _decode_precision(settings)
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
    rule, steps = inputs.encode_options(settings, codec), _prefix(settings, codec)
    begun = time.monotonic()
    with console.progress(len(source), "vector", "encoding and searching") as progress:

        def decoded():
            for first, codes, lists in codec.encode_blocks(source, rule, steps):
                yield first, codec.decode(codes, lists, precision=_decode_precision(settings))
                progress.update(first + len(codes))

        _, ids_QR = exhaustive.search(queries_QD, decoded(), 100, inputs.device_of(settings))
    result = {
        "recall": {str(rank): share for rank, share in recall(ids_QR, nearest_Q).items()},
        "num_vectors": len(source),
        "num_queries": len(queries_QD),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def encode(settings: Settings, console: Console) -> None:
    """Vectors to a file of codes, and of list numbers for an IVF codec."""
    codec = inputs.open_codec(settings)
    source = inputs.open_trainset(settings) if settings["encode_trainset"] else inputs.open_database(settings)
    codec.check_dim(source)
    rule = inputs.encode_options(settings, codec)
    output = Path(settings["output"])
    _require_suffix(output, (".npy", ".ivecs"), "codes")
    check_output(output, overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    dtype = np.dtype(np.int32) if output.suffix == ".ivecs" else code_dtype(codec.config.codebook_size)
    lists_path = Path(settings["lists"] or f"{output.with_suffix('')}.lists.npy")
    if codec.is_ivf:
        read = [*inputs.files_read(settings, "lists"), output]
        check_output(lists_path, overwrite=settings["overwrite"], inputs=read)
    begun = time.monotonic()
    with VectorWriter(output, codec.code_size, dtype, len(source)) as writer:
        _encode_into(writer, lists_path, codec, source, rule, console)
    seconds = time.monotonic() - begun
    result = {"output": str(output)} | ({"lists": str(lists_path)} if codec.is_ivf else {})
    result |= {
        "num_vectors": len(source),
        "bytes_per_vector": codec.bytes_per_vector,
        "seconds": seconds,
        "encode_us": seconds / max(1, len(source)) * 1e6,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _encode_into(writer: VectorWriter, lists_path: Path, codec, source, rule, console: Console) -> None:
    all_lists = []
    with console.progress(len(source), "vector", "encoding") as progress:
        for first, codes, lists in codec.encode_blocks(source, rule):
            writer.append(codes)
            if lists is not None:
                all_lists.append(lists)
            progress.update(first + len(codes))
    if codec.is_ivf:
        with VectorWriter(lists_path, 1, np.dtype(np.int32), len(source)) as lists_writer:
            for lists in all_lists:
                lists_writer.append(lists[:, None])


def decode(settings: Settings, console: Console) -> None:
    """A file of codes to a file of vectors."""
    codec = inputs.open_codec(settings)
    codes = open_array(settings["codes"])
    lists = None if settings["lists"] is None else np.asarray(open_array(settings["lists"]))[:, 0]
    codec.check_codes(codes, lists)
    if settings["prefix"] is not None:
        codes = codec.prefix(codes, _prefix(settings, codec))
    output = check_output(settings["output"], overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    _require_suffix(output, (".npy", ".fvecs"), "vectors")
    begun = time.monotonic()
    with (
        VectorWriter(output, codec.dim, np.dtype(np.float32), len(codes)) as writer,
        console.progress(len(codes), "vector", "decoding") as progress,
    ):
        for first, block in codec.decode_blocks(codes, lists, _decode_precision(settings)):
            writer.append(block)
            progress.update(first + len(block))
    seconds = time.monotonic() - begun
    result = {
        "output": str(output),
        "num_vectors": len(codes),
        "seconds": seconds,
        "decode_us": seconds / max(1, len(codes)) * 1e6,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def info(settings: Settings, console: Console) -> None:
    """What each file holds."""
    results = [describe(path) for path in settings["file"]]
    if settings["json"] and len(results) > 1:
        console.print_result({result["file"]: result for result in results}, True)
        return
    for result in results:
        console.print_result(result, settings["json"])


def _prefix(settings: Settings, codec: Codec | ProductCodec) -> int | None:
    steps, prefix = codec.config.num_steps, settings["prefix"]
    if prefix is not None and prefix > steps:
        raise ConfigError(f"prefix={prefix} is above the model's {steps} steps")
    return prefix


def _decode_precision(settings: Settings) -> str:
    """What is returned is float32 unless bf16 is asked for by name."""
    return "bf16" if settings["precision"] == "bf16" else "float32"


def _require_suffix(path: Path, suffixes: tuple[str, ...], content: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"output={path}: {content} are written to {' or '.join(suffixes)} files in this version")


_TASKS: dict[str, Callable[[Settings, Console], None]] = {
    "train": train,
    "eval": evaluate_database,
    "eval_valset": evaluate_validation,
    "eval_time": time_codec,
    "search": search,
    "encode": encode,
    "decode": decode,
    "info": info,
}
