"""From a file as it is published to the file that is read: gunzip, one member of a tar archive, fbin to fvecs.

Everything is streamed, so that memory stays bounded, and nothing is written that does not fit on the disk.
"""

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from qinco.errors import DataError, ResourceError
from qinco.vectors.formats import FORMATS, WRITE_ROWS, VectorWriter

_BLOCK = 1 << 20
Report = Callable[[int, int], None]  # hears how many bytes of the packed file are done, and how many there are


def gunzip(source: Path, target: Path, report: Report) -> None:
    """Write the content of the gzip file `source` to `target`.

    Raises:
        DataError: `source` is damaged, truncated or followed by something else; length and CRC are verified.
        ResourceError: its content does not fit on the disk.
    """
    with _reading(source, report) as content, target.open("wb") as file:
        _copy(content, file)


def extract_member(source: Path, member: str, target: Path, report: Report) -> None:
    """Write the regular file `member` of the gzipped tar archive `source` to `target`, and nothing else of it.

    Raises:
        DataError: the archive is damaged or truncated, or has no such regular file.
        ResourceError: the member does not fit on the disk.
    """
    is_found = False
    with _reading(source, report) as content, tarfile.open(fileobj=content, mode="r|") as archive:
        for info in archive:
            if not is_found and PurePosixPath(info.name) == PurePosixPath(member):
                if not info.isreg() or info.issparse():
                    raise DataError(f"{member} is not a regular file in the archive")
                with target.open("wb") as file:
                    _copy(archive.extractfile(info), file, info.size)
                is_found = True
        while content.read(_BLOCK):  # to the end, where the CRC is verified
            pass
    if not is_found:
        raise DataError(f"the archive has no file {member}")


def convert_fbin(source: Path, target: Path, report: Report) -> None:
    """Write the vectors of the fbin file `source`, whatever its name, to the fvecs file `target`.

    Raises:
        DataError: `source` is truncated or not an fbin file.
    """
    size = source.stat().st_size
    rows = FORMATS[".fbin"].open(source, size)
    with VectorWriter(target, rows.shape[1], np.float32, rows.shape[0]) as writer:
        for first in range(0, rows.shape[0], WRITE_ROWS):
            writer.append(rows[first : first + WRITE_ROWS])
            report(size * writer.rows_written // rows.shape[0], size)


class _Reported:
    """The content of a gzip file; `report` is told how far the packed file has come."""

    def __init__(self, packed: BinaryIO, content: BinaryIO, report: Report):
        self._packed, self._content, self._report = packed, content, report
        self._size = os.fstat(packed.fileno()).st_size

    def read(self, size: int) -> bytes:
        block = self._content.read(size)
        self._report(self._packed.tell(), self._size)
        return block


@contextmanager
def _reading(path: Path, report: Report) -> Iterator[Any]:
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as content:
            yield _Reported(packed, content, report)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(f"the archive is damaged: {error}") from error


def _copy(source, sink: BinaryIO, size: int = 0) -> None:
    """Copy all there is, `size` bytes or more, as long as it fits on the disk."""
    folder, written = Path(sink.name).parent, 0
    free = shutil.disk_usage(folder).free
    while size <= free and (block := source.read(_BLOCK)):
        written += len(block)
        size = max(size, written)
        if size <= free:
            sink.write(block)
    if size > free:
        raise ResourceError(f"{sink.name} needs {size:,} bytes or more, but {folder} has {free:,} free")
