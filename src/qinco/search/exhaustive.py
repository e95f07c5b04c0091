"""Exhaustive search: the exact nearest neighbours among vectors, or among what codes decode to."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from qinco.config import require_int
from qinco.errors import DataError
from qinco.maths.devices import to_device
from qinco.maths.distances import smallest, squared_distances
from qinco.progress import ProgressOption, reporting
from qinco.search.metric import L2, Metric, choose_metric
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source

_BLOCK_ROWS = 1 << 16
_DISTANCES, _PIECE_ROWS = 1 << 23, 1 << 15
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
        the rest is ±inf and -1.

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
    if dim != source.dim:
        raise DataError(f"{source.name} have {source.dim} dimensions, the vectors that are searched {dim}")
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
    best_QR = torch.full((len(queries), k), torch.inf, device=device)
    ids_QR = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    most = max_distances or (_DISTANCES if device.type == "cpu" else _DEVICE_DISTANCES)
    for first, block in blocks:
        for piece in to_device(unit.prepare(np.asarray(block, np.float32)), device).split(piece_rows):
            if len(piece):
                _merge(queries, piece, first, best_QR, ids_QR, metric.name == "l2", max(1, most // len(piece)))
            first += len(piece)
    return (best_QR if metric.name == "l2" else -best_QR).cpu().numpy(), ids_QR.cpu().numpy()


def _merge(queries_QD, x_ND: Tensor, first: int, best_QR: Tensor, ids_QR: Tensor, is_l2: bool, rows: int) -> None:
    """Merge vectors into the best so far, which are changed in place."""
    count = min(best_QR.shape[1], len(x_ND))
    for begin in range(0, len(queries_QD), rows):
        part = slice(begin, begin + rows)
        values = squared_distances(queries_QD[part], x_ND) if is_l2 else -(queries_QD[part] @ x_ND.T)
        distances, columns = smallest(values, count)
        merged = torch.cat([best_QR[part], distances], 1)
        best_QR[part], order = torch.topk(merged, best_QR.shape[1], dim=1, largest=False)
        ids_QR[part] = torch.cat([ids_QR[part], columns + first], 1).gather(1, order)
