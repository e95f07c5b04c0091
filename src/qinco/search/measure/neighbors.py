"""The neighbours of a file of queries: found, compared with the true ones, and written.

Shape suffixes: Q queries, R results.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import check_output, user_path, write_atomically
from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.maths.devices import choose_device
from qinco.maths.metrics import RANKS, recall
from qinco.progress import ProgressOption, reporting
from qinco.search.exhaustive import exhaustive_search
from qinco.search.measure.sweep import open_searcher
from qinco.search.measure.truth import open_queries_among, open_queries_of
from qinco.search.metric import choose_metric
from qinco.search.names import Names
from qinco.search.options import MAX_SHORTLIST
from qinco.search.refine import opened_originals
from qinco.vectors.block_rows import library
from qinco.vectors.formats import input_files, write_vectors
from qinco.vectors.rows import as_source, check_dim

BATCH_QUERIES = 4096
_INT32_SUFFIXES, _DISTANCE_SUFFIXES = (".ivecs", ".ibin"), (".npy", ".fvecs", ".fbin")
_ID_SUFFIXES = (".npy", *_INT32_SUFFIXES)
NEIGHBOR_SUFFIXES = (*_ID_SUFFIXES, ".jsonl", ".parquet")


@dataclass(frozen=True)
class Neighbors:
    """What `find_neighbors` found: float32 (Q, R), int64 (Q, R), and recall by rank if there is a ground truth.

    `names` are the strings of the ids, if the index has some.
    """

    distances: np.ndarray
    ids: np.ndarray
    recall: dict[int, float] | None
    seconds: float
    metric: str
    names: Names | None = None

    def records(self) -> Iterable[dict]:
        """For each query its number, ids and distances, as JSON values; empty places are left out."""
        for query, (ids_R, distances_R) in enumerate(zip(self.ids, self.distances, strict=True)):
            found_R = ids_R != -1
            ids = ids_R[found_R] if self.names is None else self.names[ids_R[found_R]]
            yield {"query": query, "ids": ids.tolist(), "distances": distances_R[found_R].tolist()}


def find_neighbors(
    index, queries, k: int = 10, *, ground_truth=None, output: str | os.PathLike | None = None,
    distances_output: str | os.PathLike | None = None, overwrite: bool = False, inputs: Iterable = (),
    num_steps: int | None = None, metric: str | None = None, refine=None, progress: ProgressOption = None, **options,
) -> Neighbors:  # fmt: skip
    """Find the k nearest vectors of each query, and write them to a file.

    Args:
        index: Index, or the path of an index folder or .faissindex file; or a pair (codec, vectors): these are encoded,
            and all that their codes decode to is compared.
        queries: (Q, D) array, tensor, path or VectorSource.
        k: R, results for each query.
        ground_truth: as for `sweep`; adds recall.
        output: .npy, .ivecs or .ibin file of the ids (Q, k), with -1 in empty places; or .jsonl or .parquet, with a
            record of "query", "ids" (strings, if the index has them) and "distances" for each query.
        distances_output: .npy, .fvecs or .fbin file of the distances (Q, k).
        overwrite, inputs: replace the outputs; files that are read, which they must not replace.
        num_steps: for a pair: use so many codes only.
        metric: for a pair: as for `exhaustive_search`; otherwise that of the index.
        refine: for an index: the original vectors, as for `Index.search`.
        progress: see `qinco.progress`.
        **options: those of `Index.search`; for a pair, of `exhaustive_search`.

    Example:
        >>> found = qinco.find_neighbors("index", "query.fvecs", k=10, nprobe=32, output="ids.npy")
        >>> found.ids.shape
    """
    output, distances_output = user_path(output), user_path(distances_output)
    require_int("k", k, 1, MAX_SHORTLIST)
    read = [*inputs, *input_files(index, queries, ground_truth, refine)]
    _check_outputs(output, distances_output, overwrite, read)
    source = as_source(queries, "queries")
    if isinstance(index, tuple):
        codec, vectors = index[0], as_source(index[1])
        dim, metric = codec.dim, choose_metric(metric, vectors, queries, ground_truth, compared=vectors)
        if unknown := options.keys() - {"device"} or ({"refine"} if refine is not None else ()):
            raise ConfigError(f"{unknown.pop()} is for the search of an index, not of vectors: leave it out")
        choose_device(options.get("device") or "auto")
    else:
        searcher = open_searcher(index)[0]
        _check_ids(output, searcher.parts.ids)
        dim, metric = searcher.dim, choose_metric(metric, queries, ground_truth, own=searcher.metric)
        options["refine"] = opened_originals(refine, searcher.parts)
    check_dim(source, dim, "the vectors that are searched")
    nearest_Q = None
    if ground_truth is not None and isinstance(index, tuple):
        _, nearest_Q = open_queries_among(vectors, source, ground_truth, metric)
    elif ground_truth is not None:
        _, nearest_Q = open_queries_of(searcher, source, ground_truth)
    begun = time.monotonic()
    with reporting(progress) as report:
        if isinstance(index, tuple):
            codes = codec.encode(vectors, num_steps=num_steps, progress=report)
            options |= {"metric": metric, "progress": report}
            distances_QR, ids_QR = exhaustive_search(source[:], (codec, codes), k, **options)
        else:
            found = [(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
            for first, queries_qD in source.blocks(BATCH_QUERIES):
                found.append(searcher.search(queries_qD, k, **options))
                report("searching", first + len(queries_qD), len(source), "query")
            distances_QR, ids_QR = map(np.concatenate, zip(*found, strict=True))
    ranks = tuple(rank for rank in RANKS if rank <= k)
    shares = None if nearest_Q is None else recall(ids_QR, nearest_Q, ranks)
    names = None if isinstance(index, tuple) else searcher.names
    result = Neighbors(distances_QR, ids_QR, shares, time.monotonic() - begun, metric, names)
    if output is not None:
        _write(Path(output), result)
    if distances_output is not None:
        write_vectors(distances_output, distances_QR)
    return result


def _check_outputs(output, distances_output, overwrite: bool, read: list) -> None:
    for path, suffixes in ((output, NEIGHBOR_SUFFIXES), (distances_output, _DISTANCE_SUFFIXES)):
        if path is not None:
            check_output(path, suffixes=suffixes, overwrite=overwrite, inputs=read)
    if None not in (output, distances_output) and os.path.realpath(output) == os.path.realpath(distances_output):
        raise ConfigError(f"output and distances are both {output}: give one of them another name")
    if output is not None and Path(output).suffix.lower() == ".parquet":
        with library("pyarrow", "parquet", output):
            import pyarrow  # noqa: F401


def _check_ids(output, ids: Sequence[np.ndarray]) -> None:
    """Refuse a file that cannot hold the ids of an index."""
    if Path(output or "").suffix.lower() not in _INT32_SUFFIXES:
        return
    ends = [int(end) for some in ids if len(some) for end in (some.min(), some.max())]
    if ends and not -(1 << 31) <= min(ends) <= max(ends) < 1 << 31:
        raise ConfigError(f"{output} is for numbers of 32 bits, and the index has ids from {min(ends)} to {max(ends)}: "
                          "give output the suffix .npy, .jsonl or .parquet")  # fmt: skip


def _write(path: Path, result: Neighbors) -> None:
    suffix = path.suffix.lower()
    if suffix in _ID_SUFFIXES:
        return write_vectors(path, result.ids)
    with write_atomically(path) as temporary:
        if suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in result.records())
            return
        import pyarrow
        from pyarrow import parquet

        ids = pyarrow.int64() if result.names is None else pyarrow.string()
        types = {"query": pyarrow.int64(), "ids": pyarrow.list_(ids),
                 "distances": pyarrow.list_(pyarrow.float32())}  # fmt: skip
        parquet.write_table(pyarrow.Table.from_pylist(list(result.records()), pyarrow.schema(types)), temporary)
