"""Segments: encoded vectors in immutable folders, of inverted lists whose ids are keys.

They share the fitted part of an index, which is an index folder without vectors, and the codec.
"""

import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qinco.atomic import flush_folder, make_folder
from qinco.errors import DataError
from qinco.search.index_file import load_parts, save_parts
from qinco.search.lists import InvertedLists
from qinco.search.parts import IndexParts
from qinco.store.folder import FolderWriter, OpenFolder, read_folder, write_folder
from qinco.store.manifest import MANIFEST

KIND, SEGMENTS = "segment", "segments"
GRACE_SECONDS = 60.0  # readers of the list before may still open what it names
_VERIFIED_BYTES = 32 << 20  # of a segment that is opened: a fiftieth of a second
_SUFFIX = ".safetensors"
CODEC_NAME = r"codec-[0-9a-f]{12}(\.\d+-[0-9a-f]{8})?\.safetensors"  # a pattern, also of one that is being written


@dataclass(frozen=True, eq=False)
class Segment:
    """An open segment; `zeros` are keys of vectors that are zero, for metric "cosine"."""

    number: int
    token: str
    lists: InvertedLists
    zeros: np.ndarray
    error: float | None

    def __len__(self) -> int:
        return len(self.lists)


def codec_path(folder: Path, fingerprint: str) -> Path:
    return folder / f"codec-{fingerprint[:12]}{_SUFFIX}"


def write_tables(folder: Path, parts: IndexParts) -> str:
    """Write the fitted part of an index to a folder of its own; returns its token."""
    token = secrets.token_hex(6)
    nothing = replace(parts, segments=(), zeros=parts.zeros[:0], recent=None, generations={})
    save_parts(None, nothing, folder / f"tables-{token}")
    flush_folder(folder)
    return token


def load_tables(folder: Path, token: str) -> IndexParts:
    return load_parts(folder / f"tables-{token}", True, None, "cpu")[1]


def write_segment(folder: Path, write: Callable[[FolderWriter], object], zeros: np.ndarray) -> tuple[str, int]:
    """Write a segment, of which `write` writes the lists; returns its token and the checksum of its manifest."""
    token = secrets.token_hex(6)
    make_folder(folder / SEGMENTS)
    path = folder / SEGMENTS / token
    with write_folder(path, KIND, {}) as writer:
        write(writer)
        if len(zeros):
            writer.put("zeros", zeros.astype(np.int64))
    flush_folder(path.parent)
    return token, zlib.crc32((path / MANIFEST).read_bytes())


def open_segment(
    folder: Path, row: tuple[int, str, int, int, float | None], parts: IndexParts, *,
    verified_bytes: int = _VERIFIED_BYTES,
) -> Segment:  # fmt: skip
    """Open the segment of a row of the table: number, token, rows, crc32 and error."""
    number, token, rows, crc32, error = row
    path = folder / SEGMENTS / token

    def load(opened: OpenFolder) -> Segment:
        arrays = opened.arrays
        if missing := {"starts", "codes", "ids"} - set(arrays):
            raise DataError(f"{path} is damaged: its {', '.join(sorted(missing))} are missing")
        sizes = parts.tables.num_lists, parts.tables.lookup.num_codes
        lists = InvertedLists.from_stored(arrays["starts"], arrays["codes"], arrays["ids"], *sizes, str(path))
        return Segment(number, token, lists, np.array(arrays.get("zeros", np.empty(0, np.int64))), error)

    segment = read_folder(path, KIND, load, verified_bytes=verified_bytes)
    if len(segment) != rows or zlib.crc32((path / MANIFEST).read_bytes()) != crc32:
        raise DataError(f"{path} is damaged, or another segment than the collection wrote: restore it from a snapshot")
    return segment


def remove_unused(folder: Path, names: Iterable[str]) -> None:
    """Remove segments, tables and codecs, also half written ones, that are not among `names`, unless they are young."""
    used, now = set(names), time.time()
    there = [*folder.glob("tables-*"), *folder.glob(f"codec-*{_SUFFIX}"), *folder.glob(f".codec-*{_SUFFIX}")]
    there += list((folder / SEGMENTS).iterdir()) if (folder / SEGMENTS).is_dir() else []
    for path in there:
        if path.name in used or now - path.stat().st_mtime < GRACE_SECONDS:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def touch_unused(folder: Path, names: Iterable[str]) -> None:
    """Let the time for which unused folders are kept begin now."""
    for name in names:
        path = folder / SEGMENTS / name if not name.startswith(("tables-", "codec-")) else folder / name
        if path.exists():
            os.utime(path)
