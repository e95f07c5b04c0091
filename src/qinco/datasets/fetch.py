"""Published files are fetched, unpacked and verified; a file has its name when it is complete, and not before.

What has arrived lies in `TARGET.part` and belongs to the version of the remote file that `TARGET.part.json` names.
"""

import fcntl
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from qinco.atomic import check_output
from qinco.datasets.catalogue import PublishedFile
from qinco.datasets.remote import TIMEOUT, BrokenOff, Reply, open_remote, refusal
from qinco.datasets.unpack import convert_fbin, extract_member, gunzip, named_as
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.vectors.formats import open_array

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
_BLOCK = 1 << 20
_VECTORS = (".fvecs", ".bvecs", ".ivecs", ".npy")


@dataclass(frozen=True)
class Progress:
    """How far a file has come.

    stage: "fetching" or "unpacking"     done, total: bytes of the published file; total is None where unknown
    """

    stage: str
    target: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Notice:
    """Something that the person who waits should know."""

    text: str


Report = Callable[[Progress | Notice], None]


def part_path(file: PublishedFile) -> Path:
    """Where the bytes of `file` gather until all are there."""
    target = Path(os.path.realpath(file.target))
    return target.with_name(f"{target.name}.part")


def is_present(
    file: PublishedFile,
    report: Report,
    *,
    overwrite: bool = False,
    pauses: Sequence[float] = PAUSES,
    timeout: float = TIMEOUT,
) -> bool:
    """Whether the target is there already, as long as the published file, and opens; never so with `overwrite`.

    Raises ConfigError for a target that is there but different, and for one that cannot be written; DataError where
    the server cannot be asked.
    """
    target = check_output(file.target, overwrite=True)
    if overwrite or not target.exists():
        return False
    size = target.stat().st_size
    fits = _patiently(lambda: _fits(file, size, timeout), file, report, pauses)
    difference = None
    if fits is False:
        difference = f"{size:,} bytes, which is not the length of {file.address}"
    else:
        try:
            _check_opens(target)
        except DataError as error:
            difference = f"what cannot be read ({error})"
    if difference is not None:
        raise ConfigError(f"{target} exists with {difference}: give overwrite=true to replace it, or move it away")
    if fits is None:
        report(Notice(f"{target} is there; its length cannot be compared with {file.address}"))
    return True


def fetch(file: PublishedFile, report: Report, *, pauses: Sequence[float] = PAUSES, timeout: float = TIMEOUT) -> None:
    """Fetch `file`, going on from what is here of it, unpack it, verify it, and give it its name.

    An existing target is replaced at the end.

    pauses:  seconds to wait before each further attempt; they begin anew whenever more bytes have arrived
    timeout: seconds without a byte until the connection counts as broken

    Raises DataError where the server cannot be reached or sends what is wrong, ResourceError where the disk refuses,
    and ConfigError where the target cannot be written. What arrived is kept in all cases but one: it is complete and
    wrong.
    """
    target = check_output(file.target, overwrite=True)
    try:
        with _Part(file) as part:
            _patiently(lambda: _receive(part, file, report, timeout), file, report, pauses, part)
            try:
                _finish(part, file, report)
            except DataError as error:
                part.discard()
                raise DataError(f"{file.address} is not what {target} should be, and was removed: {error}") from error
            part.discard()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise ResourceError(f"cannot write {target}: {error.strerror or error}{where}") from error


class _Part:
    """The file that the bytes gather in, held by one process, and the version of the remote file that they are of.

    size:            bytes that are here
    version, length: as the server told them, see `Reply`
    """

    def __init__(self, file: PublishedFile):
        self.path = part_path(file)
        self.address = file.address
        self._record = self.path.with_name(f"{self.path.name}.json")
        self.version: str | None = None
        self.length: int | None = None

    def __enter__(self) -> "_Part":
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            self._lock()
            self.size = self._file.seek(0, os.SEEK_END)
            record = self._read_record()
            if record is None:
                self._truncate(0)
            else:
                self.version, self.length = record
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error) -> None:
        if self.size == 0 and not self._file.closed:
            self.discard()
        self._file.close()

    def begin(self, reply: Reply) -> None:
        """Make room for what `reply` is about to send."""
        self._truncate(reply.start)
        if reply.start == 0:  # emptied first: a kill in between must not leave old bytes under a new version
            self.version, self.length = reply.version, reply.length
            record = {"address": self.address, "version": self.version, "length": self.length}
            self._record.write_text(json.dumps(record))  # half written it is no record, and nothing is here yet

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self.size += len(block)

    def flush(self) -> None:
        """Have all that was appended on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Remove what is here."""
        self.path.unlink(missing_ok=True)  # before the lock is given up
        self._record.unlink(missing_ok=True)
        self._file.close()

    def _truncate(self, size: int) -> None:
        self._file.seek(size)
        self._file.truncate()
        self.size = size

    def _lock(self) -> None:
        taken = ConfigError(f"{self.path} is being written by another download: wait until it has ended")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError:  # a file system without locks
            return
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            raise taken  # and finished meanwhile: the file that was opened has its final name now

    def _read_record(self) -> tuple[str | None, int | None] | None:
        """Version and length that the bytes are of; None where nobody can tell."""
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            record = json.loads(self._record.read_text())
            version, length = record["version"], record["length"]
            if record["address"] == self.address and isinstance(version, str | None) and isinstance(length, int | None):
                return version, length
        return None


def _patiently(attempt: Callable, file: PublishedFile, report: Report, pauses: Sequence[float], part=None):
    """What `attempt` returns; it is called again after each pause as long as the connection breaks off."""
    left, furthest = list(pauses), 0 if part is None else part.size
    while True:
        try:
            return attempt()
        except BrokenOff as error:
            if part is not None and part.size > furthest:
                left, furthest = list(pauses), part.size
            if not left:
                kept = "; what has arrived is kept, and the same command continues it" if part and part.size else ""
                raise refusal(file.address, f"{error}{kept}") from error
            report(Notice(f"{file.address}: {error}; the next attempt is in {left[0]:g} s"))
            time.sleep(left.pop(0))


def _receive(part: _Part, file: PublishedFile, report: Report, timeout: float) -> None:
    """One attempt to have all bytes of `file` in `part`. Raises BrokenOff."""
    # Of a part that is complete the last byte is asked for again, as no server sends an empty range.
    start = part.size if part.length is None else min(part.size, max(0, part.length - 1))
    with closing(open_remote(file.address, start, part.version, part.length, timeout)) as reply:
        if reply.start < start:
            report(Notice(f"{file.address} is another file now, or cannot be continued: starting anew"))
        part.begin(reply)
        _check_disk(reply, file, part.path.parent)
        try:
            while reply.length is None or part.size < reply.length:
                block = reply.read(_BLOCK if reply.length is None else min(_BLOCK, reply.length - part.size))
                if not block:
                    break
                part.append(block)
                report(Progress("fetching", file.target, part.size, reply.length))
        finally:
            part.flush()
    if reply.length is None:
        report(Notice(f"{file.address}: the server does not tell the length, so that it cannot be checked"))
    elif part.size < reply.length:
        raise BrokenOff(f"the connection ended after {part.size:,} of {reply.length:,} bytes")


def _check_disk(reply: Reply, file: PublishedFile, folder: Path) -> None:
    if reply.length is None:
        return
    # Unpacked, a file is longer; only of a tar archive a small share may be wanted.
    needed = reply.length - reply.start + (reply.length if file.packing in ("gzip", "fbin") else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{file.target} needs {needed:,} bytes or more where {free:,} are free in {folder}: free some, or make "
            f"{Path(file.target).parent} a link to a folder on a larger disk"
        )


def _finish(part: _Part, file: PublishedFile, report: Report) -> None:
    """Give the complete part its final form, verify it, and then give it its name."""
    target = Path(os.path.realpath(file.target))
    if part.size == 0:
        raise DataError("it is empty")
    if file.packing is None:
        with named_as(part.path, target.suffix) as path:
            _check_opens(path)
        part.path.replace(target)
        return
    unpacked = target.with_name(f"{target.stem}.unpacked{target.suffix}")

    def tell(done: int, total: int) -> None:
        report(Progress("unpacking", file.target, done, total))

    try:
        # The part is locked: what lies here of an unpacking was left by a process that was killed.
        for left in target.parent.glob(f".{unpacked.stem}.*{unpacked.suffix}"):
            left.unlink()
        if file.packing == "tar":
            extract_member(part.path, file.member, unpacked, tell)
        else:
            {"gzip": gunzip, "fbin": convert_fbin}[file.packing](part.path, unpacked, tell)
        _check_opens(unpacked)
        with unpacked.open("rb") as complete:
            os.fsync(complete.fileno())
        unpacked.replace(target)
    finally:
        unpacked.unlink(missing_ok=True)


def _check_opens(path: Path) -> None:
    if path.suffix in _VECTORS:
        open_array(path)


def _fits(file: PublishedFile, size: int, timeout: float) -> bool | None:
    """Whether the content of the remote `file` has `size` bytes, as far as its ends tell; None where they do not."""
    with closing(open_remote(file.address, timeout=timeout)) as reply:
        if reply.length is None or file.packing == "tar":
            return None
        if file.packing is None:
            return size == reply.length or (file.is_start and size > reply.length)
        if file.packing == "fbin":
            rows, dim = struct.unpack("<II", _read_exactly(reply, 8))
            return size == rows * (4 + 4 * dim)
    with closing(open_remote(file.address, reply.length - 4, reply.version, reply.length, timeout)) as tail:
        # A gzip file ends with the length of its content.
        return None if tail.start == 0 else size % 2**32 == int.from_bytes(_read_exactly(tail, 4), "little")


def _read_exactly(reply: Reply, size: int) -> bytes:
    content = b""
    while len(content) < size:
        block = reply.read(size - len(content))
        if not block:
            raise BrokenOff(f"the connection ended after {len(content)} of {size} bytes")
        content += block
    return content
