"""Codes of many vectors in a folder: shards that numpy can map, and a manifest that says what they are.

A shard appears under its name only when it is whole, so work that was killed goes on at the first that is missing.
Shape suffixes: N vectors, M codes of a vector.
"""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.codes import code_dtype
from qinco.errors import ConfigError, DataError
from qinco.files import write_atomically
from qinco.storage.joined import JoinedRows
from qinco.vectors.formats import open_array, write_vectors

KIND = "codes"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MOST_SHARDS, _LEAST_ROWS, _MOST_ROWS = 1024, 1 << 12, 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a folder of codes holds; everything but `complete` is settled before the first vector is encoded.

    num_vectors:   N
    code_size:     columns of the code arrays
    codebook_size: K, the codes' upper bound
    num_lists:     V, the list numbers' upper bound; 0 where there are none
    dim:           D of the vectors
    shard_rows:    vectors of a shard; the last has what is left
    codec:         fingerprint of the codec
    source:        fingerprint of the vectors
    search:        A, C, B, precision and engine that the codes were searched with
    complete:      whether all shards are there
    """

    num_vectors: int
    code_size: int
    codebook_size: int
    num_lists: int
    dim: int
    shard_rows: int
    codec: str
    source: str
    search: dict
    complete: bool = False

    @property
    def num_shards(self) -> int:
        return -(-self.num_vectors // self.shard_rows)

    def rows(self, shard: int) -> range:
        """The vectors of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_vectors))


def shard_rows(num_vectors: int) -> int:
    """Vectors of a shard: about a thousand shards, of a size that is soon encoded and not too small for a file."""
    wanted = -(-num_vectors // _MOST_SHARDS)
    return min(max(_LEAST_ROWS, 1 << (wanted - 1).bit_length()), _MOST_ROWS)


class CodeStore:
    """A folder of codes. Make one with `open` to read it, or `create` to fill it."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: str | os.PathLike) -> "CodeStore":
        """A store whose shards are all there; raises DataError for any other folder."""
        path = Path(path)
        manifest = read_manifest(path)
        store = cls(path, manifest)
        if not manifest.complete:
            there = manifest.num_shards - len(store.missing())
            raise DataError(f"{path} is not complete: {there} of {manifest.num_shards} shards are there, resume it")
        if missing := store.missing():
            raise DataError(f"{store.codes_path(missing[0])} is missing: the set is damaged")
        return store

    @classmethod
    def create(cls, path: str | os.PathLike, manifest: Manifest) -> "CodeStore":
        """A new store, or what is there of the same one."""
        path = Path(path)
        path.mkdir(exist_ok=True)
        store = cls(path, manifest)
        if not (path / MANIFEST).exists():
            store._write_manifest()
        return store

    def clear(self) -> None:
        """Remove what this class has written to the folder, the manifest first."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        for pattern in ("codes-*.npy", "lists-*.npy", ".codes-*.npy", ".lists-*.npy", f".{Path(MANIFEST).stem}.*"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def codes_path(self, shard: int) -> Path:
        return self.path / f"codes-{shard:05}.npy"

    def lists_path(self, shard: int) -> Path:
        return self.path / f"lists-{shard:05}.npy"

    def has(self, shard: int) -> bool:
        """Whether a shard is there. Its codes come last, so its lists are there too."""
        return self.codes_path(shard).exists()

    def missing(self) -> list[int]:
        return [shard for shard in range(self.manifest.num_shards) if not self.has(shard)]

    def write(self, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> None:
        """Write a shard, and remove what an earlier attempt at it that was killed has left."""
        for leftover in self.path.glob(f".*-{shard:05}.*"):
            leftover.unlink(missing_ok=True)
        if lists_N is not None:
            write_vectors(self.lists_path(shard), lists_N.astype(np.int32)[:, None])
        write_vectors(self.codes_path(shard), codes_NM)

    def finish(self) -> bool:
        """Mark the store complete if all shards are there; whether they are."""
        if self.missing():
            return False
        self.manifest = dataclasses.replace(self.manifest, complete=True)
        self._write_manifest()
        return True

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Wait until no other process holds the store; yields whether it is still there then.

        The system gives the lock back when a process dies.
        """
        try:
            folder = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield (self.path / MANIFEST).exists()
        finally:
            os.close(folder)

    @property
    def codes(self) -> JoinedRows:
        """All codes, uint8 or uint16 (N, M), mapped from their shards."""
        dtype = code_dtype(self.manifest.codebook_size)
        return self._join(self.codes_path, (self.manifest.num_vectors, self.manifest.code_size), dtype)

    @property
    def lists(self) -> JoinedRows | None:
        """All list numbers, int32 (N, 1); None where the codec has no lists."""
        if not self.manifest.num_lists:
            return None
        return self._join(self.lists_path, (self.manifest.num_vectors, 1), np.dtype(np.int32))

    def _join(self, name_of, shape: tuple[int, int], dtype: np.dtype) -> JoinedRows:
        def load(shard: int) -> np.ndarray:
            rows, path = len(self.manifest.rows(shard)), name_of(shard)
            array = open_array(path)
            if array.shape != (rows, shape[1]) or array.dtype != dtype:
                raise DataError(
                    f"{path} is {array.dtype} {array.shape}, the manifest says {dtype} {(rows, shape[1])}: "
                    "the set is damaged"
                )
            return array

        starts = [self.manifest.rows(shard).start for shard in range(self.manifest.num_shards)]
        return JoinedRows(load, [*starts, shape[0]], shape[1], dtype, str(self.path))

    def _write_manifest(self) -> None:
        content = {"kind": KIND, "format_version": FORMAT_VERSION, **dataclasses.asdict(self.manifest)}
        with write_atomically(self.path / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_manifest(path: str | os.PathLike) -> Manifest:
    """The manifest of a folder of codes; raises DataError for any other folder."""
    file = Path(path) / MANIFEST
    try:
        if file.stat().st_size > 1 << 20:
            raise DataError(f"{file} is damaged: it has {file.stat().st_size} bytes")
        content = json.loads(file.read_text())
        if content.pop("kind") != KIND:
            raise DataError(f"{path} holds no codes")
        version = content.pop("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise DataError(
                f"{file} is of format version {version}, this qinco reads up to {FORMAT_VERSION}: update it"
            )
        manifest = Manifest(**content)
        for field in dataclasses.fields(Manifest):
            value = getattr(manifest, field.name)
            if type(value) is not field.type or (field.type is int and not 0 <= value < 1 << 48):
                raise ValueError(f"{field.name} is {value!r}")
        if min(manifest.code_size, manifest.shard_rows, manifest.dim) < 1 or manifest.num_shards > 1 << 20:
            raise ValueError("impossible sizes")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = f"it has no {MANIFEST}" if missing else f"its {MANIFEST} is damaged: {error}"
        raise DataError(f"{path} is no folder of codes: {reason}") from None


def check_same_codes(path, there: Manifest, here: Manifest) -> None:
    """Raise ConfigError where a folder holds other codes than those about to be made."""
    differences = [
        f"{field.name} {getattr(there, field.name)!r} there, {getattr(here, field.name)!r} here"
        for field in dataclasses.fields(Manifest)
        if field.name != "complete" and getattr(there, field.name) != getattr(here, field.name)
    ]
    if differences:
        raise ConfigError(
            f"{path} holds codes of another run ({'; '.join(differences)}): repeat it with the same model, vectors and "
            "search rule, or give overwrite=true without resume"
        )
