"""Encoding a source of any size to a file or folder: in shards, by one process or many, resumed after any end.

Every output goes through a folder of shards. It is the result itself, or lies beside the file that it becomes.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.product import ProductCodec
from qinco.codec.run import fingerprint
from qinco.codes import code_dtype
from qinco.config import EncodeOptions
from qinco.errors import ConfigError
from qinco.files import check_output
from qinco.storage.code_store import MANIFEST, CodeStore, Manifest, check_same_codes, read_manifest, shard_rows
from qinco.storage.encoded_set import (
    FILE_SUFFIXES,
    EncodedSet,
    is_folder,
    lists_beside,
    open_encoded_set,
    write_encoded_set,
)
from qinco.storage.npz import npz_part
from qinco.vectors.source import VectorSource


@dataclass(frozen=True)
class Share:
    """This process's part of the shards: number `index` of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_process(cls, index: int = 0, count: int = 1) -> "Share":
        """Share `index` of `count`, cut again among the processes that torchrun started."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return cls(index % count * world + rank, count * world)


def encode_file(
    codec: Codec | ProductCodec,
    source: VectorSource,
    output: str | os.PathLike,
    options: EncodeOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    share: Share | None = None,
    inputs=(),
    on_progress: Callable[[int], None] = lambda done: None,
) -> bool:
    """Encode the vectors of a source to `output`; whether it is complete (other shares may still be at work).

    output:    a folder (a name without suffix), .npy, .ivecs, .raw (packed bits) or .npz (the authors' form); list
               numbers are within a folder or .npz, and beside the others as NAME.lists.npy
    resume:    go on where an earlier call was ended, at whatever instant
    overwrite: replace what is there
    share:     encode this share of the shards only; whoever encodes the last shard makes the output
    inputs:    files that are read and must not be replaced

    Memory is bounded by a block of vectors and the codes of a shard. Raises ConfigError and DataError before any work,
    ConfigError too where `resume` finds codes of another model, source or search rule.
    """
    share = share or Share.of_process()
    options = options or codec.encode_options
    codec.check_dim(source)
    output = _check_name(output)
    folder = output if is_folder(output) else output.with_name(f"{output.name}.shards")
    finished = folder.with_name(f".{folder.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)  # left by a kill after the output was made
    if folder is not output:
        if resume and output.exists() and not folder.exists():
            _check_made(output, codec, source)
            return True
        _check_file(output, codec, overwrite or resume or share.count > 1, inputs)
    store = _open_store(folder, plan(codec, source, options), share, resume, overwrite)
    _encode_shards(store, codec, source, options, share, on_progress)
    with store.lock() as is_there:
        if not is_there:  # another process, whose shard was the last, has made the file
            return True
        if not store.finish():
            return False
        if folder is not output:
            codes = EncodedSet(store.codes, store.lists)
            write_encoded_set(output, codes, codec.config.codebook_size, codec.dim)
            folder.rename(finished)
            shutil.rmtree(finished, ignore_errors=True)
        return True


def plan(codec: Codec | ProductCodec, source: VectorSource, options: EncodeOptions) -> Manifest:
    """What the folder of shards is to hold."""
    return Manifest(
        num_vectors=len(source),
        code_size=codec.code_size,
        codebook_size=codec.config.codebook_size,
        num_lists=codec.config.num_lists,
        dim=codec.dim,
        shard_rows=shard_rows(len(source)),
        codec=codec.fingerprint(),
        source=fingerprint(source),
        search=dataclasses.asdict(options),
    )


def _check_name(output: str | os.PathLike) -> Path:
    path = Path(output)
    if not is_folder(output) and path.suffix.lower() not in FILE_SUFFIXES:
        raise ConfigError(
            f"output={output}: codes are written to {', '.join(FILE_SUFFIXES)} files, or to a folder of shards "
            "(a name without suffix)"
        )
    return path


def _check_made(output: Path, codec, source: VectorSource) -> None:
    """Raise where an output that is to be resumed, and seems to be whole, is of other vectors."""
    there = open_encoded_set(output, codec.code_size, codec.config.codebook_size, codec.is_ivf)
    if there.codes.shape != (len(source), codec.code_size):
        raise ConfigError(
            f"{output} holds codes of shape {there.codes.shape}, not {(len(source), codec.code_size)}: "
            "give overwrite=true without resume to replace it"
        )


def _check_file(output: Path, codec, overwrite: bool, inputs) -> None:
    check_output(output, overwrite=overwrite, inputs=inputs)
    if output.suffix.lower() == ".npz":
        check_output(npz_part(output, 0), overwrite=overwrite, inputs=inputs)
    elif codec.is_ivf:
        check_output(lists_beside(output), overwrite=overwrite, inputs=[*inputs, output])


def _open_store(folder: Path, manifest: Manifest, share: Share, resume: bool, overwrite: bool) -> CodeStore:
    """The folder of shards, new or with what an earlier call left; raises ConfigError where that is not asked for."""
    if folder.is_file():
        raise ConfigError(f"{folder} is a file: give the name of a folder, or a file name that ends in .npy")
    check_output(folder / MANIFEST if folder.exists() else folder, overwrite=True)
    if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is a folder with other things in it: give the name of a new one")
    store = CodeStore(folder, manifest)
    if (folder / MANIFEST).exists():
        if overwrite and not resume:
            if share.count > 1:
                raise ConfigError(f"{folder} exists, and shares cannot overwrite it under each other: remove it first")
            read_manifest(folder)  # only what is a folder of codes is cleared
            store.clear()
        else:
            check_same_codes(folder, read_manifest(folder), manifest)
            mine = range(share.index, manifest.num_shards, share.count)
            if not resume and (share.count == 1 or any(store.has(shard) for shard in mine)):
                there = manifest.num_shards - len(store.missing())
                raise ConfigError(
                    f"{folder} holds {there} of {manifest.num_shards} shards: give resume=true to continue it or "
                    "overwrite=true to begin anew"
                )
    return CodeStore.create(folder, manifest)


def _encode_shards(store: CodeStore, codec, source, options, share: Share, on_progress) -> None:
    manifest = store.manifest
    mine = range(share.index, manifest.num_shards, share.count)
    done = sum(len(manifest.rows(shard)) for shard in mine if store.has(shard))
    on_progress(done)
    for shard in mine:
        if store.has(shard):
            continue
        rows = manifest.rows(shard)
        codes_NM = np.empty((len(rows), manifest.code_size), code_dtype(manifest.codebook_size))
        lists_N = np.empty(len(rows), np.int32) if manifest.num_lists else None
        for first, codes, lists in codec.encode_blocks(source.window(rows.start, rows.stop), options):
            codes_NM[first : first + len(codes)] = codes
            if lists_N is not None:
                lists_N[first : first + len(codes)] = lists
            on_progress(done + first + len(codes))
        store.write(shard, codes_NM, lists_N)
        done += len(rows)
