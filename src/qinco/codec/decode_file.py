"""Decoding codes to a file of vectors, resumed after an interruption.

Shape suffixes: N vectors, D dimension, M codes of a vector, S sampled vectors.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.atomic import check_output, flush_folder, lock_file, remove_temporaries
from qinco.codec.codec import Codec
from qinco.codec.files import FileResult, interruption
from qinco.codec.given import CodecLike, as_codec
from qinco.config import PRECISIONS, require_choice
from qinco.errors import ConfigError, DataError, ResourceError, differences
from qinco.progress import ProgressOption, reporting
from qinco.store.code_files import lists_beside
from qinco.store.codes import Codes
from qinco.store.manifest import HEADER, VERSIONS, read_content, write_json
from qinco.vectors.formats import FLOAT_SUFFIXES, VectorWriter, open_array
from qinco.vectors.rows import check_not_empty, spread_rows

_KIND = "decoding"  # of the record
# Two machines decode a vector alike up to this part of its length; bf16 differs more from float32.
_TOLERANCES = {"float32": 1e-5, "bf16": 1e-2}


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
        _remove_record(self.path)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _record(self, rows: int) -> None:
        content = {"kind": _KIND, "format_version": VERSIONS[_KIND], **self._work, "rows": rows}
        write_json(_record_path(self.path), content)


def decode_file(
    codec: CodecLike, codes, output: str | os.PathLike, *, lists=None, num_steps: int | None = None,
    precision: str = "float32", resume: bool = False, overwrite: bool = False, inputs=(), save_seconds: float = 1.0,
    progress: ProgressOption = None,
) -> FileResult:  # fmt: skip
    """Decode codes to a file of vectors, in bounded memory; all codes are checked before anything is written.

    Vectors are collected in `NAME.part`, with a record `NAME.part.json`, until all are there. Memory: two blocks.

    Args:
        codec: the Codec that made the codes, or its path.
        codes: path of a file or folder, Codes, or an integer array (N, M).
        output: .npy, .fvecs or .fbin file of float32 (N, D).
        lists: path of the list numbers, if they are neither within nor beside the codes; or an integer array (N,).
        num_steps: decode the first steps of the codes only.
        precision: "float32" or "bf16".
        resume: continue after an interruption.
        overwrite: replace an existing output.
        inputs: further files and folders that are read and must not be replaced.
        save_seconds: how often progress is recorded: what a killed process can lose, besides a block.
        progress: see `qinco.progress`.

    Example:
        >>> decode_file(codec, "codes", "decoded.fvecs")
    """
    started = time.monotonic()
    inputs, codec = [*inputs, codec], as_codec(codec)
    if isinstance(codes, str | os.PathLike):
        inputs = [*inputs, codes, lists_beside(codes), lists if isinstance(lists, str | os.PathLike) else None]
        codes = Codes.load(codes, codec, lists=lists)
    else:
        codes = Codes.of(codes, lists)
    check_not_empty(codes)
    output = check_output(output, suffixes=FLOAT_SUFFIXES, overwrite=True, inputs=inputs)
    target = Path(os.path.realpath(output))
    try:
        codec.check_codes(codes)
    except DataError as error:
        raise error if codes.name in str(error) else DataError(f"{codes.name}: {error}") from None
    require_choice("precision", precision, PRECISIONS)
    part_path, count = Path(f"{target}.part"), len(codes)
    with reporting(progress) as report, interruption("the decoded vectors are kept"):
        if resume and target.exists() and not part_path.exists():
            _check_decoded(output, codec, codes, num_steps, precision)
            _remove_record(part_path)  # left by a kill after the output was made
            report("decoding", count, count, "vector")
            return FileResult(Path(output), count, 0, True, time.monotonic() - started)
        check_output(output, overwrite=overwrite or (resume and part_path.exists()), inputs=inputs)
        writer = VectorWriter(output, codec.dim, np.float32, count)
        work = {
            "num_vectors": count, "dim": codec.dim, "codec": codec.fingerprint(), "codes": _fingerprint(codes),
            "prefix": codec.check_steps(num_steps), "precision": precision, "engine": codec.encode_options.engine,
            "format": writer.path.suffix.lower(),
        }  # fmt: skip
        with open_part(part_path, writer, work, resume, overwrite, save_seconds) as part:
            begun = part.rows
            _decode_rows(part, codec, codes, num_steps, precision, report)
            part.finish(target)
    return FileResult(Path(output), count, count - begun, True, time.monotonic() - started)


def _decode_rows(part: DecodedPart, codec: Codec, codes: Codes, num_steps, precision: str, report) -> None:
    """Decode what is missing, in the blocks of an uninterrupted call; a thread writes each during the next one."""
    report("decoding", part.rows, len(codes), "vector")
    writing: Future | None = None
    try:
        with ThreadPoolExecutor(1, "write vectors") as pool:
            for _, block in codes.blocks(codec.block_rows, part.rows):
                for _, block_ND in _decode_blocks(codec, block, num_steps, precision):
                    if writing is not None:
                        report("decoding", writing.result(), len(codes), "vector")
                    writing = pool.submit(part.append, block_ND)
            if writing is not None:
                report("decoding", writing.result(), len(codes), "vector")
    except BaseException:
        with suppress(OSError, ResourceError):  # what is on disk already is kept in any case
            part.save()
        raise


def _decode_blocks(codec: Codec, codes: Codes, num_steps: int | None, precision: str):
    """Yield (first row, float32 vectors) of codes, of which the first steps are used."""
    return codec.decode_blocks(codes if num_steps is None else codec.prefix(codes, num_steps), precision)


def _check_decoded(output, codec: Codec, codes: Codes, num_steps: int | None, precision: str) -> None:
    """Raise ConfigError unless vectors that are decoded again are, but for rounding, those of a finished output."""
    there, wanted = open_array(output), (len(codes), codec.dim)
    remedy = "give overwrite=true without resume to replace it"
    if there.shape != wanted or there.dtype != np.float32:
        raise ConfigError(f"{output} holds {there.dtype} {there.shape}, not float32 {wanted}: {remedy}")
    rows_S, same = spread_rows(len(codes)), 0
    for first, decoded_ND in _decode_blocks(codec, codes[rows_S], num_steps, precision):
        difference_ND = there[rows_S[first : first + len(decoded_ND)]] - decoded_ND
        bounds_N = _TOLERANCES[precision] * np.linalg.norm(decoded_ND, axis=1)
        same += int((np.linalg.norm(difference_ND, axis=1) <= bounds_N).sum())
    if 4 * same < 3 * len(rows_S):
        raise ConfigError(f"{output} holds other vectors than {codes.name} is decoded to with this model: {remedy}")


def _fingerprint(codes: Codes) -> str:
    """SHA-256 of the shape and of some codes and list numbers."""
    sample = codes[spread_rows(len(codes))]
    digest = sha256(repr(codes.shape).encode() + sample.codes.astype("<i8").tobytes())
    if (lists := sample.lists) is not None:
        digest.update(lists.astype("<i8").tobytes())
    return digest.hexdigest()


@contextmanager
def open_part(
    path: Path, writer: VectorWriter, work: dict, resume: bool, overwrite: bool, save_seconds: float = 1.0
) -> Iterator[DecodedPart]:
    """The part at `path`, new or of an earlier call, of the file that `writer` would write; `work` says what it is."""
    there = _read_record(path)
    try:
        with os.fdopen(lock_file(path, wait=False), "wb") as file:
            rows = _kept_rows(path, there, writer, work, resume, overwrite)
            part = DecodedPart(path, file, writer, work, rows, save_seconds)
            try:
                yield part
            finally:
                if part.rows == 0:  # nothing is left of a run that wrote nothing
                    path.unlink(missing_ok=True)
                    _remove_record(path)
    except BlockingIOError:
        raise ConfigError(f"another process is decoding to {path}: wait until it ends") from None
    except OSError as error:
        remedy = "what was decoded is kept: free space or fix the cause, then continue with resume=true"
        raise ResourceError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def _remove_record(part: Path) -> None:
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
        remedy = f"use the same model, codes and settings, or {anew}"
        raise ConfigError(f"{part} holds vectors of another run ({'; '.join(found):.500}): {remedy}")
    if not resume:
        kept = f"{rows} of {work['num_vectors']} vectors"
        raise ConfigError(f"{part} holds {kept}: give resume=true to continue, or {anew}")
    if rows > work["num_vectors"] or size < writer.size(rows):
        raise ConfigError(f"{part} is damaged: its size is {size}, not that of the {rows} rows recorded; {anew}")
    return rows


def _read_record(part: Path) -> dict | None:
    """What is written of the work, and `rows`; None if there is nothing, and ConfigError for any other file."""
    if not os.path.lexists(path := _record_path(part)):
        return None
    try:
        content = read_content(path, _KIND)
    except DataError as error:
        raise ConfigError(f"{error}; remove it to begin anew") from None
    rows = content.get("rows")
    if type(rows) is not int or not 0 <= rows < 1 << 48:
        raise ConfigError(f"{path} is damaged: rows is {rows!r:.50}; remove it to begin anew")
    return {name: value for name, value in content.items() if name not in HEADER}


def _record_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
