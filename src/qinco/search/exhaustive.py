"""Exhaustive search: the exact nearest neighbours among vectors, or among what codes decode to.

Shape suffixes: Q queries, D dimension, N vectors, R results.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from qinco.config import require_int
from qinco.errors import DataError
from qinco.maths.devices import to_device
from qinco.maths.distances import smallest, squared_distances
from qinco.progress import Progress, ProgressOption, reporting
from qinco.search.metric import L2, Metric
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source

_BLOCK_ROWS = 1 << 16
_DISTANCES, _PIECE_ROWS = 1 << 23, 1 << 15
_DEVICE_DISTANCES = 1 << 27  # a device needs more of them to be busy


def exhaustive_search(
    queries, vectors, k: int = 10, *, metric: str = "l2", device: str | None = None, progress: ProgressOption = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each query with all vectors, in bounded memory.

    Args:
        queries: (Q, D) array, tensor, path or VectorSource.
        vectors: (N, D), of the same kinds; or a pair (decoder, codes) of a Codec, LookupDecoder or PairwiseDecoder and
            the Codes (N, M) that it decodes.
        k: R, results for each query.
        metric: "l2", "inner_product" or "cosine".
        device: where distances are computed; the codec's device, or the processor, if None.
        progress: see `qinco.progress`.

    Returns:
        Squared L2 distances or similarities, float32 (Q, k), and row numbers, int64 (Q, k), nearest first. Where N < k
        the rest is ±inf and -1.

    Raises:
        DataError: dimensions differ, or values are not finite.

    Example:
        >>> distances, ids = exhaustive_search(queries, "base.fvecs", k=10)
        >>> _, found = exhaustive_search(queries, (codec, codes), k=10)
    """
    require_int("k", k, 1, (1 << 31) - 1)
    source, measure = as_source(queries, "queries"), Metric(metric)
    queries_QD = np.concatenate([np.empty((0, source.dim), np.float32), *(x for _, x in source.blocks(_BLOCK_ROWS))])
    with reporting(progress) as report:
        if isinstance(vectors, tuple):
            decoder, codes = vectors
            dim, blocks = decoder.dim, _decoded(decoder, Codes.of(codes), report)
            device = device or getattr(decoder, "device", "cpu")
        else:
            database = as_source(vectors)
            dim, blocks = database.dim, _reported(database, report)
        if dim != source.dim:
            raise DataError(f"{source.name} have {source.dim} dimensions, the vectors that are searched {dim}")
        return nearest_in_blocks(queries_QD, blocks, k, device or "cpu", measure)


def nearest_in_blocks(
    queries_QD: np.ndarray,
    blocks: Iterable[tuple[int, np.ndarray]],
    k: int,
    device: str | torch.device = "cpu",
    metric: Metric = L2,
    *,
    piece_rows: int = _PIECE_ROWS,
    max_distances: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`exhaustive_search` of float32 queries among (number of the first vector, float32 (n, D)) blocks.

    Args:
        piece_rows: vectors compared at a time.
        max_distances: distances computed at a time; fitted to the device if None.
    """
    device, unit = torch.device(device), Metric(metric.name)
    queries = to_device(unit.prepare(np.asarray(queries_QD, np.float32)), device)
    best_QR = torch.full((len(queries), k), torch.inf, device=device)
    ids_QR = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    most = max_distances or (_DISTANCES if device.type == "cpu" else _DEVICE_DISTANCES)
    for first, block in blocks:
        x_ND = to_device(unit.prepare(np.asarray(block, np.float32)), device)
        for piece in x_ND.split(piece_rows):
            _merge(queries, piece, first, best_QR, ids_QR, metric.name == "l2", rows=max(1, most // max(1, len(piece))))
            first += len(piece)
    best_QR = best_QR if metric.name == "l2" else -best_QR
    return best_QR.cpu().numpy(), ids_QR.cpu().numpy()


def _decoded(decoder, codes: Codes, report: Progress) -> Iterator[tuple[int, np.ndarray]]:
    for first, block in codes.blocks(_BLOCK_ROWS):
        yield first, decoder.decode(block.codes, block.lists)
        report("searching", first + len(block), len(codes))


def _reported(source, report: Progress) -> Iterator[tuple[int, np.ndarray]]:
    for first, x_ND in source.blocks(_BLOCK_ROWS):
        yield first, x_ND
        report("searching", first + len(x_ND), len(source))


def _merge(queries_QD, x_ND: Tensor, first: int, best_QR: Tensor, ids_QR: Tensor, is_l2: bool, rows: int) -> None:
    """Merge vectors into the best so far, which are changed in place."""
    count = min(best_QR.shape[1], len(x_ND))
    for begin in range(0, len(queries_QD) if count else 0, rows):
        part = slice(begin, begin + rows)
        values = squared_distances(queries_QD[part], x_ND) if is_l2 else -(queries_QD[part] @ x_ND.T)
        distances, columns = smallest(values, count)
        merged = torch.cat([best_QR[part], distances], 1)
        best_QR[part], order = torch.topk(merged, best_QR.shape[1], dim=1, largest=False)
        ids_QR[part] = torch.cat([ids_QR[part], columns + first], 1).gather(1, order)
