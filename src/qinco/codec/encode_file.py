"""Encoding a source of any size to a file or folder: in shards, by one process or many, resumed after any end.

Every output goes through a folder of shards: see `encode_place`.
"""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import check_output, exclusive, remove_temporaries
from qinco.codec.codec import Codec
from qinco.codec.encode_place import Place
from qinco.compat.encoded_sets import npz_part
from qinco.config import EncodeOptions, require_int
from qinco.errors import ConfigError
from qinco.packing import code_dtype
from qinco.store.code_files import EncodedSet, lists_beside, open_encoded_set, write_encoded_set
from qinco.store.code_store import (
    CodeStore,
    Manifest,
    check_same_codes,
    is_foreign,
    read_manifest,
    shard_rows,
)
from qinco.vectors.rows import VectorSource, fingerprint

_CHECK_ROWS = 64


@dataclass(frozen=True)
class Share:
    """This process's part of the shards: number `index`, from 0, of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        require_int("shares", self.count)
        require_int("share", self.index, 0, self.count - 1)

    @classmethod
    def of_process(cls, index: int = 0, count: int = 1) -> "Share":
        """Share `index` of `count` (`count` itself is 0), cut again among the processes that torchrun started."""
        found = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not all(map(str.isdecimal, found)) or int(found[0]) >= int(found[1]):
            raise ConfigError(
                f"RANK={found[0]} WORLD_SIZE={found[1]} in the environment: torchrun sets them, or no one"
            )
        rank, world = map(int, found)
        return cls(index % count * world + rank, count * world)

    def shards(self, num_shards: int) -> range:
        return range(self.index, num_shards, self.count)


def encode_file(
    codec: Codec,
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
    overwrite: begin anew, and replace what is there when the new codes are complete; what is complete stays until then
    both:      go on with this very work where it has been begun, or is done; replace other complete codes
    share:     encode this share of the shards only; whoever encodes the last shard makes the output
    inputs:    files that are read and must not be replaced

    Memory is bounded by a block of vectors and the codes of two shards: one is written while the next is encoded.
    Raises ConfigError and DataError before any work, ConfigError too where `resume` finds codes of another model,
    source or search rule, and ResourceError where a shard cannot be written.
    """
    share = share or Share.of_process()
    options = options or codec.encode_options
    codec.check_dim(source)
    options.check_model(codec.config)
    place = Place.of(output)
    manifest = plan(codec, source, options)
    if share.index >= max(1, manifest.num_shards) and not resume:
        return False  # nothing is left for it, and how far the others are it cannot know
    place.prepare(inputs)
    with exclusive(place.lock):
        place.settle()
        folder = place.folder(manifest, resume=resume, overwrite=overwrite and share.count == 1)
        for there in {folder} if place.is_file else {folder, place.output}:
            if is_foreign(there):
                raise ConfigError(f"{there} has other things in it than codes: give the name of a new folder")
        if place.is_file:
            if resume and place.output.exists() and not folder.exists():
                try:
                    _check_made(place.output, codec, source, options)
                    return True
                except ConfigError:
                    if not overwrite:
                        raise
            _check_file(place.output, codec, overwrite or (resume and folder.exists()), inputs)
        store = _open_store(place, CodeStore(folder, manifest), share, resume, overwrite)
    _encode_shards(store, place, codec, source, options, share, on_progress)
    with exclusive(place.lock):
        if not _is_there(store, place):
            return True
        if not store.finish():
            return False
        if place.is_file:
            _make_file(place, store, codec)
        elif store.path != place.output:
            place.replace()
        return True


def plan(codec: Codec, source: VectorSource, options: EncodeOptions) -> Manifest:
    """What the folder of shards is to hold."""
    return Manifest(
        num_vectors=len(source),
        code_size=codec.num_codes,
        codebook_size=codec.config.codebook_size,
        num_lists=codec.config.num_lists,
        dim=codec.dim,
        shard_rows=shard_rows(len(source)),
        codec=codec.fingerprint(),
        source=fingerprint(source),
        search=dataclasses.asdict(options),
    )


def _make_file(place: Place, store: CodeStore, codec) -> None:
    codes = EncodedSet(store.codes, store.lists)
    for file in write_encoded_set(place.output, codes, codec.config.codebook_size, codec.dim):
        remove_temporaries(file)
    place.retire_shards()


def _check_made(output: Path, codec, source: VectorSource, options: EncodeOptions) -> None:
    """Raise where an output that is to be resumed, and seems to be whole, is of other vectors or of another codec.

    The file does not say of which, so some vectors are encoded again; a few codes differ between machines.
    """
    there = open_encoded_set(output, codec.num_codes, codec.config.codebook_size, codec.is_ivf)
    if there.codes.shape != (len(source), codec.num_codes):
        raise ConfigError(
            f"{output} holds codes of shape {there.codes.shape}, not {(len(source), codec.num_codes)}: "
            "give overwrite=true without resume to replace it"
        )
    count, same = min(_CHECK_ROWS, len(source)), 0
    for first, codes in codec.encode_blocks(source.window(0, count), options):
        part = slice(first, first + len(codes))
        equal_N = (codes.codes == there.codes[part]).all(1)
        if codes.has_lists:
            equal_N &= codes.lists == np.asarray(there.lists[part])[:, 0]
        same += int(equal_N.sum())
    if 4 * same < 3 * count:
        raise ConfigError(
            f"{output} holds other codes than this model and search rule give {source.name}: "
            "give overwrite=true without resume to replace it"
        )


def _check_file(output: Path, codec, overwrite: bool, inputs) -> None:
    check_output(output, overwrite=overwrite, inputs=inputs)
    if output.suffix.lower() == ".npz":
        check_output(npz_part(output, 0), overwrite=overwrite, inputs=inputs)
    elif codec.is_ivf:
        check_output(lists_beside(output), overwrite=overwrite, inputs=[*inputs, output])


def _open_store(place: Place, store: CodeStore, share: Share, resume: bool, overwrite: bool) -> CodeStore:
    """The folder of shards, new or with what an earlier call left; raises ConfigError where that is not asked for."""
    folder, manifest = store.path, store.manifest
    if store.exists():
        there = read_manifest(folder)
        untouched = not there.complete and not any(map(CodeStore(folder, there).has, range(there.num_shards)))
        waits = there.complete and not place.is_file and folder != place.output  # to take the place of the output
        if share.count == 1 and (untouched or (overwrite and not resume and not waits)):
            store.clear()
        else:
            check_same_codes(folder, there, manifest)
            mine = share.shards(manifest.num_shards)
            if not (resume or waits) and (share.count == 1 or any(store.has(shard) for shard in mine)):
                count = manifest.num_shards - len(store.missing())
                remedy = "give overwrite=true" if share.count == 1 else "remove it (shares cannot overwrite each other)"
                raise ConfigError(
                    f"{folder} holds {count} of {manifest.num_shards} shards: give resume=true to continue it or "
                    f"{remedy} to begin anew"
                )
    return CodeStore.create(folder, manifest)


def _is_there(store: CodeStore, place: Place) -> bool:
    """Whether a store is still there, and not what another process has made of it.

    Raises ConfigError where another run has replaced it.
    """
    place.settle()
    if not store.exists():
        return False
    check_same_codes(store.path, read_manifest(store.path), store.manifest)
    return True


def _encode_shards(store: CodeStore, place: Place, codec, source, options, share: Share, on_progress) -> None:
    """Encode the shards that are missing; each is written by a thread while the next one is encoded.

    A shard that the thread has been given is written even where an exception, or Ctrl-C, ends the work meanwhile.
    """
    manifest = store.manifest
    mine = share.shards(manifest.num_shards)
    missing = [shard for shard in mine if not store.has(shard)]
    done = sum(map(len, map(manifest.rows, mine))) - sum(map(len, map(manifest.rows, missing)))
    on_progress(done)
    writing: Future | None = None
    blocks = codec.encode_blocks(source, options, ranges=list(map(manifest.rows, missing)))
    with ThreadPoolExecutor(1, "write shards") as writer, closing(blocks):
        for shard in missing:
            rows = manifest.rows(shard)
            codes_NM = np.empty((len(rows), manifest.code_size), code_dtype(manifest.codebook_size))
            lists_N = np.empty(len(rows), np.int32) if manifest.num_lists else None
            stop = rows.start
            while stop < rows.stop:
                first, codes = next(blocks)
                stop = first + len(codes)
                codes_NM[first - rows.start : stop - rows.start] = codes.codes
                if lists_N is not None:
                    lists_N[first - rows.start : stop - rows.start] = codes.lists
                on_progress(done + stop - rows.start)
                if writing is not None and writing.done() and not writing.result():
                    return
            done += len(rows)
            last, writing = writing, writer.submit(_write, store, place, shard, codes_NM, lists_N)
            if last is not None and not last.result():  # one shard may wait while another is written, and no more
                return
        if writing is not None:
            writing.result()


def _write(store: CodeStore, place: Place, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> bool:
    """Write a shard to a store that is still there; whether it is."""
    with exclusive(place.lock):
        if not _is_there(store, place):
            return False
        if not store.has(shard):  # a process may have been given the same share
            store.write(shard, codes_NM, lists_N)
        return True
