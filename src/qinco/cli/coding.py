"""The tasks between vectors and codes, and between codec files: encode, decode, convert, ivf_centroids."""

import time
from pathlib import Path

import numpy as np
import torch

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.codec import Codec, ProductCodec
from qinco.codec.encode_file import Share, encode_file
from qinco.codec.run import check_values
from qinco.config import checkpoint_search
from qinco.errors import ConfigError, DataError
from qinco.files import check_output
from qinco.maths.clustering import coarse_kmeans
from qinco.memory import free_memory
from qinco.storage.code_store import read_manifest
from qinco.storage.codec_file import CHECKPOINT_SUFFIX
from qinco.storage.encoded_set import EncodedSet, lists_beside, open_encoded_set
from qinco.training.codebooks import sample
from qinco.training.processes import Processes
from qinco.vectors.formats import VectorWriter, write_vectors

_VECTOR_SUFFIXES = (".npy", ".fvecs", ".fbin")
_CHECK_ROWS = 1 << 20
_ITERATIONS = 20
_POINTS_PER_CENTROID, _FEWEST_POINTS = 256, 39  # what faiss trains on, and below which it warns


def encode(settings: Settings, console: Console) -> None:
    """Vectors to codes, in shards: a folder of them, or the file that they become."""
    codec = inputs.open_codec(settings)
    source = inputs.open_trainset(settings) if settings["encode_trainset"] else inputs.open_database(settings)
    codec.check_dim(source)
    rule = inputs.encode_options(settings, codec)
    share = Share.of_process(*(settings["shard"] or (0, 1)))
    begun = time.monotonic()
    first: list[int] = []  # what an earlier call had done
    with console.progress(len(source) // share.count, "vector", "encoding") as progress:

        def report(done: int) -> None:
            if not first:
                first.append(done)
                progress.start = done
            progress.update(done)

        try:
            complete = encode_file(
                codec,
                source,
                settings["output"],
                rule,
                resume=settings["resume"],
                overwrite=settings["overwrite"],
                share=share,
                inputs=inputs.files_read(settings),
                on_progress=report,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "the shards that are done are kept; the same command with resume=true continues"
            ) from None
    encoded = progress.done - (first or [0])[0]
    seconds = time.monotonic() - begun
    if not complete:
        console.info(f"share {share.index} of {share.count} is done; the set is complete when the others are")
        if Processes.count_by_environment() > 1:  # the process that completes the set reports for all
            return
    result = {"output": settings["output"], "complete": complete}
    beside = lists_beside(settings["output"])
    if codec.is_ivf and complete and Path(settings["output"]).suffix.lower() in (".npy", ".ivecs", ".raw"):
        result["lists"] = str(beside)
    result |= {
        "num_vectors": len(source),
        "encoded": encoded,
        "bytes_per_vector": codec.bytes_per_vector,
        "seconds": seconds,
        "encode_us": seconds / encoded * 1e6 if encoded else None,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def decode(settings: Settings, console: Console) -> None:
    """Codes of any form to a file of vectors."""
    codec = inputs.open_codec(settings)
    codes = _open_codes(settings, codec)
    prefix = inputs.prefix(settings, codec)
    read = [*inputs.files_read(settings), lists_beside(settings["codes"])]
    output = check_output(settings["output"], overwrite=settings["overwrite"], inputs=read)
    if output.resolve().is_relative_to(Path(settings["codes"]).resolve()):
        raise ConfigError(f"output={output} lies in the folder of codes that is read: give it another place")
    if output.suffix.lower() not in _VECTOR_SUFFIXES:
        raise ConfigError(f"output={output}: vectors are written to {', '.join(_VECTOR_SUFFIXES)} files")
    begun = time.monotonic()
    with (
        VectorWriter(output, codec.dim, np.dtype(np.float32), len(codes)) as writer,
        console.progress(len(codes), "vector", "decoding") as progress,
    ):
        for codes_NM, lists_N in codes.blocks(codec.block_rows):
            columns = codes_NM if prefix is None else codec.prefix(codes_NM, prefix)
            for _, block in codec.decode_blocks(columns, lists_N, inputs.decode_precision(settings)):
                writer.append(block)
            progress.update(writer.rows_written)
    seconds = time.monotonic() - begun
    result = {
        "output": str(output),
        "num_vectors": len(codes),
        "seconds": seconds,
        "decode_us": seconds / len(codes) * 1e6 if len(codes) else None,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _open_codes(settings: Settings, codec: Codec | ProductCodec) -> EncodedSet:
    """The codes of `codes=`, all of them checked: the first pass is quick, and nothing is written before it."""
    path = settings["codes"]
    if Path(path).is_dir() and read_manifest(path).codec != codec.fingerprint():
        raise DataError(f"{path} holds codes of another codec than {settings['model']}: give their own")
    codes = open_encoded_set(path, codec.code_size, codec.config.codebook_size, codec.is_ivf, settings["lists"])
    if len(codes) == 0:
        raise DataError(f"{path} holds no codes")
    try:
        for codes_NM, lists_N in codes.blocks(_CHECK_ROWS):
            codec.check_codes(codes_NM, lists_N)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return codes


def convert(settings: Settings, console: Console) -> None:
    """A codec file of one form to another: .pt is the authors' second format, .safetensors ours."""
    codec = inputs.open_codec(settings)
    output = Path(settings["output"])
    if output.suffix.lower() not in (CHECKPOINT_SUFFIX, ".safetensors"):
        raise ConfigError(f"output={output}: codecs are written to .safetensors (ours) or .pt (the authors') files")
    check_output(output, overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    rule = inputs.encode_options(settings, codec)
    if output.suffix.lower() == CHECKPOINT_SUFFIX and rule.num_pairs is not None and settings["C"] is None:
        config = codec.config
        known = checkpoint_search(config.codebook_size, config.has_preselector, config.starts_from_coarse)
        console.warn(
            f"the authors' code does not know C={rule.num_pairs} B={rule.beam_width}: A={known.num_candidates} "
            f"B={known.beam_width} are stored; give A= and B= for others"
        )
        rule = known
    codec.with_options(rule).save(output)
    result = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "bytes_per_vector": codec.bytes_per_vector,
        "encode": rule.to_dict(),
    }
    console.print_result(result, settings["json"])


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
