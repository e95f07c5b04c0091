"""Arrow's columns of lists of numbers, of Parquet files and of tables in memory, as arrays; pyarrow reads them."""

import numpy as np

from qinco.errors import DataError


def list_type(type) -> tuple[np.dtype, int | None] | None:
    """The type of the numbers, and D where it is fixed, of a column of lists or tensors of numbers; None for others."""
    from pyarrow import BaseExtensionType, types

    is_tensor = isinstance(type, BaseExtensionType)
    shape, type = getattr(type, "shape", ()), type.storage_type if is_tensor else type
    kinds = ("fixed_size_list", "list", "large_list", "list_view", "large_list_view")
    if len(shape) > 1 or not any(getattr(types, f"is_{kind}", bool)(type) for kind in kinds):
        return None
    value, dim = type.value_type, getattr(type, "list_size", None)
    is_number = types.is_integer(value) or types.is_floating(value)
    return (np.dtype(value.to_pandas_dtype()), dim) if is_number else None


def lists_to_array(lists, dim: int, dtype, start: int, name: str) -> np.ndarray:
    """An Arrow array of lists as (N, dim), without a copy if possible; `start` is its first row in what `name` names.

    Raises DataError for nulls and lists of other lengths.
    """
    lists = getattr(lists, "storage", lists)
    if lists.null_count:
        raise DataError(f"row {start + _first_null(lists)} of {name} is null: remove it")
    lengths = np.asarray(lists.value_lengths())
    row = int(np.argmax(lengths != dim)) if len(lengths) else 0
    if len(lengths) and lengths[row] != dim:
        raise DataError(f"row {start + row} of {name} has {lengths[row]} values, others have {dim}")
    values = lists.flatten()
    if values.null_count:
        row, position = divmod(_first_null(values), dim)
        raise DataError(f"row {start + row} of {name} holds a null in column {position}: remove or repair it")
    return values.to_numpy(zero_copy_only=False).reshape(-1, dim).astype(dtype, copy=False)


def column_arrays(column, name: str) -> list[np.ndarray] | None:
    """The chunks of an Arrow column of lists of numbers as matrices; None for another column."""
    import pyarrow

    if not isinstance(column, pyarrow.Array | pyarrow.ChunkedArray):
        column = pyarrow.chunked_array(column)
    if (found := list_type(column.type)) is None:
        return None
    (dtype, dim), start, arrays = found, 0, []
    chunks = [column] if isinstance(column, pyarrow.Array) else column.chunks
    if dim is None:
        dim = next((len(first) for chunk in chunks for first in chunk[:1] if first.is_valid), 0)
    for chunk in chunks:
        arrays.append(lists_to_array(chunk, dim, dtype, start, name))
        start += len(chunk)
    return arrays or [np.empty((0, dim), dtype)]


def _first_null(array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
