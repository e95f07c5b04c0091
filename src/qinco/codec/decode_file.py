"""Decoding codes to a file of vectors, resumed after an interruption.

Shape suffixes: N vectors, D dimension, M codes of a vector, S sampled vectors.
"""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np

from qinco.atomic import check_output
from qinco.codec.codec import Codec
from qinco.codec.files import FileResult, interruption
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.progress import ProgressOption, reporting
from qinco.store.code_files import lists_beside
from qinco.store.codes import Codes
from qinco.store.decoded_part import DecodedPart, open_part, remove_record
from qinco.vectors.formats import FLOAT_SUFFIXES, VectorWriter, open_array
from qinco.vectors.rows import spread_rows

# Two machines decode a vector alike up to this part of its length; bf16 differs more from float32.
_TOLERANCES = {"float32": 1e-5, "bf16": 1e-2}


def decode_file(
    codec: Codec,
    codes,
    output: str | os.PathLike,
    *,
    lists=None,
    num_steps: int | None = None,
    precision: str = "float32",
    resume: bool = False,
    overwrite: bool = False,
    inputs=(),
    save_seconds: float = 1.0,
    progress: ProgressOption = None,
) -> FileResult:
    """Decode codes to a file of vectors, in bounded memory; all codes are checked before anything is written.

    Vectors are collected in `NAME.part`, with a record `NAME.part.json`, until all are there. A resumed call gives the
    same file as one that was never interrupted. Memory: two blocks of vectors.

    Args:
        codec: the codec that made the codes.
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

    Returns:
        A FileResult.

    Example:
        >>> decode_file(codec, "codes", "decoded.fvecs")
    """
    started = time.monotonic()
    if isinstance(codes, str | os.PathLike):
        inputs = [*inputs, codes, lists_beside(codes), lists if isinstance(lists, str | os.PathLike) else None]
        codes = Codes.load(codes, codec, lists=lists)
    else:
        codes = Codes.of(codes, lists)
    if len(codes) == 0:
        raise DataError(f"{codes.name} holds no codes")
    target = Path(os.path.realpath(check_output(output, overwrite=True, inputs=inputs)))
    for name in inputs:
        if name is not None and target.is_relative_to(os.path.realpath(name)):
            raise ConfigError(f"output={output} lies in {name}, which is read: give another output")
    if Path(output).suffix.lower() not in FLOAT_SUFFIXES:
        raise ConfigError(f"output={output}: vectors are written to {', '.join(FLOAT_SUFFIXES)} files")
    try:
        codec.check_codes(codes)
    except DataError as error:
        raise error if codes.name in str(error) else DataError(f"{codes.name}: {error}") from None
    part_path, count = Path(f"{target}.part"), len(codes)
    with reporting(progress) as report, interruption("the decoded vectors are kept"):
        if resume and target.exists() and not part_path.exists():
            _check_decoded(output, codec, codes, num_steps, precision)
            remove_record(part_path)  # left by a kill after the output was made
            report("decoding", count, count, "vector")
            return FileResult(Path(output), count, 0, True, time.monotonic() - started)
        check_output(output, overwrite=overwrite or (resume and part_path.exists()), inputs=inputs)
        writer = VectorWriter(output, codec.dim, np.float32, count)
        work = {
            "num_vectors": count,
            "dim": codec.dim,
            "codec": codec.fingerprint(),
            "codes": _fingerprint(codes),
            "prefix": codec.check_steps(num_steps),
            "precision": precision,
            "engine": codec.encode_options.engine,
            "format": writer.path.suffix.lower(),
        }
        with open_part(part_path, writer, work, resume, overwrite, save_seconds) as part:
            begun = part.rows
            _decode_rows(part, codec, codes, num_steps, precision, report)
            part.finish(target)
    return FileResult(Path(output), count, count - begun, True, time.monotonic() - started)


def _decode_rows(part: DecodedPart, codec: Codec, codes: Codes, num_steps, precision: str, report) -> None:
    """Decode what is missing; a thread writes each block while the next one is decoded.

    Blocks begin where they do in a call that was not interrupted, since what torch computes may depend on it.
    """
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
    """Raise ConfigError if a finished output is of other codes or of another codec.

    The file does not say of which, so some vectors are decoded again; machines round differently.
    """
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
