"""The unfinished part of a file of decoded vectors, with which an interrupted decoding continues.

The vectors lie in `NAME.part`, and `NAME.part.json` says what they are and how many of them are safe on disk.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.atomic import flush_folder, lock_file, remove_temporaries, write_atomically
from qinco.errors import ConfigError, DataError, ResourceError, differences
from qinco.store.manifest import HEADER, VERSIONS, parse_fields, read_content
from qinco.vectors.formats import VectorWriter

KIND = "decoding"


@dataclass(frozen=True)
class Record:
    """What `NAME.part` holds; everything but `rows` is known before the first vector is decoded.

    Attributes:
        num_vectors: N.
        dim: D.
        codec: fingerprint of the codec.
        codes: fingerprint of the codes and list numbers.
        prefix: how many steps of the codes are used.
        precision: what decodes them, with `engine`.
        engine: see `precision`.
        format: suffix of the file that it becomes.
        rows: vectors that are on disk, from the first one.
    """

    num_vectors: int
    dim: int
    codec: str
    codes: str
    prefix: int
    precision: str
    engine: str
    format: str
    rows: int = 0


class DecodedPart:
    """`NAME.part` with its record, open to be written by this process alone. Made by `open_part`.

    Attributes:
        path: of `NAME.part`.
        record: what the file holds; `rows` of it are kept.
    """

    def __init__(self, path: Path, file: BinaryIO, writer: VectorWriter, record: Record, save_seconds: float):
        self.path, self.record = path, record
        self._file, self._writer, self._save_seconds = file, writer, save_seconds
        self._saved_at = time.monotonic()

    def begin(self) -> None:
        """Remove from the file what is not kept. Until then nothing is changed."""
        if self.record.rows == 0:
            self._write_record()  # first: the old one must not describe what is about to be replaced
        self._writer.attach(self._file, self.record.rows)

    def append(self, block_ND: np.ndarray) -> int:
        """Write a block; returns how many vectors are written then."""
        self._writer.append(block_ND)
        if time.monotonic() - self._saved_at >= self._save_seconds:
            self.save()
        return self._writer.rows_written

    def save(self) -> None:
        """Wait until all vectors that were appended are on disk, and record that."""
        rows = self._writer.rows_written  # before: on a second Ctrl-C a thread may still be writing
        self._sync()
        self.record = replace(self.record, rows=rows)
        self._write_record()
        self._saved_at = time.monotonic()

    def finish(self, target: Path) -> None:
        """Rename the file, which has all vectors; the record is removed after that."""
        self._sync()
        self.path.replace(target)
        flush_folder(target.parent)
        remove_record(self.path)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_record(self) -> None:
        content = {"kind": KIND, "format_version": VERSIONS[KIND], **asdict(self.record)}
        with write_atomically(_record_path(self.path)) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def open_part(
    path: Path, writer: VectorWriter, record: Record, resume: bool, overwrite: bool, save_seconds: float = 1.0
) -> Iterator[DecodedPart]:
    """The part at `path`, new or with what an earlier call left; one that is still empty at the end is removed.

    Args:
        path: NAME.part.
        writer: of the file that it becomes.
        record: what is to be decoded, with no rows yet.
        resume: continue with the vectors of an earlier call.
        overwrite: replace them.
        save_seconds: how often what is on disk is recorded.

    Raises:
        ConfigError: an earlier call's vectors are other work, or neither `resume` nor `overwrite` is given, or another
            process is at it.
        ResourceError: an OSError occurred, in the block or here.
    """
    try:
        with os.fdopen(lock_file(path, wait=False), "wb") as file:
            try:
                rows = _kept_rows(path, file, writer, record, resume, overwrite)
                yield DecodedPart(path, file, writer, replace(record, rows=rows), save_seconds)
            finally:
                found = os.fstat(file.fileno())
                with suppress(OSError):
                    if found.st_size == 0 and os.path.samestat(found, path.stat()):
                        path.unlink()
    except BlockingIOError:
        raise ConfigError(f"another process is decoding to {path}: wait until it ends") from None
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}; what was decoded is kept: free space or fix the cause, "
            "then continue with resume=true"
        ) from error


def _kept_rows(part: Path, file: BinaryIO, writer: VectorWriter, record: Record, resume: bool, overwrite: bool) -> int:
    """How many vectors of an earlier call are kept; raises ConfigError if neither setting allows it."""
    size, path = os.fstat(file.fileno()).st_size, _record_path(part)
    there = _read_record(path)
    if there is None and size:
        raise ConfigError(f"{part} is there without its {path.name} and would be replaced: remove it")
    if there is None or size == 0 or there.rows == 0 or (overwrite and not resume):
        return 0
    labels = {"codec": "another codec", "codes": "other codes"}
    if found := differences(asdict(replace(there, rows=0)), asdict(record), labels):
        raise ConfigError(
            f"{part} holds vectors of another run ({'; '.join(found)}): use the same model, codes and settings, or "
            "give overwrite=true without resume to begin anew"
        )
    if not resume:
        raise ConfigError(
            f"{part} holds {there.rows} of {there.num_vectors} vectors: give resume=true to continue it or "
            "overwrite=true to begin anew"
        )
    if size < (wanted := writer.size(there.rows)):
        raise ConfigError(
            f"{part} is damaged: it has {size} bytes, its {there.rows} vectors need {wanted}; give overwrite=true "
            "without resume to begin anew"
        )
    return there.rows


def _read_record(path: Path) -> Record | None:
    """What `DecodedPart` writes; None if there is nothing, and ConfigError for any other file."""
    if not os.path.lexists(path):
        return None
    try:
        content = read_content(path, KIND)
        record = parse_fields(Record, {name: content[name] for name in content if name not in HEADER})
        if record.rows > record.num_vectors:
            raise ValueError(f"rows is {record.rows}")
        return record
    except DataError as error:
        raise ConfigError(f"{error}; remove it to begin anew") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error!s:.200}; remove it to begin anew") from None


def _record_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def remove_record(part: Path) -> None:
    """Remove the record of a part that is no more."""
    remove_temporaries(_record_path(part))
    _record_path(part).unlink(missing_ok=True)
