"""The tasks between vectors and codes, and between codec files: encode, decode, convert, ivf_centroids."""

import time
from pathlib import Path

import torch

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.codec.convert import convert_codec
from qinco.codec.decode_file import decode_file
from qinco.codec.files import FileResult, encode_file
from qinco.codec.plan import check_values
from qinco.errors import ConfigError, DataError
from qinco.machine import free_memory
from qinco.maths.clustering import coarse_kmeans
from qinco.training.codebooks import sample
from qinco.training.processes import Processes
from qinco.vectors.formats import write_vectors

_ITERATIONS = 20
_POINTS_PER_CENTROID, _FEWEST_POINTS = 256, 39  # what faiss trains on, and below which it warns


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
    source = inputs.open_trainset(settings)
    count, output = settings["ivf_K"], Path(settings["output"])
    if output.suffix.lower() != ".npy":
        raise ConfigError(f"output={output}: centroids are written to a .npy file")
    check_output(output, overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    if len(source) < count:
        raise DataError(
            f"{source.name} has {len(source)} vectors, fewer than ivf_K={count} centroids: give more vectors"
        )
    check_values(source)
    if len(source) < _FEWEST_POINTS * count:
        console.warn(
            f"{len(source):,} training vectors for {count:,} centroids: {_FEWEST_POINTS * count:,} or more give better "
            "centroids"
        )
    begun = time.monotonic()
    x_ND = sample(source, _sample_rows(source, count, console), settings["seed"])
    with console.progress(_ITERATIONS, "iteration", "k-means") as progress:
        centroids_VD = coarse_kmeans(
            x_ND,
            count,
            iterations=_ITERATIONS,
            seed=settings["seed"],
            device=inputs.device_of(settings),
            on_iteration=lambda done, mse: progress.update(done, mse=mse),
        )
    write_vectors(output, centroids_VD)
    result = {
        "output": str(output),
        "num_lists": count,
        "dim": source.dim,
        "num_vectors": len(x_ND),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | {"threads": torch.get_num_threads()}, settings["json"])


def _sample_rows(source, count: int, console: Console) -> int:
    """How many vectors k-means takes: enough for each centroid, and no more than half of the memory holds."""
    wanted = min(len(source), _POINTS_PER_CENTROID * count)
    held = max(count, free_memory() // 2 // (4 * source.dim))
    if wanted > held:
        console.warn(f"k-means takes {held:,} of {wanted:,} vectors, as many as half of the free memory holds")
    return min(wanted, held)
