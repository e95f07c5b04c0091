"""The authors' encoded sets: an index file `X.npz` of four numbers, and parts `X.part_i.npz` of int64 codes.

Where a codec has lists, their numbers are the first column. numpy reads the files, and never pickles.
Shape suffixes: N vectors, M codes of a vector.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from qinco.atomic import write_atomically
from qinco.errors import DataError, ResourceError
from qinco.machine import free_memory
from qinco.packing import code_dtype
from qinco.vectors.block_rows import ConcatRows
from qinco.vectors.mapped import file_size

_PART_ROWS, _BLOCK_ROWS = 1 << 22, 1 << 16
_SMALL_BYTES, _MAX_EXPANSION = 1 << 26, 200
_NAMES = ("n_parts", "K", "M", "D")


def npz_part(path: Path, number: int) -> Path:
    """Part `number` of the set with the index file `path`."""
    return path.with_name(f"{path.name.removesuffix(path.suffix)}.part_{number}.npz")


def read_npz_sizes(path: str | os.PathLike) -> dict[str, int]:
    """n_parts, K, M and D of an index file; raises DataError for any other file."""
    path = Path(path)
    sizes = {name: int(_load(path, name, ())) for name in _NAMES}
    if not (0 <= sizes["n_parts"] <= 1 << 20 and all(0 < sizes[name] < 1 << 31 for name in _NAMES[1:])):
        raise DataError(f"{path} is damaged: it claims {sizes}")
    return sizes


def npz_rows(part: Path) -> tuple[int, int]:
    """Shape of the codes in a part, from its header."""
    shape = _shape(part, "codes")
    if len(shape) != 2:
        raise DataError(f"{part} has codes of shape {shape!s:.60}, not of two axes")
    return shape


def open_npz(path: Path, num_codes: int, codebook_size: int) -> tuple[ConcatRows, ConcatRows | None]:
    """Codes, rows (N, M), and list numbers, rows (N, 1) or None, of an encoded set; one part is in memory at a time.

    Raises:
        DataError: a file is missing or damaged, or the set is of another codec.
    """
    sizes = read_npz_sizes(path)
    for name, wanted in (("K", codebook_size), ("M", num_codes)):
        if sizes[name] != wanted:
            raise DataError(f"{path} has codes of another codec: {name} is {sizes[name]} there, {wanted} in the model")
    shapes = [npz_rows(npz_part(path, number)) for number in range(sizes["n_parts"])]
    columns = {shape[1] for shape in shapes} or {num_codes}
    if columns not in ({num_codes}, {num_codes + 1}):
        raise DataError(f"{path} has codes of shapes {sorted(set(shapes))[:3]}, not of {num_codes} columns")
    starts = np.cumsum([0, *(shape[0] for shape in shapes)]).tolist()
    first = columns.pop() - num_codes

    @lru_cache(maxsize=1)  # codes and lists of a part come from one reading
    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        part = npz_part(path, number)
        array = _load(part, "codes", shapes[number])
        for block, limit in ((array[:, :first], 1 << 31), (array[:, first:], codebook_size)):
            if block.size and (block.min() < 0 or block.max() >= limit):
                raise DataError(f"{part} is damaged: it has codes {block.min()} to {block.max()}, not below {limit}")
        return array[:, first:].astype(code_dtype(codebook_size), "C"), array[:, :first].astype(np.int32, "C")

    codes = ConcatRows(lambda i: read(i)[0], starts, num_codes, code_dtype(codebook_size), str(path))
    lists = ConcatRows(lambda i: read(i)[1], starts, 1, np.int32, str(path)) if first else None
    return codes, lists


def describe_encoded_set(path: str | os.PathLike) -> dict:
    """Kind and sizes of an encoded set, by its index file, or of one of its parts, without reading the codes.

    Raises:
        DataError: the file is neither, or damaged.
    """
    path = Path(path)
    _, _, number = path.stem.rpartition(".part_")
    if number.isdecimal() and number != path.stem:
        rows, columns = npz_rows(path)
        return {"kind": "part of an encoded set of QINCo2", "num_vectors": rows, "columns": columns}
    sizes = read_npz_sizes(path)
    shapes = [npz_rows(npz_part(path, number)) for number in range(sizes["n_parts"])]
    return {
        "kind": "encoded set of QINCo2", "num_vectors": sum(rows for rows, _ in shapes),
        "num_parts": sizes["n_parts"], "dim": sizes["D"], "codebook_size": sizes["K"], "code_size": sizes["M"],
        "has_lists": any(columns == sizes["M"] + 1 for _, columns in shapes),
        "bytes_per_vector": sizes["M"] * (sizes["K"].bit_length() - 1) / 8,
    }  # fmt: skip


def _shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array of integers, whose promised size is compared with the file's before memory is taken."""
    there = file_size(path)
    with _damage(path), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise DataError(f"{path} is not an encoded set: it has no array {name!r}")
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path} is compressed in a way that npz files are not")
        with archive.open(entry) as file:
            version = npy_format.read_magic(file)[0]
            read = npy_format.read_array_header_1_0 if version == 1 else npy_format.read_array_header_2_0
            shape, _, dtype = read(file)
            size = file.tell() + math.prod(shape) * dtype.itemsize
        if dtype.kind not in "iu":
            raise DataError(f"{path} has {dtype!s:.60} in {name}, not integers")
        if any(count < 0 for count in shape) or entry.file_size != size:
            raise DataError(f"{path} is damaged: {name} of {dtype} {shape!s:.60} does not take {entry.file_size} bytes")
    if size > max(_SMALL_BYTES, _MAX_EXPANSION * there):
        raise DataError(f"{path} would expand from {there} to {size} bytes: it was not read")
    if size > (free := free_memory()):
        raise ResourceError(f"{path} takes {size} bytes in memory, {free} are free")
    return shape


def _load(path: Path, name: str, expected: tuple[int, ...]) -> np.ndarray:
    if (shape := _shape(path, name)) != expected:
        raise DataError(f"{path} has {name} of shape {shape!s:.60}, not {expected}; a changed set must be opened again")
    with _damage(path), np.load(path, allow_pickle=False) as archive:
        return archive[name]


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise DataError for anything that a damaged zip file or header can raise."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path} is not an npz file, or damaged: {error!s:.200}") from None


def write_npz(
    path: Path, codes, lists, codebook_size: int, dim: int, *, part_rows: int = 0, block_rows: int = 0
) -> list[Path]:
    """Write rows of codes (N, M) and of list numbers (N, 1) or None in bounded memory; the paths of the files.

    The index file exists only while all parts belong to it.
    """
    part_rows, block_rows = part_rows or _PART_ROWS, block_rows or _BLOCK_ROWS
    Path(os.path.realpath(path)).unlink(missing_ok=True)
    num_vectors, first = codes.shape[0], 0 if lists is None else 1
    starts, written = range(0, max(1, num_vectors), part_rows), []
    for number, start in enumerate(starts):
        stop = min(start + part_rows, num_vectors)
        written.append(npz_part(path, number))
        with (
            write_atomically(written[-1]) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
            _new_member(archive, "codes", (stop - start, codes.shape[1] + first)) as member,
        ):
            for begin in range(start, stop, block_rows):
                part = slice(begin, min(begin + block_rows, stop))
                columns = [] if lists is None else [lists[part]]
                member.write(np.concatenate([*columns, codes[part]], 1).astype("<i8").tobytes())
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in zip(_NAMES, (len(starts), codebook_size, codes.shape[1], dim), strict=True):
            with _new_member(archive, name, ()) as member:
                member.write(np.int64(value).tobytes())
    stale = len(starts)  # parts of an earlier, longer set
    while npz_part(path, stale).exists():
        npz_part(path, stale).unlink()
        stale += 1
    return [*written, path]


def _new_member(archive: zipfile.ZipFile, name: str, shape: tuple):
    entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    member = archive.open(entry, "w", force_zip64=True)
    npy_format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return member
