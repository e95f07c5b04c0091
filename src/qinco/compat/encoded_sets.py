"""The authors' encoded sets: an index file `X.npz` of four numbers, and parts `X.part_i.npz` of int64 codes.

Where a codec has lists, their numbers are the first column. Nothing but arrays of integers is ever loaded.
Shape suffixes: N vectors, M codes of a vector.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from qinco.atomic import write_atomically
from qinco.errors import DataError
from qinco.packing import code_dtype
from qinco.vectors.concat_rows import JoinedRows
from qinco.vectors.mapped import missing_file

_BLOCK_ROWS = 1 << 16
_PART_ROWS = 1 << 22
_HEADER_BYTES = 1 << 16
_SMALL_BYTES, _MOST_EXPANSION = 1 << 26, 200
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def npz_part(path: Path, number: int) -> Path:
    """Part `number` of the set whose index file is `path`."""
    return path.with_name(f"{path.name.removesuffix(path.suffix)}.part_{number}.npz")


def read_npz_sizes(path: str | os.PathLike) -> dict[str, int]:
    """n_parts, K, M and D of the authors' index file; raises DataError for any other file."""
    path = Path(path)
    with _OpenZip(path) as archive:
        sizes = {}
        for name in ("n_parts", "K", "M", "D"):
            shape, dtype, _, stream = _open_member(path, archive, f"{name}.npy")
            if shape != () or dtype.kind not in "iu":
                raise DataError(f"{path} is no encoded set: its {name} is {dtype} of shape {shape!s:.60}")
            sizes[name] = int(np.frombuffer(stream.read(dtype.itemsize), dtype, 1)[0])
    if not (0 <= sizes["n_parts"] <= 1 << 20 and all(0 < sizes[name] < 1 << 31 for name in ("K", "M", "D"))):
        raise DataError(f"{path} is damaged: it claims {sizes}")
    return sizes


def npz_rows(part: Path) -> tuple[int, int]:
    """Shape of the codes in a part, from its header."""
    with _OpenZip(part) as archive:
        shape = _open_member(part, archive, "codes.npy")[0]
    if len(shape) != 2:
        raise DataError(f"{part} holds codes of shape {shape!s:.60}: they are a matrix")
    return shape


def open_npz(path: Path, code_size: int, codebook_size: int) -> tuple[JoinedRows, JoinedRows | None]:
    """Codes, rows (N, code_size), and list numbers, rows (N, 1) or None, of an encoded set, one part in memory.

    Raises DataError where the file is missing, damaged, or of a codec of other sizes.
    """
    sizes = read_npz_sizes(path)
    for name, wanted in (("K", codebook_size), ("M", code_size)):
        if sizes[name] != wanted:
            raise DataError(
                f"{path} holds codes of another codec: {name} is {sizes[name]} there, {wanted} in the model"
            )
    shapes = [npz_rows(npz_part(path, number)) for number in range(sizes["n_parts"])]
    columns = {shape[1] for shape in shapes} or {code_size}
    if columns not in ({code_size}, {code_size + 1}):
        raise DataError(f"{path} holds codes of shapes {sorted(set(shapes))[:3]}: they need {code_size} columns")
    starts = np.cumsum([0, *(shape[0] for shape in shapes)]).tolist()
    first = columns.pop() - code_size

    def load(number: int) -> tuple[np.ndarray, np.ndarray | None]:
        return _read_part(npz_part(path, number), shapes[number], first, codebook_size)

    cached = _LastCall(load)
    codes = JoinedRows(lambda i: cached(i)[0], starts, code_size, code_dtype(codebook_size), str(path))
    lists = JoinedRows(lambda i: cached(i)[1], starts, 1, np.int32, str(path)) if first else None
    return codes, lists


class _LastCall:
    """Codes and lists of a part come from one reading."""

    def __init__(self, function):
        self._function, self._argument, self._result = function, None, None

    def __call__(self, argument):
        if self._argument != argument:
            self._argument, self._result = argument, self._function(argument)
        return self._result


def _read_part(
    path: Path, shape: tuple[int, int], first: int, codebook_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes in their own dtype and lists, int32 (n, 1), if the first column holds them."""
    with _OpenZip(path) as archive:
        found, dtype, is_fortran, stream = _open_member(path, archive, "codes.npy")
        if found != shape:
            raise DataError(f"{path} has changed since it was opened: read the set again")
        rows, columns = shape
        codes_NM = np.empty((rows, columns - first), code_dtype(codebook_size))
        lists_N1 = np.empty((rows, 1), np.int32) if first else None

        def read(shape: tuple[int, int]) -> np.ndarray:
            data = stream.read(shape[0] * shape[1] * dtype.itemsize)
            return np.frombuffer(data, dtype).reshape(shape)

        def store(block: np.ndarray, target: np.ndarray, limit: int) -> None:
            if block.size and (block.min() < 0 or block.max() >= limit):
                raise DataError(f"{path} is damaged: it holds {block.min()} to {block.max()}, codes are below {limit}")
            target[...] = block

        for start in range(0, 0 if is_fortran else rows, _BLOCK_ROWS):
            part = slice(start, min(start + _BLOCK_ROWS, rows))
            block = read((part.stop - start, columns))
            store(block[:, first:], codes_NM[part], codebook_size)
            if first:
                store(block[:, :1], lists_N1[part], 1 << 31)
        for column in range(columns if is_fortran else 0):  # numpy keeps the order in which the authors' model wrote
            target, limit = (
                (lists_N1, 1 << 31) if column < first else (codes_NM[:, column - first, None], codebook_size)
            )
            for start in range(0, rows, _BLOCK_ROWS):
                part = slice(start, min(start + _BLOCK_ROWS, rows))
                store(read((part.stop - start, 1)), target[part], limit)
        return codes_NM, lists_N1


# What Python's zip files raise where they are damaged; RuntimeError: where they are encrypted.
_DAMAGE = (OSError, ValueError, RuntimeError, EOFError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error)


class _OpenZip:
    """A zip file whose damage, found when it is opened or read, is a DataError."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> zipfile.ZipFile:
        try:
            if not self._path.is_file():
                raise DataError(f"{self._path} is not a file") if self._path.exists() else missing_file(self._path)
            self._archive = zipfile.ZipFile(self._path)
        except DataError:
            raise
        except _DAMAGE as error:
            raise DataError(f"{self._path} is not an npz file, or a damaged one: {error!s:.200}") from None
        return self._archive

    def __exit__(self, kind, error, traceback) -> None:
        self._archive.close()
        if isinstance(error, _DAMAGE) and not isinstance(error, DataError):
            raise DataError(f"{self._path} is a damaged npz file: {error!s:.200}") from None


def _open_member(path: Path, archive: zipfile.ZipFile, name: str):
    """Shape, dtype, Fortran order and the stream of values of one array of integers."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise DataError(f"{path} is no encoded set: it has no array {name.removesuffix('.npy')!r}") from None
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path} is compressed in a way that npz files are not")
    with archive.open(entry) as file:
        start = io.BytesIO(file.read(_HEADER_BYTES))
    try:
        major, _ = npy_format.read_magic(start)
        read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
        shape, is_fortran, dtype = read(start)
    except Exception as error:  # it parses a Python literal: damage can raise nearly anything
        raise DataError(f"{path} is damaged: the header of {name} cannot be read") from error
    if dtype.kind not in "iu":
        raise DataError(f"{path} holds {dtype!s:.60} in {name}: codes are integers, and nothing else is loaded")
    if any(size < 0 for size in shape) or entry.file_size != start.tell() + math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"{path} is damaged: the header of {name} claims {dtype} {shape!s:.60}, of {entry.file_size} bytes"
        )
    there = min(entry.compress_size, path.stat().st_size)  # what the entry claims of itself may be a lie
    if entry.file_size > max(_SMALL_BYTES, _MOST_EXPANSION * there):
        raise DataError(f"{path} would unfold {there} bytes to {entry.file_size}: it is refused")
    stream = archive.open(entry)
    stream.read(start.tell())
    return shape, dtype, is_fortran, stream


def write_npz(path: Path, codes, lists, codebook_size: int, dim: int) -> list[Path]:
    """Write rows of codes (N, M) and of list numbers (N, 1) or None; the files that were written.

    The index file is there only while all parts are its own.
    """
    Path(os.path.realpath(path)).unlink(missing_ok=True)
    num_vectors = codes.shape[0]
    starts = range(0, max(1, num_vectors), _PART_ROWS)
    first = 0 if lists is None else 1
    written = []
    for number, start in enumerate(starts):
        rows = range(start, min(start + _PART_ROWS, num_vectors))
        written.append(npz_part(path, number))
        shape = (len(rows), codes.shape[1] + first)
        with (
            write_atomically(written[-1]) as temporary,
            _new_zip(temporary) as archive,
            _new_member(archive, "codes", shape) as member,
        ):
            for begin in range(rows.start, rows.stop, _BLOCK_ROWS):
                part = slice(begin, min(begin + _BLOCK_ROWS, rows.stop))
                columns = [] if lists is None else [lists[part]]
                member.write(np.concatenate([*columns, codes[part]], 1).astype("<i8").tobytes())
    sizes = {"n_parts": len(starts), "K": codebook_size, "M": codes.shape[1], "D": dim}
    with write_atomically(path) as temporary, _new_zip(temporary) as archive:
        for name, value in sizes.items():
            with _new_member(archive, name, ()) as member:
                member.write(np.int64(value).tobytes())
    for stale in range(len(starts), len(starts) + (1 << 20)):  # of an earlier set of more parts
        if not npz_part(path, stale).exists():
            break
        npz_part(path, stale).unlink()
    return [*written, path]


def _new_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)


def _new_member(archive: zipfile.ZipFile, name: str, shape: tuple):
    entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    member = archive.open(entry, "w", force_zip64=True)
    npy_format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return member
