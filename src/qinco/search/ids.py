"""Ids as users give them: of vectors to add, to remove, or that may be found."""

from collections.abc import Iterable, Sequence, Set
from numbers import Integral
from typing import Any

import numpy as np

from qinco.errors import ConfigError, DataError

MISSING = -1  # in results, where nothing was found: no vector has it
_LAST = np.iinfo(np.int64).max
_MAX_SPAN = 256  # of a range that is not compared with all ids, for each vector
_STRINGS = ("number the vectors, ids=range(n), and keep the strings in that order, or hash each to an int64, as in "
            "int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest(), 'little', signed=True)")  # fmt: skip


def as_ids(ids, count: int | None) -> np.ndarray:
    """Ids as int64 (N,); raises DataError unless they are integers but -1, `count` of them (if given) and unique."""
    if isinstance(ids, Set):
        raise DataError("ids must be integers (N,) in the order of their vectors, which a set has not: give a list")
    if count is not None and isinstance(ids, range) and range_size(ids) != count:
        raise DataError(f"there must be as many ids as vectors, {count}, not {range_size(ids)}")
    array = id_array(ids)
    if count is not None and len(array) != count:
        raise DataError(f"there must be as many ids as vectors, {count}, not {len(array)}")
    if (array == MISSING).any():
        raise DataError("ids must be other integers, not -1: it stands for no vector in the results of a search")
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


def check_new(
    ids: np.ndarray, known: Sequence[np.ndarray], next_id: int, remedy: str = "give another, or replace it by upsert"
) -> None:
    """Raise DataError if one of `ids` is among the `known`, all of which are below `next_id`."""
    if not len(ids) or ids.min() >= next_id:
        return
    for others in known:
        if (double := np.isin(ids, others)).any():
            raise DataError(f"id {ids[double][0]} is already in the index: {remedy}")


def admitted_ids(
    chosen, known: Sequence[np.ndarray], next_id: int | None = None, *, any_shape: bool = False
) -> np.ndarray | range:
    """The ids that `chosen` admits: int64, ascending and unique, or a range that ends where the `known` ids do.

    `chosen` is an array of any kind, a set, an iterator, a range, a slice, or a faiss.IDSelector (which is asked about
    all `known` ids, below `next_id`). -1 stands for no vector. With `any_shape` also one id, or (Q, k) of them.
    """
    found = chosen_ids(chosen, known, next_id, any_shape=any_shape)
    if isinstance(found, range):
        return found
    found = found if (found[1:] > found[:-1]).all() else np.unique(found)
    return found[found != MISSING]


def chosen_ids(
    chosen, known: Sequence[np.ndarray], next_id: int | None = None, *, any_shape: bool = False
) -> np.ndarray | range:
    """Those of `admitted_ids`, but in any order, also repeated and with -1."""
    if type(chosen).__module__.split(".")[0] == "faiss":
        from qinco.compat.faiss_files import selected_ids

        return selected_ids(chosen, np.concatenate([np.empty(0, np.int64), *known], dtype=np.int64))
    if callable(chosen) or isinstance(chosen, str | dict):
        raise ConfigError(f"ids are chosen by an array of them or a faiss.IDSelector, not by a {type(chosen).__name__}")
    if isinstance(chosen, range | slice):
        low, high = ends(known, next_id)
        if isinstance(chosen, slice):
            if min(low, chosen.start or 0, chosen.stop or 0) < 0:
                raise ConfigError(f"{chosen} is of ids from 0 on, not of negative ones: give range({low}, {high + 1})")
            chosen = range(*chosen.indices(high + 1))
        return _between(chosen if chosen.step > 0 else chosen[::-1], low, high, known)
    array = id_array(chosen, chooses=True, any_shape=any_shape)
    is_column = array.ndim and array.size == len(array)
    array = array.ravel()
    if is_column and len(array) > len(np.unique(array[:3])) and _is_mask(array):
        raise ConfigError(f"{len(array)} values that are 0 or {max(1, array.max())} are either a mask or ids: give "
                          "numpy.flatnonzero(mask) or numpy.unique(ids)")  # fmt: skip
    if len(array) > max(1 << 16, sum(map(len, known))):  # there is no need to sort those that nobody has
        low, high = ends(known, next_id)
        array = array[(array >= low) & (array <= high)]
    return array


def _is_mask(array: np.ndarray) -> bool:
    low, high = array.min(), array.max()
    return low >= 0 and (high <= 1 or (low == 0 and high == 255 and bool(np.isin(array, (0, 255)).all())))


def are_among(ids: np.ndarray, chosen: np.ndarray | range) -> np.ndarray:
    """Which of some ids are among those of `admitted_ids`, bool (N,)."""
    if not isinstance(chosen, range):
        return np.isin(ids, chosen)
    mask = (ids >= chosen.start) & (ids < chosen.stop)
    if chosen.step > 1:
        mask[mask] = (ids[mask].astype(np.int64) - chosen.start) % chosen.step == 0
    return mask


def range_size(ids: range) -> int:
    """`len(ids)`, also where that is beyond what `len` gives."""
    return max(0, -((ids.start - ids.stop) // ids.step))


def id_array(ids: Any, chooses: bool = False, any_shape: bool = False) -> np.ndarray:
    """Ids of any kind as int64 (N,), or of any shape; raises DataError unless they are integers of that type."""
    if isinstance(ids, range) and min(ids.start, ids.stop) >= -_LAST and max(ids.start, ids.stop) <= _LAST:
        ids = np.arange(ids.start, ids.stop, ids.step)
    elif isinstance(ids, Iterable) and not hasattr(ids, "__getitem__"):
        ids = list(ids)
    try:
        array = np.asarray(getattr(ids, "cpu", lambda: ids)())
        if array.dtype.kind == "f" and isinstance(ids, list | tuple) and all(isinstance(i, Integral) for i in ids):
            array = np.array(ids, np.uint64)  # some are beyond int64
        if array.dtype == object and array.ndim:
            array = np.array(array.tolist())  # a nullable column
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"ids must be integers (N,): {error}") from None
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.dtype == bool and chooses:
        raise ConfigError("ids are chosen by an array of them, not by a mask: give numpy.flatnonzero(mask) if they are "
                          "row numbers, else ids[mask]")  # fmt: skip
    if array.dtype == np.uint64 and array.max(initial=0) > _LAST:
        raise DataError(f"ids must be integers below 2^63, not {array.max()}: give numpy.asarray(ids, numpy.uint64)"
                        ".view(numpy.int64), which makes negative ids of them")  # fmt: skip
    if array.dtype.kind not in "iu":
        remedy = "give numpy.asarray(ids, numpy.int64) of whole numbers"
        if (array.dtype.kind == "f" and not np.isfinite(array).all()) or None in array.ravel().tolist():
            remedy = "remove those that are missing"
        elif array.dtype.kind in "USO":
            remedy = _STRINGS if array.ndim else "give an array of them"
        raise DataError(f"ids must be integers (N,), not {array.dtype} of shape {array.shape}: {remedy}")
    if array.ndim != 1 and not any_shape:
        raise DataError(f"ids must be integers (N,), not {array.dtype} of shape {array.shape}: give numpy.ravel(ids)")
    return array.astype(np.int64, copy=False)


def _between(ids: range, low: int, high: int, known: Sequence[np.ndarray]) -> np.ndarray | range:
    """An ascending range from `low` to `high`, or the known ids in it where they are few."""
    start = ids.start + max(0, -((ids.start - low) // ids.step)) * ids.step
    found = range(start, min(ids.stop, high + 1), ids.step)
    if not found:
        return np.empty(0, np.int64)
    if found[-1] - found[0] <= _MAX_SPAN * sum(map(len, known)):
        return found
    return np.sort(np.concatenate([some[are_among(some, found)] for some in known], dtype=np.int64))


def ends(known: Sequence[np.ndarray], next_id: int | None) -> tuple[int, int]:
    """Bounds of the known ids, of which only those that may be negative are read if `next_id` is above all."""
    some = [ids for ids in known if len(ids)]
    low = min((int(ids.min()) if ids.dtype.kind == "i" else 0 for ids in some), default=0)
    return low, max((int(ids.max()) for ids in some), default=-1) if next_id is None else next_id - 1
