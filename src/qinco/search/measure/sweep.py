"""A sweep: recall and time of many settings of a search, of which only those worth it are measured.

Shape suffixes: Q queries, D dimension, V lists.
"""

import json
import logging
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.machine import processor_name
from qinco.progress import ProgressOption, reporting
from qinco.search.code_file import is_directory
from qinco.search.faiss_index import scanned_by_faiss
from qinco.search.fit import open_pairwise
from qinco.search.index import Index
from qinco.search.measure.results import Conditions, SweepResult, record_sweep
from qinco.search.measure.timing import check_truth, measure, open_queries
from qinco.store.manifest import read_manifest

log = logging.getLogger(__name__)
_FINGERPRINT_BLOCKS, _FINGERPRINT_BYTES = 256, 1 << 12


def sweep(
    index, queries, ground_truth, *, nprobe: Sequence[int] = (4, 16, 64), ef_search: Sequence[int] = (64,),
    num_short: Sequence[int] = (10, 100), mid_factors: Sequence[int] = (1, 4), codec: Codec | None = None,
    pairwise: PairwiseDecoder | str | os.PathLike | None = None, decoder: str = "neural", precision: str = "auto",
    batch_size: int = 12_288, threads: int | None = None, output: str | os.PathLike | None = None, resume: bool = False,
    conditions: dict[str, str] | None = None, progress: ProgressOption = None,
) -> SweepResult:  # fmt: skip
    """Measure the combinations of options that may be Pareto-optimal: no other finds more in less time.

    Args:
        index: Index, or the path of an index folder or .faissindex file, which faiss scans.
        queries: (Q, D) array, tensor, path or VectorSource.
        ground_truth: (Q,) or (Q, any): ids of the true neighbours, the nearest first; or the path of a file of them.
        nprobe: numbers of lists that are scanned.
        ef_search: efforts of the graph search for lists; without effect where there is no graph.
        num_short: numbers of vectors that the network decodes.
        mid_factors: length of the pairwise stage's shortlist in multiples of num_short; 0 or 1: no such stage.
        codec: for a path of an index without codec.
        pairwise: decoder of the pairwise stage, instead of the index's own.
        decoder: last stage of the pipeline: "neural", "pairwise" or "lookup".
        precision: of the network, as in `Index.search`.
        batch_size: queries searched at a time, at most.
        threads: processor threads; as many as torch uses if None.
        output: results file (JSON), written after every setting.
        resume: continue the results of `output` if it exists.
        conditions: more of what results depend on, compared when they are resumed.
        progress: see `qinco.progress`.

    Returns:
        SweepResult: `front` has the Pareto-optimal settings, `measured` the Measurement of each.

    Raises:
        ConfigError: wrong values, or results of other conditions.
        DataError: a damaged results file, or a true neighbour that is not in the index.

    Example:
        >>> result = qinco.sweep("index", "query.fvecs", "groundtruth.ivecs", nprobe=[4, 16, 64], num_short=[10, 100])
        >>> for setting in result.front:
        ...     print(setting, result.measured[setting].recall[1], result.measured[setting].microseconds)
    """
    index, files = open_searcher(index, codec, pairwise)
    if decoder == "neural" and index.codec is None:
        raise ConfigError("the index holds no codec to decode with: give the codec (model=), or decoder=lookup")
    if decoder == "pairwise" and index.pairwise is None:
        raise ConfigError("decoder=pairwise needs a pairwise decoder: see fit_pairwise_decoder (pairwise_decoder=)")
    if not len(index):
        raise DataError("the index holds no vectors")
    queries_QD, nearest_Q = open_queries(queries, ground_truth, index.dim)
    check_truth(index.missing_ids(np.unique(nearest_Q)))
    queries_QD = index.tables.metric.prepare(queries_QD)
    if not index.has_graph and len(set(ef_search)) > 1:
        log.info("all %s centroids are compared: ef_search has no effect", f"{index.num_lists:,}")
    values = {
        "nprobe": [min(value, index.num_lists) for value in nprobe],
        "quantizer_efSearch": ef_search if index.has_graph else sorted(ef_search)[:1],
        "nshort": [0] if decoder == "lookup" else num_short,  # the tables' order is final, whatever its length
        "nmid_short": [0] if decoder == "lookup" or index.pairwise is None else mid_factors,
    }
    facts = {"decoder": decoder, "batch size": str(batch_size)} | files | (conditions or {})
    facts["queries"] = sha256(queries_QD.tobytes() + nearest_Q.tobytes()).hexdigest()
    if "index" not in facts:
        facts["index"] = _fingerprint_of(index)
    if decoder == "neural":
        facts["model"] = index.codec.fingerprint()
        engine, device = index.codec.encode_options.engine, index.codec.device.type
        facts["precision, engine or device"] = f"{precision} {engine} {device}"
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        found = Conditions(facts, torch.get_num_threads(), processor_name())
        with reporting(progress) as report:
            return record_sweep(
                values, lambda options: measure(
                    index, queries_QD, nearest_Q, options, batch_size, precision=precision, decoder=decoder
                ), found, output, resume, report,
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def open_searcher(index, codec: Codec | None = None, pairwise=None, device="cpu") -> tuple[Index, dict[str, str]]:
    """An index, or the folder or faiss file of one, with this codec and pairwise decoder where they are given.

    Returns:
        The index, and fingerprints of its files: {"index": ..., "pairwise decoder": ...}.
    """
    files = {}
    if not isinstance(index, Index) and is_directory(path := index):
        index, files["index"] = Index.load(path, codec=codec, device=device), _fingerprint_of_folder(path)
    elif not isinstance(index, Index):
        index, files["index"] = Index(codec, scanned_by_faiss(path, codec)), _fingerprint_of_file(path)
    if pairwise is None:
        return index, files
    lookup, is_ivf = index.tables.lookup, index.codec is not None and index.codec.is_ivf
    # The centroids of the index may be moved from those of the codec.
    centroids_VD = index.codec.coarse_centroids if is_ivf else index.tables.centroids_VD
    decoder = open_pairwise(pairwise, lookup.num_codes, lookup.codebook_size, lookup.dim, centroids_VD)
    if decoder is not pairwise:
        files["pairwise decoder"] = _fingerprint_of_file(pairwise)
    return index.with_pairwise(decoder), files


def _fingerprint_of_folder(path: str | os.PathLike) -> str:
    files = {name: stored.crc32 for name, stored in read_manifest(path, "index").files.items()}
    return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _fingerprint_of_file(path: str | os.PathLike) -> str:
    """Of the file's size and of blocks spread over it."""
    size = Path(path).stat().st_size
    digest = sha256(str(size).encode())
    with Path(path).open("rb") as file:
        for start in np.linspace(0, max(0, size - _FINGERPRINT_BYTES), _FINGERPRINT_BLOCKS).astype(np.int64):
            file.seek(start)
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _fingerprint_of(index: Index) -> str:
    digest = sha256(index.tables.lookup.tables_MKD.tobytes())
    for segment in index.parts.segments:
        rows = np.unique(np.linspace(0, max(0, len(segment) - 1), _FINGERPRINT_BLOCKS).astype(np.int64))[: len(segment)]
        digest.update(segment.starts.tobytes() + segment.rows(rows)[0].tobytes() + segment.ids[rows].tobytes())
    return digest.hexdigest()
