"""The authors' encoded sets: an index file `X.npz` of four numbers, and parts `X.part_i.npz` of int64 codes.

Where a codec has lists, their numbers are the first column. numpy reads the files, and never pickles.
"""

import itertools
import math
import os
import re
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from qinco.atomic import write_atomically
from qinco.errors import DataError, QincoError, ResourceError
from qinco.machine import free_memory
from qinco.packing import code_dtype
from qinco.vectors.block_rows import ConcatRows
from qinco.vectors.mapped import file_size

_SMALL_BYTES, _MAX_EXPANSION = 1 << 26, 200


def npz_part(path: Path, number: int) -> Path:
    """Part `number` of the set with the index file `path`."""
    return path.with_name(f"{path.name.removesuffix(path.suffix)}.part_{number}.npz")


def read_npz_sizes(path: Path) -> tuple[dict[str, int], list[int], bool]:
    """n_parts, K, M and D of an index file, the rows of the parts, and whether they have list numbers."""
    sizes = {name: int(_read(path, name, ())) for name in ("n_parts", "K", "M", "D")}
    if not 0 <= sizes["n_parts"] <= 1 << 20 or not all(0 < sizes[name] < 1 << 31 for name in "KMD"):
        raise DataError(f"{path} is damaged: it claims {sizes}")
    shapes = [_read(npz_part(path, number), "codes") for number in range(sizes["n_parts"])]
    columns = {shape[1:] for shape in shapes}
    if len(columns) > 1 or not columns <= {(sizes["M"],), (sizes["M"] + 1,)}:
        raise DataError(f"{path} has codes of shapes {sorted(set(shapes))[:3]!s:.200}, not of {sizes['M']} columns")
    return sizes, [shape[0] for shape in shapes], (sizes["M"] + 1,) in columns


def open_npz(path: Path, num_codes: int, codebook_size: int) -> tuple[ConcatRows, ConcatRows | None]:
    """Codes, rows (N, M), and list numbers, rows (N, 1) or None, of an encoded set; one part is in memory at a time."""
    sizes, rows, has_lists = read_npz_sizes(path)
    for name, wanted in (("K", codebook_size), ("M", num_codes)):
        if sizes[name] != wanted:
            raise DataError(f"{path} has codes of another codec: {name} is {sizes[name]} there, {wanted} in the model")
    first, dtype = int(has_lists), code_dtype(codebook_size)

    @lru_cache(maxsize=1)  # codes and lists of a part come from one reading
    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        part = npz_part(path, number)
        array = _read(part, "codes", (rows[number], num_codes + first))
        for block, limit in ((array[:, :first], 1 << 31), (array[:, first:], codebook_size)):
            if block.size and (block.min() < 0 or block.max() >= limit):
                raise DataError(f"{part} is damaged: it has codes {block.min()} to {block.max()}, not below {limit}")
        return array[:, first:].astype(dtype, "C"), array[:, :first].astype(np.int32, "C")

    starts = np.cumsum([0, *rows]).tolist()
    codes = ConcatRows(lambda i: read(i)[0], starts, num_codes, dtype, str(path))
    return codes, ConcatRows(lambda i: read(i)[1], starts, 1, np.int32, str(path)) if has_lists else None


def is_encoded_set(path: Path) -> bool:
    """Whether an .npz file seems to be the index file of an encoded set, or one of its parts, or is damaged."""
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # a damaged file can raise nearly anything
        return not {"n_parts.npy", "codes.npy"}.isdisjoint(archive.namelist())
    return True


def describe_encoded_set(path: str | os.PathLike) -> dict:
    """Kind and sizes of an encoded set, by its index file, or of one of its parts, without reading the codes."""
    path = Path(path)
    if re.search(r"\.part_\d+$", path.stem):
        shape = _read(path, "codes")
        return {"kind": "part of an encoded set of QINCo2", "num_vectors": shape[0], "columns": shape[-1]}
    sizes, rows, has_lists = read_npz_sizes(path)
    return {
        "kind": "encoded set of QINCo2", "num_vectors": sum(rows), "num_parts": len(rows), "dim": sizes["D"],
        "codebook_size": sizes["K"], "num_codes": sizes["M"], "has_lists": has_lists,
        "bytes_per_vector": sizes["M"] * (sizes["K"].bit_length() - 1) / 8,
    }  # fmt: skip


def write_npz(
    path: Path, codes, lists, codebook_size: int, dim: int, *, part_rows: int = 1 << 22, block_rows: int = 1 << 16
) -> list[Path]:
    """Write rows of codes (N, M) and of list numbers (N, 1) or None in bounded memory; the paths of the files."""
    Path(os.path.realpath(path)).unlink(missing_ok=True)  # it exists only while all parts belong to it
    arrays, parts = [codes] if lists is None else [lists, codes], []
    num_vectors, num_codes = codes.shape
    for start in range(0, max(1, num_vectors), part_rows):
        stop = min(start + part_rows, num_vectors)
        shape = stop - start, sum(array.shape[1] for array in arrays)
        parts.append(npz_part(path, len(parts)))
        with (
            write_atomically(parts[-1]) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("codes.npy", "w", force_zip64=True) as member,
        ):
            npy_format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
            for begin in range(start, stop, block_rows):
                block = slice(begin, min(begin + block_rows, stop))
                member.write(np.concatenate([array[block] for array in arrays], 1).astype("<i8").tobytes())
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, n_parts=len(parts), K=codebook_size, M=num_codes, D=dim)
    later = (npz_part(path, number) for number in itertools.count(len(parts)))
    for stale in itertools.takewhile(Path.exists, later):  # parts of an earlier, longer set
        stale.unlink()
    return [*parts, path]


def _read(path: Path, name: str, expected: tuple[int, ...] | None = None) -> Any:
    """The shape of an array of integers or, if it is as `expected`, the array."""
    there = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry := archive.getinfo(f"{name}.npy")) as file:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{path} is compressed in a way that npz files are not")
            version = npy_format.read_magic(file)[0]
            read = npy_format.read_array_header_1_0 if version == 1 else npy_format.read_array_header_2_0
            shape, _, dtype = read(file)
            size = file.tell() + math.prod(shape) * dtype.itemsize
            if dtype.kind not in "iu" or any(count < 0 for count in shape) or entry.file_size != size:
                raise DataError(f"{path} is no encoded set, or damaged: {name} is {dtype!s:.60} {shape!s:.60}")
            if size > max(_SMALL_BYTES, _MAX_EXPANSION * there):
                raise DataError(f"{path} would expand from {there} to {size} bytes: it was not read")
            if size > (free := free_memory()):
                raise ResourceError(f"{path} takes {size} bytes in memory, {free} are free")
            if expected is None:
                return shape
            if shape != expected:
                raise DataError(f"{path} has {name} of shape {shape!s:.60}, not {expected}: open a changed set again")
            file.seek(0)
            return npy_format.read_array(file, allow_pickle=False)
    except (QincoError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"{path} is not an npz file, or damaged: {error!s:.200}") from None
