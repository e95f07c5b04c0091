"""Codes of many vectors in a folder: shards that numpy can map, and a manifest that says what they are.

A shard appears under its name only when it is whole, so work that was killed goes on at the first that is missing.
Shape suffixes: N vectors, M codes of a vector.
"""

import dataclasses
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import WRITER, write_atomically
from qinco.config import EncodeOptions, field_keys
from qinco.errors import ConfigError, DataError
from qinco.packing import code_dtype
from qinco.vectors.concat_rows import ConcatRows
from qinco.vectors.formats import open_array, write_vectors

KIND = "codes"
FORMAT_VERSION = 1
MANIFEST, LOCK = "manifest.json", ".lock"
_MOST_SHARDS, _LEAST_ROWS, _MOST_ROWS = 1024, 1 << 12, 1 << 20
_MOST_MANIFEST_BYTES, _MOST_SHARDS_READ = 1 << 20, 1 << 17
_SHARD_NAME = r"(codes|lists)-\d{5,}"
_SHARD = rf"{_SHARD_NAME}\.npy"
_TEMPORARY = rf"\.({_SHARD_NAME}|manifest){WRITER}\.(npy|json)"


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
        if not store.exists():
            store._write_manifest()
        return store

    def exists(self) -> bool:
        return (self.path / MANIFEST).exists()

    def clear(self) -> None:
        """Remove what this class has written to the folder; the manifest last, by which a killed call is taken up."""
        for file in _find(self.path, _SHARD):
            file.unlink(missing_ok=True)
        self._remove_temporaries()
        (self.path / MANIFEST).unlink(missing_ok=True)

    def codes_path(self, shard: int) -> Path:
        return self.path / f"codes-{shard:05}.npy"

    def lists_path(self, shard: int) -> Path:
        return self.path / f"lists-{shard:05}.npy"

    def has(self, shard: int) -> bool:
        """Whether a shard is there. Its codes come last, so its lists are there too."""
        return self.codes_path(shard).exists()

    def missing(self) -> list[int]:
        there = {file.name for file in self.path.iterdir()}
        return [shard for shard in range(self.manifest.num_shards) if self.codes_path(shard).name not in there]

    def write(self, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> None:
        if lists_N is not None:
            write_vectors(self.lists_path(shard), lists_N.astype(np.int32)[:, None])
        write_vectors(self.codes_path(shard), codes_NM)

    def finish(self) -> bool:
        """Mark the store complete and remove what killed processes left, if all shards are there; whether they are."""
        if self.missing():
            return False
        self._remove_temporaries()
        self.manifest = dataclasses.replace(self.manifest, complete=True)
        self._write_manifest()
        return True

    def _remove_temporaries(self) -> None:
        for file in _find(self.path, _TEMPORARY):
            file.unlink(missing_ok=True)

    @property
    def codes(self) -> ConcatRows:
        """All codes, uint8 or uint16 (N, M), mapped from their shards."""
        dtype = code_dtype(self.manifest.codebook_size)
        return self._join(self.codes_path, (self.manifest.num_vectors, self.manifest.code_size), dtype)

    @property
    def lists(self) -> ConcatRows | None:
        """All list numbers, int32 (N, 1); None where the codec has no lists."""
        if not self.manifest.num_lists:
            return None
        return self._join(self.lists_path, (self.manifest.num_vectors, 1), np.dtype(np.int32))

    def _join(self, name_of, shape: tuple[int, int], dtype: np.dtype) -> ConcatRows:
        def load(shard: int) -> np.ndarray:
            rows, path = len(self.manifest.rows(shard)), name_of(shard)
            try:
                array = open_array(path)
            finally:
                self._check_not_replaced()
            if array.shape != (rows, shape[1]) or array.dtype != dtype:
                raise DataError(
                    f"{path} is {array.dtype} {array.shape}, the manifest says {dtype} {(rows, shape[1])}: "
                    "the set is damaged"
                )
            return array

        starts = [self.manifest.rows(shard).start for shard in range(self.manifest.num_shards)]
        return ConcatRows(load, [*starts, shape[0]], shape[1], dtype, str(self.path))

    def _check_not_replaced(self) -> None:
        """Raise DataError where a shard that has just been opened may be one of other codes than the manifest's."""
        try:
            there = read_manifest(self.path)
        except DataError:  # nothing is there, so it was not replaced either
            return
        if dataclasses.replace(there, complete=self.manifest.complete) != self.manifest:
            raise DataError(f"{self.path} was replaced by other codes while it was read: read it again")

    def _write_manifest(self) -> None:
        content = {"kind": KIND, "format_version": FORMAT_VERSION, **dataclasses.asdict(self.manifest)}
        with write_atomically(self.path / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def is_foreign(path: Path) -> bool:
    """Whether something else than a store is there; one whose manifest is still being written is a store."""
    begun = rf"{re.escape(LOCK)}|\.manifest{WRITER}\.json"
    try:
        others = [file for file in path.iterdir() if not re.fullmatch(begun, file.name)]
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return bool(others) and not (path / MANIFEST).exists()


def other_files(path: Path) -> list[Path]:
    """What lies in a folder of codes and is nothing that a store, or a lock on it, has written there."""
    own = set(_find(path, rf"{_SHARD}|{_TEMPORARY}|{re.escape(MANIFEST)}|{re.escape(LOCK)}"))
    return [file for file in path.iterdir() if file not in own]


def _find(folder: Path, pattern: str) -> list[Path]:
    return [file for file in folder.iterdir() if re.fullmatch(pattern, file.name)]


def read_manifest(path: str | os.PathLike) -> Manifest:
    """The manifest of a folder of codes; raises DataError for any other folder."""
    try:
        manifest = _parse_manifest(Path(path) / MANIFEST)
        for field in dataclasses.fields(Manifest):
            value = getattr(manifest, field.name)
            if type(value) is not field.type or (field.type is int and not 0 <= value < 1 << 48):
                raise ValueError(f"{field.name} is {value!r:.100}")
        if min(manifest.code_size, manifest.codebook_size - 1, manifest.shard_rows, manifest.dim) < 1:
            raise ValueError("it has a size of zero")
        if manifest.num_shards > _MOST_SHARDS_READ:
            raise ValueError(f"it claims {manifest.num_shards} shards")
        return manifest
    except DataError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is no folder of codes: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} is no folder of codes: its {MANIFEST} is damaged ({reason}); remove it to begin anew"
        ) from None


def _parse_manifest(file: Path) -> Manifest:
    if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe or a device might never end
        raise ValueError("it is no file")
    with file.open("rb") as stream:
        text = stream.read(_MOST_MANIFEST_BYTES + 1)
    if len(text) > _MOST_MANIFEST_BYTES:
        raise ValueError(f"it has more than {_MOST_MANIFEST_BYTES} bytes")
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("kind", None) != KIND:
        raise DataError(f"{file.parent} holds no codes")
    version = content.pop("format_version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"format_version is {version!r:.100}")
    if version > FORMAT_VERSION:
        raise DataError(f"{file} is of format version {version}, this qinco reads up to {FORMAT_VERSION}: update it")
    names = {field.name for field in dataclasses.fields(Manifest)}
    if wrong := sorted(names ^ set(content)):
        raise ValueError(f"{wrong!s:.100} are missing or unknown")
    return Manifest(**content)


_DIFFERENCES = {"codec": "another codec", "source": "other vectors", "search": "searched with {old} there, {new} here"}


def _rule(value) -> str:
    """A search rule as it is typed, `C=64 B=32`; anything else as it is."""
    if not isinstance(value, dict):
        return str(value)
    settings = {
        field_keys(EncodeOptions).get(name, name): setting for name, setting in value.items() if setting is not None
    }
    return " ".join(f"{name}={setting}" for name, setting in settings.items() if setting != "auto")


def check_same_codes(path, there: Manifest, here: Manifest) -> None:
    """Raise ConfigError where a folder holds other codes than those about to be made."""
    differences = []
    for field in dataclasses.fields(Manifest):
        old, new = getattr(there, field.name), getattr(here, field.name)
        if old != new and field.name != "complete":
            shown = _DIFFERENCES.get(field.name, "{name} {old} there, {new} here")
            differences.append(shown.format(name=field.name, old=_rule(old), new=_rule(new)))
    if differences:
        raise ConfigError(
            f"{path} holds codes of another run ({'; '.join(differences)}): repeat it with the same model, vectors and "
            "search rule, or remove it (overwrite=true without resume, in one process)"
        )
