"""Which vectors have one of some ids, as bits over their positions: compiled, or by numpy where nothing is."""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_int32, c_int64, c_void_p

import numpy as np

from qinco.native.library import address, check_memory, compiled, run

WORD_BITS = 64
_OPERATIONS = 4.0  # that looking an id up takes the time of


class _Ids(Structure):
    _fields_ = [("ids", c_void_p), ("count", c_int64), ("words", c_void_p), ("found", c_int64), ("are_wide", c_int32)]


def mark_ids(chosen_C: np.ndarray, parts: Sequence[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    """For each array of ids, uint32 or int64, the bits of the positions that hold one of `chosen_C`, and their number.

    Args:
        chosen_C: int64, in any order, also repeated; −1 stands for none.

    Returns:
        Bits as of `packed`, and how many are set.
    """
    assert chosen_C.dtype == np.int64 and all(ids.dtype in (np.uint32, np.int64) for ids in parts)
    if compiled() is None:
        masks = [np.isin(ids, chosen_C[chosen_C >= 0] if ids.dtype == np.uint32 else chosen_C) for ids in parts]
        return [(packed(mask), int(mask.sum())) for mask in masks]
    chosen_C, parts = np.ascontiguousarray(chosen_C), [np.ascontiguousarray(ids) for ids in parts]
    words = [np.empty(num_words(len(ids)), np.uint64) for ids in parts]
    given = (_Ids * len(parts))(
        *(
            _Ids(ids.ctypes.data, len(ids), address(some), 0, ids.dtype == np.int64)
            for ids, some in zip(parts, words, strict=True)
        )
    )
    failed = run(
        lambda: compiled().qinco_mark_ids(chosen_C.ctypes.data, len(chosen_C), ctypes.addressof(given), len(parts)),
        _OPERATIONS * (len(chosen_C) + sum(map(len, parts))),
    )
    check_memory(failed, "fewer ids at a time")
    return [(some, part.found) for some, part in zip(words, given, strict=True)]


def num_words(count: int) -> int:
    """Of so many bits."""
    return -(-count // WORD_BITS)


def count_bits(words: np.ndarray) -> int:
    """How many are set."""
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(words).sum())
    return int(np.unpackbits(words.view(np.uint8)).sum())  # numpy 1


def packed(mask_N: np.ndarray) -> np.ndarray:
    """A mask, bool (N,), as bits: uint64 (⌈N / 64⌉,), the lowest bit first; what is beyond N is 0."""
    bits = np.zeros(8 * num_words(len(mask_N)), np.uint8)
    bits[: -(-len(mask_N) // 8)] = np.packbits(mask_N, bitorder="little")
    return bits.view("<u8").astype(np.uint64, copy=False)


def unpacked(words: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The bits of positions `start` to `stop`, bool."""
    first = start // WORD_BITS
    some = words[first : num_words(stop)].astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(some, bitorder="little").view(bool)[start - first * WORD_BITS : stop - first * WORD_BITS]


def positions(words: np.ndarray) -> np.ndarray:
    """The positions whose bits are set, int64, ascending."""
    rows = np.flatnonzero(words)
    bits = np.unpackbits(words[rows].astype("<u8", copy=False).view(np.uint8), bitorder="little")
    places = np.flatnonzero(bits.view(bool))
    return rows[places // WORD_BITS] * WORD_BITS + places % WORD_BITS
