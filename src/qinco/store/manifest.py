"""Manifests: JSON objects that say what a folder or a file of ours holds, read without trusting them.

That of a folder (see `store.folder`) says which files belong to a generation, with their sizes and checksums.
"""

import json
import math
import os
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import write_atomically
from qinco.errors import DataError
from qinco.vectors.mapped import file_size, missing_file, read_start

MANIFEST, PENDING = "manifest.json", "pending.json"
VERSIONS = {"index": 2, "codes": 2, "decoding": 1, "segment": 1}  # the newest format version of each kind
_READ = {"index": {1, 2}}  # versions that are read alike, where there is more than the newest
HEADER = ("kind", "format_version")  # fields of every manifest
MAX_BYTES = 1 << 24
NOUNS = {"index": "an index", "codes": "a folder of codes", "decoding": "a decoding", "segment": "a segment"}
NAME = r"([a-z][a-z0-9_]{0,19})(\.[a-z0-9]{1,12})"  # of a file, without the token
TOKEN = r"s[0-9a-f]{12}"
_MAX_AXES = 8
_DTYPE = r"\|[biu]1|<[iuf][248]"


@dataclass(frozen=True)
class StoredFile:
    """What a manifest says of a file; only arrays have dtype and shape."""

    bytes: int
    crc32: int  # zlib's
    dtype: str | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a generation holds."""

    token: str  # in the names of its files
    settings: dict  # a JSON object of whoever wrote it
    files: dict[str, StoredFile]  # by name without the token; `.npy` files are arrays. Empty while it is pending


def read_manifest(path: str | os.PathLike, kind: str, name: str = MANIFEST) -> Manifest:
    """What the generation in a folder consists of; raises DataError for any other folder."""
    file = Path(path) / name
    if not os.path.lexists(file):
        damage = DataError(f"{path} is not {NOUNS[kind]}: it has no {name}")
        raise damage if os.path.lexists(path) else missing_file(path)
    return manifest_in(file, kind)


def manifest_in(file, kind: str) -> Manifest:
    """What a file says that a generation consists of: a Path, or a RemotePath; raises DataError for any other file."""
    content = read_content(file, kind)
    try:
        return _parse(content, _READ.get(kind, {VERSIONS[kind]}))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}") from None


def read_content(file: Path, kind: str) -> dict:
    """The JSON object in a file, whose `kind` and `format_version` are known; raises DataError for any other."""
    content = _read_object(file)
    found, version = map(content.get, HEADER)
    if file.name in (MANIFEST, PENDING) and found in ("index", "codes") and found != kind:
        raise DataError(f"{file.parent} is {NOUNS[found]}, not {NOUNS[kind]}")
    if found != kind:
        raise DataError(f"{file} is not that of {NOUNS[kind]}: its kind is {found!r:.50}")
    if type(version) is not int or version < 1:
        raise DataError(f"{file} is damaged: format_version is {version!r:.50}")
    if version > VERSIONS[kind]:
        raise DataError(f"{file} has format version {version!r:.20}, newer than {VERSIONS[kind]}: update qinco")
    return content


def _read_object(file: Path) -> dict:
    text = read_start(file, MAX_BYTES + 1) if file_size(file) <= MAX_BYTES else b""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error!s:.200}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} is damaged: it is not a JSON object")
    return content


def is_kind(path: str | os.PathLike, kind: str) -> bool:
    """Whether a folder's manifest, or that of its pending generation, is of a kind, in whatever version or state."""
    for name in (MANIFEST, PENDING):
        with suppress(DataError):
            if _read_object(Path(path) / name).get("kind") == kind:
                return True
    return False


def path_of(folder: Path, name: str, token: str) -> Path:
    """The path of a file of a generation."""
    stem, _, suffix = name.partition(".")
    return folder / f"{stem}-{token}.{suffix}"


def token_in(file: Path, kind: str) -> str | None:
    """The token in a manifest; None if there is none, or one of an earlier version without tokens."""
    token = read_content(file, kind).get("token") if file.exists() else None
    return token if isinstance(token, str) else None


def write_manifest(file: Path, kind: str, token: str, settings: dict, parts: dict) -> None:
    """Write a manifest, whole or not at all."""
    write_json(file, manifest_content(kind, token, settings, parts))


def manifest_content(kind: str, token: str, settings: dict, parts: dict) -> dict:
    """The JSON object of a manifest."""
    content = {"kind": kind, "format_version": VERSIONS[kind], "token": token, "settings": settings, "files": parts}
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: keys are strings
    content["crc32"] = _checksum_of_content(content)
    return content


def json_text(content: dict) -> str:
    """A JSON object as files hold it."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    assert len(text) <= MAX_BYTES, "settings are not the place for data"
    return text


def write_json(file: Path, content: dict) -> None:
    """Write a JSON object, whole or not at all."""
    with write_atomically(file) as temporary:
        temporary.write_text(json_text(content), "utf-8")


def _parse(content: dict, versions: set[int]) -> Manifest:
    if content.pop("crc32", None) != _checksum_of_content(content) or content["format_version"] not in versions:
        raise ValueError("its checksum or its version is wrong")
    token, settings, files = map(content.get, ("token", "settings", "files"))
    if not isinstance(token, str) or not re.fullmatch(TOKEN, token):
        raise ValueError(f"token is {token!r:.100}")
    if not isinstance(settings, dict) or not isinstance(files, dict):
        raise ValueError("settings and files are no objects")
    return Manifest(token, settings, {name: _parse_file(name, entry) for name, entry in files.items()})


def _parse_file(name: str, entry) -> StoredFile:
    entry = entry if isinstance(entry, dict) else {}
    size, crc32, dtype, shape = (entry.get(key, -1) for key in ("bytes", "crc32", "dtype", "shape"))
    is_array = name.endswith(".npy")
    shape = shape if is_array and isinstance(shape, list) else []
    is_sound = all(type(count) is int and 0 <= count < 1 << 48 for count in (size, crc32, *shape))
    if is_sound and is_array:
        is_sound = isinstance(dtype, str) and re.fullmatch(_DTYPE, dtype) and 1 <= len(shape) <= _MAX_AXES
        is_sound = is_sound and 10 < size - math.prod(shape) * np.dtype(dtype).itemsize < 1 << 16
    if not is_sound or not re.fullmatch(NAME, name):
        raise ValueError(f"its entry of {name!r:.100} is not possible")
    return StoredFile(size, crc32, dtype, tuple(shape)) if is_array else StoredFile(size, crc32)


def _checksum_of_content(content: dict) -> int:
    """CRC-32 of the manifest without this number, as compact JSON with sorted keys in ASCII."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return zlib.crc32(text.encode("ascii"))
