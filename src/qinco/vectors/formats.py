"""Files of vectors: opened without reading them, and written at once or block by block.

fvecs, bvecs, ivecs, npy, fbin, u8bin, i8bin, bin and ibin are memory-mapped; HDF5, npz, Parquet and Arrow are read when
rows are asked for, and so are files in buckets. Opening a file reads no rows. Several files are joined. A new format is
a module with `FORMATS` beside those below, added to `FORMATS` here.
"""

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from qinco.atomic import user_path, write_atomically
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.vectors import arrow_files, binary, hdf5, npz, parquet
from qinco.vectors.arrays import as_rows
from qinco.vectors.block_rows import concat_rows
from qinco.vectors.mapped import MAX_DIM, Format, Rows, StoredRows, check_matrix, file_size, file_stamp
from qinco.vectors.remote import RemotePath, is_remote, listed

_MODULES = (binary, npz, hdf5, parquet, arrow_files)
FORMATS = {suffix: format for module in _MODULES for format in module.FORMATS for suffix in format.suffixes}
SUFFIXES = tuple(FORMATS)
WRITTEN_SUFFIXES = tuple(suffix for suffix, format in FORMATS.items() if format.header is not None)
FLOAT_SUFFIXES = tuple(suffix for suffix in WRITTEN_SUFFIXES if FORMATS[suffix].dtype in (None, np.float32))
WRITE_ROWS = 65536
_LOG = logging.getLogger(__name__)
_WITH_PARTS = "|".join(re.escape(suffix) for suffix, format in FORMATS.items() if format.has_parts)
_NAMED_PART = re.compile(rf"(.*?(?:{_WITH_PARTS})):(.+)", re.IGNORECASE | re.DOTALL)


_CROPPED = re.compile(r"\.crop_nb_[0-9]+$")  # what big-ann's tools append to the names of cropped files
_ROLES = re.compile("base|learn|train|quer|test|valid|truth|neighb|centroid", re.IGNORECASE)
_JOINED = re.compile(r" \([0-9]+ files, .*\)$", re.DOTALL)  # what `open_array` says of several
_NUMBERS = re.compile("([0-9]+)")


def open_array(path, part: str = "train") -> Rows:
    """Open files of vectors as rows (N, D) of the stored type, see `qinco.open_vectors`.

    They are a read-only memory map, or an object that reads rows when they are asked for. N may be 0.
    """
    files = find_files(path)
    if len(files) == 1:
        return _open_file(*files[0], part)
    first, last = (str(file) for file, _ in (files[0], files[-1]))
    what = f"{path if isinstance(path, str | os.PathLike) else first} ({len(files)} files, {first} to {last})"
    # Absolute, for processes that work elsewhere.
    load = partial(_open_one, [(file.absolute(), name, part, file_stamp(file)) for file, name in files])
    rows = concat_rows(map(load, range(len(files))), [str(file) for file, _ in files], load, what)
    _LOG.info(f"{what}: {rows.shape[0]:,} vectors of dimension {rows.shape[1]}")
    return rows


def find_files(path) -> list[tuple[Path, str | None]]:
    """The files of a path, folder, pattern or list of paths, each with its matrix's name (None: the default)."""
    if not isinstance(path, str | os.PathLike):
        if not isinstance(path, list | tuple) or not path:
            raise ConfigError(f"files of vectors are named by a path or a list of paths, not {path!r:.80}")
        return [file for one in path for file in find_files(one)]
    file, name = split_part(path)
    text, found = str(file), [file]
    if isinstance(file, RemotePath):
        if (several := listed(text)) is not None:
            found = _one_set(several, text) if text.endswith("/") or "*" not in text else _in_order(several, text)
    elif os.path.isdir(text):  # noqa: PTH112 (the name may be too long)
        found = _files_in(file)
    elif not os.path.lexists(text) and text.startswith("[") and text.endswith("]"):  # as command lines write lists
        return find_files([one.strip() for one in text[1:-1].split(",")])
    elif not os.path.lexists(text) and glob.has_magic(text):
        found = _in_order(map(Path, glob.iglob(text, recursive=True)), path)  # noqa: PTH207 (absolute, too)
    return [(one, name) for one in found]


def input_files(*given) -> list[Path]:
    """The files and folders that are read where paths or lists of paths are given: outputs must not replace them."""
    found = []
    for path in given:
        if isinstance(path, list | tuple):
            found += input_files(*(one for one in path if isinstance(one, str | os.PathLike)))
        elif isinstance(path, str | os.PathLike) and not is_remote(path):
            file, _ = split_part(path)
            found += [file] if os.path.lexists(file) else [file for file, _ in find_files(path)]
    return found


def _files_in(folder: Path) -> list[Path]:
    """The files of vectors in a folder and below it, in natural order."""
    if (folder / "manifest.json").exists() or (folder / "pending.json").exists():
        raise DataError(f"{folder} is a folder of codes or an index: give files of vectors")
    names = [file.relative_to(folder) for file in folder.rglob("*")]
    return [folder / name for name in _one_set(names, folder)]


def _in_order(files: Iterable, path) -> list:
    """Files that a pattern names, in natural order."""
    found = sorted(files, key=_natural)
    if not found:
        raise DataError(f"{path}: no file has such a name")
    return found


def _one_set(names: Iterable, folder) -> list:
    """Those of the names in a folder that are files of vectors, in natural order; DataError unless they are one set."""
    names = [name for name in names if _bare_suffix(name) in SUFFIXES]
    hidden = re.compile(r"(^|/)[._]")
    names = sorted((name for name in names if not hidden.search(_below(name, folder))), key=_natural)
    if not names:
        raise DataError(f"{folder} is a folder without files of vectors ({', '.join(SUFFIXES)})")
    roles = {name: _ROLES.findall(_below(name.with_suffix(""), folder)) for name in names}
    sets = {(_bare_suffix(name), *map(str.lower, found)): name for name, found in roles.items()}
    if len(sets) > 1:
        first, second, *_ = sets.values()
        remedy = f"give one of them, or a pattern such as {folder}/*{first.suffix}"
        raise DataError(f"{folder} is a folder of several sets, such as {first} and {second}: {remedy}")
    return names


def _below(name, folder) -> str:
    return str(name).removeprefix(str(folder)).lstrip("/")


def _natural(path) -> list:
    """Numbers in names count as numbers: part-2 is before part-10."""
    return [int(piece) if piece.isdecimal() else piece for piece in _NUMBERS.split(str(path))]


def _open_one(files: list[tuple], number: int) -> Rows:
    return _open_file(*files[number])


def _open_file(path: Path, name: str | None, part: str, stamp: tuple[int, int] | None = None) -> Rows:
    """Open one file; raises DataError where it is not the one of `stamp` any more."""
    size, _ = stamp = file_stamp(path, stamp)
    format = _find_format(path, SUFFIXES)
    if size == 0:
        raise DataError(f"{path} holds no vectors: the file is empty")
    rows = format.open(path, size, name, part) if format.has_parts else format.open(path, size)
    if isinstance(rows, StoredRows):
        rows.reopen = _open_file, (path.absolute(), name, part, stamp)
    return rows


def describe_vectors(path: str | os.PathLike) -> dict:
    """What a file of vectors holds, as JSON values; codes and lists are integers in such files, too."""
    rows, kind = open_array(path), {"kind": "vectors"}
    if Path(path).suffix.lower() in (".npy", ".ivecs") and rows.dtype.kind in "iu":
        note = "vectors, codes, list numbers or neighbours: the file does not say which"
        kind = {"kind": "integers", "note": note}
    num_vectors, dim = rows.shape
    size = {"num_vectors": num_vectors, "dim": dim, "dtype": str(rows.dtype)}
    return kind | size | {"bytes_per_vector": dim * rows.dtype.itemsize}


def stated_metric(path: str | os.PathLike) -> str | None:
    """The metric of neighbours that a file states, in its own words ("angular"); None if it does not, or is no file.

    Of several files, which may be given by the name of their source, it is that of the first.
    """
    try:
        file, part = find_files(_JOINED.sub("", os.fspath(path)))[0]
    except DataError:
        return None
    format = FORMATS.get(file.suffix.lower())
    return format.read_metric(file, part) if format and format.read_metric and file.is_file() else None


def split_part(path: str | os.PathLike) -> tuple[Any, str | None]:
    """The file of a path, and the name after the colon or None; the name of an existing file is never split.

    It is a Path, or a RemotePath.
    """
    if is_remote(path):
        named = _NAMED_PART.fullmatch(address := str(path))
        return (RemotePath(address), None) if named is None else (RemotePath(named[1]), named[2])
    text = os.fspath(user_path(path))
    named = None if os.path.lexists(text) else _NAMED_PART.fullmatch(text)
    folder, _, name = text.rpartition(":")
    if named is None and name and not os.path.lexists(text) and os.path.isdir(folder):  # noqa: PTH112
        return Path(folder), name
    return (Path(text), None) if named is None else (Path(named[1]), named[2])


def read_integers(path) -> np.ndarray:
    """Read whole files of integers, such as a ground truth, as int64 (N, k); DataError for other numbers.

    Of big-ann's ground truths, ids and then distances under one header, the ids are read; their names need no suffix.
    """
    file, _ = find_files(path)[0]
    is_known = _bare_suffix(file) in SUFFIXES
    array = open_array(path, "neighbors") if is_known else binary.open_bin(file, file_size(file), ".bin")
    if array.dtype == np.float32 and (not is_known or _bare_suffix(file) == ".bin"):
        array = array[:].view("<i4")  # the file does not say what its four bytes are
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype} values: integers are expected")
    stored = array[:]
    if len(stored) == 0:
        raise DataError(f"{path} holds no rows")
    if stored.dtype.kind == "u" and int(stored.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path} holds {stored.max()}, which int64 cannot hold")
    return stored.astype(np.int64, order="C")


def write_vectors(path: str | os.PathLike, array, block_rows: int = WRITE_ROWS) -> None:
    """Write an array (N, D) of integers or floats in the format of the path's suffix.

    Args:
        path: ends in .fvecs, .bvecs, .ivecs, .npy, .fbin, .u8bin, .i8bin or .ibin; npy keeps the type of `array`, the
            others store their own.
        array: anything that numpy takes for a matrix.
        block_rows: rows that are converted at once.

    Raises:
        DataError: the format cannot hold the values (fractions in a bvecs file). An existing file is then as it was.

    Example:
        >>> write_vectors("x.fvecs", numpy.zeros((10, 128)))
    """
    rows = as_rows(array, "the array to write")
    check_matrix(rows.shape, rows.dtype, "the array to write")
    with VectorWriter(path, rows.shape[1], rows[:0].dtype, rows.shape[0]) as writer:
        for start in range(0, rows.shape[0], block_rows):
            writer.append(rows[start : start + block_rows])


class VectorWriter:
    """Writes a file of vectors block by block; the file appears when the `with` block ends without an exception.

    Args:
        path: its suffix is the format, one of WRITTEN_SUFFIXES.
        dim: D, at least 1.
        dtype: the stored type of an npy file, any integer or float type; the other formats have their own.
        num_rows: how many rows will come, if known: any other number is then an error.
    """

    def __init__(self, path: str | os.PathLike, dim: int, dtype: DTypeLike = np.float32, num_rows: int | None = None):
        self.path, self.dim, self.num_rows, self.rows_written = Path(user_path(path)), dim, num_rows, 0
        self._format = _find_format(self.path, WRITTEN_SUFFIXES)
        self.dtype: np.dtype = np.dtype(dtype) if self._format.dtype is None else self._format.dtype
        require_int("dim", dim, 1, MAX_DIM)

    def __enter__(self) -> "VectorWriter":
        self._context = self._open()
        return self._context.__enter__()

    def __exit__(self, *error) -> bool | None:
        return self._context.__exit__(*error)

    def append(self, block) -> None:
        """Write the rows of `block` (n, dim). Raises DataError where the format cannot hold one of its values."""
        matrix = as_rows(block, f"the block for {self.path}")[:]
        check_matrix(matrix.shape, matrix.dtype, f"the block for {self.path}")
        if matrix.shape[1] != self.dim:
            raise DataError(f"the block for {self.path} has dimension {matrix.shape[1]}, the file {self.dim}")
        self._file.write(self._format.frame(self._convert(matrix)))  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.rows_written += len(matrix)

    def size(self, num_rows: int) -> int:
        """Bytes of a file of `num_rows` rows."""
        return len(self._header(0)) + num_rows * self._format.frame(np.empty((1, self.dim), self.dtype)).nbytes

    def attach(self, file: BinaryIO, rows: int = 0) -> None:
        """Append to an open file of the caller after its first `rows` rows, instead of `with`; the rest is cut off.

        With rows=0 the header is written; it states `num_rows`.
        """
        if rows == 0:
            file.seek(0)
            file.write(self._header(self.num_rows or 0))
        file.seek(self.size(rows))
        file.truncate()
        self._file, self.rows_written = file, rows

    @contextmanager
    def _open(self) -> Iterator["VectorWriter"]:
        with write_atomically(self.path) as temporary, temporary.open("wb") as file:
            self.attach(file)
            yield self
            file.seek(0)
            file.write(self._header(self.rows_written))  # as long as the first: numpy pads for 21 digits of rows
            if self.num_rows not in (None, self.rows_written):
                raise DataError(f"the number of rows of {self.path} must be {self.num_rows}, not {self.rows_written}")

    def _header(self, num_rows: int) -> bytes:
        return self._format.header((num_rows, self.dim), self.dtype)  # pyright: ignore[reportOptionalCall]

    def _convert(self, matrix: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = matrix.astype(self.dtype, order="C", copy=False)
        if np.can_cast(matrix.dtype, self.dtype):
            return stored
        wrong = np.isinf(stored) & np.isfinite(matrix) if self.dtype.kind == "f" else stored != matrix
        if wrong.any():
            row, column = np.unravel_index(np.argmax(wrong), wrong.shape)
            limits = np.finfo(self.dtype) if self.dtype.kind == "f" else np.iinfo(self.dtype)
            where = f"{matrix[row, column]} in row {self.rows_written + row}"
            kind = "numbers" if self.dtype.kind == "f" else "whole numbers"
            raise DataError(
                f"{self.path} cannot hold {where}: {self.dtype} are {kind} from {limits.min} to {limits.max}; "
                "round and clip the values, or write them to .fvecs or .npy"
            )
        return stored


def _find_format(path: Path, suffixes: tuple[str, ...]) -> Format:
    suffix = _bare_suffix(path)
    if suffix not in suffixes:
        raise ConfigError(f"{path} has the suffix {path.suffix!r}: use one of {', '.join(suffixes)}")
    return FORMATS[suffix]


def _bare_suffix(path: Path) -> str:
    return Path(_CROPPED.sub("", path.name)).suffix.lower()
