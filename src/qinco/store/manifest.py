"""Manifests: JSON objects that say what a folder or a file of ours holds, read without trusting them.

Each has `kind` and `format_version`. That of a folder (see `store.folder`) says which files belong to a generation,
with their sizes and checksums.
"""

import json
import math
import os
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from qinco.atomic import write_atomically
from qinco.errors import DataError
from qinco.vectors.mapped import file_size, read_start

MANIFEST, PENDING = "manifest.json", "pending.json"
VERSIONS = {"index": 1, "codes": 2, "decoding": 1}  # the newest format version of each kind
HEADER = ("kind", "format_version")  # fields of every manifest
MAX_MANIFEST_BYTES = 1 << 24
NOUNS = {"index": "an index", "codes": "a folder of codes", "decoding": "a decoding"}
NAME = r"([a-z][a-z0-9_]{0,19})(\.[a-z0-9]{1,12})"  # of a file, without the token
TOKEN = r"s[0-9a-f]{12}"
_MAX_AXES = 8
_PIECE = 1 << 24
_DTYPE = r"\|[biu]1|<[iuf][248]"


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


def read_manifest(path: str | os.PathLike, kind: str, name: str = MANIFEST) -> Manifest:
    """What the generation in a folder consists of; raises DataError for any other folder."""
    file = Path(path) / name
    if not os.path.lexists(file):
        raise DataError(f"{path} is not {NOUNS[kind]}: it has no {name}")
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
            raise DataError(f"{file} is not that of {NOUNS[kind]}: its kind is {content.get('kind')!r:.50}")
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


def path_of(folder: Path, name: str, token: str) -> Path:
    """The path of a file of a generation."""
    stem, suffix = re.fullmatch(NAME, name).groups()
    return folder / f"{stem}-{token}{suffix}"


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


def array_fields(dtype, shape: tuple) -> dict:
    """A manifest's entry of an array, without its size and checksum."""
    dtype, shape = np.dtype(dtype), tuple(map(int, shape))
    assert re.fullmatch(_DTYPE, dtype.str) and 1 <= len(shape) <= _MAX_AXES, f"{dtype} {shape} cannot be stored"
    return {"dtype": dtype.str, "shape": shape}


def write_manifest(file: Path, kind: str, token: str, settings: dict, parts: dict) -> None:
    """Write a manifest, whole or not at all."""
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
    if not isinstance(token, str) or not re.fullmatch(TOKEN, token):
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
    if not is_sound or not re.fullmatch(NAME, name):
        raise ValueError(f"its entry of {name!r:.100} is not possible")
    return StoredFile(size, crc32, dtype, tuple(shape)) if is_array else StoredFile(size, crc32)


def _checksum_of_content(content: dict) -> int:
    """CRC-32 of the manifest without this number, as compact JSON with sorted keys in ASCII."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return zlib.crc32(text.encode("ascii"))
