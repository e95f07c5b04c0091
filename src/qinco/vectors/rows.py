"""The one way in which the rest of the package reads vectors, whether they lie in a file, an array or a tensor."""

import os
import sys
from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import BlockRows
from qinco.vectors.formats import open_array
from qinco.vectors.mapped import check_matrix, check_shape, release_pages

_RELEASED_BYTES = 1 << 16
SAMPLED_ROWS = 256  # by which fingerprints tell sets of vectors or codes apart


class VectorSource:
    """Vectors (N, D) that are read when they are asked for, and then come as float32 whatever their stored type.

    rows:  what holds them: it has `shape`, `dtype`, and `[key]` for a slice or an int64 array
    name:  what messages call them: the path, or the name of an argument
    start, stop: the rows of `rows` that this source shows; all by default

    `source[i]` is float32 (D,); `source[a:b]`, `source[a:b:c]` and `source[int_array]` are float32 (n, D). All are
    fresh arrays, C-contiguous, which may be changed without changing the source, and take no more memory than
    themselves. Values are not checked here: see `blocks` and `check_finite`. A row that is not there, or a key of
    another kind, is an IndexError; a damaged file is a DataError when the damaged row is read.
    """

    def __init__(self, rows, name: str = "vectors", start: int = 0, stop: int | None = None):
        self._rows = rows
        self._start = start
        self._stop = rows.shape[0] if stop is None else stop
        self.name = name

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self), self.dim)

    @property
    def dim(self) -> int:
        return int(self._rows.shape[1])

    @property
    def dtype(self):
        """The stored type: a numpy dtype, or torch's where numpy has none (bfloat16) or the tensor is on a device."""
        return self._rows.dtype

    def __len__(self) -> int:
        return self._stop - self._start

    def __repr__(self) -> str:
        return f"VectorSource({self.name}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            return self._read_range(range(len(self))[key])
        indices = np.asarray(key)
        if isinstance(key, tuple) or indices.ndim > 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise IndexError(f"rows of {self.name} are chosen by an integer, a slice or an array of integers")
        if indices.size:
            for index in (int(indices.min()), int(indices.max())):
                if not -len(self) <= index < len(self):
                    raise IndexError(f"row {index} of {self.name} does not exist: it has {len(self)}")
        if indices.ndim == 0:
            position = int(indices) % len(self)
            return self._read_range(range(position, position + 1))[0]
        indices = indices.astype(np.int64)
        return _to_float32(self._rows[np.where(indices < 0, indices + len(self), indices) + self._start], copy=False)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All vectors at once, in memory."""
        if copy is False:
            raise ValueError(f"{self.name} cannot be an array without a copy")
        array = self[:]
        return array if dtype is None else array.astype(dtype, copy=False)

    def limit(self, count: int) -> "VectorSource":
        """The first `count` vectors, or all where there are fewer."""
        require_int("limit", count, 0)
        return self.window(0, min(count, len(self)))

    def window(self, start: int, stop: int) -> "VectorSource":
        """The vectors from `start` to before `stop`, not read yet. Raises ConfigError where they are not there."""
        require_int("window start", start, 0)
        require_int("window stop", stop, start)
        if stop > len(self):
            raise ConfigError(f"rows {start} to {stop} of {self.name} were asked for: it has {len(self)}")
        return VectorSource(self._rows, self.name, self._start + start, self._start + stop)

    def blocks(self, size: int, check: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, float32 (n, D)) for each `size` vectors, n = size but for the last, start from 0.

        With `check`, raises DataError at the first vector that is not finite, and names its row in the file.
        """
        require_int("block size", size)
        check = check and not _holds_integers(self.dtype)
        for start in range(0, len(self), size):
            block = self[start : start + size]
            if check:
                check_finite(block, self._start + start, self.name)
            yield start, block

    def _read_range(self, wanted: range) -> np.ndarray:
        if len(wanted) == 0:
            return np.empty((0, self.dim), np.float32)
        forward = wanted if wanted.step > 0 else wanted[::-1]
        rows = self._rows[self._start + forward.start : self._start + forward.stop : forward.step]
        vectors = _to_float32(rows if wanted.step > 0 else rows[::-1], copy=not isinstance(self._rows, BlockRows))
        if vectors.nbytes >= _RELEASED_BYTES and isinstance(rows, np.ndarray):
            release_pages(rows)  # else a file that is read once counts as memory as large as itself
        return vectors


class _TensorRows:
    """Rows of a torch tensor that numpy cannot see: on a device, or of a type that it has not."""

    def __init__(self, tensor):
        self._tensor = tensor.detach()
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype

    def __getitem__(self, key) -> np.ndarray:
        import torch

        if not isinstance(key, slice):
            key = torch.from_numpy(key).to(self._tensor.device)
        return self._tensor[key].to("cpu", torch.float32).numpy()


def open_vectors(path: str | os.PathLike, part: str = "train") -> VectorSource:
    """Open a file of vectors without reading it, in the format of its suffix.

    path: .fvecs, .bvecs, .ivecs, .npy, .fbin, .u8bin, .i8bin, .ibin, .hdf5, .h5 or .parquet; the latter three may name
          a data set or column, as in `glove.hdf5:test`
    part: the data set or column where the path names none, unless the file's only matrix is called otherwise

    Raises DataError where the file is missing, truncated, damaged, no matrix of integers or floats, or without rows,
    and ConfigError where its suffix is unknown or the package that reads it is missing.
    """
    rows = open_array(path, part)
    if rows.shape[0] == 0:
        raise DataError(f"{path} holds no vectors: its shape is {rows.shape}")
    return VectorSource(rows, str(path))


def as_source(x, name: str = "vectors") -> VectorSource:
    """Vectors (N, D) from a source, a path, a numpy array or memory map, a torch tensor, lists, or an array's like.

    Any integer or float type is accepted, torch's bfloat16 too, and zero rows; tensors on a device are copied slice
    by slice. Arrays and tensors are not copied as a whole. Raises DataError, about `name`, for what is no matrix of
    numbers, and what `open_vectors` raises for a path.
    """
    if isinstance(x, VectorSource):
        return x
    if isinstance(x, str | os.PathLike):
        return open_vectors(x)
    # Whoever has a tensor has imported torch: looking for it there never imports it.
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    if tensor_type is not None and isinstance(x, tensor_type):
        return VectorSource(_tensor_rows(x, name), name)
    if hasattr(x, "toarray"):
        raise DataError(f"{name} is sparse: give {name}.toarray()")
    if np.ma.isMaskedArray(x):
        raise DataError(f"{name} is a masked array: fill or remove its masked values")
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} is not a matrix of numbers: {error}") from error
    check_matrix(array.shape, array.dtype, name)
    return VectorSource(array, name)


def spread_rows(count: int, most: int = SAMPLED_ROWS) -> np.ndarray:
    """Row numbers, int64, spread evenly over `count` rows: `most` of them, or all where there are fewer."""
    return np.unique(np.linspace(0, max(0, count - 1), min(most, count)).astype(np.int64))


def fingerprint(source: VectorSource, more: bytes = b"") -> str:
    """SHA-256 of 256 vectors spread over a source, and of `more`: work is not resumed on other vectors."""
    return sha256(source[spread_rows(len(source))].tobytes() + more).hexdigest()


def check_finite(block: np.ndarray, start: int = 0, name: str = "vectors") -> None:
    """Raise DataError, naming the row, if a vector of `block`, float (n, D), holds NaN or an infinite value.

    start: the row of `name` at which the block begins
    """
    is_finite = np.isfinite(block)
    if is_finite.all():
        return
    row, column = np.unravel_index(np.argmin(is_finite), is_finite.shape)
    value = "NaN" if np.isnan(block[row, column]) else "an infinite value (infinite, or beyond float32's ±3.4e38)"
    raise DataError(f"row {start + row} of {name} holds {value} in column {column}: remove or repair it")


def _tensor_rows(tensor, name: str):
    import torch

    check_shape(tuple(tensor.shape), name)
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "has no data (device meta)" if tensor.is_meta else "is sparse"
        raise DataError(f"{name} {kind}: give a dense tensor")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool or tensor.is_quantized:
        raise DataError(f"{name} holds {tensor.dtype} values: vectors are integers or floats")
    if tensor.device.type != "cpu":
        return _TensorRows(tensor)
    try:
        return tensor.numpy(force=True)  # shares the tensor's memory
    except TypeError:  # bfloat16 and the 8-bit floats
        return _TensorRows(tensor)


def _holds_integers(dtype) -> bool:
    return dtype.kind in "iu" if isinstance(dtype, np.dtype) else not dtype.is_floating_point


def _to_float32(rows: np.ndarray, copy: bool) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot express becomes infinite, and is found
        return rows.astype(np.float32, order="C", copy=copy)
