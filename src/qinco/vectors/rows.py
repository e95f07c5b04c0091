"""How the rest of the package reads vectors, whether they lie in a file, an array, a tensor, or are computed."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256

import numpy as np

from qinco.config import require_int
from qinco.errors import DataError
from qinco.vectors.arrays import ComputedRows, as_rows
from qinco.vectors.block_rows import Parts, concat_rows
from qinco.vectors.formats import open_array
from qinco.vectors.hdf5 import name_on_disk
from qinco.vectors.mapped import Rows, by_name, check_matrix, release_pages

_RELEASED_BYTES, _PIECE_VALUES = 1 << 16, 1 << 22
_SAMPLED_ROWS, _READ_ROWS = 256, 4096
_STRATA, _MAX_RUN_ROWS = 8192, 1024
_FLOAT32 = np.dtype(np.float32)


class VectorSource:
    """Vectors (N, D) that are read when they are asked for, as float32 whatever their stored type.

    `source[i]` is float32 (D,); `source[a:b]`, `source[a:b:c]` and `source[int_array]` are float32 (n, D). Each is a
    fresh C-contiguous array. Damage and values that are not finite are a DataError when `blocks` reads them. A source
    of files is pickled as their paths, and opens them again: a DataError if they are missing or have changed.

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

    @property
    def holds_integers(self) -> bool:
        return self.dtype.kind in "iu" if isinstance(self.dtype, np.dtype) else "int" in str(self.dtype)

    def __getstate__(self) -> dict:
        """What is pickled of files are their paths, not their vectors."""
        return self.__dict__ | {"_rows": by_name(self._rows)}

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
            raise IndexError(f"row {indices[outside][0]} of {self.name} does not exist: N is {len(self)}")
        if indices.ndim == 0:
            return self[[int(indices)]][0]
        indices = np.where(indices < 0, indices + len(self), indices).astype(np.int64) + self._start
        vectors = _to_float32(self._rows, indices)
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
        rows = ComputedRows((len(whole), dim or self.dim), _FLOAT32, partial(_apply, function, whole), whole.row_number)
        return VectorSource(rows, self.name, self._start, self._stop)

    def take(self, rows_S) -> "VectorSource":
        """The vectors of the row numbers `rows_S`, int (S,), in that order, not read yet."""
        rows_S = np.asarray(rows_S, np.int64)
        return VectorSource(_Chosen(self, len(rows_S), partial(np.take, rows_S)), self.name)

    def without(self, rows_S: np.ndarray) -> "VectorSource":
        """The vectors that are left without those of the ascending row numbers `rows_S`, int (S,), not read yet."""
        left_S = rows_S - np.arange(len(rows_S))  # how many are left before each
        return VectorSource(_Chosen(self, len(self) - len(rows_S), partial(_number_of_left, left_S)), self.name)

    def row_number(self, row: int) -> int:
        """The number that a row has in the file or array which the source was opened with."""
        return getattr(self._rows, "row_number", int)(self._start + int(row))

    def blocks(self, size: int, check: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, float32 (n, D)) for each `size` vectors; `check` that they are finite: DataError if not."""
        require_int("block size", size)
        for start in range(0, len(self), size):
            block = self[start : start + size]
            if check and not self.holds_integers:
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


def open_vectors(path, part: str = "train") -> VectorSource:
    """Open files of vectors without reading them, in the format of their suffix.

    Args:
        path: .fvecs, .bvecs, .ivecs, .npy, .npz, .fbin, .u8bin, .i8bin, .bin, .ibin, .hdf5, .h5, .parquet, .arrow or
            .feather; HDF5, npz, Parquet and Arrow may name a data set or column, as in `glove.hdf5:test`. A folder, a
            pattern such as `emb/*.parquet` (also with `:NAME`) or a list of paths is several files joined: in natural
            order (part-2 before part-10), or that of the list. They may lie in a bucket,
            `s3://bucket/emb/part-*.parquet:embedding`, `gs://…`, or what else pyarrow or fsspec reads, with the
            credentials that these find.
        part: the data set or column where the path names none; where the file has none of that name, its only matrix.

    Raises:
        DataError: a file is missing, truncated, damaged, not a matrix of integers or floats, or has no rows; or files
            have different dimensions.
        ConfigError: the suffix is unknown, or the package that reads it is not installed.

    Example:
        >>> qinco.open_vectors("base.bvecs")[:100].dtype
        dtype('float32')
    """
    rows = open_array(path, part)
    name = getattr(rows, "name", None) or str(path[0] if isinstance(path, list | tuple) else path)
    if rows.shape[0] == 0:
        raise DataError(f"{name} holds no vectors: its shape is {rows.shape}")
    return VectorSource(rows, name)


def as_source(x, name: str = "vectors") -> VectorSource:
    """Vectors (N, D) as a source, which messages call `name`; nothing is copied as a whole, except iterators.

    `x` is a source, a path, or what `qinco.vectors.arrays.as_rows` takes, of any integer or float type (torch's
    bfloat16 too), or a list of paths or sources; N may be 0.
    """
    return _source(x, name)[0]


def as_queries(x) -> tuple[VectorSource, bool]:
    """Queries as `as_source` takes them, or one query (D,); and whether they were one."""
    return _source(x, "queries", may_be_one=True)


def _source(x, name: str, may_be_one: bool = False) -> tuple[VectorSource, bool]:
    if isinstance(x, VectorSource):
        return x, False
    of_files = str | os.PathLike
    if isinstance(x, of_files) or (isinstance(x, list | tuple) and x and all(isinstance(part, of_files) for part in x)):
        return open_vectors(x), False
    if isinstance(x, list | tuple) and any(isinstance(part, VectorSource | of_files) for part in x):
        parts = Parts(as_source(part) for part in x)
        return VectorSource(concat_rows(parts, [part.name for part in parts], parts), name), False
    rows, name = as_rows(x, name), name_on_disk(x) or name
    is_one = len(rows.shape) == 1 and may_be_one
    is_bare = len(rows.shape) == 1 and (not isinstance(rows.dtype, np.dtype) or rows.dtype.kind in "fiu")
    if is_bare and not is_one and not isinstance(x, np.ndarray) and not hasattr(x, "is_cuda"):
        found = f"{name} is a row or column of {rows.shape[0]} numbers"
        raise DataError(f"{found}: numpy.asarray(x)[None] is one vector, numpy.asarray(x)[:, None] has dimension 1")
    rows = rows[None] if is_one else rows
    check_matrix(rows.shape, rows.dtype, name, ", as x[None] is")
    return VectorSource(rows, name), is_one


def check_dim(source: VectorSource, dim: int, owner: str) -> None:
    """Raise DataError unless the vectors have the dimension `dim`, that of `owner`."""
    if source.dim != dim:
        raise DataError(f"{source.name} must have dimension {dim}, that of {owner}, not {source.dim}")


def check_not_empty(rows):
    """Return a source, or codes, or raise DataError where they hold no rows."""
    if len(rows) == 0:
        raise DataError(f"{rows.name} must not be empty")
    return rows


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


def sample(source: VectorSource, count: int, seed: int) -> np.ndarray:
    """`count` vectors from all parts of a source, or all where there are fewer: float32 (N, D)."""
    return source[:] if count >= len(source) else read_rows(source, stratified_rows(len(source), count, seed))


def read_rows(source: VectorSource, rows_S: np.ndarray) -> np.ndarray:
    """The vectors of these row numbers, float32 (S, D)."""
    x_SD = np.empty((len(rows_S), source.dim), np.float32)
    for start in range(0, len(rows_S), _READ_ROWS):  # so that the pages of a file are not all kept
        x_SD[start : start + _READ_ROWS] = source[rows_S[start : start + _READ_ROWS]]
    return x_SD


def fingerprint(source: VectorSource, more: bytes = b"") -> str:
    """SHA-256 of some vectors of a source, and of `more`: work is not resumed on other vectors."""
    return sha256(source[spread_rows(len(source))].tobytes() + more).hexdigest()


def check_finite(block: np.ndarray, number: Callable[[int], int] = int, name: str = "vectors") -> None:
    """Raise DataError if a vector of `block`, float (n, D), is not finite; `number` gives its row's in `name`."""
    if block.size <= _PIECE_VALUES and np.isfinite(block).all():
        return
    step = max(1, _PIECE_VALUES // max(1, block.shape[1]))
    for start in range(0, len(block), step):
        is_finite = np.isfinite(block[start : start + step])
        if is_finite.all():
            continue
        row, column = np.unravel_index(np.argmin(is_finite), is_finite.shape)
        row += start
        value = "NaN" if np.isnan(block[row, column]) else "an infinite value (infinite, or beyond float32's ±3.4e38)"
        raise DataError(f"row {number(int(row))} of {name} holds {value} in column {column}: remove or repair it")


def _apply(function: Callable, source: VectorSource, key) -> np.ndarray:
    return function(source[key])


def _number_of_left(left_S: np.ndarray, rows_n):
    return rows_n + np.searchsorted(left_S, rows_n, "right")


class _Chosen:
    """Some rows of a source, whose numbers there `number` gives for an int or int64 array of rows here."""

    def __init__(self, source: VectorSource, count: int, number: Callable):
        self.source, self.number, self.shape, self.dtype = source, number, (count, source.dim), _FLOAT32

    def row_number(self, row: int) -> int:
        return self.source.row_number(self.number(row))

    def __getitem__(self, key) -> np.ndarray:
        rows_n = self.number(np.arange(*key.indices(self.shape[0])) if isinstance(key, slice) else key)
        first, stop = (rows_n.min(), rows_n.max() + 1) if rows_n.size else (0, 0)
        if not 0 < stop - first <= 2 * rows_n.size:
            return self.source[rows_n]
        return self.source[first:stop][rows_n - first]  # what lies close together is read at once


def _to_float32(rows, indices: np.ndarray | None = None) -> np.ndarray:
    """A fresh array of all rows or some, in pieces between which Ctrl-C is heard.

    Values that float32 cannot hold become infinite, which `check_finite` finds.
    """
    if indices is not None and not isinstance(rows, np.ndarray):
        rows, indices = rows[indices], None
    with np.errstate(over="ignore", invalid="ignore"):
        if indices is None and (rows.flags.owndata or rows.size <= _PIECE_VALUES):
            return rows.astype(np.float32, order="C", copy=not rows.flags.owndata)
        count, step = len(rows) if indices is None else len(indices), max(1, _PIECE_VALUES // rows.shape[1])
        vectors = np.empty((count, rows.shape[1]), np.float32)
        for start in range(0, count, step):
            part = slice(start, start + step)
            vectors[part] = rows[part if indices is None else indices[part]]
        return vectors
