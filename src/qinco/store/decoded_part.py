"""The unfinished part of a file of decoded vectors, with which an interrupted decoding continues.

The vectors lie in `NAME.part`, and `NAME.part.json` says what they are and how many of them are safe on disk.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.atomic import flush_folder, lock_file, remove_temporaries
from qinco.errors import ConfigError, DataError, ResourceError, differences
from qinco.store.manifest import HEADER, VERSIONS, read_content, write_json
from qinco.vectors.formats import VectorWriter

KIND = "decoding"


class DecodedPart:
    """`NAME.part` with its record, open to be written by this process alone. Made by `open_part`."""

    def __init__(self, path: Path, file: BinaryIO, writer: VectorWriter, work: dict, rows: int, save_seconds: float):
        self.path, self._work = path, work
        self._file, self._writer, self._save_seconds = file, writer, save_seconds
        self._saved_at = time.monotonic()
        if rows == 0:
            self._record(0)  # first: the old one must not describe what is about to be replaced
        writer.attach(file, rows)

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return self._writer.rows_written

    def append(self, block_ND: np.ndarray) -> int:
        """Write a block; returns how many vectors are written then."""
        self._writer.append(block_ND)
        if time.monotonic() - self._saved_at >= self._save_seconds:
            self.save()
        return self.rows

    def save(self) -> None:
        """Wait until all vectors that were appended are on disk, and record that."""
        rows = self.rows  # before: on a second Ctrl-C a thread may still be writing
        self._sync()
        self._record(rows)
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

    def _record(self, rows: int) -> None:
        content = {"kind": KIND, "format_version": VERSIONS[KIND], **self._work, "rows": rows}
        write_json(_record_path(self.path), content)


@contextmanager
def open_part(
    path: Path, writer: VectorWriter, work: dict, resume: bool, overwrite: bool, save_seconds: float = 1.0
) -> Iterator[DecodedPart]:
    """The part at `path`, new or with what an earlier call left, of the file that `writer` would write.

    `work` says what is decoded, in JSON values, `num_vectors` among them. Raises ConfigError if an earlier call's
    vectors are other work, or neither `resume` nor `overwrite` is given, or another process is at it.
    """
    there = _read_record(path)
    try:
        with os.fdopen(lock_file(path, wait=False), "wb") as file:
            rows = _kept_rows(path, there, writer, work, resume, overwrite)
            yield DecodedPart(path, file, writer, work, rows, save_seconds)
    except BlockingIOError:
        raise ConfigError(f"another process is decoding to {path}: wait until it ends") from None
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}; what was decoded is kept: free space or fix the cause, "
            "then continue with resume=true"
        ) from error


def remove_record(part: Path) -> None:
    """Remove the record of a part that is no more."""
    remove_temporaries(_record_path(part))
    _record_path(part).unlink(missing_ok=True)


def _kept_rows(part: Path, there: dict | None, writer: VectorWriter, work: dict, resume: bool, overwrite: bool) -> int:
    """How many vectors of an earlier call are kept; raises ConfigError if neither setting allows it."""
    size, anew = part.stat().st_size, "give overwrite=true without resume to begin anew"
    if there is None and size:
        raise ConfigError(f"{part} is there without its {_record_path(part).name} and would be replaced: remove it")
    rows = 0 if there is None else there["rows"]
    if there is None or size == 0 or rows == 0 or (overwrite and not resume):
        return 0
    labels = {"codec": "another codec", "codes": "other codes"}
    if found := differences(there | {"rows": None}, work, labels):
        raise ConfigError(
            f"{part} holds vectors of another run ({'; '.join(found):.500}): use the same model, codes and settings, "
            f"or {anew}"
        )
    if not resume:
        raise ConfigError(
            f"{part} holds {rows} of {work['num_vectors']} vectors: give resume=true to continue, or {anew}"
        )
    if rows > work["num_vectors"] or size < writer.size(rows):
        raise ConfigError(f"{part} is damaged: its {size} bytes are not {rows} vectors; {anew}")
    return rows


def _read_record(part: Path) -> dict | None:
    """What is written of the work, and `rows`; None if there is nothing, and ConfigError for any other file."""
    if not os.path.lexists(path := _record_path(part)):
        return None
    try:
        content = read_content(path, KIND)
    except DataError as error:
        raise ConfigError(f"{error}; remove it to begin anew") from None
    rows = content.get("rows")
    if type(rows) is not int or not 0 <= rows < 1 << 48:
        raise ConfigError(f"{path} is damaged: rows is {rows!r:.50}; remove it to begin anew")
    return {name: value for name, value in content.items() if name not in HEADER}


def _record_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
