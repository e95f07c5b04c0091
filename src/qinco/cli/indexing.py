"""The tasks that make a search index of codes: build_index and train_pairwise_decoder.

Shape suffixes: N vectors, S of them drawn at random, D dimension, M codes of a vector, V lists.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.decoding import Sample, draw, fit_lookup, joined, open_pairwise
from qinco.cli.encoded import (
    Encoded,
    check_same_codec,
    open_encoded,
    open_encoded_vectors,
    read_list_centroids,
    single_list,
    write_lists_of_decoded,
)
from qinco.cli.interpolation import interpolate
from qinco.cli.overrides import Settings
from qinco.compat.faiss_files import FaissIndex, check_index_key, write_faiss
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import LIST_STREAMS, PairwiseDecoder, check_codebook_size, fit_bytes, table_bytes
from qinco.errors import ConfigError, ResourceError
from qinco.machine import free_memory
from qinco.search import build as building
from qinco.search.index_file import CODEC, put_pairwise, put_tables, settings_of
from qinco.search.metric import Metric
from qinco.search.options import SearchOptions
from qinco.search.scan import ENTRIES
from qinco.search.tables import SearchTables
from qinco.store.code_files import is_directory, is_folder
from qinco.store.decoder import save_pairwise
from qinco.store.folder import check_folder_output, write_folder
from qinco.store.manifest import MANIFEST, is_kind

FAISS_SUFFIX = ".faissindex"
_DECODER_SUFFIXES = (".safetensors", ".pt")
_SAME_LENGTH = 0.01


def build_index(settings: Settings, console: Console) -> None:
    """Look-up tables fitted to training vectors and their codes, and an index of the database's codes."""
    is_faiss = _check_index_place(settings)
    codec = None if settings["model"] is None else inputs.open_codec(settings)
    train, database = (open_encoded(settings, name, codec) for name in ("encoded_trainset", "encoded_db"))
    check_same_codec(database, train)
    if not is_faiss and database.codebook_size > ENTRIES:
        raise ConfigError(
            f"{database.path} holds codes of K={database.codebook_size}, and an index of ours those of one byte, "
            f"K={ENTRIES} at most: write a faiss file, output=NAME{FAISS_SUFFIX}"
        )
    source, train = open_encoded_vectors(settings, train)
    database = database.limit(settings["ds.db"])
    centroids_VD = read_list_centroids(settings, codec, database, source.dim)
    key = _index_key(settings, 1 if centroids_VD is None else len(centroids_VD), database) if is_faiss else None
    pairwise = open_pairwise(settings, *database.sizes, source.dim, centroids_VD)
    begun = time.monotonic()
    with TemporaryFile(dir=Path(settings["output"]).absolute().parent) as scratch:
        sample = draw(settings, console, codec, source, train, centroids_VD)
        metric = _metric(settings, sample)
        if centroids_VD is None:
            centroids_VD = sample.mean()
            sample = replace(sample, lists_S=np.zeros(len(sample.rows_S), np.int32))
        database = _in_lists(database, codec, centroids_VD, console, scratch)
        with console.progress(len(database), "vector", "checking codes") as progress:
            for number, _ in enumerate(database.blocks(len(centroids_VD))):
                progress.update(min(len(database), (number + 1) * building.BLOCK_ROWS))
        # Codes without lists describe whole vectors, and centroids only where to look for them; faiss adds them to all.
        partition_VD = None if train.has_lists or is_faiss else centroids_VD
        added_VD = centroids_VD if partition_VD is None else None
        lookup, mse = fit_lookup(settings, console, sample, database.sizes, added_VD, moves_centroids=not is_faiss)
        fitted = time.monotonic()
        if is_faiss:
            bytes_per_vector = _write_faiss(settings, console, key, lookup, database, metric)
        else:
            tables = SearchTables.fit(lookup, sample.codes_SM, sample.lists_S, metric, partition_VD)
            bytes_per_vector = _write_folder(settings, console, tables, database, codec, pairwise)
    ended = time.monotonic()
    result = {
        "output": settings["output"],
        "num_vectors": len(database),
        "num_lists": len(centroids_VD),
        "bytes_per_vector": bytes_per_vector,
        "mse_lookup": mse,
        "seconds_by_stage": {"tables": fitted - begun, "vectors": ended - fitted},
        "seconds": ended - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def train_pairwise_decoder(settings: Settings, console: Console) -> None:
    """Tables of pairs of codes, fitted to what look-up tables leave of training vectors."""
    output = Path(settings["output"])
    if output.suffix.lower() not in _DECODER_SUFFIXES:
        raise ConfigError(
            f"output={output}: a pairwise decoder is written to a .safetensors (ours) or .pt (the authors') file"
        )
    check_output(output, overwrite=settings["overwrite"], inputs=inputs.files_read(settings))
    codec = None if settings["model"] is None else inputs.open_codec(settings)
    train = open_encoded(settings, "encoded_trainset", codec)
    check_codebook_size(train.codebook_size)
    source, train = open_encoded_vectors(settings, train)
    centroids_VD = read_list_centroids(settings, codec, train, source.dim)
    streams = train.code_size + (0 if centroids_VD is None else LIST_STREAMS)
    num_pairs = min(max(1, round(settings["n_pairwise_codebooks"] * train.code_size)), streams * (streams - 1) // 2)
    dtype = np.dtype(settings["tables"]).type
    begun = time.monotonic()
    sample = draw(settings, console, codec, source, train, centroids_VD)
    count = int((~sample.is_held_S).sum())
    _announce_pairs(console, num_pairs, train, source.dim, count, dtype)
    moves = output.suffix.lower() == ".safetensors"  # the authors' form adds to the codec's centroids
    lookup, lookup_mse = fit_lookup(settings, console, sample, train.sizes, centroids_VD, moves_centroids=moves)
    target = sample
    if codec is not None:
        # What a good codec decodes is all that codes can tell, without the noise of what they cannot.
        decoded = sample.decoded(codec)
        other, _ = fit_lookup(settings, console, decoded, train.sizes, centroids_VD, moves_centroids=moves)
        if sample.mse(other.decode)[0] * inputs.mse_scale(settings) <= lookup_mse:
            lookup, target = other, decoded
            console.info(f"the pairs are fitted to what {settings['model']} decodes")
    with console.progress(1, "table", "fitting pairs") as progress:

        def report(done: int, rounds: int, mse: float) -> None:
            progress.total = rounds
            progress.update(done, residual=mse * inputs.mse_scale(settings))

        decoder = PairwiseDecoder.fit(
            *joined(target.blocks(~sample.is_held_S)),
            lookup,
            num_pairs=num_pairs,
            dtype=dtype,
            seed=settings["seed"],
            on_round=report,
        )
    mse = sample.mse(decoder.decode)[0] * inputs.mse_scale(settings)
    console.info(
        "mse_lookup and mse_pairwise are of training vectors that no table, but perhaps the codec, was fitted to"
    )
    save_pairwise(output, decoder)
    result = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "num_pairs": decoder.num_pairs,
        "num_vectors": count,
        "mse_lookup": lookup_mse,
        "mse_pairwise": mse,
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _announce_pairs(console: Console, num_pairs: int, train: Encoded, dim: int, count: int, dtype: type) -> None:
    """Say what fitting pairs takes; raises ResourceError where that is not free."""
    tables = table_bytes(num_pairs, train.codebook_size, dim, dtype)
    needed = fit_bytes(count, num_pairs, train.codebook_size, dim, dtype) + 4 * dim * count
    size = f"tables of {tables / 2**20:,.0f} MiB, and {(needed - tables) / 2**20:,.0f} MiB while they are fitted"
    free = free_memory()
    if needed > free:
        raise ResourceError(
            f"{num_pairs} pairs at {count:,} vectors take {size}, and {free / 2**20:,.0f} MiB are free: give fewer "
            "pairs (n_pairwise_codebooks=), tables=float16, or fewer vectors (search.aq_training_samples=)"
        )
    console.info(f"fitting {num_pairs} pairs of codes at most to {count:,} vectors: {size}")


# Checks


def _check_index_place(settings: Settings) -> bool:
    """Whether the index is to be a faiss file; raises ConfigError unless `output` can be written, and as what."""
    output, read = Path(settings["output"]), inputs.files_read(settings)
    if output.suffix.lower() == FAISS_SUFFIX and not is_directory(output):
        if settings["metric"] == "cosine":
            raise ConfigError("metric=cosine cannot be stored in a faiss file: write a folder, output=NAME")
        if settings["pairwise_decoder"] is not None:
            raise ConfigError("pairwise_decoder= has no place in a faiss file: write a folder, or give it to search")
        check_output(output, overwrite=settings["overwrite"], inputs=read)
        return True
    if not is_folder(output) and not is_kind(output, "index"):
        raise ConfigError(
            f"output={output}: an index is written to a folder (a name without suffix) or a {FAISS_SUFFIX} file"
        )
    if settings.given("search.index_key"):
        raise ConfigError(f"search.index_key= is the kind of a {FAISS_SUFFIX} file, and output={output} is a folder")
    check_output(output / MANIFEST if is_directory(output) else output, overwrite=True, inputs=read)
    check_folder_output(output, "index")
    if is_kind(output, "index") and not settings["overwrite"]:
        raise ConfigError(f"{output} holds an index: give overwrite=true to replace it")
    if inside := [name for name in read if Path(name).resolve().is_relative_to(output.resolve())]:
        raise ConfigError(
            f"{inside[0]} is read and lies in {output}, which would be replaced: give output another name"
        )
    return False


def _metric(settings: Settings, sample: Sample) -> Metric:
    """What near means; similarities of directions are for vectors of one length, because codes know no other."""
    if settings["metric"] != "cosine":
        return Metric(settings["metric"])
    lengths = np.linalg.norm(next(sample.blocks(np.ones_like(sample.is_held_S)))[2], axis=1)
    low, high = float(lengths.min()), float(lengths.max())
    if not 0 < high * (1 - _SAME_LENGTH) <= low:
        raise ConfigError(
            f"metric=cosine is for codes of vectors of one length, and those in {sample.source.name} have {low:.4g} to "
            f"{high:.4g}: divide vectors by their lengths before encode"
        )
    return Metric("cosine", float(lengths.mean()))


def _index_key(settings: Settings, num_lists: int, encoded: Encoded) -> str:
    """`search.index_key=` with what the codes say in place of `${ivf_K}`, `${M}` and `${K}`."""
    key = f"IVF{num_lists}_HNSW32,RQ{encoded.code_size}x{encoded.codebook_size.bit_length() - 1}_Nqint8"
    if settings.given("search.index_key"):
        known = {"ivf_K": num_lists, "M": encoded.code_size, "K": encoded.codebook_size}
        key = interpolate(settings["search.index_key"], lambda name: str(known[name]), "search.index_key")
    check_index_key(key, num_lists, *encoded.sizes)
    return key


# Vectors of the database


def _in_lists(encoded: Encoded, codec, centroids_VD: np.ndarray, console: Console, scratch: BinaryIO) -> Encoded:
    """The codes in their lists: their own, a single one, or those of the nearest centroids of decoded vectors."""
    if encoded.has_lists:
        return encoded
    if len(centroids_VD) == 1:
        return encoded.with_lists(single_list(len(encoded)))
    with console.progress(len(encoded), "vector", "assigning vectors to lists") as progress:
        return encoded.with_lists(write_lists_of_decoded(encoded, codec, centroids_VD, scratch, progress.update))


def _write_folder(
    settings: Settings,
    console: Console,
    tables: SearchTables,
    encoded: Encoded,
    codec,
    pairwise: PairwiseDecoder | None,
) -> float:
    """Write an index of ours, its vectors straight to disk; bytes a vector."""
    fingerprint = encoded.fingerprint if codec is None else codec.fingerprint()
    about = settings_of(tables, SearchOptions(), len(encoded), fingerprint)
    with (
        write_folder(settings["output"], "index", about) as writer,
        console.progress(len(encoded), "vector", "filling lists") as progress,
    ):
        put_tables(writer, tables)
        if codec is not None:
            codec.save(writer.file(CODEC))
        if pairwise is not None:
            put_pairwise(writer, pairwise, tables)
        lists = building.fill_lists(
            tables, lambda: encoded.blocks(tables.num_lists), range(len(encoded)),
            lambda _, done, __: progress.update(done), writer.array,
        )  # fmt: skip
        writer.put("starts", lists.starts)
        return lists.nbytes / len(lists)


def _write_faiss(
    settings: Settings, console: Console, key: str, lookup: LookupDecoder, encoded: Encoded, metric: Metric
) -> float:
    """Write a faiss file; bytes a vector."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        start = 0
        for codes_NM, lists_N in encoded.blocks(lookup.num_lists):
            yield codes_NM, lists_N, np.arange(start, start + len(codes_NM))
            start += len(codes_NM)

    write_faiss(
        settings["output"], key, lookup.centroids_VD, lookup.tables_MKD, blocks, len(encoded),
        inner_product=metric.scans_inner_products, progress=console.progress,
    )  # fmt: skip
    return FaissIndex.open(settings["output"]).bytes_per_vector
