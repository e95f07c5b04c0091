"""Decoding any number of codes to a file of vectors: in blocks, resumed after any end.

Shape suffixes: N vectors, D dimension, M codes of a vector, S sampled vectors.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np

from qinco.atomic import check_output
from qinco.codec.codec import Codec
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.code_files import EncodedSet, is_directory, open_encoded_set
from qinco.store.code_store import read_manifest
from qinco.store.codes import Codes
from qinco.store.decoded_part import DecodedPart, Record, open_part, remove_record
from qinco.vectors.formats import FLOAT_SUFFIXES, VectorWriter, open_array

_CHECK_ROWS, _SAMPLED_ROWS = 1 << 20, 256
# What two machines decode differs by less than this part of a vector; in bf16 it differs by more from float32's.
_SAME, _SAME_BF16 = 1e-5, 1e-2


def open_codes(codec: Codec, path: str | os.PathLike, lists=None) -> EncodedSet:
    """The codes of a codec in a file or folder, one at least; raises DataError for those of another one.

    lists: path of the list numbers, where they are neither within nor beside the codes
    """
    if is_directory(path) and read_manifest(path).codec != codec.fingerprint():
        raise DataError(f"{path} holds codes of another codec: give the model that they were encoded with")
    codes = open_encoded_set(path, codec.num_codes, codec.config.codebook_size, codec.is_ivf, lists)
    if len(codes) == 0:
        raise DataError(f"{path} holds no codes")
    return codes


def decode_file(
    codec: Codec,
    codes: EncodedSet,
    output: str | os.PathLike,
    *,
    prefix: int | None = None,
    precision: str = "float32",
    resume: bool = False,
    overwrite: bool = False,
    inputs=(),
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Decode codes to `output`, float32 vectors (N, D) in a .npy, .fvecs or .fbin file.

    codes:     of `open_codes`
    prefix:    decode the first steps of the codes only
    precision: "float32" or "bf16"
    resume:    go on where an earlier call was ended, at whatever instant; the file is that of a call that was not
    overwrite: replace what is there
    inputs:    files and folders that are read and must not be replaced

    Memory is bounded by two blocks of vectors: one is written while the next is decoded.
    Raises ConfigError and DataError before any work, all codes having been looked through, ConfigError too where
    `resume` finds vectors of other codes or of another codec, and ResourceError where the disk refuses; what was
    decoded stays for `resume` then.
    """
    target = _check_name(output, inputs)
    record = plan(codec, codes, Path(output).suffix.lower(), prefix, precision)
    path = Path(f"{target}.part")
    if resume and target.exists() and not path.exists():
        _check_made(output, codec, codes, prefix, precision)
        remove_record(path)  # left by a kill after the output was made
        on_progress(len(codes))
        return
    check_output(output, overwrite=overwrite or (resume and path.exists()), inputs=inputs)
    writer = VectorWriter(output, codec.dim, np.float32, len(codes))
    with open_part(path, writer, record, resume=resume, overwrite=overwrite) as part:
        _check_all(codec, codes)
        part.begin()
        _decode_rows(part, codec, codes, prefix, precision, on_progress)
        part.finish(target)


def plan(codec: Codec, codes: EncodedSet, form: str, prefix: int | None, precision: str) -> Record:
    """What the file of vectors is to hold."""
    digest = sha256(repr(codes.codes.shape).encode())
    for sampled in _sample(codec, codes)[1:]:
        if sampled is not None:
            digest.update(sampled.astype("<i8").tobytes())
    return Record(
        num_vectors=len(codes),
        dim=codec.dim,
        codec=codec.fingerprint(),
        codes=digest.hexdigest(),
        prefix=codec.config.num_steps if prefix is None else prefix,
        precision=precision,
        engine=codec.encode_options.engine,
        format=form,
    )


def _decode_rows(part: DecodedPart, codec, codes: EncodedSet, prefix, precision: str, on_progress) -> None:
    """Decode what is missing; a block is written by a thread while the next one is decoded.

    Blocks begin where they do in a call that was never ended, for what torch computes may depend on it.
    """
    on_progress(part.record.rows)
    writing: Future | None = None
    try:
        with ThreadPoolExecutor(1, "write vectors") as pool:
            for codes_NM, lists_N in codes.blocks(codec.block_rows, part.record.rows):
                for _, block_ND in codec.decode_blocks(Codes(_columns(codec, codes_NM, prefix), lists_N), precision):
                    if writing is not None:
                        on_progress(writing.result())
                    writing = pool.submit(part.append, block_ND)
            if writing is not None:
                on_progress(writing.result())
    except BaseException:
        with suppress(OSError, ResourceError):  # what is on disk already stays in any case
            part.save()
        raise


def _check_made(output, codec, codes: EncodedSet, prefix: int | None, precision: str) -> None:
    """Raise where an output that is to be resumed, and seems to be whole, is of other codes or of another codec.

    The file does not say of which, so some vectors are decoded again; machines round differently.
    """
    there = open_array(output)
    if there.shape != (len(codes), codec.dim) or there.dtype != np.float32:
        raise ConfigError(
            f"{output} holds {there.dtype} {there.shape}, not float32 {(len(codes), codec.dim)}: "
            "give overwrite=true without resume to replace it"
        )
    rows_S, codes_SM, lists_S = _sample(codec, codes)
    same, tolerance = 0, _SAME if precision == "float32" else _SAME_BF16
    for first, decoded_ND in codec.decode_blocks(Codes(_columns(codec, codes_SM, prefix), lists_S), precision):
        there_ND = there[rows_S[first : first + len(decoded_ND)]]
        bounds_N = tolerance * np.linalg.norm(decoded_ND, axis=1)
        same += int((np.linalg.norm(there_ND - decoded_ND, axis=1) <= bounds_N).sum())
    if 4 * same < 3 * len(rows_S):
        raise ConfigError(
            f"{output} holds other vectors than this model and these settings decode {codes.name} to: "
            "give overwrite=true without resume to replace it"
        )


def _check_all(codec, codes: EncodedSet) -> None:
    """Raise DataError for what are no codes of the codec."""
    try:
        for codes_NM, lists_N in codes.blocks(_CHECK_ROWS):
            codec.check_codes(codes_NM, lists_N)
    except DataError as error:
        raise DataError(f"{codes.name}: {error}") from None


def _check_name(output: str | os.PathLike, inputs) -> Path:
    """The file that `output` is, links followed; raises ConfigError where it cannot be written, or is read."""
    target = Path(os.path.realpath(check_output(output, overwrite=True, inputs=inputs)))
    for name in inputs:
        if name is not None and target.is_relative_to(os.path.realpath(name)):
            raise ConfigError(f"output={output} lies in {name}, which is read: give it another place")
    if Path(output).suffix.lower() not in FLOAT_SUFFIXES:
        raise ConfigError(f"output={output}: vectors are written to {', '.join(FLOAT_SUFFIXES)} files")
    return target


def _sample(codec, codes: EncodedSet) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Some row numbers, spread over all codes, with the codes (S, M) and list numbers (S,) or None, which are checked.

    Raises DataError for what are no codes of the codec.
    """
    rows_S = np.unique(np.linspace(0, len(codes) - 1, min(_SAMPLED_ROWS, len(codes))).astype(np.int64))
    # A code with its list number: the parts of an .npz file are unpacked once for both.
    pieces = [next(codes.blocks(1, row)) for row in rows_S.tolist()]
    codes_SM = np.concatenate([piece for piece, _ in pieces])
    lists_S = None if codes.lists is None else np.concatenate([piece for _, piece in pieces])
    try:
        codec.check_codes(codes_SM, lists_S)
    except DataError:
        _check_all(codec, codes)  # which says the row
        raise
    return rows_S, codes_SM, lists_S


def _columns(codec, codes_NM: np.ndarray, prefix: int | None) -> np.ndarray:
    return codes_NM if prefix is None else codec.prefix(codes_NM, prefix)
