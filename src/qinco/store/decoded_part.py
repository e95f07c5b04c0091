"""The part of a file of decoded vectors that is there, until all of it is: what a killed decoding goes on with.

The vectors lie in `NAME.part`, and `NAME.part.json` says what they are and how many of them are safe on disk.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.atomic import flush_folder, lock_file, remove_temporaries, write_atomically
from qinco.errors import ConfigError, ResourceError
from qinco.vectors.formats import VectorWriter

KIND = "decoding"
FORMAT_VERSION = 1
_SECONDS_BETWEEN_RECORDS = 1.0  # what a kill can cost, besides the block that is being decoded


@dataclass(frozen=True)
class Record:
    """What `NAME.part` holds; everything but `rows` is settled before the first vector is decoded.

    num_vectors: N
    dim:         D
    codec:       fingerprint of the codec
    codes:       fingerprint of the codes and list numbers
    prefix:      how many steps of the codes are used
    precision, engine: what decodes them
    format:      suffix of the file that it becomes
    rows:        vectors that are on disk, from the first one
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

    path:   of `NAME.part`
    record: what the file holds; `rows` of it are gone on with
    """

    def __init__(self, path: Path, file: BinaryIO, writer: VectorWriter, record: Record):
        self.path, self.record = path, record
        self._file, self._writer = file, writer
        self._saved_at = time.monotonic()

    def begin(self) -> None:
        """Remove from the file what is not gone on with. Until then nothing is changed."""
        if self.record.rows == 0:
            self._write_record()  # first: it must not speak for what is about to be replaced
        self._writer.attach(self._file, self.record.rows)

    def append(self, block_ND: np.ndarray) -> int:
        """Write a block; how many vectors are written then."""
        self._writer.append(block_ND)
        if time.monotonic() - self._saved_at >= _SECONDS_BETWEEN_RECORDS:
            self.save()
        return self._writer.rows_written

    def save(self) -> None:
        """Wait until all vectors that were appended are on disk, and say so in the record."""
        rows = self._writer.rows_written  # before: on a second Ctrl-C a thread may still be writing
        self._sync()
        self.record = dataclasses.replace(self.record, rows=rows)
        self._write_record()
        self._saved_at = time.monotonic()

    def finish(self, target: Path) -> None:
        """Give the file, which has all vectors, its name; the record is removed after that."""
        self._sync()
        self.path.replace(target)
        flush_folder(target.parent)
        remove_record(self.path)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_record(self) -> None:
        content = {"kind": KIND, "format_version": FORMAT_VERSION, **dataclasses.asdict(self.record)}
        with write_atomically(_record_path(self.path)) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def open_part(
    path: Path, writer: VectorWriter, record: Record, *, resume: bool, overwrite: bool
) -> Iterator[DecodedPart]:
    """The part at `path`, new or with what an earlier call left; one that is still empty at the end is removed.

    record: what is to be decoded, with no rows yet

    Raises ConfigError where an earlier call's vectors are of other work, or neither `resume` nor `overwrite` is given,
    or another process is at it, and ResourceError for an OSError of the block or of our own.
    """
    try:
        with os.fdopen(lock_file(path, wait=False), "wb") as file:
            try:
                rows = _rows_there(path, file, writer, record, resume, overwrite)
                yield DecodedPart(path, file, writer, dataclasses.replace(record, rows=rows))
            finally:
                found = os.fstat(file.fileno())
                with suppress(OSError):
                    if found.st_size == 0 and os.path.samestat(found, path.stat()):
                        path.unlink()
    except BlockingIOError:
        raise ConfigError(f"another process is decoding to {path}: wait until it ends") from None
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}; what is safe on disk is kept: make room, or mend "
            "what else hinders, and resume=true continues"
        ) from error


def _rows_there(part: Path, file: BinaryIO, writer: VectorWriter, record: Record, resume: bool, overwrite: bool) -> int:
    """How many vectors of an earlier call are gone on with; raises ConfigError where that is not asked for."""
    size, path = os.fstat(file.fileno()).st_size, _record_path(part)
    there = _read_record(path)
    if there is None and size:
        raise ConfigError(f"{part} is there without its {path.name} and would be replaced: remove it")
    if there is None or size == 0 or there.rows == 0 or (overwrite and not resume):
        return 0
    _check_same(part, there, record)
    if not resume:
        raise ConfigError(
            f"{part} holds {there.rows} of {there.num_vectors} vectors: give resume=true to continue it or "
            "overwrite=true to begin anew"
        )
    if size < writer.size(there.rows):
        raise ConfigError(
            f"{part} is damaged: it has {size} bytes, its {there.rows} vectors are {writer.size(there.rows)}; give "
            "overwrite=true without resume to begin anew"
        )
    return there.rows


_DIFFERENCES = {"codec": "another codec", "codes": "other codes"}


def _check_same(part: Path, there: Record, here: Record) -> None:
    """Raise ConfigError where a file holds other vectors than those about to be made."""
    differences = [
        _DIFFERENCES.get(name, f"{name} {getattr(there, name)} there, {value} here")
        for name, value in dataclasses.asdict(here).items()
        if name != "rows" and getattr(there, name) != value
    ]
    if differences:
        raise ConfigError(
            f"{part} holds vectors of another run ({'; '.join(differences)}): repeat it with the same model, codes and "
            "settings, or give overwrite=true without resume to begin anew"
        )


def _read_record(path: Path) -> Record | None:
    """What `DecodedPart` writes; None where nothing is, and ConfigError for any other file."""
    if not os.path.lexists(path):
        return None
    try:
        content = json.loads(path.read_text()) if path.is_file() else None
        version = content.pop("format_version") if content.pop("kind") == KIND else None
        if type(version) is int and version > FORMAT_VERSION:
            raise ConfigError(f"{path} is of format version {version}, this qinco knows {FORMAT_VERSION}: update it")
        record = Record(**content)
        wrong = [f.name for f in dataclasses.fields(Record) if type(getattr(record, f.name)) is not f.type]
        if version != FORMAT_VERSION or wrong or not 0 <= record.rows <= record.num_vectors:
            raise ValueError
        return record
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConfigError(f"{path} is no record of a decoding, or a damaged one: remove it to begin anew") from None


def _record_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def remove_record(part: Path) -> None:
    """Remove the record of a part that is no more."""
    remove_temporaries(_record_path(part))
    _record_path(part).unlink(missing_ok=True)
