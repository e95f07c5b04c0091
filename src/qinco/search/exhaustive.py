"""Exhaustive search: the exact nearest neighbours among vectors, or among what codes decode to."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from qinco.config import require_int
from qinco.maths.devices import to_device
from qinco.maths.distances import smallest, squared_distances
from qinco.progress import ProgressOption, reporting
from qinco.search.metric import L2, Metric, choose_metric
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source, check_dim

_BLOCK_ROWS = 1 << 16
_DISTANCES, _PIECE_ROWS = 1 << 23, 1 << 15
_SHORT, _LONG = 2.0**-50, 2.0**60  # of lengths whose squares float32 tells apart
_SPARE_BITS = 10  # of the sums of products
_DEVICE_DISTANCES = 1 << 27  # a device needs more of them to be busy


def exhaustive_search(
    queries, vectors, k: int = 10, *, metric: str | None = None, device: str | None = None,
    progress: ProgressOption = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Compare each query with all vectors, in bounded memory.

    Args:
        queries: (Q, D) array, tensor, path or VectorSource.
        vectors: (N, D), of the same kinds; or a pair (decoder, codes) of a Codec, LookupDecoder or PairwiseDecoder and
            the Codes (N, M) that it decodes.
        k: R, results for each query.
        metric: "l2", "inner_product" or "cosine"; if None what the files state (ann-benchmarks' HDF5), else "l2".
        device: where distances are computed; the codec's device, or the processor, if None.
        progress: see `qinco.progress`.

    Returns:
        Squared L2 distances or similarities, float32 (Q, k), and row numbers, int64 (Q, k), nearest first. Where N < k
        the rest is ±inf and -1. Distances beyond float32's range are ±inf, too.

    Example:
        >>> distances, ids = exhaustive_search(queries, "base.fvecs", k=10)
        >>> _, found = exhaustive_search(queries, (codec, codes), k=10)
    """
    require_int("k", k, 1, (1 << 31) - 1)
    source, measure = as_source(queries, "queries"), Metric(choose_metric(metric, queries, vectors))
    queries_QD = np.concatenate([np.empty((0, source.dim), np.float32), *(x for _, x in source.blocks(_BLOCK_ROWS))])
    if isinstance(vectors, tuple):
        decoder, database = vectors[0], Codes.of(vectors[1])
        dim, device = decoder.dim, device or getattr(decoder, "device", "cpu")
        decoded = ((first, decoder.decode(block.codes, block.lists)) for first, block in database.blocks(_BLOCK_ROWS))
    else:
        database = as_source(vectors)
        dim, decoded = database.dim, database.blocks(_BLOCK_ROWS)
    check_dim(source, dim, "the vectors that are searched")
    with reporting(progress) as report:

        def blocks():
            for first, block in decoded:
                yield first, block
                report("searching", first + len(block), len(database))

        return nearest_in_blocks(queries_QD, blocks(), k, device or "cpu", measure)


def nearest_in_blocks(
    queries_QD: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], k: int, device: str | torch.device = "cpu",
    metric: Metric = L2, *, piece_rows: int = _PIECE_ROWS, max_distances: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`exhaustive_search` of float32 queries among (number of the first vector, float32 (n, D)) blocks.

    It compares `piece_rows` vectors at a time, and computes `max_distances`, which are fitted to the device if None.
    """
    device, unit = torch.device(device), Metric(metric.name)
    queries = to_device(unit.prepare(np.asarray(queries_QD, np.float32)), device)
    lengths_Q1, scale_Q1 = torch.linalg.vector_norm(queries.double(), dim=1, keepdim=True), None
    if metric.name == "inner_product":  # powers of two change no digits, and products stay within float32
        scale_Q1 = torch.exp2(-_SPARE_BITS - torch.frexp(lengths_Q1)[1].double())
        queries = (queries * scale_Q1).float()
    best_QR = torch.full((len(queries), k), torch.inf, device=device)
    ids_QR = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    most = max_distances or (_DISTANCES if device.type == "cpu" else _DEVICE_DISTANCES)
    longest, is_double = float(lengths_Q1.max()) if len(queries) else 0.0, False
    for first, block in blocks:
        for piece in to_device(unit.prepare(np.asarray(block, np.float32)), device).split(piece_rows):
            if len(piece):
                squares = (piece * piece).sum(1) if metric.name == "l2" else None
                if squares is not None and (is_double or _leaves_float32(longest, piece, squares)):
                    is_double, queries, best_QR, piece = True, queries.double(), best_QR.double(), piece.double()
                    squares = (piece * piece).sum(1)
                _merge(queries, piece, first, best_QR, ids_QR, squares, max(1, most // len(piece)))
            first += len(piece)
    if metric.name != "l2":
        best_QR = 0 - (best_QR if scale_Q1 is None else best_QR / scale_Q1)
    return best_QR.float().cpu().numpy(), ids_QR.cpu().numpy()


def _leaves_float32(longest: float, x_ND: Tensor, squares_N: Tensor) -> bool:
    """Whether squared distances from queries, the longest of this length, may be infinite or zero in float32."""
    length = float(squares_N.max().sqrt())
    if not _SHORT < length < _LONG:
        length = float(torch.linalg.vector_norm(x_ND.double(), dim=1).max())
    longest = max(longest, length)
    return longest > 0 and not _SHORT < longest < _LONG


def _merge(
    queries_QD: Tensor, x_ND: Tensor, first: int, best_QR: Tensor, ids_QR: Tensor, squares_N: Tensor | None, rows: int
) -> None:
    """Merge vectors into the best so far, which are changed in place; by inner products without the squares."""
    count = min(best_QR.shape[1], len(x_ND))
    for begin in range(0, len(queries_QD), rows):
        part = slice(begin, begin + rows)
        q_QD = queries_QD[part]
        values = -(q_QD @ x_ND.T) if squares_N is None else squared_distances(q_QD, x_ND, squares_N)
        step = max(1, rows * len(x_ND) // (2 * (count + best_QR.shape[1])))  # Ctrl-C is heard in between
        for start in range(0, len(values), step):
            some = slice(begin + start, begin + min(start + step, len(values)))
            distances, columns = smallest(values[start : start + step], count)
            merged = torch.cat([best_QR[some], distances], 1)
            best_QR[some], order = torch.topk(merged, best_QR.shape[1], dim=1, largest=False)
            ids_QR[some] = torch.cat([ids_QR[some], columns + first], 1).gather(1, order)
