"""What users have of vectors in memory, as rows: arrays, tensors, tables, columns, nested lists, batches.

Libraries are recognised by what their objects can do: none of them is imported here unless its objects are there.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from functools import partial
from numbers import Number
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured

from qinco.errors import DataError, ResourceError
from qinco.machine import free_memory
from qinco.vectors.arrow import column_arrays, to_arrow
from qinco.vectors.block_rows import Parts, SlicedRows, concat_rows, list_names
from qinco.vectors.hdf5 import name_on_disk, open_hdf5
from qinco.vectors.mapped import Rows, StoredRows, check_matrix

_GATHERED_ROWS = 4096  # single vectors of an iterator that are stacked at a time


class ComputedRows:
    """Rows that are computed when they are read: `read` takes a slice or an int64 array.

    `row_number` gives the number that a row has in the file which it is of, for messages.
    """

    def __init__(self, shape: tuple[int, int], dtype, read: Callable[..., np.ndarray], row_number: Callable = int):
        self.shape, self.dtype, self._read, self.row_number = shape, dtype, read, row_number

    def __getitem__(self, key) -> np.ndarray:
        return self._read(key)


def as_rows(x, name: str) -> Rows:
    """Vectors in memory as rows (N, D), or one vector or column of numbers as an array of one axis.

    `x` is an array, memory map or anything that numpy converts; a torch tensor; lists of numbers or of arrays; a table,
    column or row of pandas, polars or Arrow; a data set of h5py or zarr; a list or iterator of batches, or an iterator
    of vectors, which is gathered in memory. Raises DataError for ragged rows, nulls and what is ambiguous.
    """
    if isinstance(x, np.ndarray) and x.dtype != object and not isinstance(x, np.ma.MaskedArray):
        return np.asarray(x) if x.dtype.names is None else _table_rows(np.asarray(x), name)
    torch = sys.modules.get("torch")  # imported already if x is a tensor
    if torch is not None and isinstance(x, torch.Tensor):
        return tensor_rows(x, name)
    if hasattr(x, "__array__") and hasattr(x, "columns"):
        return _table_rows(x, name)
    _refuse(x, name)
    if isinstance(x, np.ma.MaskedArray):
        return x.data
    if isinstance(x, Mapping):  # such as what numpy.load makes of an npz file
        if len(x) != 1:
            raise DataError(f"{name} must be one value of the mapping, of {list_names(list(map(str, x)))}")
        return as_rows(next(iter(x.values())), name)
    is_array = any(hasattr(x, f"__{method}__") for method in ("getitem", "array", "dlpack"))
    if hasattr(x, "__next__") or (hasattr(x, "__iter__") and not is_array):
        return _gather_batches(x, name)
    if isinstance(x, list | tuple) and x and _is_batch(x[0], name):
        return _join([as_rows(batch, f"item {number} of {name}") for number, batch in enumerate(x)], name)
    is_arrow = hasattr(x, "__arrow_c_array__") or hasattr(x, "__arrow_c_stream__")
    if is_arrow and not hasattr(x, "iloc") and ("pyarrow" in sys.modules or not is_array):  # numpy reads pandas
        column = to_arrow(x, name)
        if hasattr(column, "columns"):
            return _table_rows(column, name)
        if (arrays := column_arrays(column, name)) is not None:
            return _join(arrays, name)
        x = x if is_array else column
    if isinstance(x, StoredRows):
        return x
    if not _is_lazy(x):
        return _convert(x, name)
    rows = SlicedRows(x)
    path, _, data = (name_on_disk(x) or "").rpartition(":")
    if path:
        rows.reopen = open_hdf5, (Path(path), Path(path).stat().st_size, data, "")
    return rows


def _is_batch(x, name: str) -> bool:
    """Whether the first item of a list is a batch of vectors, such as a column of them, and not a vector."""
    is_table = len(getattr(x, "shape", ())) == 2 or hasattr(x, "columns")
    is_column = any(hasattr(x, kind) for kind in ("iloc", "__arrow_c_array__", "__arrow_c_stream__"))
    return is_table or (is_column and len(as_rows(x, name).shape) == 2)


def tensor_rows(tensor, name: str) -> Rows:
    """A torch tensor of any axes and device as rows, which share its memory where numpy can."""
    import torch

    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        raise DataError(f"{name} must be a dense tensor with data")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool or tensor.is_quantized:
        raise DataError(f"{name} must hold integers or floats, not {tensor.dtype}")
    tensor = tensor.detach()
    with suppress(TypeError):  # a type that numpy lacks: bfloat16 and the 8-bit floats
        if tensor.device.type == "cpu":
            return tensor.numpy(force=True)  # shares the tensor's memory
    return ComputedRows(tuple(tensor.shape), tensor.dtype, partial(_read_tensor, tensor))


def _read_tensor(tensor, key) -> np.ndarray:
    import torch

    key = torch.from_numpy(key).to(tensor.device) if isinstance(key, np.ndarray) else key
    return tensor[key].to("cpu", torch.float32).numpy()


def _refuse(x, name: str) -> None:
    if hasattr(x, "toarray"):
        raise DataError(f"{name} must be dense: give what its method toarray() returns")
    if np.ma.is_masked(x):
        raise DataError(f"{name} must have no masked values: fill or remove them")
    if isinstance(x, Set):
        raise DataError(f"{name} must be a list, not a set, which has no order")
    if hasattr(x, "readinto") or hasattr(x, "readline"):
        raise DataError(f"{name} must be the path of a file, not an open file")
    for method in ("collect", "compute"):  # a LazyFrame of polars, a DataFrame of dask
        if hasattr(x, method) and not _is_lazy(x):
            raise DataError(f"{name} must be computed first: give what its method {method}() returns")


def _is_lazy(x) -> bool:
    """Whether x is a matrix that is read by slices, such as a data set of h5py, zarr or dask."""
    is_matrix = isinstance(getattr(x, "shape", None), tuple) and len(x.shape) == 2 and hasattr(x, "__getitem__")
    in_memory = any(hasattr(x, name) for name in ("__dlpack__", "__array_interface__"))
    with suppress(TypeError, AttributeError):
        return is_matrix and not in_memory and np.dtype(x.dtype).kind in "fiu"
    return False


def _table_rows(table, name: str) -> Rows:
    """The only column of vectors of a table or of records, or all of its columns where they hold numbers."""
    head = np.asarray(table[:1])
    if head.ndim == 2 and head.dtype != object:
        return _convert(table, name)
    labels = head.dtype.names or list(getattr(table, "column_names", table.columns))
    vectors, others = [], []
    for label in labels:
        first = np.asarray(table[label][:1])
        if first.ndim == 2 or (len(first) and hasattr(first[0], "__len__") and not isinstance(first[0], str | bytes)):
            vectors.append(label)
        elif not len(first) or not isinstance(first[0], Number):
            others.append(label)
    if len(vectors) == 1:
        return as_rows(table[vectors[0]], f"{name}[{vectors[0]!r}]")
    found = list_names(list(map(str, vectors or others)))
    if vectors:
        raise DataError(f"{name} must be one of the columns of vectors, {found}: index the table with [{vectors[0]!r}]")
    if others:
        raise DataError(f"{name} must have columns of numbers or one of vectors only: leave out {found}")
    return _convert(table, name) if head.dtype.names is None else structured_to_unstructured(table)


def _gather_batches(batches: Iterable, name: str) -> Rows:
    """The batches (n, D), or vectors (D,), of an iterator, copied, as it may use their memory again."""
    parts, waiting, held, most = [], [], 0, free_memory() // 2
    for number, batch in enumerate(batches):
        item = f"item {number} of {name}"
        if isinstance(batch, str | os.PathLike | Number):
            what = "numbers of one vector: give list" if isinstance(batch, Number) else "paths: give sorted"
            raise DataError(f"{name} must be vectors or batches of them, not an iterator of {what}(...) of it")
        found = as_rows(batch, item)
        found = found[None] if len(found.shape) == 1 else found
        check_matrix(found.shape, found.dtype, item)
        waiting.append(np.array(found[:]))
        if waiting[-1].shape[1] != waiting[0].shape[1]:
            raise DataError(f"{item} must have dimension {waiting[0].shape[1]}, as others, not {waiting[-1].shape[1]}")
        held += waiting[-1].nbytes
        if held > most:
            raise ResourceError(
                f"{name} must take less than half of the free memory: write the vectors to a file, and give its path"
            )
        if sum(map(len, waiting[:1])) + len(waiting) > _GATHERED_ROWS:
            parts, waiting = [*parts, np.concatenate(waiting)], []
    if waiting:
        parts.append(np.concatenate(waiting))
    if not parts:
        raise DataError(f"{name} must not be empty: an iterator can be read once only")
    return _join(parts, name)


def _join(parts: list, name: str) -> Rows:
    names = [f"item {number} of {name}" if len(parts) > 1 else name for number in range(len(parts))]
    for part, item in zip(parts, names, strict=True):
        check_matrix(part.shape, part.dtype, item)
    return parts[0] if len(parts) == 1 else concat_rows(parts, names, Parts(parts), name)


def _convert(x, name: str) -> Rows:
    """What numpy makes of x; objects that are numbers or vectors of equal length become numbers."""
    error, array = None, None
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as reason:  # RuntimeError: a tensor that requires a gradient
        error = reason
    if hasattr(x, "__dlpack__") and (array is None or array.shape == ()):  # such as cupy's arrays
        import torch

        return tensor_rows(torch.from_dlpack(x), name)
    if array is not None and array.dtype != object:
        return array
    rows = x if array is None or isinstance(x, list | tuple) else array.tolist() if array.ndim else []
    rows = [_as_plain(row, name) for row in rows]
    with suppress(ValueError, TypeError, RuntimeError):
        found = np.array(rows)
        if rows and found.dtype != object:
            return found
    fault = _fault(rows)
    if fault is None and array is not None:
        return array
    raise DataError(f"{name} must be a matrix of numbers: {fault or error}") from error


def _as_plain(row, name: str):
    """One vector of a list as numpy knows it; others as they are."""
    if hasattr(row, "as_py"):  # a scalar of Arrow
        return row.as_py()
    if isinstance(row, list | tuple):
        return [value.as_py() if hasattr(value, "as_py") else value for value in row]
    if row is None or isinstance(row, Number | str):
        return row
    found = as_rows(row, name)
    return found[:] if len(found.shape) else row


def _fault(rows: list) -> str | None:
    """The first of some rows that does not fit, as a clause."""
    lengths = [len(row) if hasattr(row, "__len__") and not isinstance(row, str) else None for row in rows]
    vectors = Counter(length for length in lengths if length is not None).most_common(1)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if vectors and length != vectors[0][0]:
            what = f"row {number} is {row!r:.40}" if length is None else f"the length of row {number} is {length}"
            return f"{what}, that of others {vectors[0][0]}"
        for column, value in enumerate([row] if length is None else row):
            if not isinstance(value, Number):
                return f"row {number} has {value!r:.40} in column {column}: remove or repair it"
    return None
