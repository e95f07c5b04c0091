"""The tasks between vectors and codes, and between codec files: encode, decode, convert, ivf_centroids."""

import time
from pathlib import Path

import torch

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.codec.centroids import MAX_POINTS_PER_CENTROID, kmeans
from qinco.codec.convert import convert_codec
from qinco.codec.decode_file import decode_file
from qinco.codec.files import FileResult, encode_file
from qinco.training.processes import Processes


def encode(settings: Settings, console: Console) -> None:
    """Vectors to codes, in shards: a folder of them, or the file that is made of them."""
    codec = inputs.open_codec(settings)
    source = inputs.open_trainset(settings) if settings["encode_trainset"] else inputs.open_database(settings)
    done = encode_file(
        codec,
        source,
        settings["output"],
        inputs.encode_options(settings, codec),
        resume=settings["resume"],
        overwrite=settings["overwrite"],
        shard=settings["shard"],
        inputs=inputs.files_read(settings),
        progress=console.progress,
    )
    if not done.complete:
        console.info("this share is done; the output is complete when all the others are")
        if Processes.count_by_environment() > 1:  # the process that completes the output reports for all
            return
    lists = {} if done.lists is None else {"lists": str(done.lists)}
    result = {"output": settings["output"], "complete": done.complete, **lists, "num_vectors": done.num_vectors}
    result |= {"encoded": done.num_done, "bytes_per_vector": codec.bytes_per_vector} | _times(done, "encode_us")
    console.print_result(result | inputs.machine(settings), settings["json"])


def decode(settings: Settings, console: Console) -> None:
    """Codes of any form to a file of vectors."""
    codec = inputs.open_codec(settings)
    done = decode_file(
        codec,
        settings["codes"],
        settings["output"],
        lists=settings["lists"],
        num_steps=inputs.prefix(settings, codec),
        precision=inputs.decode_precision(settings),
        resume=settings["resume"],
        overwrite=settings["overwrite"],
        inputs=inputs.files_read(settings),
        progress=console.progress,
    )
    result = {"output": settings["output"], "num_vectors": done.num_vectors, "decoded": done.num_done}
    console.print_result(result | _times(done, "decode_us") | inputs.machine(settings), settings["json"])


def convert(settings: Settings, console: Console) -> None:
    """A codec file of one form to another: .pt is the authors' second format, .safetensors ours."""
    codec = inputs.open_codec(settings)
    options = inputs.encode_options(settings, codec)
    has_rule = settings["A"] is not None or settings["C"] is not None
    converted = convert_codec(
        codec.with_options(options),
        settings["output"],
        options if has_rule else None,
        overwrite=settings["overwrite"],
        inputs=inputs.files_read(settings),
    )
    result = {
        "output": settings["output"],
        "bytes": Path(settings["output"]).stat().st_size,
        "bytes_per_vector": converted.bytes_per_vector,
        "encode": converted.encode_options.to_dict(),
    }
    console.print_result(result, settings["json"])


def _times(done: FileResult, name: str) -> dict:
    return {"seconds": done.seconds, name: done.seconds / done.num_done * 1e6 if done.num_done else None}


def ivf_centroids(settings: Settings, console: Console) -> None:
    """Coarse centroids by k-means, in data space: float32 (V, D)."""
    source, count = inputs.open_trainset(settings), settings["ivf_K"]
    check_output(settings["output"], overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    begun = time.monotonic()
    kmeans(
        source,
        count,
        seed=settings["seed"],
        device=inputs.device_of(settings),
        output=settings["output"],
        overwrite=settings["overwrite"],
        progress=console.progress,
    )
    result = {
        "output": settings["output"],
        "num_lists": count,
        "dim": source.dim,
        "num_vectors": min(len(source), MAX_POINTS_PER_CENTROID * count),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | {"threads": torch.get_num_threads()}, settings["json"])
