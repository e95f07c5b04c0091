"""Exhaustive search: the exact nearest neighbours among vectors, or among what codes decode to."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from qinco.codec.given import as_codec
from qinco.config import require_int
from qinco.machine import num_threads
from qinco.maths.devices import CPU
from qinco.native.flat import Flat
from qinco.progress import ProgressOption, reporting
from qinco.search.metric import L2, Metric, choose_metric
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource, as_source, check_dim

_BLOCK_ROWS = 1 << 16
_DISTANCES, _PIECE_ROWS = 1 << 23, 1 << 15
_SHORT, _LONG = 2.0**-50, 2.0**60  # of lengths whose squares float32 tells apart
_SPARE_BITS = 10  # of the sums of products
_DEVICE_DISTANCES = 1 << 27  # a device needs more of them to be busy


def exhaustive_search(
    queries, vectors, k: int = 10, *, metric: str | None = None, device: str | None = None,
    ranking: str = "calibrated", progress: ProgressOption = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Compare each query with all vectors, in bounded memory.

    Args:
        queries: (Q, D) array, tensor, path or VectorSource.
        vectors: (N, D), of the same kinds; or a pair (decoder, codes) of a Codec or its path, a LookupDecoder or a
            PairwiseDecoder, and the Codes (N, M) that it decodes; or an Index, all of whose vectors are decoded.
        k: R, results for each query.
        metric: "l2", "inner_product" or "cosine"; if None what the files state (ann-benchmarks' HDF5), else "cosine"
            for vectors of length 1, and "l2" for others and for codes.
        device: where distances are computed; the codec's device, or the processor, if None.
        ranking: of an Index, as for its `search`.
        progress: see `qinco.progress`.

    Returns:
        Squared L2 distances or similarities, float32 (Q, k), and row numbers (of an Index: ids), int64 (Q, k), nearest
        first. Where N < k the rest is ±inf and -1. Distances beyond float32's range are ±inf, too.

    Example:
        >>> distances, ids = exhaustive_search(queries, "base.fvecs", k=10)
        >>> _, found = exhaustive_search(queries, (codec, codes), k=10)
    """
    require_int("k", k, 1, (1 << 31) - 1)
    source = as_source(queries, "queries")
    if hasattr(vectors, "compare_all"):  # an Index, whose module stands above this one
        choose_metric(metric, source, own=vectors.metric)
        check_dim(source, vectors.dim, "the index")
        with reporting(progress) as report:
            return vectors.compare_all(_read(source), k, ranking, report)
    if isinstance(vectors, tuple):
        decoder, database, compared = vectors[0], Codes.of(vectors[1]), None
        decoder = decoder if hasattr(decoder, "num_codes") else as_codec(decoder)
        dim, device = decoder.dim, device or getattr(decoder, "device", "cpu")
        decoded = ((first, decoder.decode(block.codes, block.lists)) for first, block in database.blocks(_BLOCK_ROWS))
    else:
        database = compared = as_source(vectors)
        dim, decoded = database.dim, database.blocks(_BLOCK_ROWS)
    check_dim(source, dim, "the vectors that are searched")
    with reporting(progress) as report:
        measure = Metric(choose_metric(metric, queries, vectors, compared=compared))
        queries_QD = _read(source)

        def blocks():
            for first, block in decoded:
                yield first, block
                report("searching", first + len(block), len(database))

        return nearest_in_blocks(queries_QD, blocks(), k, device or "cpu", measure)


def _read(source: VectorSource) -> np.ndarray:
    return np.concatenate([np.empty((0, source.dim), np.float32), *(block for _, block in source.blocks(_BLOCK_ROWS))])


def nearest_in_blocks(
    queries_QD: np.ndarray, blocks: Iterable[tuple], k: int, device: str = CPU, metric: Metric = L2, *,
    adds: bool = False, piece_rows: int = _PIECE_ROWS, max_distances: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`exhaustive_search` of float32 queries among (number of the first vector, float32 (n, D) or Piece) blocks.

    If it `adds`, blocks have a third part, float32 (n,), that is added to their vectors' distances, or subtracted from
    their inner products, and queries are no longer than vectors. It compares `piece_rows` vectors at a time, and
    computes `max_distances`, which are fitted to the device if None.
    """
    unit = Metric(metric.name)
    queries_QD = unit.prepare(np.asarray(queries_QD, np.float32))
    lengths_Q1, scale_Q1 = np.linalg.norm(queries_QD.astype(np.float64), axis=1, keepdims=True), None
    if metric.name == "inner_product" and not adds:  # powers of two change no digits, and products stay within float32
        scale_Q1 = np.exp2(-_SPARE_BITS - np.frexp(lengths_Q1)[1].astype(np.float64))
        queries_QD = (queries_QD * scale_Q1).astype(np.float32)
    best: Any
    if device == CPU:
        best = _Best(queries_QD, k, max_distances or _DISTANCES)
    else:
        from qinco.maths.distances import BestOnDevice

        best = BestOnDevice(queries_QD, k, metric.name != "l2", max_distances or _DEVICE_DISTANCES, device)
    longest, is_double = float(lengths_Q1.max(initial=0)), False
    for first, block, *added in blocks:
        for start, piece in _pieces(block, unit, piece_rows, *added):
            is_double = is_double or (metric.name == "l2" and piece.leaves_float32(longest))
            best.merge(piece if device == CPU else piece.x_ND, first + start, is_double)
    values_QR, ids_QR = best.found()
    if metric.name != "l2":
        values_QR = 0 - (values_QR if scale_Q1 is None else values_QR / scale_Q1)
    with np.errstate(over="ignore"):
        return values_QR.astype(np.float32), ids_QR


class Piece:
    """Vectors as they are compared, float32 (N, D): for some queries at once, or for others again and again.

    What is computed of them once is kept. `added_N`, float32 (N,), is added to their values.

    Example:
        >>> piece = Piece(Metric("cosine").prepare(x_ND), inner_product=True)
        >>> nearest_in_blocks(queries_QD, [(0, piece)], 10, metric=Metric("cosine"))
    """

    def __init__(self, x_ND: np.ndarray, inner_product: bool, added_N: np.ndarray | None = None):
        self.x_ND, self.inner_product, self.added_N = x_ND, inner_product, added_N

    def __len__(self) -> int:
        return len(self.x_ND)

    @cached_property
    def flat(self) -> Flat:
        return Flat(self.x_ND, self.inner_product, self.added_N)

    @cached_property
    def longest(self) -> float:
        """The length of the longest one."""
        with np.errstate(over="ignore", under="ignore"):
            length = float(np.sqrt(np.einsum("nd,nd->n", self.x_ND, self.x_ND).max(initial=0)))
        if not _SHORT < length < _LONG:
            length = float(np.linalg.norm(self.x_ND.astype(np.float64), axis=1).max(initial=0))
        return length

    def leaves_float32(self, longest: float) -> bool:
        """Whether squared distances from queries, the longest of this length, may be infinite or zero in float32."""
        longest = max(longest, self.longest)
        return longest > 0 and not _SHORT < longest < _LONG


def _pieces(block, unit: Metric, rows: int, added_N: np.ndarray | None = None) -> Iterator[tuple[int, Piece]]:
    """A block in pieces, with the numbers of their first vectors in it."""
    if isinstance(block, Piece):
        yield 0, block
        return
    for start in range(0, len(block), rows):
        part = slice(start, start + rows)
        x_ND = unit.prepare(np.asarray(block[part], np.float32))
        yield start, Piece(x_ND, unit.name != "l2", None if added_N is None else added_N[part])


class _Best:
    """The best values of each query so far, and the numbers of their vectors."""

    def __init__(self, queries_QD: np.ndarray, count: int, max_distances: int):
        self.queries_QD, self.max_distances = queries_QD, max_distances
        self.values_QR = np.full((len(queries_QD), count), np.inf, np.float32)
        self.ids_QR = np.full((len(queries_QD), count), -1, np.int64)

    def merge(self, piece: Piece, first: int, is_double: bool) -> None:
        """Merge vectors, of which the first has this number."""
        count = min(self.values_QR.shape[1], len(piece))
        if is_double and self.values_QR.dtype == np.float32:
            self.values_QR = self.values_QR.astype(np.float64)
        each = max(len(piece) if is_double else 0, 4 * (count + self.values_QR.shape[1]))
        rows = max(1, self.max_distances // each)  # Ctrl-C is heard in between
        for begin in range(0, len(self.queries_QD), rows):
            part = slice(begin, begin + rows)
            queries_QD = self.queries_QD[part]
            if is_double:
                values, numbers = _nearest_in_double(queries_QD, piece.x_ND, count, piece.added_N)
            else:
                values, numbers = piece.flat.search(queries_QD, count, num_threads())
            values = np.concatenate([self.values_QR[part], values], 1)
            ids = np.concatenate([self.ids_QR[part], numbers + first], 1)
            order = np.argsort(values, 1, kind="stable")[:, : self.values_QR.shape[1]]
            self.values_QR[part], self.ids_QR[part] = (np.take_along_axis(of, order, 1) for of in (values, ids))

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        return self.values_QR, self.ids_QR


def _nearest_in_double(
    queries_QD: np.ndarray, x_ND: np.ndarray, count: int, added_N: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest vectors of queries, values float64 (Q, R) and numbers int64 (Q, R), in any order."""
    queries_QD, x_ND = queries_QD.astype(np.float64), x_ND.astype(np.float64)
    squares_Q1, squares_N = np.square(queries_QD).sum(1, keepdims=True), np.square(x_ND).sum(1)
    values_QN = np.maximum(squares_Q1 + squares_N - 2 * (queries_QD @ x_ND.T), 0)
    values_QN = values_QN if added_N is None else values_QN + added_N
    numbers_QR = np.argpartition(values_QN, count - 1, 1)[:, :count]
    return np.take_along_axis(values_QN, numbers_QR, 1), numbers_QR
