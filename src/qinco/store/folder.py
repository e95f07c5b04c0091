"""A folder that holds one index: arrays that numpy can map, other files, and a manifest that says what they are.

The names of an index's files carry its token, as in `codes-s1f0c3a9e5b72.npy`, so that a new index is written beside
the old one. The moment at which `manifest.json` is replaced is the moment at which the new index is there; what has
another token is removed then. A process that is killed leaves the old index or the new one, and files that the next
one removes.
"""

import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.atomic import WRITER, exclusive, flush_folder, remove_temporaries, write_atomically, write_to_disk
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.code_store import LOCK, MANIFEST
from qinco.vectors.mapped import file_size, map_file, read_start, release_pages
from qinco.vectors.npy_bin import npy_header

KIND = "index"
FORMAT_VERSION = 1
VERIFIED_BYTES = 256 << 20  # whose checksums are computed when an index is opened: a tenth of a second
_MOST_MANIFEST_BYTES = 1 << 20
_MOST_AXES = 8
_PIECE = 1 << 24

_TOKEN = r"s[0-9a-f]{12}"
_NAME = r"([a-z][a-z0-9_]{0,19})(\.[a-z0-9]{1,12})"
_OURS = rf"\.?[a-z][a-z0-9_]{{0,19}}-({_TOKEN})({WRITER})?\.[a-z0-9]{{1,12}}"
_BEGUN = rf"{re.escape(LOCK)}|\.manifest{WRITER}\.json|{_OURS}"
_DTYPE = r"\|[biu]1|<[iuf][248]"


@dataclass(frozen=True)
class StoredFile:
    """What the manifest says of a file: its size, its CRC-32 (zlib's), and, where it is an array, type and shape."""

    bytes: int
    crc32: int
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class IndexManifest:
    """What a folder holds.

    token:    which of the files there belong to the index
    settings: a JSON object of whoever wrote the index
    files:    by their names without the token; arrays are the `.npy` files
    """

    token: str
    settings: dict
    files: dict[str, StoredFile]


@dataclass(frozen=True)
class IndexFolder:
    """An index that has been opened.

    settings: what the writer gave
    arrays:   by name; memory maps that cannot be written, or in memory
    files:    paths of the other files, by name with suffix. They vanish when the index is replaced, the arrays do not.
    """

    path: Path
    settings: dict
    arrays: dict[str, np.ndarray]
    files: dict[str, Path]


class IndexWriter:
    """Collects the parts of a new index; made by `write_index`. Each name is given once.

    Names are up to 20 lower-case letters, digits and underscores; those of files have a suffix, too.
    """

    def __init__(self, folder: Path, settings: dict):
        self.settings = settings
        self._folder = folder
        self._token = f"s{secrets.token_hex(6)}"
        self._parts: dict[str, dict] = {}

    def array(self, name: str, dtype, shape: tuple) -> np.memmap:
        """A new array on disk, to be filled before the block ends and never again. Its room is taken at once."""
        with self._create(name, dtype, shape) as file:
            offset = file.tell()
            # Where a full disk is noticed: filling a map would end the process.
            os.posix_fallocate(file.fileno(), 0, offset + math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file.name, dtype, "r+", offset, shape)

    def put(self, name: str, array: np.ndarray) -> None:
        """Write an array that is there: of integers, floats or truth values, with one axis or more."""
        rows = max(1, _PIECE // max(1, array[:1].nbytes))
        with self._create(name, array.dtype, array.shape) as file:
            for start in range(0, len(array), rows):
                file.write(np.ascontiguousarray(array[start : start + rows]))
                release_pages(array[start : start + rows])

    def file(self, name: str) -> Path:
        """The path at which the caller is to write the file `name` before the block ends."""
        assert re.fullmatch(_NAME, name) and name not in self._parts
        self._parts[name] = {}
        return _path_of(self._folder, name, self._token)

    def _create(self, name: str, dtype, shape: tuple) -> BinaryIO:
        """The file of an array, with its header."""
        dtype, shape = np.dtype(dtype), tuple(map(int, shape))
        assert re.fullmatch(_DTYPE, dtype.str) and 1 <= len(shape) <= _MOST_AXES, f"{dtype} {shape} cannot be stored"
        file = self.file(f"{name}.npy").open("xb")
        self._parts[f"{name}.npy"] = {"dtype": dtype.str, "shape": shape}
        file.write(npy_header(shape, dtype))
        return file

    def _commit(self) -> None:
        for name, fields in self._parts.items():
            path = _path_of(self._folder, name, self._token)
            fields |= {"bytes": path.stat().st_size, "crc32": _checksum(path)}
            write_to_disk(path)  # what was written through maps included
        flush_folder(self._folder)
        content = {"kind": KIND, "format_version": FORMAT_VERSION, "token": self._token}
        content |= {"settings": self.settings, "files": self._parts}
        content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: keys are strings
        content["crc32"] = _checksum_of_content(content)
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        assert len(text) <= _MOST_MANIFEST_BYTES, "settings are no place for data"
        with write_atomically(self._folder / MANIFEST) as temporary:
            temporary.write_text(text)


@contextmanager
def write_index(path: str | os.PathLike, settings: dict) -> Iterator[IndexWriter]:
    """Yield a writer whose parts become the index at `path` when the block ends without an exception.

    settings: a JSON object, read when the block ends

    The folder is made where there is none; after an exception it is as it was. One process at a time is in such a
    block; others wait. Raises ConfigError as `check_index_output` does, and ResourceError where the disk refuses.
    """
    path = Path(path)
    check_index_output(path)
    try:
        is_new = not path.exists()
        path.mkdir(exist_ok=True)
        try:
            with exclusive(path / LOCK):
                check_index_output(path)
                _remove_others(path)
                try:
                    writer = IndexWriter(path, settings)
                    yield writer
                    writer._commit()
                finally:
                    _remove_others(path)
        finally:
            if is_new:
                with suppress(OSError):  # it holds the index
                    path.rmdir()
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error if error.filename else error.strerror or error}") from error


def read_index(path: str | os.PathLike, load: Callable = lambda folder: folder, *, mmap: bool = True):
    """What `load` makes of the index in a folder; the opened folder itself by default.

    load: is called again where another process has replaced the index meanwhile, so that it gets all files of one
    mmap: map the arrays and verify the checksums of the smallest files, VERIFIED_BYTES in all; else read the arrays
          into memory and verify everything

    Raises DataError that names the file which is missing, truncated, damaged, foreign or of a newer format.
    """
    path = Path(path)
    while True:
        manifest = read_index_manifest(path)
        try:
            return load(_open(path, manifest, mmap))
        except (DataError, OSError):
            if read_index_manifest(path) == manifest:
                raise


def read_index_manifest(path: str | os.PathLike) -> IndexManifest:
    """What the index in a folder consists of, by its manifest alone; raises DataError for any other folder."""
    file = Path(path) / MANIFEST
    try:
        if not file.exists():
            raise DataError(f"{path} is no index: it has no {MANIFEST}")
        content = _read_content(file)
        version = content.get("format_version")
        if content.get("kind") != KIND:
            raise DataError(f"{path} is no index: its {MANIFEST} is of another kind")
        if type(version) is int and version > FORMAT_VERSION:
            raise DataError(f"{file} is of format version {version!r:.20}, newer than {FORMAT_VERSION}: update qinco")
        return _parse(content)
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable index: its {MANIFEST} is damaged ({error})") from None


def is_index(path: str | os.PathLike) -> bool:
    """Whether a folder's manifest calls it an index, of any version, whole or damaged."""
    try:
        return _read_content(Path(path) / MANIFEST).get("kind") == KIND
    except (OSError, ValueError, RecursionError):
        return False


def check_index_output(path: str | os.PathLike) -> None:
    """Raise ConfigError unless an index can be written to `path`: a new or empty folder, or one that holds an index."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"the folder {path.parent} of {path} does not exist: create it first")
    try:
        there = [file.name for file in path.iterdir()]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(f"{path} is a file, and an index is a folder: give another name") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if MANIFEST in there:
        try:
            read_index_manifest(path)
        except DataError as error:
            raise ConfigError(f"{path} would be replaced, and {error}: remove it, or give another name") from None
    elif any(not re.fullmatch(_BEGUN, name) for name in there):
        raise ConfigError(f"{path} is a folder with other files than an index: give the name of a new one")


def _path_of(folder: Path, name: str, token: str) -> Path:
    stem, suffix = re.fullmatch(_NAME, name).groups()
    return folder / f"{stem}-{token}{suffix}"


def _remove_others(folder: Path) -> None:
    """Remove our files that are not of the index which is there: of older ones, and of what was killed or failed."""
    remove_temporaries(folder / MANIFEST)
    token = read_index_manifest(folder).token if (folder / MANIFEST).exists() else None
    for file in list(folder.iterdir()):
        match = re.fullmatch(_OURS, file.name)
        if match and match[1] != token and file.is_file():
            file.unlink(missing_ok=True)


def _open(path: Path, manifest: IndexManifest, mmap: bool) -> IndexFolder:
    arrays, files, left = {}, {}, VERIFIED_BYTES
    for name, stored in sorted(manifest.files.items(), key=lambda item: item[1].bytes):
        file = _path_of(path, name, manifest.token)
        offset = _check_file(file, stored)
        left -= stored.bytes
        if (left >= 0 or not mmap) and _checksum(file) != stored.crc32:
            raise DataError(f"{file} is damaged: its checksum is not that of {MANIFEST}")
        if offset is None:
            files[name] = file
        else:
            mapped = map_file(file, np.dtype(stored.dtype), stored.shape, offset)
            arrays[name.removesuffix(".npy")] = mapped if mmap else np.array(mapped)
    return IndexFolder(path, manifest.settings, arrays, files)


def _check_file(path: Path, stored: StoredFile) -> int | None:
    """Where an array's values begin in its file, None where the file is no array; raises DataError."""
    if not path.exists():
        raise DataError(f"{path} is missing: the index is damaged")
    size = file_size(path)
    if size != stored.bytes:
        state = "truncated" if size < stored.bytes else "damaged"
        raise DataError(f"{path} is {state}: it has {size} bytes, {MANIFEST} says {stored.bytes}")
    if stored.dtype is None:
        return None
    offset = size - math.prod(stored.shape) * np.dtype(stored.dtype).itemsize
    header = npy_header(stored.shape, np.dtype(stored.dtype))
    # As long as it is there: how much is padded has varied between versions of numpy.
    expected = header[:8] + (offset - 10).to_bytes(2, "little") + header[10:].rstrip().ljust(offset - 11) + b"\n"
    if read_start(path, offset) != expected:
        raise DataError(f"{path} is damaged: it is no npy file of {stored.dtype} {stored.shape}, as {MANIFEST} says")
    return offset


def _read_content(file: Path) -> dict:
    if file_size(file) > _MOST_MANIFEST_BYTES:
        raise ValueError(f"it has more than {_MOST_MANIFEST_BYTES} bytes")
    content = json.loads(read_start(file, _MOST_MANIFEST_BYTES))
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _parse(content: dict) -> IndexManifest:
    found = content.pop("crc32", None)
    if found != _checksum_of_content(content) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError("its checksum or its version is wrong")
    token, settings, files = (content.get(field) for field in ("token", "settings", "files"))
    if not isinstance(token, str) or not re.fullmatch(_TOKEN, token):
        raise ValueError(f"token is {token!r:.100}")
    if not isinstance(settings, dict) or not isinstance(files, dict):
        raise ValueError("settings and files are no objects")
    return IndexManifest(token, settings, {name: _parse_file(name, fields) for name, fields in files.items()})


def _parse_file(name: str, fields) -> StoredFile:
    fields = fields if isinstance(fields, dict) else {}
    size, crc32, dtype, shape = map(fields.get, ("bytes", "crc32", "dtype", "shape"))
    is_array = name.endswith(".npy")
    shape = shape if is_array and isinstance(shape, list) else []
    is_sound = all(type(count) is int and 0 <= count < 1 << 48 for count in (size, crc32, *shape))
    if is_sound and is_array:
        is_sound = isinstance(dtype, str) and re.fullmatch(_DTYPE, dtype) and 1 <= len(shape) <= _MOST_AXES
        is_sound = is_sound and 10 < size - math.prod(shape) * np.dtype(dtype).itemsize < 1 << 16
    if not is_sound or not re.fullmatch(_NAME, name):
        raise ValueError(f"what it says of {name!r:.100} cannot be")
    return StoredFile(size, crc32, dtype, tuple(shape)) if is_array else StoredFile(size, crc32)


def _checksum_of_content(content: dict) -> int:
    """CRC-32 of the manifest without this number, as compact JSON with sorted keys in ASCII."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return zlib.crc32(text.encode("ascii"))


def _checksum(path: Path) -> int:
    crc32 = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                crc32 = zlib.crc32(piece, crc32)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return crc32
