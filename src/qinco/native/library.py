"""ctypes binding of the compiled engine: packed models that encode and decode numpy arrays on several threads.

Arrays are in normalised space; torch is not used. The environment variable `QINCO_NATIVE_LEVEL` selects a lower
instruction set than the processor's best, `QINCO_NATIVE_LIBRARY` another build.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from ctypes import POINTER, PYFUNCTYPE, Structure, byref, c_char, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qinco.errors import ConfigError, ResourceError
from qinco.interrupts import is_main_thread

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
_LOG = logging.getLogger(__name__)
_INTERFACE = 9  # of the library, as in engine.h
_FLOATS = POINTER(c_float)
_MAX_COUNT = (1 << 31) - 1  # larger counts of candidates mean all
_SHORT_CALL = 1e9  # operations: a fraction of a second on one slow core
# Raises an exception that PyErr_Fetch took: its type, value and traceback.
_raise = PYFUNCTYPE(None, c_void_p, c_void_p, c_void_p)(("PyErr_Restore", ctypes.pythonapi))


class Sizes(Structure):
    """D, E, H, L, K and M of a model, and flags (`qinco_sizes` in engine.h)."""

    _fields_ = [
        (name, c_int32)
        for name in ("dim", "stream", "hidden", "blocks", "codewords", "steps", "skip", "first_is_bare", "bf16")
    ]


@dataclass(frozen=True)
class StepArrays:
    """Arrays of one step, float32; see engine.h. A first step without a network has a codebook only."""

    codebook: np.ndarray  # (K, D)
    preselector: np.ndarray | None = None  # (K, D)
    stream_table: np.ndarray | None = None  # (K, E)
    hidden_table: np.ndarray | None = None  # (K, H)
    stream_x: np.ndarray | None = None  # (E, D)
    hidden_x: np.ndarray | None = None  # (H, min(D, E))
    up: tuple[np.ndarray, ...] = ()  # (H, E) each
    down: tuple[np.ndarray, ...] = ()  # (E, H) each
    project_out: np.ndarray | None = None  # (D, E)
    gram: np.ndarray | None = None  # (E,)
    codeword_back: np.ndarray | None = None  # (K, E)
    first_cross: np.ndarray | None = None  # (K, K)
    rank_codebook: np.ndarray | None = None  # (K, D)
    rank_offset: np.ndarray | None = None  # (K,)
    rank_map: np.ndarray | None = None  # (E, D)
    rank_slope: np.ndarray | None = None  # (D,)
    rank_hidden_map: np.ndarray | None = None  # (E, H)
    rank_hidden_slope: np.ndarray | None = None  # (H,)
    rank_hidden_square: np.ndarray | None = None  # (H,)


class _Step(Structure):
    _fields_ = [
        (field.name, POINTER(_FLOATS) if field.name in ("up", "down") else _FLOATS) for field in fields(StepArrays)
    ]


class _Python(Structure):
    """`qinco_python` in engine.h."""

    _fields_ = [(name, c_void_p) for name in ("ensure", "check", "fetch", "release")] + [("raised", POINTER(c_void_p))]


class _Search(Structure):
    _fields_ = [(name, c_int32) for name in ("candidates", "pairs", "beam", "steps")]


def is_available() -> bool:
    """Whether this installation has the compiled engine."""
    return compiled() is not None


def level() -> str:
    """The instruction set in use: the processor's best of LEVELS, or the one in QINCO_NATIVE_LEVEL."""
    best = compiled().qinco_level()
    wanted = os.environ.get("QINCO_NATIVE_LEVEL")
    if wanted is None:
        return LEVELS[best]
    if wanted not in LEVELS[: best + 1]:
        raise ConfigError(f"QINCO_NATIVE_LEVEL={wanted}: this processor has {', '.join(LEVELS[: best + 1])}")
    return wanted


class NativeModel:
    """A copy of a model's arrays in the layout of the kernels."""

    def __init__(self, sizes: Sizes, steps: list[StepArrays]):
        self.sizes = sizes
        self.engine = None
        kept, given = [], (_Step * len(steps))()
        for target, arrays in zip(given, steps, strict=True):
            for name, shape in _shapes(sizes).items():
                value = getattr(arrays, name)
                if value is None or (isinstance(value, tuple) and not value):
                    continue
                pointers = [_pointer(array, shape, kept) for array in (value if isinstance(value, tuple) else [value])]
                if isinstance(value, tuple):
                    assert len(value) == sizes.blocks
                    pointers = [(_FLOATS * len(pointers))(*pointers)]
                    kept.append(pointers[0])
                setattr(target, name, pointers[0])
        self.engine = compiled().qinco_create(byref(sizes), given, LEVELS.index(level()))
        if not self.engine:
            raise ResourceError("out of memory: the model cannot be packed for the native engine")

    def __reduce__(self):
        raise TypeError("a packed model cannot be copied: pack the model again")  # it would be freed twice

    def __del__(self):
        if self.engine:
            compiled().qinco_destroy(self.engine)

    def encode(
        self, x_ND: np.ndarray, start_ND: np.ndarray | None, *, num_candidates: int | None, num_pairs: int | None,
        beam_width: int, num_steps: int, threads: int,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Codes, uint16 (N, num_steps), of float32 vectors, and their reconstructions, float32 (N, D).

        Args:
            start_ND: reconstructions before the first step, float32 (N, D); None for zeros.
            num_candidates: A; None or 0 for all.
            num_pairs: C, instead of A.
            beam_width: B.
        """
        assert 1 <= num_steps <= self.sizes.steps
        x_ND, start_ND = self._rows(x_ND), None if start_ND is None else self._rows(start_ND)
        codes_NM, reached_ND = np.empty((len(x_ND), num_steps), np.uint16), np.empty_like(x_ND)
        limits = (min(value or 0, _MAX_COUNT) for value in (num_candidates, num_pairs, beam_width))
        search = _Search(*limits, num_steps)
        size = self.sizes.codewords
        each = beam_width * min(num_candidates or size, size) if not num_pairs else min(num_pairs, beam_width * size)
        failed = run(
            lambda: compiled().qinco_encode(
                self.engine, byref(search), x_ND.ctypes.data, address(start_ND), len(x_ND), threads,
                codes_NM.ctypes.data, reached_ND.ctypes.data,
            ),
            self.operations(len(x_ND) * num_steps) * each,
        )  # fmt: skip
        check_memory(failed, "a smaller beam_width (B), fewer candidates or fewer threads")
        return codes_NM, reached_ND

    def decode(self, codes_NM: np.ndarray, start_ND: np.ndarray | None, *, threads: int) -> np.ndarray:
        """Decode codes (N, m), m ≤ M, of any integer type: float32 (N, D)."""
        return self._decode(codes_NM, start_ND, (), threads)

    def decode_each(self, codes_NM: np.ndarray, start_ND: np.ndarray | None, *, threads: int) -> np.ndarray:
        """What the first 1, 2, ... m steps of codes (N, m) decode to: float32 (m, N, D)."""
        return self._decode(codes_NM, start_ND, codes_NM.shape[1:], threads)

    def _decode(self, codes_NM, start_ND, each: tuple[int, ...], threads: int) -> np.ndarray:
        codes_NM = np.ascontiguousarray(codes_NM, np.uint16)
        start_ND = None if start_ND is None else self._rows(start_ND)
        assert 1 <= codes_NM.shape[1] <= self.sizes.steps
        decoded_ND = np.empty((*each, len(codes_NM), self.sizes.dim), np.float32)
        failed = run(
            lambda: compiled().qinco_decode(
                self.engine, codes_NM.ctypes.data, address(start_ND), codes_NM.shape[1], len(codes_NM), threads,
                bool(each), decoded_ND.ctypes.data,
            ),
            self.operations(codes_NM.size),
        )  # fmt: skip
        check_memory(failed, "a smaller beam_width (B), fewer candidates or fewer threads")
        return decoded_ND

    def operations(self, evaluations: int) -> float:
        """Of so many evaluations of the network."""
        sizes = self.sizes
        return evaluations * 2.0 * (2 * sizes.blocks * sizes.stream * sizes.hidden + 2 * sizes.stream * sizes.dim)

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        assert rows.ndim == 2 and rows.shape[1] == self.sizes.dim
        return np.ascontiguousarray(rows, np.float32)


def run(call: Callable[[], int], operations: float) -> int:
    """Make a call of the library, of about so many operations; what a handler of signals raises meanwhile ends it.

    Python handles signals in the main thread alone, and not within compiled code, unless that lets it.
    """
    if operations < _SHORT_CALL or not is_main_thread():
        return call()
    python = _Python(*_python_api(), raised := (c_void_p * 3)())
    compiled().qinco_watch(byref(python))
    try:
        failed = call()
    finally:
        compiled().qinco_watch(None)
    if raised[0] is not None:
        _raise(*raised)
    return failed


@cache
def _python_api() -> tuple[int | None, ...]:
    names = "PyGILState_Ensure", "PyErr_CheckSignals", "PyErr_Fetch", "PyGILState_Release"
    return tuple(ctypes.cast(getattr(ctypes.pythonapi, name), c_void_p).value for name in names)


def check_memory(failed: int, remedy: str) -> None:
    if failed:
        raise ResourceError(f"out of memory: give {remedy}")


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    dim, stream, hidden, size = sizes.dim, sizes.stream, sizes.hidden, sizes.codewords
    return {
        "codebook": (size, dim), "preselector": (size, dim), "stream_table": (size, stream),
        "hidden_table": (size, hidden), "stream_x": (stream, dim), "hidden_x": (hidden, min(dim, stream)),
        "up": (hidden, stream), "down": (stream, hidden), "project_out": (dim, stream), "gram": (stream,),
        "codeword_back": (size, stream), "first_cross": (size, size), "rank_codebook": (size, dim),
        "rank_offset": (size,), "rank_map": (stream, dim), "rank_slope": (dim,), "rank_hidden_map": (stream, hidden),
        "rank_hidden_slope": (hidden,), "rank_hidden_square": (hidden,),
    }  # fmt: skip


def _pointer(array: np.ndarray, shape: tuple[int, ...], kept: list):
    assert array.shape == shape, (array.shape, shape)
    kept.append(np.ascontiguousarray(array, np.float32))
    return kept[-1].ctypes.data_as(_FLOATS)


def address(array: np.ndarray | None) -> int | None:
    """Where an array's values begin; `array.ctypes` takes longer than some calls do."""
    if array is None:
        return None
    memory: Any = array  # a buffer, of which the types do not know yet
    try:
        return ctypes.addressof(c_char.from_buffer(memory))
    except (TypeError, ValueError, BufferError):  # it cannot be written to, or has no values
        return array.ctypes.data


@cache
def compiled() -> Any:
    """The loaded library (ctypes.CDLL) with the types of its functions; None where there is none of this version."""
    path = os.environ.get("QINCO_NATIVE_LIBRARY") or Path(__file__).with_name("engine.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    if getattr(library, "qinco_interface", int)() != _INTERFACE:
        _LOG.warning("%s is of another version of qinco and is not used: pip install --force-reinstall qinco", path)
        return None
    for name, (result, *arguments) in {
        "qinco_watch": (None, c_void_p),
        "qinco_create": (c_void_p, POINTER(Sizes), POINTER(_Step), c_int),
        "qinco_destroy": (None, c_void_p),
        "qinco_encode": (c_int, c_void_p, POINTER(_Search), *[c_void_p] * 2, c_int64, c_int, *[c_void_p] * 2),
        "qinco_decode": (c_int, *[c_void_p] * 3, c_int, c_int64, c_int, c_int, c_void_p),
        "qinco_create_gradient": (c_void_p, POINTER(Sizes), c_int),
        "qinco_destroy_gradient": (None, c_void_p),
        "qinco_add_gradient": (c_int, *[c_void_p] * 4, c_int),
        "qinco_orthogonalize": (c_int, c_void_p, c_int, c_void_p, *[c_int] * 4),
        "qinco_create_scanner": (c_void_p, *[c_void_p] * 4, c_int),
        "qinco_destroy_scanner": (None, c_void_p),
        "qinco_probe": (c_int, c_void_p, c_void_p, c_int64, c_int, c_int, c_void_p, c_void_p),
        "qinco_scan_lists": (c_int, c_void_p, c_void_p, c_int),
        "qinco_sum_codes": (c_int, c_void_p, c_void_p, c_int),
        "qinco_walk_shortlists": (c_int, *[c_void_p] * 3, c_int),
        "qinco_mark_ids": (c_int, c_void_p, c_int64, c_void_p, c_int),
        "qinco_decode_rows": (c_int, c_void_p, c_void_p, c_int, c_float, *[c_int] * 3, c_void_p),
        "qinco_multiply": (c_int, *[c_void_p] * 2, c_int64, c_int, c_int, c_int64, c_int, c_int, c_void_p),
        "qinco_sum_by_row": (c_int, c_void_p, c_void_p, c_int, c_int, c_int, c_void_p),
        "qinco_create_flat": (c_void_p, *[c_void_p] * 2, c_int64, *[c_int] * 4),
        "qinco_destroy_flat": (None, c_void_p),
        "qinco_search_flat": (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int, *[c_void_p] * 2),
        "qinco_build_graph": (c_int, c_void_p, c_int, c_int),
        "qinco_search_graph": (c_int, *[c_void_p] * 2, *[c_int64] * 2, *[c_int] * 2, *[c_void_p] * 2, c_int),
    }.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
