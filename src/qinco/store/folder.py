"""A durable folder: files whose names carry the token of a generation, and a manifest that is replaced last.

The files of a generation have names such as `codes-s1f0c3a9e5b72.npy`, so a new generation is written beside the old
one. It takes the old one's place at the moment when `manifest.json` is replaced; files of other tokens are then
removed. A killed process leaves the old generation or the new one, and files that the next writer removes. This needs
nothing of the file system but atomic renames of files, so it works on NFS.

`write_folder` writes a generation in one block. One that takes longer is *pending* meanwhile: `pending.json` says what
it will hold, and any process can add files to it, meanwhile or after a crash (`begin`, `read_pending`).
"""

import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from qinco.atomic import WRITER, exclusive, flush_folder, remove_temporaries, write_atomically, write_to_disk
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.vectors.mapped import file_size, map_file, read_start, release_pages
from qinco.vectors.npy_bin import npy_header

MANIFEST, PENDING, LOCK = "manifest.json", "pending.json", ".lock"
VERSIONS = {"index": 1, "codes": 2, "decoding": 1}  # the newest format version of each kind
VERIFIED_BYTES = 256 << 20  # checksums are computed on opening, smallest files first: a tenth of a second
MAX_MANIFEST_BYTES = 1 << 24
_MAX_AXES = 8
_PIECE = 1 << 24
_NOUNS = {"index": "an index", "codes": "a folder of codes", "decoding": "a decoding"}

_TOKEN = r"s[0-9a-f]{12}"
_NAME = r"([a-z][a-z0-9_]{0,19})(\.[a-z0-9]{1,12})"
_OURS = rf"(\.?)[a-z][a-z0-9_]{{0,19}}-({_TOKEN})({WRITER})?\.[a-z0-9]{{1,12}}"
_STARTED = rf"{re.escape(LOCK)}|{re.escape(PENDING)}|\.(manifest|pending){WRITER}\.json|{_OURS}"
_DTYPE = r"\|[biu]1|<[iuf][248]"
_Manifest = TypeVar("_Manifest")
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class StoredFile:
    """What a manifest says of a file: size, CRC-32 (zlib's) and, for an array, dtype and shape."""

    bytes: int
    crc32: int
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """What a generation holds.

    Attributes:
        token: which files of the folder belong to it.
        settings: JSON object of whoever wrote it.
        files: by name without the token; `.npy` files are arrays. Empty if the generation is pending.
    """

    token: str
    settings: dict
    files: dict[str, StoredFile]


@dataclass(frozen=True)
class OpenFolder:
    """A generation that has been opened.

    Attributes:
        path: the folder.
        settings: what the writer gave.
        arrays: by name without suffix; read-only memory maps, or arrays in memory.
        files: paths of the other files, by name. They vanish when the folder is replaced; the arrays do not.
    """

    path: Path
    settings: dict
    arrays: dict[str, np.ndarray]
    files: dict[str, Path]


class FolderWriter:
    """Collects the files of a new generation. Each name is given once.

    Names are up to 20 lower-case letters, digits and underscores; those of files have a suffix, too. All methods but
    `has` are called with the folder's lock held. 
    """

    def __init__(self, folder: Path, kind: str, settings: dict, token: str | None = None):
        self.folder, self.kind, self.settings = folder, kind, settings
        self.token = token or f"s{secrets.token_hex(6)}"
        self._parts: dict[str, dict] = {}

    def array(self, name: str, dtype, shape: tuple) -> np.memmap:
        """A new array on disk, to be filled before the block ends. Its space is allocated at once."""
        with self._create(name, dtype, shape) as file:
            offset = file.tell()
            # A full disk is noticed here: filling a map would end the process.
            os.posix_fallocate(file.fileno(), 0, offset + math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file.name, dtype, "r+", offset, shape)

    def put(self, name: str, array: np.ndarray) -> None:
        """Write an array of integers, floats or truth values with one axis or more."""
        rows = max(1, _PIECE // max(1, array[:1].nbytes))
        with self._create(name, array.dtype, array.shape) as file:
            for start in range(0, len(array), rows):
                file.write(np.ascontiguousarray(array[start : start + rows]))
                release_pages(array[start : start + rows])

    def file(self, name: str) -> Path:
        """The path at which the caller writes the file `name` before the block ends."""
        assert re.fullmatch(_NAME, name) and name not in self._parts
        self._parts[name] = {}
        return self.path_of(name)

    def add(self, name: str, array: np.ndarray) -> None:
        """Write an array of a pending generation, whole or not at all."""
        with write_atomically(self.path_of(f"{name}.npy")) as temporary, temporary.open("wb") as file:
            file.write(npy_header(array.shape, array.dtype))
            file.write(np.ascontiguousarray(array))

    def expect(self, name: str, dtype, shape: tuple) -> None:
        """Declare an array that `add` has written, in this process or another."""
        self._parts[f"{name}.npy"] = _array_fields(dtype, shape)

    def path_of(self, name: str) -> Path:
        """The path of a file, by its name with suffix."""
        return path_of(self.folder, name, self.token)

    def commit(self) -> None:
        """Make this the folder's generation: all files are there."""
        for name, entry in self._parts.items():
            path = self.path_of(name)
            entry |= {"bytes": path.stat().st_size, "crc32": checksum(path)}
            write_to_disk(path)  # including what was written through maps
        flush_folder(self.folder)
        _write_manifest(self.folder / MANIFEST, self.kind, self.token, self.settings, self._parts)

    def _create(self, name: str, dtype, shape: tuple) -> BinaryIO:
        """The file of an array, with its header."""
        entry = _array_fields(dtype, shape)
        file = self.file(f"{name}.npy").open("xb")
        self._parts[f"{name}.npy"] = entry
        file.write(npy_header(entry["shape"], np.dtype(dtype)))
        return file


@contextmanager
def write_folder(path: str | os.PathLike, kind: str, settings: dict) -> Iterator[FolderWriter]:
    """Yield a writer whose files become the folder's generation when the block ends without an exception.

    The folder is created if it is missing; after an exception it is as it was. Only one process at a time is in such a
    block; others wait.

    Args:
        path: the folder.
        kind: a key of VERSIONS.
        settings: a JSON object, read when the block ends.

    Raises:
        ConfigError: as `check_folder_output` does.
        ResourceError: the disk is full or cannot be written.

    Example:
        >>> with write_folder("segment", "index", {"dim": 4}) as writer:
        ...     writer.put("ids", np.arange(10))
        >>> read_folder("segment", "index").arrays["ids"].shape
        (10,)
    """
    path = Path(path)
    check_folder_output(path, kind)
    try:
        is_new = not path.exists()
        path.mkdir(exist_ok=True)
        try:
            with exclusive(path / LOCK):
                check_folder_output(path, kind)
                remove_stale(path, kind)
                try:
                    writer = FolderWriter(path, kind, settings)
                    yield writer
                    writer.commit()
                finally:
                    remove_stale(path, kind)
        finally:
            if is_new:
                with suppress(OSError):  # it holds the new generation
                    path.rmdir()
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error if error.filename else error.strerror or error}") from error


def begin(folder: Path, kind: str, settings: dict) -> Manifest:
    """Begin a pending generation, in place of another pending one; with the lock held.

    The token is derived from `settings`, so that the same work gives the same files. Files of earlier attempts are
    removed; the folder's complete generation stays until `FolderWriter.commit`.

    Args:
        folder: an existing folder, for which `check_folder_output` has passed.
        kind: a key of VERSIONS.
        settings: a JSON object that says what the generation will hold.

    Returns:
        Its manifest, without files.
    """
    current = _token_of(folder, kind, MANIFEST)
    (folder / PENDING).unlink(missing_ok=True)
    remove_stale(folder, kind)
    text = json.dumps(settings, sort_keys=True)
    tokens = (f"s{sha256(f'{text}{number}'.encode()).hexdigest()[:12]}" for number in range(2))
    token = next(token for token in tokens if token != current)
    _write_manifest(folder / PENDING, kind, token, settings, {})
    return Manifest(token, settings, {})


def read_pending(folder: Path, kind: str) -> Manifest | None:
    """The generation that is being written by `begin`; None if there is none. Raises DataError if it is damaged."""
    if not (folder / PENDING).exists():
        return None
    pending = read_manifest(folder, kind, PENDING)
    return None if pending.token == _token_of(folder, kind, MANIFEST) else pending  # a kill came after its commit


def remove_stale(folder: Path, kind: str, others: str | None = None) -> None:
    """Remove our files that belong to no generation, as killed and failed writers leave them; the lock is held.

    Args:
        folder: the folder.
        kind: a key of VERSIONS.
        others: pattern of names that are stale as well.
    """
    tokens = [_token_of(folder, kind, name) for name in (MANIFEST, PENDING)]
    if tokens[0] is not None and tokens[0] == tokens[1]:
        (folder / PENDING).unlink(missing_ok=True)
    for name in (MANIFEST, PENDING):
        remove_temporaries(folder / name)
    for file in list(folder.iterdir()):
        match = re.fullmatch(_OURS, file.name)
        is_stale = (match and (match[1] or match[2] not in tokens)) or (others and re.fullmatch(others, file.name))
        if is_stale and file.is_file():
            file.unlink(missing_ok=True)


def read_folder(
    path: str | os.PathLike,
    kind: str,
    load: Callable[[OpenFolder], Any] = lambda folder: folder,
    *,
    mmap: bool = True,
):
    """Open the generation of a folder.

    Args:
        path: the folder.
        kind: a key of VERSIONS.
        load: gets the opened folder, and is called again if another process has replaced it meanwhile, so that all
            files it sees are of one generation.
        mmap: map the arrays, and verify the checksums of the smallest files, VERIFIED_BYTES in all; otherwise read
            the arrays into memory and verify everything.

    Returns:
        What `load` returns: the opened folder itself by default.

    Raises:
        DataError: names the file that is missing, truncated, damaged, foreign or of a newer format.
    """
    path = Path(path)
    return read_current(lambda: read_manifest(path, kind), lambda manifest: load(_open(path, manifest, mmap)))


def read_current(read: Callable[[], _Manifest], load: Callable[[_Manifest], _Loaded]) -> _Loaded:
    """What `load` makes of the manifest that `read` gives; again if the manifest was replaced while `load` failed."""
    while True:
        manifest = read()
        try:
            return load(manifest)
        except (DataError, OSError):
            if read() == manifest:
                raise


def read_manifest(path: str | os.PathLike, kind: str, name: str = MANIFEST) -> Manifest:
    """What the generation in a folder consists of; raises DataError for any other folder."""
    file = Path(path) / name
    if not os.path.lexists(file):
        raise DataError(f"{path} is not {_NOUNS[kind]}: it has no {name}")
    content = read_content(file, kind)
    try:
        return _parse(content, VERSIONS[kind])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}") from None


def read_content(file: Path, kind: str) -> dict:
    """The JSON object in a file, whose `kind` and `format_version` are as expected or older.

    Raises:
        DataError: the file is missing, damaged, of another kind or of a newer version.
    """
    try:
        content = _read_object(file)
        found = content.get("format_version")
        if content.get("kind") != kind:
            raise DataError(f"{file} is not that of {_NOUNS[kind]}: its kind is {content.get('kind')!r:.50}")
        if type(found) is not int or found < 1:
            raise ValueError(f"format_version is {found!r:.50}")
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error!s:.200}") from None
    if found > VERSIONS[kind]:
        raise DataError(f"{file} has format version {found!r:.20}, newer than {VERSIONS[kind]}: update qinco")
    return content


def _read_object(file: Path) -> dict:
    if file_size(file) > MAX_MANIFEST_BYTES:
        raise ValueError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
    content = json.loads(read_start(file, MAX_MANIFEST_BYTES))
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def parse_fields(kind: type, values: dict):
    """A dataclass of strings, dictionaries and integers from 0 to 2⁴⁸; raises ValueError where `values` do not fit."""
    names = {field.name for field in fields(kind)}
    if wrong := sorted(names ^ set(values)):
        raise ValueError(f"{wrong!s:.100} are missing or unknown")
    for field in fields(kind):
        value = values[field.name]
        if type(value) is not field.type or (field.type is int and not 0 <= value < 1 << 48):
            raise ValueError(f"{field.name} is {value!r:.100}")
    return kind(**values)


def is_kind(path: str | os.PathLike, kind: str) -> bool:
    """Whether a folder's manifest, or that of its pending generation, is of a kind, in whatever version or state."""
    for name in (MANIFEST, PENDING):
        with suppress(OSError, ValueError, RecursionError):
            if _read_object(Path(path) / name).get("kind") == kind:
                return True
    return False


def check_folder_output(path: str | os.PathLike, kind: str) -> None:
    """Raise ConfigError unless a folder can be written: a new or empty one, or one that holds the same kind."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"the folder {path.parent} of {path} does not exist: create it first")
    try:
        there = [file.name for file in path.iterdir()]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(f"{path} is a file, not a folder: give another name") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if MANIFEST in there and kind == "index":
        try:
            read_manifest(path, kind)
        except DataError as error:
            raise ConfigError(f"{path} would be replaced, but {error}: remove it, or give another name") from None
    elif MANIFEST not in there and any(not re.fullmatch(_STARTED, name) for name in there):
        raise ConfigError(f"{path} holds other files than {_NOUNS[kind]}: give the name of a new folder")


def path_of(folder: Path, name: str, token: str) -> Path:
    """The path of a file of a generation."""
    stem, suffix = re.fullmatch(_NAME, name).groups()
    return folder / f"{stem}-{token}{suffix}"


def check_files(path: Path, manifest: Manifest, mmap: bool = True) -> dict[str, int | None]:
    """Check the files of a generation; raises DataError that names the first damaged one.

    Args:
        path: the folder.
        manifest: of the generation.
        mmap: verify the checksums of the smallest files only, VERIFIED_BYTES in all.

    Returns:
        For each file the offset at which an array's values begin; None for other files.
    """
    offsets, left = {}, VERIFIED_BYTES
    for name, stored in sorted(manifest.files.items(), key=lambda item: item[1].bytes):
        file = path_of(path, name, manifest.token)
        offsets[name] = _check_file(file, stored)
        left -= stored.bytes
        if (left >= 0 or not mmap) and checksum(file) != stored.crc32:
            raise DataError(f"{file} is damaged: its checksum differs from that in {MANIFEST}")
    return offsets


def checksum(path: Path) -> int:
    """CRC-32 of a file; raises DataError if it cannot be read."""
    crc32 = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                crc32 = zlib.crc32(piece, crc32)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return crc32


def _token_of(folder: Path, kind: str, name: str) -> str | None:
    """The token in a manifest; None if there is none, or one of an earlier version without tokens."""
    if not (folder / name).exists():
        return None
    token = read_content(folder / name, kind).get("token")
    return token if isinstance(token, str) else None


def _open(path: Path, manifest: Manifest, mmap: bool) -> OpenFolder:
    arrays, files = {}, {}
    for name, offset in check_files(path, manifest, mmap).items():
        file, stored = path_of(path, name, manifest.token), manifest.files[name]
        if offset is None:
            files[name] = file
        else:
            mapped = map_file(file, np.dtype(stored.dtype), stored.shape, offset)
            arrays[name.removesuffix(".npy")] = mapped if mmap else np.array(mapped)
    return OpenFolder(path, manifest.settings, arrays, files)


def _check_file(path: Path, stored: StoredFile) -> int | None:
    """Where an array's values begin in its file, None if the file is no array; raises DataError."""
    if not path.exists():
        raise DataError(f"{path} is missing: the folder is damaged")
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
        raise DataError(f"{path} is damaged: {MANIFEST} says {stored.dtype} {stored.shape}, its header does not")
    return offset


def _array_fields(dtype, shape: tuple) -> dict:
    dtype, shape = np.dtype(dtype), tuple(map(int, shape))
    assert re.fullmatch(_DTYPE, dtype.str) and 1 <= len(shape) <= _MAX_AXES, f"{dtype} {shape} cannot be stored"
    return {"dtype": dtype.str, "shape": shape}


def _write_manifest(file: Path, kind: str, token: str, settings: dict, parts: dict) -> None:
    content = {"kind": kind, "format_version": VERSIONS[kind], "token": token, "settings": settings, "files": parts}
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: keys are strings
    content["crc32"] = _checksum_of_content(content)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    assert len(text) <= MAX_MANIFEST_BYTES, "settings are not the place for data"
    with write_atomically(file) as temporary:
        temporary.write_text(text)


def _parse(content: dict, version: int) -> Manifest:
    found = content.pop("crc32", None)
    if found != _checksum_of_content(content) or content.get("format_version") != version:
        raise ValueError("its checksum or its version is wrong")
    token, settings, files = (content.get(field) for field in ("token", "settings", "files"))
    if not isinstance(token, str) or not re.fullmatch(_TOKEN, token):
        raise ValueError(f"token is {token!r:.100}")
    if not isinstance(settings, dict) or not isinstance(files, dict):
        raise ValueError("settings and files are no objects")
    return Manifest(token, settings, {name: _parse_file(name, entry) for name, entry in files.items()})


def _parse_file(name: str, entry) -> StoredFile:
    entry = entry if isinstance(entry, dict) else {}
    size, crc32, dtype, shape = map(entry.get, ("bytes", "crc32", "dtype", "shape"))
    is_array = name.endswith(".npy")
    shape = shape if is_array and isinstance(shape, list) else []
    is_sound = all(type(count) is int and 0 <= count < 1 << 48 for count in (size, crc32, *shape))
    if is_sound and is_array:
        is_sound = isinstance(dtype, str) and re.fullmatch(_DTYPE, dtype) and 1 <= len(shape) <= _MAX_AXES
        is_sound = is_sound and 10 < size - math.prod(shape) * np.dtype(dtype).itemsize < 1 << 16
    if not is_sound or not re.fullmatch(_NAME, name):
        raise ValueError(f"its entry of {name!r:.100} is not possible")
    return StoredFile(size, crc32, dtype, tuple(shape)) if is_array else StoredFile(size, crc32)


def _checksum_of_content(content: dict) -> int:
    """CRC-32 of the manifest without this number, as compact JSON with sorted keys in ASCII."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return zlib.crc32(text.encode("ascii"))
