"""Arrow's columns of lists of numbers, of Parquet files and of tables in memory, as arrays; pyarrow reads them."""

import numpy as np

from qinco.errors import DataError
from qinco.vectors.block_rows import choose_part, library, list_names
from qinco.vectors.mapped import MAX_DIM


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


def choose_column(path, schema, name: str | None, part: str) -> tuple[str, np.dtype, int | None]:
    """The column of lists of numbers of a schema: `name`, or else `part`, or the only one; its type, and D or None."""
    columns = {field.name: found for field in schema if (found := list_type(field.type)) is not None}
    if name is None:
        name = choose_part(path, columns, part, "column of lists of numbers")
    elif name not in columns:
        raise DataError(f"{path} holds no column {name!r} of lists of numbers, but {list_names(columns) or 'none'}")
    return name, *columns[name]


def first_length(lists) -> int:
    """The length of the first list of an Arrow array; 0 for a null."""
    return getattr(lists, "storage", lists).value_lengths()[0].as_py() or 0


def check_length(dim: int, name: str) -> None:
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"row 0 of {name} must have 1 to {MAX_DIM} values, not {dim}")


def lists_to_array(lists, dim: int, dtype, start: int | np.ndarray, name: str) -> np.ndarray:
    """An Arrow array of lists as (N, dim), without a copy if possible.

    `start` is its first row in what `name` names, or the numbers of all rows. Raises DataError for nulls and lists of
    other lengths.
    """
    lists = getattr(lists, "storage", lists)
    number = start.__add__ if isinstance(start, int) else start.__getitem__
    if lists.null_count:
        raise DataError(f"row {number(_first_null(lists))} of {name} is null: remove it")
    lengths = np.asarray(lists.value_lengths())
    row = int(np.argmax(lengths != dim)) if len(lengths) else 0
    if len(lengths) and lengths[row] != dim:
        raise DataError(f"the length of row {number(row)} of {name} is {lengths[row]}, that of others {dim}")
    values = lists.flatten()
    if values.null_count:
        row, position = divmod(_first_null(values), dim)
        raise DataError(f"row {number(row)} of {name} holds a null in column {position}: remove or repair it")
    return values.to_numpy(zero_copy_only=False).reshape(-1, dim).astype(dtype, copy=False)


def to_arrow(x, name: str):
    """The chunked column, or the table, of any object of Arrow's C interface."""
    with library("pyarrow", "parquet", name):
        import pyarrow

        column = pyarrow.chunked_array(x if hasattr(x, "__arrow_c_stream__") else [pyarrow.array(x)])
        return pyarrow.Table.from_struct_array(column) if pyarrow.types.is_struct(column.type) else column


def column_arrays(column, name: str) -> list[np.ndarray] | None:
    """The chunks of an Arrow column of lists of numbers as matrices; None for another column."""
    if (found := list_type(column.type)) is None:
        if len(getattr(column.type, "shape", ())) > 1:
            raise DataError(f"{name} holds tensors of shape {column.type.shape}: vectors have one axis")
        return None
    (dtype, dim), start, arrays = found, 0, []
    if dim is None:
        dim = next((len(first) for chunk in column.chunks for first in chunk[:1] if first.is_valid), 0)
    for chunk in column.chunks:
        arrays.append(lists_to_array(chunk, dim, dtype, start, name))
        start += len(chunk)
    return arrays or [np.empty((0, dim), dtype)]


def _first_null(array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
