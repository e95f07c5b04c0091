"""From a file as it is published to the file that is read: gunzip, one member of a tar archive, fbin to fvecs.

Everything streams: memory stays bounded whatever a file holds or claims to hold.
"""

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from qinco.errors import DataError, ResourceError
from qinco.vectors.formats import WRITE_ROWS, VectorWriter, open_array

_BLOCK = 1 << 20
_TAR_BLOCK = tarfile.BLOCKSIZE


def gunzip(source: Path, target: Path, report: Callable[[int, int], None]) -> None:
    """Write the content of the gzip file `source` to `target`; its length and its CRC are verified.

    report: is told how many bytes of `source` are done, and how many there are

    Raises DataError where `source` is damaged, truncated or followed by something else, and ResourceError where its
    content has no room on the disk.
    """
    with _read_gzip(source, report) as content, target.open("wb") as file:
        free = shutil.disk_usage(target.parent).free
        with source.open("rb") as packed:  # the last four bytes are the length of the content, modulo 2^32
            packed.seek(-min(4, source.stat().st_size), os.SEEK_END)
            _check_room(int.from_bytes(packed.read(), "little"), free, target)
        _copy(content, file, None, free, target)


def extract_member(source: Path, member: str, target: Path, report: Callable[[int, int], None]) -> None:
    """Write the regular file `member` of the gzipped tar archive `source` to `target`, and nothing else of it.

    report: is told how many bytes of `source` are done, and how many there are

    Raises DataError where the archive is damaged or truncated, or has no such regular file, and ResourceError where
    the member has no room on the disk.
    """
    # Header by header: `tarfile` itself would read extended headers of any size into memory.
    with _read_gzip(source, report) as content:
        is_found = False
        for info in _tar_headers(content):
            if is_found or PurePosixPath(info.name) != PurePosixPath(member):
                _skip(content, info.size)
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise DataError(f"{member} is no regular file in the archive")
            free = shutil.disk_usage(target.parent).free
            _check_room(info.size, free, target)
            with target.open("wb") as file:
                _copy(content, file, info.size, free, target)
            is_found = True
            _skip(content, info.size, info.size)
        while content.read(_BLOCK):  # to the end, where the CRC is verified
            pass
        if not is_found:
            raise DataError(f"the archive has no file {member}")


def convert_fbin(source: Path, target: Path, report: Callable[[int, int], None]) -> None:
    """Write the vectors of the fbin file `source`, whatever its name, to the fvecs file `target`.

    report: is told how many bytes of `source` are done, and how many there are

    Raises DataError where `source` is truncated or no fbin file.
    """
    with named_as(source, ".fbin") as path:
        rows = open_array(path)
        size = source.stat().st_size
        with VectorWriter(target, rows.shape[1], np.float32, len(rows)) as writer:
            for first in range(0, len(rows), WRITE_ROWS):
                writer.append(rows[first : first + WRITE_ROWS])
                report(size * writer.rows_written // len(rows), size)


@contextmanager
def named_as(path: Path, suffix: str) -> Iterator[Path]:
    """`path` under a name with `suffix`, by which readers know what a file holds. It lasts as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"content{suffix}"
        link.symlink_to(path.absolute())
        try:
            yield link
        except DataError as error:
            raise DataError(str(error).replace(str(link), str(path))) from error


class _GzipContent:
    """The content of a gzip file, read as bytes; `report` is told how far the packed file has come."""

    def __init__(self, packed: BinaryIO, content: BinaryIO, report: Callable[[int, int], None]):
        self._packed, self._content, self._report = packed, content, report
        self._size = os.fstat(packed.fileno()).st_size

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end only."""
        block = self._content.read(size)
        self._report(self._packed.tell(), self._size)
        return block


@contextmanager
def _read_gzip(path: Path, report: Callable[[int, int], None]) -> Iterator[_GzipContent]:
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as content:
            yield _GzipContent(packed, content, report)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the gzip file is damaged: {error}") from error


def _tar_headers(content: _GzipContent) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive's members; before the next one, the caller reads the member to its last block."""
    while any(block := _read_exactly(content, _TAR_BLOCK)):  # a block of zeros ends the archive
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"the tar archive is damaged: {error}") from error
        if info.size < 0:
            raise DataError(f"the tar archive is damaged: a member claims {info.size} bytes")
        yield info


def _skip(content: _GzipContent, size: int, start: int = 0) -> None:
    """Read a member of `size` bytes from byte `start` to the end of its last block, and forget it."""
    left = -(-size // _TAR_BLOCK) * _TAR_BLOCK - start
    while left:
        left -= len(_read_exactly(content, min(left, _BLOCK)))


def _read_exactly(content: _GzipContent, size: int) -> bytes:
    block = content.read(size)
    if len(block) < size:
        raise DataError("the tar archive is truncated")
    return block


def _copy(source: _GzipContent, sink: BinaryIO, size: int | None, free: int, target: Path) -> None:
    """Copy `size` bytes, or all there are, as long as they fit into `free` bytes."""
    written = 0
    while size is None or written < size:
        block = source.read(_BLOCK) if size is None else _read_exactly(source, min(_BLOCK, size - written))
        if not block:
            return
        written += len(block)
        _check_room(written, free, target)
        sink.write(block)


def _check_room(needed: int, free: int, target: Path) -> None:
    if needed > free:
        raise ResourceError(
            f"{target} unpacks to {needed:,} bytes or more where {free:,} are free in {target.parent}: free some"
        )
