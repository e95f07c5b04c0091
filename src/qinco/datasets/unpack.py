"""From a file as it is published to the file that is read: gunzip, one member of a tar archive, fbin to fvecs.

Everything is streamed, so that memory stays bounded.
"""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from qinco.datasets.catalogue import PublishedFile
from qinco.errors import DataError, ResourceError
from qinco.vectors.formats import FORMATS, WRITE_ROWS, VectorWriter

_BLOCK = 1 << 20
Report = Callable[[int, int], None]  # hears how many bytes of the packed file are done, and how many there are


def check_space(path: Path, size: int) -> None:
    """Raise ResourceError unless `size` bytes more fit on the disk of the file `path`."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ResourceError(f"{path} needs {size:,} bytes, but {path.parent} has {free:,} free")


def unpack(file: PublishedFile, source: Path, target: Path, report: Report) -> None:
    """Write to `target` what the packed `file` holds that has been downloaded to `source`, and nothing else.

    Raises:
        DataError: `source` is damaged or truncated (CRCs are verified), or has no such regular file.
        ResourceError: the content does not fit on the disk.
    """
    if file.packing == "fbin":
        return _convert_fbin(source, target, report)
    try:
        with source.open("rb") as packed, gzip.GzipFile(fileobj=packed) as content, target.open("wb") as output:
            reported = _Reported(packed, content, source.stat().st_size, report)
            if file.member is None:
                shutil.copyfileobj(reported, output, _BLOCK)
            else:
                _extract(reported, file.member, target, output)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(f"the archive is damaged: {error}") from error


class _Reported:
    """The content of a gzip file; `report` is told how far the packed file has come."""

    def __init__(self, packed, content, size: int, report: Report):
        self._packed, self._content, self._size, self._report = packed, content, size, report

    def read(self, size: int) -> bytes:
        block = self._content.read(size)
        self._report(self._packed.tell(), self._size)
        return block


def _extract(content, member: str, target: Path, output) -> None:
    with tarfile.open(fileobj=content, mode="r|") as archive:
        info = next((info for info in archive if PurePosixPath(info.name) == PurePosixPath(member)), None)
        if info is None or not info.isreg():
            raise DataError(f"the archive has no regular file {member}")
        check_space(target, info.size)
        shutil.copyfileobj(archive.extractfile(info), output, _BLOCK)
    while content.read(_BLOCK):  # to the end, where the CRC is verified
        pass


def _convert_fbin(source: Path, target: Path, report: Report) -> None:
    size = source.stat().st_size
    rows = FORMATS[".fbin"].open(source, size)
    with target.open("w+b") as output:
        writer = VectorWriter(target, rows.shape[1])
        writer.attach(output)
        for first in range(0, rows.shape[0], WRITE_ROWS):
            writer.append(rows[first : first + WRITE_ROWS])
            report(size * writer.rows_written // rows.shape[0], size)
