"""Ids as users give them: of vectors to add, to remove, or that may be found."""

from collections.abc import Sequence, Set

import numpy as np

from qinco.errors import ConfigError, DataError

_LAST = np.iinfo(np.int64).max


def as_ids(ids, count: int | None) -> np.ndarray:
    """Ids as int64 (N,); raises DataError unless they are integers from 0 on, `count` of them (if given) and unique."""
    try:
        array = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
    except (ValueError, TypeError) as error:
        raise DataError(f"ids must be integers (N,): {error}") from None
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"ids must be integers (N,), not {array.dtype} of shape {array.shape}")
    if count is not None and len(array) != count:
        raise DataError(f"there are {len(array)} ids for {count} vectors")
    for wrong in (array.min(initial=0), array.max(initial=0)):
        if not 0 <= wrong <= _LAST:
            raise DataError(f"ids must be from 0 to 2^63 - 1, not {wrong}")
    array = array.astype(np.int64)
    if count is not None:
        sorted_N = np.sort(array)
        if (same := sorted_N[1:] == sorted_N[:-1]).any():
            raise DataError(f"id {sorted_N[1:][same][0]} is given twice: each vector needs its own")
    return array


def next_ids(first: int, count: int) -> np.ndarray:
    """The `count` ids from `first` on, int64; raises DataError if they exceed 2^63 - 1."""
    if first + count > _LAST + 1:
        raise DataError(f"the next free id is {first}, and {count} more exceed 2^63 - 1: give ids")
    return np.arange(count, dtype=np.int64) + np.int64(min(first, _LAST))


def check_new(ids: np.ndarray, known: Sequence[np.ndarray], next_id: int) -> None:
    """Raise DataError if one of `ids` is among the `known`, all of which are below `next_id`."""
    if not len(ids) or ids.min() >= next_id:
        return
    for others in known:
        if (double := np.isin(ids, others)).any():
            raise DataError(f"id {ids[double][0]} is already in the index: remove it first, or give another")


def admitted_ids(chosen, known: Sequence[np.ndarray]) -> np.ndarray:
    """The ids of an array, a set or a faiss.IDSelector (asked about all `known` ids): int64, ascending and unique."""
    if type(chosen).__module__.split(".")[0] == "faiss":
        from qinco.compat.faiss_files import selected_ids

        return selected_ids(chosen, np.concatenate([np.empty(0, np.int64), *known], dtype=np.int64))
    if callable(chosen) or isinstance(chosen, str | dict):
        raise ConfigError(f"ids are chosen by an array of them or a faiss.IDSelector, not by a {type(chosen).__name__}")
    array = list(chosen) if isinstance(chosen, Set) else chosen
    if "bool" in str(getattr(array, "dtype", "")):
        raise ConfigError("ids are chosen by an array of them, not by a mask: give numpy.flatnonzero(mask)")
    sorted_N = np.sort(as_ids(array, None))
    return sorted_N[np.diff(sorted_N, prepend=-1) != 0]
