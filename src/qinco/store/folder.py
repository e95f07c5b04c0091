"""A durable folder: files whose names carry the token of a generation, and a manifest that is replaced last.

A new generation, of files such as `codes-s1f0c3a9e5b72.npy`, is written beside the old one, and takes its place when
`manifest.json` is replaced. A killed process leaves one of them, and files that the next writer removes. This needs
only atomic renames of files, so it works on NFS. A generation is *pending* while `pending.json` says what it will hold:
any process can add files to it, also after a crash (`begin`, `read_pending`).
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
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qinco.atomic import (
    WRITER,
    exclusive,
    flush_folder,
    make_folder,
    remove_temporaries,
    require_local,
    write_atomically,
    write_to_disk,
)
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.manifest import MANIFEST, PENDING, TOKEN, Manifest, path_of, read_manifest, token_in, write_manifest
from qinco.vectors.binary import npy_header
from qinco.vectors.mapped import file_size, map_file, read_start, release_pages

LOCK = ".lock"
VERIFIED_BYTES = 256 << 20  # a tenth of a second

_OURS = rf"(\.?)[a-z][a-z0-9_]{{0,19}}-({TOKEN})({WRITER})?\.[a-z0-9]{{1,12}}"
_TENSORS = r"\.tmp\w{6}"  # safetensors, which earlier versions wrote tensors by, leaves such files where it is killed
_STARTED = rf"{_TENSORS}|{re.escape(LOCK)}|{re.escape(PENDING)}|\.(manifest|pending){WRITER}\.json|{_OURS}"


@dataclass(frozen=True)
class OpenFolder:
    """A generation that has been opened. When it is replaced its files vanish, and the arrays stay."""

    path: Path
    token: str
    settings: dict
    arrays: dict[str, np.ndarray]  # by name without suffix; read-only memory maps, or arrays in memory
    files: dict[str, Path]  # the other files, by name


class FolderWriter:
    """Collects the files of a new generation, each name once, with the folder's lock held."""

    def __init__(self, folder: Path, kind: str, settings: dict, token: str | None = None):
        self.folder, self.kind, self.settings = folder, kind, settings
        self.token = token or f"s{secrets.token_hex(6)}"
        self._parts: dict[str, dict] = {}

    def array(self, name: str, dtype, shape: tuple) -> np.memmap:
        """A new array on disk, to be filled before the block ends. Its space is allocated at once."""
        with self.stream(name, dtype, shape) as file:
            offset = file.tell()
            size = offset + math.prod(shape) * np.dtype(dtype).itemsize
            # A full disk is noticed here: filling a map would end the process.
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        return np.memmap(file.name, dtype, "r+", offset, shape)

    def stream(self, name: str, dtype, shape: tuple) -> BinaryIO:
        """The file of a new array, with its header; the caller writes the array's bytes, all of them, and closes it."""
        file = self.file(f"{name}.npy").open("xb")
        self.expect(name, dtype, shape)
        file.write(npy_header(tuple(map(int, shape)), np.dtype(dtype)))
        return file

    def put(self, name: str, array: np.ndarray, *, piece_bytes: int = 1 << 24) -> None:
        """Write an array of integers, floats or truth values with one axis or more, in pieces of so many bytes."""
        rows = max(1, piece_bytes // max(1, array[:1].nbytes))
        with self.stream(name, array.dtype, array.shape) as file:
            for start in range(0, len(array), rows):
                file.write(np.ascontiguousarray(array[start : start + rows]).data)
                release_pages(array[start : start + rows])

    def file(self, name: str) -> Path:
        """The path at which the caller writes the file `name` before the block ends."""
        assert name not in self._parts
        self._parts[name] = {}
        return path_of(self.folder, name, self.token)

    def add(self, name: str, array: np.ndarray) -> None:
        """Write an array of a pending generation, whole or not at all."""
        path = path_of(self.folder, f"{name}.npy", self.token)
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            file.write(npy_header(array.shape, array.dtype))
            file.write(np.ascontiguousarray(array).data)

    def expect(self, name: str, dtype, shape: tuple) -> None:
        """Declare an array that `add` has written, in this process or another."""
        self._parts[f"{name}.npy"] = {"dtype": np.dtype(dtype).str, "shape": [int(length) for length in shape]}

    def commit(self) -> None:
        """Make this the folder's generation: all files are there."""
        for name, entry in self._parts.items():
            path = path_of(self.folder, name, self.token)
            entry |= {"bytes": path.stat().st_size, "crc32": _checksum(path)}
            write_to_disk(path)  # including what was written through maps
        flush_folder(self.folder)
        write_manifest(self.folder / MANIFEST, self.kind, self.token, self.settings, self._parts)


@contextmanager
def write_folder(
    path: str | os.PathLike, kind: str, settings: dict, replaces: str | None = None
) -> Iterator[FolderWriter]:
    """Yield a writer whose files become the folder's generation when the block ends without an exception.

    The folder is created if it is missing; after an exception it is as it was. Only one process at a time is in such a
    block. `settings` are read when it ends. A ConfigError unless the folder's generation is the one of token `replaces`
    (if given).
    """
    path = Path(path)
    check_folder_output(path, kind)
    is_new = make_folder(path)
    try:
        with exclusive(path / LOCK):
            remove_stale(path, kind)
            try:
                _check_replaced(path, kind, replaces)
                writer = FolderWriter(path, kind, settings)
                yield writer
                _check_replaced(path, kind, replaces)  # on a file system without locks nobody has waited
                writer.commit()
            finally:
                remove_stale(path, kind)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error if error.filename else error.strerror or error}") from error
    finally:
        if is_new:
            with suppress(OSError):  # it holds the new generation
                path.rmdir()


def _check_replaced(path: Path, kind: str, replaces: str | None) -> None:
    if replaces is not None and token_in(path / MANIFEST, kind) not in (replaces, None):
        raise ConfigError(f"{path} has changed since it was loaded: reload() and repeat your changes, save to another "
                          "folder, or give overwrite=true to replace it nevertheless")  # fmt: skip


def begin(folder: Path, kind: str, settings: dict) -> Manifest:
    """Begin a pending generation, with a token derived from its settings, in place of another; with the lock held."""
    current = token_in(folder / MANIFEST, kind)
    (folder / PENDING).unlink(missing_ok=True)
    remove_stale(folder, kind)
    token = token_of(settings, current)
    write_manifest(folder / PENDING, kind, token, settings, {})
    return Manifest(token, settings, {})


def token_of(settings: dict, current: str | None) -> str:
    """The token of a pending generation, which is not that of the current one."""
    text = json.dumps(settings, sort_keys=True)
    tokens = (f"s{sha256(f'{text}{number}'.encode()).hexdigest()[:12]}" for number in range(2))
    return next(token for token in tokens if token != current)


def read_pending(folder: Path, kind: str) -> Manifest | None:
    """The generation that is being written by `begin`; None if there is none. Raises DataError if it is damaged."""
    if not (folder / PENDING).exists():
        return None
    pending = read_manifest(folder, kind, PENDING)
    return None if pending.token == token_in(folder / MANIFEST, kind) else pending  # a kill came after its commit


def remove_stale(folder: Path, kind: str, others: str = "") -> None:
    """Remove what failed writers left, and files with names like the pattern `others`; the lock is held."""
    tokens = [token_in(folder / name, kind) for name in (MANIFEST, PENDING)]
    if tokens[0] is not None and tokens[0] == tokens[1]:
        (folder / PENDING).unlink(missing_ok=True)
    for name in (MANIFEST, PENDING):
        remove_temporaries(folder / name)
    for file in list(folder.iterdir()):
        match = re.fullmatch(_OURS, file.name)
        is_stale = (match and (match[1] or match[2] not in tokens)) or re.fullmatch(f"{_TENSORS}|{others}", file.name)
        if is_stale and file.is_file():
            file.unlink(missing_ok=True)


def read_folder(
    path: str | os.PathLike, kind: str, load: Callable[[OpenFolder], Any] = lambda folder: folder, *,
    mmap: bool = True, verified_bytes: int = VERIFIED_BYTES,
):  # fmt: skip
    """What `load` makes of the opened folder; it is called again if another process has replaced the folder meanwhile.

    With `mmap` arrays are mapped, and checksums of the smallest files are verified, so many bytes in all; otherwise
    arrays are read into memory, and everything is verified. DataError names the file that is at fault.
    """

    def opened(manifest: Manifest) -> OpenFolder:
        arrays, files = {}, {}
        for name, offset in check_files(folder, manifest, verified_bytes if mmap else math.inf).items():
            file, stored = path_of(folder, name, manifest.token), manifest.files[name]
            if offset is None:
                files[name] = file
            else:
                mapped = map_file(file, np.dtype(stored.dtype), stored.shape, offset)
                arrays[name.removesuffix(".npy")] = mapped if mmap else np.array(mapped)
        return OpenFolder(folder, manifest.token, manifest.settings, arrays, files)

    folder = Path(path)
    return read_current(lambda: read_manifest(folder, kind), lambda manifest: load(opened(manifest)))


def read_current(read: Callable[[], Any], load: Callable[[Any], Any]):
    """What `load` makes of the manifest that `read` gives; again if the manifest was replaced while `load` failed."""
    while True:
        manifest = read()
        try:
            return load(manifest)
        except (DataError, OSError):
            if read() == manifest:
                raise


def check_folder_output(path: str | os.PathLike, kind: str) -> None:
    """Raise ConfigError unless a folder can be written: a new or empty one, or one that holds the same kind."""
    require_local(path)
    path = Path(path)
    try:
        there = [file.name for file in path.iterdir()]
        for name in {MANIFEST, PENDING}.intersection(there):
            token_in(path / name, kind)
        if MANIFEST in there and kind == "index":
            read_manifest(path, kind)
    except FileNotFoundError:
        return
    except DataError as error:
        raise ConfigError(f"{error}: remove it, or give another name") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if MANIFEST not in there and any(not re.fullmatch(_STARTED, name) for name in there):
        raise ConfigError(f"{path} holds other files: give the name of a new folder")


def check_files(path: Path, manifest: Manifest, verified_bytes: float = VERIFIED_BYTES) -> dict[str, int | None]:
    """Check files and the checksums of the smallest ones; returns where arrays begin, None for files of other kinds."""
    offsets = {}
    for name, stored in sorted(manifest.files.items(), key=lambda item: item[1].bytes):
        file = path_of(path, name, manifest.token)
        size = file_size(file)
        if size != stored.bytes:
            raise DataError(f"{file} is damaged: it has {size} bytes, {MANIFEST} says {stored.bytes}")
        offsets[name] = (
            None if stored.dtype is None else _check_header(file, size, np.dtype(stored.dtype), stored.shape)
        )
        verified_bytes -= size
        if verified_bytes >= 0 and _checksum(file) != stored.crc32:
            raise DataError(f"{file} is damaged: its checksum differs from that in {MANIFEST}")
    return offsets


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.lstat().st_size for file in folder.iterdir())


def _checksum(path: Path) -> int:
    """CRC-32 of a file; raises DataError if it cannot be read."""
    crc32 = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                crc32 = zlib.crc32(piece, crc32)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return crc32


def _check_header(path: Path, size: int, dtype: np.dtype, shape: tuple) -> int:
    """Where the values begin in the file of an array; raises DataError if its header is another."""
    offset = size - math.prod(shape) * dtype.itemsize
    header = npy_header(shape, dtype)
    # As long as it is there: how much is padded has varied between versions of numpy.
    expected = header[:8] + (offset - 10).to_bytes(2, "little") + header[10:].rstrip().ljust(offset - 11) + b"\n"
    if read_start(path, offset) != expected:
        raise DataError(f"{path} is damaged: {MANIFEST} says {dtype.str} {shape}, its header does not")
    return offset
