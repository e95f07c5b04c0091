"""ctypes binding of the walk through shortlists, whose vectors a model decodes while they may come among the first.

Shape suffixes: V lists, D dimension, M codes of a vector, Q queries, S vectors of a shortlist.
"""

from ctypes import Structure, byref, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np

from qinco.native.library import NativeModel, address, check_memory, compiled, run
from qinco.native.scanner import NativeScanner

_ARRAYS = (("queries", "values", "lists", "codes", "norm_codes"), ("origin", "mean", "centre", "found", "seconds"))
_SCORE = "correction", "length", "table_correction", "table_length", "typical", "low", "high"


class _Walk(Structure):
    _fields_ = [
        *((name, c_void_p) for name in _ARRAYS[0]), ("count", c_int64),
        *((name, c_int32) for name in ("dim", "steps", "width", "wanted", "chunk", "least")), ("margin", c_float),
        ("starts", c_void_p), ("shift", c_void_p), ("scale", c_float), *((name, c_float) for name in _SCORE),
        ("rounding", c_double), *((name, c_void_p) for name in _ARRAYS[1]),
    ]  # fmt: skip


@dataclass(frozen=True)
class Valuation:
    """How vectors are valued by their reconstructions: see lists.h, and `qinco.search.ranking`."""

    correction: float
    length: float
    table_correction: float
    table_length: float
    typical: float
    low: float
    high: float
    rounding: float


@dataclass(frozen=True)
class Rounds:
    """How a walk goes: see `qinco.search.walk`."""

    wanted: int
    chunk: int
    least: int
    margin: float | None


def walk(
    scanner: NativeScanner, model: NativeModel, queries_QD: np.ndarray, shortlist, rounds: Rounds, valuation: Valuation,
    *, starts_VD: np.ndarray | None, shift_D: np.ndarray, scale: float, threads: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The values of those vectors that are decoded, +inf for the others: float32 (Q, S).

    Also the seconds of decoding and of valuing, float64 (2,).

    Args:
        queries_QD: float32.
        shortlist: the arrays `values`, `lists`, `codes` and `norm_codes` of a Shortlist, ascending by values.
        starts_VD: what the model's reconstructions begin at, float32; None for zeros.
        shift_D, scale: what they are shifted by after they are multiplied.
    """
    num_queries, width = shortlist.lists.shape
    assert queries_QD.shape == (num_queries, scanner.dim) and shortlist.codes.shape == (
        num_queries,
        width,
        scanner.steps,
    )
    assert model.sizes.dim == scanner.dim and scanner.steps <= model.sizes.steps and 1 <= rounds.wanted <= width
    assert shortlist.codes.max(initial=0) < model.sizes.codewords
    dtypes = np.float32, np.float32, np.int32, np.uint8, np.uint8
    given = queries_QD, shortlist.values, shortlist.lists, shortlist.codes, shortlist.norm_codes
    kept = [np.ascontiguousarray(array, dtype) for array, dtype in zip(given, dtypes, strict=True)]
    others = [None if of is None else np.ascontiguousarray(of, np.float32) for of in (starts_VD, shift_D)]
    found_QS, seconds = np.full((num_queries, width), np.inf, np.float32), np.zeros(2)
    request = _Walk(
        *map(address, kept), num_queries, scanner.dim, scanner.steps, width, rounds.wanted, rounds.chunk, rounds.least,
        np.inf if rounds.margin is None else rounds.margin, *map(address, others), scale,
        *(getattr(valuation, name) for name in (*_SCORE, "rounding")),
        *map(address, scanner.compared), address(found_QS), address(seconds),
    )  # fmt: skip
    failed = run(
        lambda: compiled().qinco_walk_shortlists(model.engine, scanner.scanner, byref(request), threads),
        model.operations(num_queries * width * scanner.steps),
    )
    check_memory(failed, "fewer queries at a time (batch_size) or fewer threads")
    return found_QS, seconds
