"""Published files are downloaded, unpacked and verified; a file gets its name when it is complete, not before.

What has arrived is in `TARGET.part`, and belongs to the version of the remote file that `TARGET.part.json` names.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qinco.atomic import check_output, lock_file, write_to_disk
from qinco.datasets.catalogue import PublishedFile, find_files
from qinco.datasets.remote import TIMEOUT, ConnectionBroken, Reply, open_remote, refusal
from qinco.datasets.unpack import convert_fbin, extract_member, gunzip
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.progress import Progress, ProgressOption, reporting, silent
from qinco.vectors.formats import FORMATS

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
_UNPACKERS = {"gzip": gunzip, "fbin": convert_fbin}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """One file of a call of `download`.

    Attributes:
        path: where it is.
        bytes: its size.
        seconds: that it took.
        state: "downloaded", or "skipped" where it was there already.
    """

    path: str
    bytes: int
    seconds: float
    state: str


def download(
    names: str | Iterable[str],
    folder: str | os.PathLike = ".",
    *,
    small: bool = False,
    mirror: str | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: ProgressOption = None,
    pauses: Sequence[float] = PAUSES,
    timeout: float = TIMEOUT,
) -> list[Download]:
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
        pauses: seconds before each further attempt; they begin anew whenever more bytes have arrived.
        timeout: seconds without a byte until a connection counts as broken.

    Returns:
        What became of each file.

    Raises:
        ConfigError: a name is unknown, a different file is in the way, or httpx is not installed.
        DataError: a file cannot be downloaded or is damaged.
        ResourceError: the disk is full or cannot be written.

    Example:
        >>> qinco.download("bigann1M")[0].path
        'data/bigann/bigann_query.bvecs'
    """
    files = find_files([names] if isinstance(names, str) else names, small, mirror)
    if not Path(folder).is_dir():
        raise ConfigError(f"folder={folder} is not a folder: create it first")
    targets = {file: Path(folder) / file.target for file in files}
    for target in targets.values():
        with suppress(OSError):  # is_present says what is wrong
            target.parent.mkdir(parents=True, exist_ok=True)
    results = []
    try:
        with reporting(progress) as report:
            # Different files in the way are found before the first hour of work.
            present = {
                file for file, target in targets.items()
                if is_present(file, target, overwrite=overwrite, pauses=pauses, timeout=timeout)
            }  # fmt: skip
            for file, target in targets.items():
                begun = time.monotonic()
                if file in present:
                    _log.info("%s exists: skipped", target)
                else:
                    _log.info("%s from %s", target, file.address)
                    fetch(file, target, report, resume=resume, pauses=pauses, timeout=timeout)
                seconds = 0.0 if file in present else time.monotonic() - begun
                state = "skipped" if file in present else "downloaded"
                results.append(Download(str(target), target.stat().st_size, seconds, state))
    except KeyboardInterrupt:
        kept = [str(part_path(target)) for target in targets.values() if part_path(target).exists()]
        hint = f"what has arrived is kept in {', '.join(kept)}, and the same command continues it" if kept else ""
        raise KeyboardInterrupt(hint) from None
    return results


def part_path(target: Path) -> Path:
    """Where the bytes of a file gather until all are there."""
    target = Path(os.path.realpath(target))
    return target.with_name(f"{target.name}.part")


def is_present(
    file: PublishedFile,
    target: Path,
    *,
    overwrite: bool = False,
    pauses: Sequence[float] = PAUSES,
    timeout: float = TIMEOUT,
) -> bool:
    """Whether the target exists, is as long as the published file, and opens; False with `overwrite`.

    Raises:
        ConfigError: the target is a different file, or cannot be written.
        DataError: the server cannot be asked.
    """
    check_output(target, overwrite=True)
    if overwrite or not target.exists():
        return False
    size = target.stat().st_size
    fits = _retry(lambda: _fits(file, size, timeout), file, pauses)
    if fits is False:
        difference = f"{size:,} bytes are not the length of {file.address}"
    else:
        try:
            _check_opens(target, target.suffix)
            difference = None
        except DataError as error:
            difference = str(error)
    if difference is not None:
        raise ConfigError(f"{target} exists but differs ({difference}): give overwrite=true to replace it, or move it")
    if fits is None:
        _log.info("%s exists; its length cannot be compared with %s", target, file.address)
    return True


def fetch(
    file: PublishedFile,
    target: Path,
    report: Progress = silent,
    *,
    resume: bool = True,
    pauses: Sequence[float] = PAUSES,
    timeout: float = TIMEOUT,
) -> None:
    """Download `file`, unpack it, verify it, and only then give it the name `target`, replacing an existing file.

    What arrived is kept on errors, unless it is complete and wrong.

    Raises:
        DataError: the server cannot be reached, or sends something else.
        ResourceError: the disk is full or cannot be written.
        ConfigError: `target` cannot be written, or another process downloads it.
    """
    check_output(target, overwrite=True)
    try:
        with _Part(file, target, resume) as part:
            _retry(lambda: _receive(part, file, target, report, timeout), file, pauses, part)
            try:
                _finish(part, file, target, report)
            except DataError as error:
                part.discard()
                raise DataError(f"{file.address} is not a valid {target.name} and was removed: {error}") from error
            part.discard()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise ResourceError(f"cannot write {target}: {error.strerror or error}{where}") from error


class _Part:
    """The file that bytes gather in, locked by one process, and the version of the remote file that they belong to."""

    def __init__(self, file: PublishedFile, target: Path, resume: bool):
        self.path = part_path(target)
        self._record, self._address, self._resume = self.path.with_name(f"{self.path.name}.json"), file.address, resume
        self.size = 0
        self.version: str | None = None
        self.length: int | None = None

    def __enter__(self) -> "_Part":
        try:
            self._file = os.fdopen(lock_file(self.path, wait=False), "r+b")
        except BlockingIOError:
            raise ConfigError(f"{self.path} is written by another download: wait until it has ended") from None
        self.size = self._file.seek(0, os.SEEK_END)
        record = self._read_record() if self._resume else None
        if record is None:
            self._truncate(0)
        else:
            self.version, self.length = record
        return self

    def __exit__(self, *error) -> None:
        if self.size == 0 and not self._file.closed:
            self.discard()
        self._file.close()

    def begin(self, reply: Reply) -> None:
        """Prepare for what `reply` is about to send."""
        self._truncate(reply.start)
        if reply.start == 0:  # emptied first: a kill in between must not leave old bytes under a new version
            self.version, self.length = reply.version, reply.length
            record = {"address": self._address, "version": self.version, "length": self.length}
            self._record.write_text(json.dumps(record))  # half written it is not a record, and no byte is here yet

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self.size += len(block)

    def flush(self) -> None:
        """Have all that was appended on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)  # before the lock is released
        self._record.unlink(missing_ok=True)
        self._file.close()

    def _truncate(self, size: int) -> None:
        self._file.seek(size)
        self._file.truncate()
        self.size = size

    def _read_record(self) -> tuple[str | None, int | None] | None:
        """Version and length of the file that the bytes belong to; None where they are unknown."""
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            record = json.loads(self._record.read_text())
            version, length = record["version"], record["length"]
            if (
                record["address"] == self._address
                and isinstance(version, str | None)
                and isinstance(length, int | None)
            ):
                return version, length
        return None


def _retry(attempt: Callable, file: PublishedFile, pauses: Sequence[float], part: _Part | None = None):
    """What `attempt` returns; it is called again after each pause as long as the connection breaks."""
    left, furthest = list(pauses), 0 if part is None else part.size
    while True:
        try:
            return attempt()
        except ConnectionBroken as error:
            if part is not None and part.size > furthest:
                left, furthest = list(pauses), part.size
            if not left:
                kept = "; what has arrived is kept, and the same command continues it" if part and part.size else ""
                raise refusal(file.address, f"{error}{kept}") from error
            _log.info("%s: %s; the next attempt is in %g s", file.address, error, left[0])
            time.sleep(left.pop(0))


def _receive(part: _Part, file: PublishedFile, target: Path, report: Progress, timeout: float) -> None:
    """One attempt to have all bytes of `file` in `part`. Raises ConnectionBroken."""
    # Of a complete part the last byte is asked for again: no server sends an empty range.
    start = part.size if part.length is None else min(part.size, max(0, part.length - 1))
    with open_remote(file.address, start, part.version, part.length, timeout) as reply:
        if reply.start < start:
            _log.info("%s has changed or cannot be continued: starting anew", file.address)
        part.begin(reply)
        _check_disk(reply, file, target)
        try:
            for block in reply.blocks:
                part.append(block if reply.length is None else block[: reply.length - part.size])
                if reply.length is not None:
                    report(f"downloading {target}", part.size, reply.length, "byte")
        finally:
            part.flush()
    if reply.length is None:
        _log.info("%s: the server does not tell the length, which is not checked", file.address)
    elif part.size < reply.length:
        raise ConnectionBroken(f"the connection ended after {part.size:,} of {reply.length:,} bytes")


def _check_disk(reply: Reply, file: PublishedFile, target: Path) -> None:
    if reply.length is None:
        return
    # Unpacked, a file is longer; of a tar archive only a small part may be wanted.
    needed = reply.length - reply.start + (reply.length if file.packing in _UNPACKERS else 0)
    folder = part_path(target).parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{target} needs {needed:,} bytes or more, but {folder} has {free:,} free: free some, or make "
            f"{target.parent} a link to a folder on a larger disk"
        )


def _finish(part: _Part, file: PublishedFile, target: Path, report: Progress) -> None:
    """Unpack and verify the complete part, and then give it its name."""
    if part.size == 0:
        raise DataError("it is empty")
    stage, target = f"unpacking {target}", Path(os.path.realpath(target))
    if file.packing is None:
        _check_opens(part.path, target.suffix)
        part.path.replace(target)
        return
    unpacked = target.with_name(f"{target.stem}.unpacked{target.suffix}")

    def tell(done: int, total: int) -> None:
        report(stage, done, total, "byte")

    try:
        # The part is locked: other files of this name were left by a process that was killed.
        for left in target.parent.glob(f".{unpacked.stem}.*{unpacked.suffix}"):
            left.unlink()
        if file.packing == "tar":
            extract_member(part.path, file.member or "", unpacked, tell)
        else:
            _UNPACKERS[file.packing](part.path, unpacked, tell)
        _check_opens(unpacked, target.suffix)
        write_to_disk(unpacked)
        unpacked.replace(target)
    finally:
        unpacked.unlink(missing_ok=True)


def _check_opens(path: Path, suffix: str) -> None:
    """Raise DataError if the suffix is that of vectors and the file is not one."""
    if suffix in FORMATS:
        FORMATS[suffix].open(path, path.stat().st_size)


def _fits(file: PublishedFile, size: int, timeout: float) -> bool | None:
    """Whether the remote `file` has `size` bytes; None where it is packed or the server does not tell."""
    if file.packing is not None:
        return None
    with open_remote(file.address, timeout=timeout) as reply:
        length = reply.length
        return None if length is None else size == length or (file.is_start and size > length)
