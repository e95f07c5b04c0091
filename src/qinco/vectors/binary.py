"""fvecs, bvecs and ivecs; npy; fbin, u8bin, i8bin, ibin and bin: binary files, which are memory-mapped.

A row of an fvecs file is its dimension (little-endian int32), then its values. A file of the `bin` formats of the
big-ann benchmarks has one header, two little-endian uint32 (or uint64) with the numbers of rows and columns.
"""

import io
import struct
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from qinco.errors import DataError
from qinco.vectors.mapped import MAX_DIM, Format, StoredRows, check_matrix, check_size, map_file, read_start

_VECS_TYPES = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}
_BIN_TYPES = {".fbin": np.dtype("<f4"), ".u8bin": np.dtype("u1"), ".i8bin": np.dtype("i1"), ".ibin": np.dtype("<i4")}
NPY_HEADER_BYTES = 65536  # bounded: a damaged length would have numpy read gigabytes
_BIN_HEADERS = struct.Struct("<II"), struct.Struct("<QQ")  # for more than 2^32 rows
_FLOAT = np.dtype("<f4")


class FramedRows(StoredRows):
    """The rows of an fvecs, bvecs or ivecs file; each row's dimension field is verified when the row is read."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype, num_rows: int):
        super().__init__((num_rows, dim), dtype)
        self._path, self._records = path, map_file(path, _record_type(dim, dtype), (num_rows,))

    def __getitem__(self, key) -> np.ndarray:
        records = self._records[key]
        wrong = np.flatnonzero(records["dim"] != self.shape[1])
        if wrong.size:
            rows = range(len(self))[key] if isinstance(key, slice) else np.atleast_1d(key) % len(self)
            found = np.atleast_1d(records["dim"])[wrong[0]]
            what = f"its dimension field is {found}, not {self.shape[1]}"
            raise DataError(f"{self._path} is damaged at row {rows[wrong[0]]}: {what}")
        return records["values"]


def frame(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) as they lie in the file."""
    records = np.empty(len(rows), _record_type(rows.shape[1], rows.dtype))
    records["dim"], records["values"] = rows.shape[1], rows
    return records


def open_framed(path: Path, size: int, suffix: str) -> FramedRows:
    """Open a file of `size` bytes; raises DataError unless it consists of whole rows of the first row's dimension."""
    dtype, dim = _VECS_TYPES[suffix], int.from_bytes(read_start(path, 4), "little", signed=True)
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path} is not a {suffix} file: the dimension field of its first row is {dim}")
    row_size = 4 + dim * dtype.itemsize
    if size % row_size:
        what = f"{size} bytes are not a multiple of a row's {row_size} (dimension {dim})"
        raise DataError(f"{path} is truncated or not a {suffix} file: {what}")
    return FramedRows(path, dim, dtype, size // row_size)


def _record_type(dim: int, dtype: np.dtype) -> np.dtype:
    return np.dtype([("dim", "<i4"), ("values", dtype, (dim,))])


def open_npy(path: Path, size: int) -> np.ndarray:
    """Map an npy file of `size` bytes; raises DataError unless it holds exactly a matrix of numbers."""
    shape, is_fortran, dtype, offset = parse_npy_header(read_start(path, NPY_HEADER_BYTES), path)
    num_rows, dim = shape
    check_size(path, size, offset + num_rows * dim * dtype.itemsize, f"{shape}, {dtype}")
    return map_file(path, dtype, shape, offset, "F" if is_fortran else "C")


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The bytes before the values of an npy file; as many for any number of rows."""
    header, descr = io.BytesIO(), npy_format.dtype_to_descr(dtype)
    npy_format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def open_bin(path: Path, size: int, suffix: str) -> np.ndarray:
    """Map a `bin` file of `size` bytes; raises DataError unless its header fits its size.

    Of a ground truth, ids and then distances, the ids. A file named *.crop_nb_N has N rows whatever its header says.
    The values of a .bin file are float32, or the ids of a ground truth.
    """
    if size < _BIN_HEADERS[0].size:
        raise DataError(f"{path} is truncated: {size} bytes are less than the header of a {suffix} file")
    dtype, (_, _, crop) = _BIN_TYPES.get(suffix, _FLOAT), path.name.rpartition(".crop_nb_")
    for header in _BIN_HEADERS:
        offset, start = header.size, read_start(path, header.size)
        num_rows, dim = header.unpack(start) if len(start) == offset else (0, 0)
        num_rows = min(num_rows, int(crop)) if crop.isdecimal() else num_rows
        values, left = num_rows * dim, size - offset
        if not 1 <= dim <= MAX_DIM:
            continue
        if left == values * dtype.itemsize or (crop.isdecimal() and left > values * dtype.itemsize):
            return map_file(path, dtype, (num_rows, dim), offset)
        if suffix in (".ibin", ".bin") and left == 8 * values:
            return map_file(path, _BIN_TYPES[".ibin"], (num_rows, dim), offset)
    offset, (num_rows, dim) = _BIN_HEADERS[0].size, _BIN_HEADERS[0].unpack(read_start(path, 8))
    if suffix in (".ibin", ".bin") and size == offset + 4 * num_rows + 8 * dim:
        raise DataError(f"{path} is the ground truth of a range search: that of k nearest neighbours is needed")
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path} is not a {suffix} file: its header gives the shape ({num_rows}, {dim})")
    if suffix == ".bin" and size == offset + num_rows * dim:
        raise DataError(f"{path} does not say whether its bytes are signed: rename it to .u8bin, or to .i8bin")
    there = (size - offset) // (dim * dtype.itemsize)
    check_size(path, size, offset + num_rows * dim * dtype.itemsize, f"N={num_rows}, where {there} fits")
    raise AssertionError


def open_distances(path: Path) -> np.ndarray | None:
    """The distances after the ids of a ground truth of big-ann, float32 (Q, k); None for other files."""
    size = path.stat().st_size
    for header in _BIN_HEADERS:
        start = read_start(path, header.size)
        num_rows, dim = header.unpack(start) if len(start) == header.size else (0, 0)
        if num_rows * dim > 0 and size == header.size + 8 * num_rows * dim:
            return map_file(path, _FLOAT, (num_rows, dim), header.size + 4 * num_rows * dim)
    return None


def parse_npy_header(start: bytes, path) -> tuple[tuple, bool, np.dtype, int]:
    """Shape, Fortran order, dtype and the offset of the values, from the first bytes of an npy file."""
    file = io.BytesIO(start)
    try:
        major, _ = npy_format.read_magic(file)
        # Version 3 differs from 2 in the encoding of field names, and arrays with fields are refused.
        read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if len(shape) > 32 or any(length.bit_length() > 128 for length in shape):
            raise ValueError("no array has such a shape")
    except Exception as error:  # it parses a Python literal: damage can raise nearly anything
        raise DataError(f"{path} is not an npy file, or its header is damaged") from error
    if dtype.hasobject:
        raise DataError(f"{path} holds pickled Python objects, which are never loaded: save an array of numbers")
    check_matrix(shape, dtype, str(path))
    if shape[0] < 0 or shape[1] > MAX_DIM:
        raise DataError(f"{path} is damaged: its header gives the shape {shape}")
    return tuple(map(int, shape)), is_fortran, dtype, file.tell()


FORMATS = (
    *(
        Format((suffix,), partial(open_framed, suffix=suffix), False, dtype, lambda shape, dtype: b"", frame)
        for suffix, dtype in _VECS_TYPES.items()
    ),
    Format((".npy",), open_npy, header=npy_header),
    *(
        Format((suffix,), partial(open_bin, suffix=suffix), False, dtype, lambda shape, _: _BIN_HEADERS[0].pack(*shape))
        for suffix, dtype in _BIN_TYPES.items()
    ),
    Format((".bin",), partial(open_bin, suffix=".bin")),
)
