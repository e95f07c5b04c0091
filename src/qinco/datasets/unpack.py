"""From a file as it is published to the file that is read: gunzip, a member of a tar archive, fbin to fvecs."""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

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
    """Write to `target` what the packed `file` holds, downloaded to `source`; DataError if it is damaged."""
    size = source.stat().st_size
    if file.packing == "fbin":
        rows = FORMATS[".fbin"].open(source, size)
        with target.open("w+b") as output:
            writer = VectorWriter(target, rows.shape[1])
            writer.attach(output)
            for first in range(0, rows.shape[0], WRITE_ROWS):
                writer.append(rows[first : first + WRITE_ROWS])
                report(size * writer.rows_written // rows.shape[0], size)
        return
    try:
        with source.open("rb") as packed, gzip.GzipFile(fileobj=packed) as content, target.open("wb") as output:
            unpacked = content if file.member is None else _find_member(content, file.member, target)
            while block := unpacked.read(_BLOCK):
                output.write(block)
                report(packed.tell(), size)
            while content.read(_BLOCK):  # to the end, where the CRC is verified
                report(packed.tell(), size)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(f"the archive is damaged: {error}") from error


def _find_member(content, member: str, target: Path) -> IO[bytes]:
    archive = tarfile.open(fileobj=content, mode="r|")  # noqa: SIM115  (there is nothing to close)
    for info in archive:
        if PurePosixPath(info.name) == PurePosixPath(member) and info.isreg():
            check_space(target, info.size)
            return archive.extractfile(info)  # pyright: ignore[reportReturnType]  (of a regular file)
    raise DataError(f"the archive has no regular file {member}")
