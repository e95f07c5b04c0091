"""How the rest of the package reads vectors, whether they lie in a file, an array, a tensor, or are computed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any

import numpy as np

from qinco.config import require_int
from qinco.errors import DataError
from qinco.vectors.formats import open_array
from qinco.vectors.mapped import Rows, as_matrix, check_matrix, release_pages

_RELEASED_BYTES = 1 << 16
_SAMPLED_ROWS = 256
_STRATA, _MAX_RUN_ROWS = 8192, 1024
_FLOAT32 = np.dtype(np.float32)


class VectorSource:
    """Vectors (N, D) that are read when they are asked for, as float32 whatever their stored type.

    `source[i]` is float32 (D,); `source[a:b]`, `source[a:b:c]` and `source[int_array]` are float32 (n, D). Each is a
    fresh C-contiguous array. Damage and values that are not finite are a DataError when `blocks` reads them.

    Args:
        rows: what holds the vectors.
        name: what messages call them: a path, or the name of an argument.
        start: first of `rows` that belongs to the source.
        stop: the row after the last one; None for all.

    Example:
        >>> source = qinco.open_vectors("base.fvecs")
        >>> source.limit(1000)[:10].shape
        (10, 128)
    """

    def __init__(self, rows: Rows, name: str = "vectors", start: int = 0, stop: int | None = None):
        self._rows, self._start, self._stop = rows, start, rows.shape[0] if stop is None else stop
        self.name, self.dim = name, int(rows.shape[1])
        self.shape = (self._stop - self._start, self.dim)

    @property
    def dtype(self):
        """The stored type: a numpy dtype, or torch's for tensors on a device and types that numpy lacks (bfloat16)."""
        return self._rows.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"VectorSource({self.name}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            return self._read_range(range(len(self))[key])
        indices = np.asarray(key)
        if isinstance(key, tuple) or indices.ndim > 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise IndexError(f"rows of {self.name} are chosen by an integer, a slice or an array of integers")
        outside = (indices < -len(self)) | (indices >= len(self))
        if outside.any():
            raise IndexError(f"row {indices[outside][0]} of {self.name} does not exist: there are {len(self)} rows")
        if indices.ndim == 0:
            return self[[int(indices)]][0]
        indices = np.where(indices < 0, indices + len(self), indices).astype(np.int64) + self._start
        vectors = _to_float32(self._rows[indices])
        if vectors.nbytes >= _RELEASED_BYTES and isinstance(self._rows, np.ndarray):
            release_pages(self._rows[indices.min() : indices.max() + 1])
        return vectors

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name} cannot be an array without a copy")
        return self[:].astype(dtype or np.float32, copy=False)

    def limit(self, count: int) -> "VectorSource":
        """The first `count` vectors, or all where there are fewer."""
        require_int("limit", count, 0)
        return self.window(0, min(count, len(self)))

    def window(self, start: int, stop: int) -> "VectorSource":
        """The vectors from `start` to before `stop`, not read yet. Raises ConfigError where there are fewer."""
        require_int("window start", start, 0)
        require_int("window stop", stop, start, len(self))
        return VectorSource(self._rows, self.name, self._start + start, self._start + stop)

    def map(self, function: Callable[[np.ndarray], np.ndarray], dim: int | None = None) -> "VectorSource":
        """What `function` makes of vectors, float32 (n, D), when they are read: float32 (n, dim), by default (n, D)."""
        whole = VectorSource(self._rows, self.name)  # so that messages name the row in the file
        rows = _ComputedRows((len(whole), dim or self.dim), lambda key: function(whole[key]), whole.row_number)
        return VectorSource(rows, self.name, self._start, self._stop)

    def take(self, rows_S) -> "VectorSource":
        """The vectors of the row numbers `rows_S`, int (S,), in that order, not read yet."""
        rows_S = np.asarray(rows_S, np.int64)
        shape = len(rows_S), self.dim
        rows = _ComputedRows(shape, lambda key: self[rows_S[key]], lambda row: self.row_number(rows_S[row]))
        return VectorSource(rows, self.name)

    def without(self, rows_S: np.ndarray) -> "VectorSource":
        """The vectors that are left without those of the ascending row numbers `rows_S`, int (S,), not read yet."""
        left_S, count = rows_S - np.arange(len(rows_S)), len(self) - len(rows_S)  # how many are left before each

        def number(rows_n):
            return rows_n + np.searchsorted(left_S, rows_n, "right")

        def read(key) -> np.ndarray:
            if not isinstance(key, slice):
                return self[number(key)]
            rows_n = number(np.arange(*key.indices(count)))
            if key.step not in (None, 1) or not len(rows_n):
                return self[rows_n]
            return self[rows_n[0] : rows_n[-1] + 1][rows_n - rows_n[0]]

        rows = _ComputedRows((count, self.dim), read, lambda row: self.row_number(number(row)))
        return VectorSource(rows, self.name)

    def row_number(self, row: int) -> int:
        """The number that a row has in the file or array which the source was opened with."""
        return getattr(self._rows, "row_number", int)(self._start + int(row))

    def blocks(self, size: int, check: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, float32 (n, D)) for each `size` vectors; `check` that they are finite: DataError if not."""
        require_int("block size", size)
        holds_integers = self.dtype.kind in "iu" if isinstance(self.dtype, np.dtype) else "int" in str(self.dtype)
        for start in range(0, len(self), size):
            block = self[start : start + size]
            if check and not holds_integers:
                check_finite(block, lambda row: self.row_number(start + row), self.name)  # noqa: B023 (called here)
            yield start, block

    def _read_range(self, wanted: range) -> np.ndarray:
        if len(wanted) == 0:
            return np.empty((0, self.dim), np.float32)
        forward = wanted if wanted.step > 0 else wanted[::-1]
        rows = self._rows[self._start + forward.start : self._start + forward.stop : forward.step]
        vectors = _to_float32(rows if wanted.step > 0 else rows[::-1])
        if vectors.nbytes >= _RELEASED_BYTES:
            release_pages(rows)  # otherwise a file that is read once counts as resident memory
        return vectors


class _ComputedRows:
    """Rows that are computed when they are read: `read` takes a slice or an int64 array."""

    def __init__(self, shape, read: Callable[..., np.ndarray], row_number: Callable = int, dtype: Any = _FLOAT32):
        self.shape, self.dtype, self.row_number, self._read = shape, dtype, row_number, read

    def __getitem__(self, key) -> np.ndarray:
        return self._read(key)


def open_vectors(path: str | os.PathLike, part: str = "train") -> VectorSource:
    """Open a file of vectors without reading it, in the format of its suffix.

    Args:
        path: .fvecs, .bvecs, .ivecs, .npy, .fbin, .u8bin, .i8bin, .ibin, .hdf5, .h5 or .parquet; the latter three may
            name a data set or column, as in `glove.hdf5:test`.
        part: the data set or column where the path names none; where the file has none of that name, its only matrix.

    Raises:
        DataError: the file is missing, truncated, damaged, not a matrix of integers or floats, or has no rows.
        ConfigError: the suffix is unknown, or the package that reads it is not installed.

    Example:
        >>> qinco.open_vectors("base.bvecs")[:100].dtype
        dtype('float32')
    """
    rows = open_array(path, part)
    if rows.shape[0] == 0:
        raise DataError(f"{path} holds no vectors: its shape is {rows.shape}")
    return VectorSource(rows, str(path))


def as_source(x, name: str = "vectors") -> VectorSource:
    """Vectors (N, D) as a source, which messages call `name`; nothing is copied as a whole.

    `x` is a source, a path, a numpy array or memory map, a torch tensor on any device, or anything that numpy converts,
    of any integer or float type (torch's bfloat16 too); N may be 0.
    """
    if isinstance(x, VectorSource):
        return x
    if isinstance(x, str | os.PathLike):
        return open_vectors(x)
    torch = sys.modules.get("torch")  # imported already if x is a tensor
    if torch is not None and isinstance(x, torch.Tensor):
        return VectorSource(_tensor_rows(x, name), name)
    if hasattr(x, "toarray"):
        raise DataError(f"{name} is sparse: give {name}.toarray()")
    if np.ma.isMaskedArray(x):
        raise DataError(f"{name} is a masked array: fill or remove its masked values")
    return VectorSource(as_matrix(x, name), name)


def spread_rows(count: int) -> np.ndarray:
    """At most 256 row numbers, int64, spread evenly over `count` rows: fingerprints tell sets apart by them."""
    return np.unique(np.linspace(0, max(0, count - 1), min(_SAMPLED_ROWS, count)).astype(np.int64))


def stratified_rows(num_rows: int, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` ascending row numbers, int64: of equal parts of all rows one row each, drawn at random.

    Such a sample is like the whole in whatever order the rows are, sorted or periodic. Where it is large it is of short
    runs of rows, which are faster to read.
    """
    if count >= num_rows:
        return np.arange(num_rows)
    run_rows = min(max(1, count // _STRATA), _MAX_RUN_ROWS)
    num_runs = -(-count // run_rows)
    if num_runs * run_rows > num_rows:
        run_rows, num_runs = 1, count
    edges = np.arange(num_runs + 1) * num_rows // num_runs
    starts = np.random.default_rng(seed).integers(edges[:-1], edges[1:] - run_rows + 1)
    return (starts[:, None] + np.arange(run_rows)).reshape(-1)[:count]


def fingerprint(source: VectorSource, more: bytes = b"") -> str:
    """SHA-256 of some vectors of a source, and of `more`: work is not resumed on other vectors."""
    return sha256(source[spread_rows(len(source))].tobytes() + more).hexdigest()


def check_finite(block: np.ndarray, number: Callable[[int], int] = int, name: str = "vectors") -> None:
    """Raise DataError if a vector of `block`, float (n, D), is not finite; `number` gives its row's in `name`."""
    is_finite = np.isfinite(block)
    if not is_finite.all():
        row, column = np.unravel_index(np.argmin(is_finite), is_finite.shape)
        value = "NaN" if np.isnan(block[row, column]) else "an infinite value (infinite, or beyond float32's ±3.4e38)"
        raise DataError(f"row {number(int(row))} of {name} holds {value} in column {column}: remove or repair it")


def _tensor_rows(tensor, name: str):
    import torch

    check_matrix(tuple(tensor.shape), tensor.dtype, name)
    if tensor.layout != torch.strided or tensor.is_meta:
        raise DataError(f"{name} is sparse or has no data: give a dense tensor")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool or tensor.is_quantized:
        raise DataError(f"{name} holds {tensor.dtype} values: vectors are integers or floats")
    tensor = tensor.detach()
    with suppress(TypeError):  # a type that numpy lacks: bfloat16 and the 8-bit floats
        if tensor.device.type == "cpu":
            return tensor.numpy(force=True)  # shares the tensor's memory

    def read(key) -> np.ndarray:
        key = key if isinstance(key, slice) else torch.from_numpy(key).to(tensor.device)
        return tensor[key].to("cpu", torch.float32).numpy()

    return _ComputedRows(tuple(tensor.shape), read, dtype=tensor.dtype)


def _to_float32(rows: np.ndarray) -> np.ndarray:
    """A fresh array; values that float32 cannot hold become infinite, which `check_finite` finds."""
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.astype(np.float32, order="C", copy=not rows.flags.owndata)
