"""Payloads as JSON values: from Python objects, and from Arrow's columns a block at a time.

JSON has no NaN, no infinity and no bytes. A field whose value is null or not finite is left out of its object, so that
filters find that it does not exist; in a list it stays null. Dates and times become RFC 3339 text, times without a zone
being taken as UTC, and without a fraction where the second is whole. Decimals become floats, durations seconds.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import compress
from numbers import Integral, Real
from typing import Any
from uuid import UUID

import numpy as np

from qinco.errors import DataError

_MAX_DEPTH = 64  # of lists and objects in each other
_UTC = datetime.UTC


def json_object(fields: Mapping, where: str) -> dict[str, Any]:
    """A payload of JSON values, without fields that are null; raises DataError, which begins with `where`."""
    if not isinstance(fields, Mapping):
        raise DataError(f"{where} is {_short(fields)}: a payload is a dict, or None")
    return _object(fields, where, 0)


def json_value(value, where: str, depth: int = 0) -> Any:
    """What JSON holds of a Python object; None for null, NaN and infinity."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real | Decimal):
        value = float(value)
        return value if math.isfinite(value) else None
    if depth >= _MAX_DEPTH:
        raise DataError(f"{where} holds lists or objects more than {_MAX_DEPTH} deep: flatten it, or leave it out")
    if isinstance(value, Mapping):
        return _object(value, where, depth)
    if isinstance(value, list | tuple):
        return [json_value(one, where, depth + 1) for one in value]
    return _other(value, where, depth)


def _object(fields: Mapping, where: str, depth: int) -> dict[str, Any]:
    found = {}
    for name, field in fields.items():
        if not isinstance(name, str):
            raise DataError(
                f"{where} has a field named {name!r:.40}: names of fields are strings, such as {str(name)!r:.40}"
            )
        if (value := json_value(field, where, depth + 1)) is not None:
            found[name] = value
    return found


def _other(value, where: str, depth: int) -> Any:
    if isinstance(value, datetime.datetime):  # before date, of which it is one
        return _time_text(value)
    if isinstance(value, datetime.date | datetime.time):
        return None if value != value else value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, np.datetime64):
        return time_texts(np.array([value]))[0]
    if isinstance(value, np.bool_):
        return bool(value)
    if hasattr(value, "tolist") and not isinstance(value, bytes | bytearray | memoryview):  # of numpy, torch, pandas
        return json_value(value.tolist(), where, depth)
    if hasattr(value, "as_py"):  # a scalar of Arrow
        return json_value(value.as_py(), where, depth)  # pyright: ignore[reportAttributeAccessIssue]
    if type(value).__name__ in ("NAType", "NaTType"):  # what pandas calls missing
        return None
    raise DataError(f"{where} holds {_short(value)}, which JSON has not: make it text or a number, or leave it out")


def _time_text(time: datetime.datetime) -> str | None:
    if time != time:  # pandas' NaT
        return None
    text = (time if time.tzinfo is None else time.astimezone(_UTC)).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


def _short(value) -> str:
    is_bytes = isinstance(value, bytes | bytearray | memoryview)
    return "bytes" if is_bytes else f"{value!r:.40} of type {type(value).__name__}"


def time_texts(times_N: np.ndarray) -> list[str | None]:
    """Instants, datetime64 (N,), as RFC 3339 text in UTC; None for those that are missing."""
    seconds_N = times_N.astype("M8[s]")
    texts: list[str | None] = [f"{text}Z" for text in np.datetime_as_string(seconds_N).tolist()]
    for row in np.flatnonzero(seconds_N != times_N):  # NaT differs from itself
        texts[row] = None if np.isnat(times_N[row]) else f"{np.datetime_as_string(times_N[row])}".rstrip("0") + "Z"
    return texts


def column_values(array) -> list:
    """The JSON values of an Arrow array, in order; None where they are absent."""
    from pyarrow import types

    type = array.type
    if types.is_dictionary(type):
        values = np.array([*column_values(array.dictionary), None], object)
        return values[array.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False).astype(np.int64)].tolist()
    if hasattr(array, "storage"):
        if is_uuid(type):
            return [None if value is None else str(UUID(bytes=value)) for value in array.storage.to_pylist()]
        return column_values(array.storage)
    if types.is_integer(type) or types.is_boolean(type):
        filled = array.fill_null(0 if types.is_integer(type) else False) if array.null_count else array
        return _with_nulls(filled.to_numpy(zero_copy_only=False).tolist(), array)
    if types.is_floating(type) or types.is_decimal(type):
        floats = array if types.is_floating(type) else array.cast("double")
        return _finite(floats.to_numpy(zero_copy_only=False))
    if types.is_timestamp(type):
        return time_texts(array.cast(_without_zone(type)).to_numpy(zero_copy_only=False))
    if types.is_date(type):
        return array.cast("date32").cast("string").to_pylist()
    if types.is_duration(type):
        seconds_N = array.to_numpy(zero_copy_only=False) / np.timedelta64(1, "s")
        return _finite(seconds_N)
    if types.is_time(type):
        return array.cast("string").to_pylist()
    values = array.to_pylist()
    if types.is_map(type):  # Python has it as pairs
        values = [value if value is None else dict(value) for value in values]
    return values if _is_plain(type) else [json_value(value, "a column") for value in values]


def payloads_of(columns: Sequence, names: Sequence[str]) -> list[dict[str, Any]]:
    """The payload of each row of some Arrow arrays of equal length, without fields that are null."""
    values, names = [column_values(column) for column in columns], tuple(names)
    if not any(None in column for column in values):
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return [{name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in zip(*values, strict=True)]  # fmt: skip


def why_no_json(type) -> str | None:
    """Why the values of an Arrow type are no JSON, as words for what they are; None if they are."""
    from pyarrow import types

    if is_uuid(type):
        return None
    type = getattr(type, "storage_type", type)
    if types.is_dictionary(type):
        return why_no_json(type.value_type)
    if any(getattr(types, f"is_{kind}", lambda _: False)(type) for kind in _BINARY):
        return "bytes"
    if types.is_union(type) or types.is_interval(type) or types.is_run_end_encoded(type):
        return str(type)
    inner = [type.field(number).type for number in range(type.num_fields)]
    return next((reason for reason in map(why_no_json, inner) if reason is not None), None)


def is_uuid(type) -> bool:
    return getattr(type, "extension_name", "") == "arrow.uuid"


_BINARY = "binary", "large_binary", "binary_view", "fixed_size_binary"


def _is_plain(type) -> bool:
    """Whether Python's values of an Arrow type are JSON values as they are, but for absent ones."""
    from pyarrow import types

    texts = ("string", "large_string", "string_view", "null")
    if any(getattr(types, f"is_{kind}", lambda _: False)(type) for kind in texts):
        return True
    lists = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    is_list = any(getattr(types, f"is_{kind}", lambda _: False)(type) for kind in lists)
    return is_list and (
        types.is_integer(type.value_type) or types.is_boolean(type.value_type) or _is_plain(type.value_type)
    )


def _without_zone(type):
    import pyarrow

    return pyarrow.timestamp(type.unit)  # the instants are stored in UTC


def _finite(floats_N: np.ndarray) -> list:
    values, is_finite_N = floats_N.tolist(), np.isfinite(floats_N)
    if not is_finite_N.all():
        for row in np.flatnonzero(~is_finite_N):
            values[row] = None
    return values


def _with_nulls(values: list, array) -> list:
    if array.null_count:
        for row in compress(range(len(values)), array.is_null().to_pylist()):
            values[row] = None
    return values
