"""Published files are downloaded, unpacked and verified; a file gets its name when it is complete, not before.

What has arrived is in `TARGET.part`, and belongs to the address and version that `TARGET.part.version` names.
"""

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qinco.atomic import check_output, lock_file, remove_temporaries, user_path, write_atomically, write_to_disk
from qinco.datasets.catalogue import PublishedFile, find_files
from qinco.datasets.remote import ConnectionBroken, open_remote, refusal, require_httpx
from qinco.datasets.unpack import check_space, unpack
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.progress import Progress, ProgressOption, reporting, silent
from qinco.vectors.formats import FORMATS

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt; they begin anew when bytes have arrived
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """A file of a call of `download`: its path and size, the seconds it took, and "downloaded" or "skipped"."""

    path: str
    bytes: int
    seconds: float
    state: str


def download(
    names: str | Iterable[str], folder: str | os.PathLike = ".", *, small: bool = False, mirror: str | None = None,
    resume: bool = True, overwrite: bool = False, progress: ProgressOption = None,
) -> list[Download]:  # fmt: skip
    """Download public data sets and published models to `data/`, `models/` and `index/` in a folder.

    Files that are there are skipped if they have the published length.

    Args:
        names: of data sets (bigann1M, deep1M, ...), models, centroids or indexes; one or several.
        folder: an existing folder.
        small: of a data set of a billion vectors, take the set of its first million.
        mirror: an address that replaces scheme and host of the published ones.
        resume: continue what an earlier call left; False: begin anew.
        overwrite: replace files that are there.
        progress: see `qinco.progress`; in bytes.

    Returns:
        What became of each file.

    Raises:
        ConfigError: a name is unknown, or a different file is in the way.
        DataError: a file cannot be downloaded or is damaged.

    Example:
        >>> qinco.download("bigann1M")[0].path
        'data/bigann/bigann_query.bvecs'
    """
    files = find_files([names] if isinstance(names, str) else names, small, mirror)
    folder = Path(user_path(folder))
    if not folder.is_dir():
        raise ConfigError(f"folder={folder} is not a folder: create it first")
    targets, results = [folder / file.target for file in files], []
    # Different files in the way are found before the first hour of work.
    present = [is_present(*pair, overwrite) for pair in zip(files, targets, strict=True)]
    if not all(present):
        require_httpx()
    with reporting(progress) as report:
        for file, target, is_there in zip(files, targets, present, strict=True):
            begun, state = time.monotonic(), "skipped" if is_there else "downloaded"
            _log.info("%s exists: skipped" if is_there else f"%s from {file.address}", target)
            if not is_there:
                fetch(file, target, report, resume=resume)
            results.append(Download(str(target), target.stat().st_size, time.monotonic() - begun, state))
    return results


def is_present(file: PublishedFile, target: Path, overwrite: bool = False) -> bool:
    """Whether the target exists; raises ConfigError if it is a different file, unless `overwrite`."""
    with suppress(OSError):  # the next line says what is wrong
        target.parent.mkdir(parents=True, exist_ok=True)
    check_output(target, overwrite=True)
    if overwrite or not target.exists():
        return False
    size, length = target.stat().st_size, None
    if file.packing is None:
        with open_remote(file.address) as reply:
            length = reply.length
    try:
        if length is not None and length != size and not (file.is_start and size > length):
            raise DataError(f"{size:,} bytes, {length:,} are published")
        _check_opens(target, target.suffix)
    except DataError as error:
        hint = "give overwrite=true to replace it, or move it"
        raise ConfigError(f"{target} exists but differs ({error}): {hint}") from error
    return True


def fetch(file: PublishedFile, target: Path, report: Progress = silent, *, resume: bool = True, pauses=PAUSES) -> None:
    """Download `file`, unpack it, verify it, and only then give it the name `target`, replacing an existing file.

    What arrived is kept on errors, unless it is complete and wrong, and continued with `resume`.
    """
    check_output(target, overwrite=True)
    path = Path(f"{os.path.realpath(target)}.part")
    record = Path(f"{path}.version")

    def discard() -> None:  # before the lock is released
        path.unlink(missing_ok=True)
        record.unlink(missing_ok=True)

    try:
        with os.fdopen(lock_file(path, wait=False), "r+b") as part:
            part.seek(0, os.SEEK_END if resume else os.SEEK_SET)
            try:
                _receive(part, record, file, target, report, pauses)
            finally:
                if part.tell() == 0:
                    discard()
            try:
                _finish(path, file, target, report)
            except DataError as error:
                discard()
                raise DataError(f"{file.address} is not a valid {target.name} and was removed: {error}") from error
            discard()
    except BlockingIOError:
        raise ConfigError(f"{path} is written by another download: wait until it has ended") from None
    except OSError as error:
        raise ResourceError(f"cannot write {target}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command continues {path}" if path.exists() else "") from None


def _receive(part: BinaryIO, record: Path, file: PublishedFile, target: Path, report, pauses) -> None:
    """Fill `part`, with another attempt after each pause as long as the connection breaks."""
    left, furthest = list(pauses), part.tell()
    while True:
        try:
            _receive_once(part, record, file, target, report)
            return part.flush()
        except ConnectionBroken as error:
            if part.tell() > furthest:
                left, furthest = list(pauses), part.tell()
            if not left:
                raise
            _log.info("%s; the next attempt is in %g s", error, left[0])
            time.sleep(left.pop(0))


def _receive_once(part: BinaryIO, record: Path, file: PublishedFile, target: Path, report) -> None:
    known = record.read_text("utf-8", "replace").split("\n") if record.exists() else []
    version = known[1] if len(known) == 2 and known[0] == file.address else None
    with open_remote(file.address, part.tell(), version) as reply:
        if reply.start == 0:
            # Emptied first: a kill in between must not leave old bytes under a new version.
            part.truncate(part.seek(0))
            record.write_text(f"{file.address}\n{reply.version or ''}", "utf-8")
        if reply.length is not None:
            check_space(target, reply.length - reply.start)
        for block in reply.blocks:
            part.write(block)
            if reply.length is not None:
                report(f"downloading {target}", part.tell(), reply.length, "byte")
    if reply.length is not None and part.tell() != reply.length:
        raise refusal(file.address, f"it broke after {part.tell():,} of {reply.length:,} bytes", ConnectionBroken)
    if part.tell() == 0:
        raise refusal(file.address, "the file is empty")


def _finish(path: Path, file: PublishedFile, target: Path, report: Progress) -> None:
    if file.packing is None:
        _check_opens(path, target.suffix)
        write_to_disk(path)
        path.replace(os.path.realpath(target))
        return
    remove_temporaries(target)  # of a process that was killed: the part is locked
    with write_atomically(target) as unpacked:
        unpack(file, path, unpacked, lambda done, total: report(f"unpacking {target}", done, total, "byte"))
        _check_opens(unpacked, target.suffix)


def _check_opens(path: Path, suffix: str) -> None:
    """Raise DataError if the suffix is that of vectors and the file is not one."""
    if suffix in FORMATS:
        FORMATS[suffix].open(path, path.stat().st_size)
