"""A sweep: recall and time of many settings of a search, of which only those worth it are measured.

Shape suffixes: Q queries, D dimension.
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
from qinco.search.faiss_index import FaissSearcher
from qinco.search.fit import open_pairwise
from qinco.search.index import Index
from qinco.search.measure.results import Conditions, SweepResult, record_sweep
from qinco.search.measure.timing import measure, prepared_queries
from qinco.store.manifest import read_manifest

log = logging.getLogger(__name__)
_FINGERPRINT_BLOCKS, _FINGERPRINT_BYTES = 256, 1 << 12


def sweep(
    index,
    queries,
    ground_truth,
    *,
    nprobe: Sequence[int] = (4, 16, 64),
    ef_search: Sequence[int] = (64,),
    num_short: Sequence[int] = (10, 100),
    mid_factors: Sequence[int] = (1, 4),
    codec: Codec | None = None,
    pairwise: PairwiseDecoder | str | os.PathLike | None = None,
    decoder: str = "neural",
    precision: str = "auto",
    batch_size: int = 12_288,
    output: str | os.PathLike | None = None,
    resume: bool = False,
    conditions: dict[str, str] | None = None,
    progress: ProgressOption = None,
) -> SweepResult:
    """Measure the combinations of options that may be Pareto-optimal: no other finds more in less time.

    Args:
        index: Index, FaissSearcher, or the path of an index folder or .faissindex file.
        queries: (Q, D) array, tensor, path or VectorSource.
        ground_truth: (Q,) or (Q, any): ids of the true neighbours, the nearest first.
        nprobe: numbers of lists that are scanned.
        ef_search: efforts of the graph search for lists; without effect where there is no graph.
        num_short: numbers of vectors that the network decodes.
        mid_factors: length of the pairwise stage's shortlist in multiples of num_short; 0 or 1: no such stage.
        codec: for a path of an index without codec.
        pairwise: decoder of the pairwise stage, instead of the index's own.
        decoder: last stage of the pipeline: "neural", "pairwise" or "lookup".
        precision: of the network, as in `Index.search`.
        batch_size: queries searched at a time, at most.
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
    searcher = index if isinstance(index, Index | FaissSearcher) else open_searcher(index, codec, pairwise)
    if decoder == "neural" and searcher.codec is None:
        raise ConfigError("the index holds no codec to decode with: give the codec (model=), or decoder=lookup")
    if decoder == "pairwise" and searcher.pairwise is None:
        raise ConfigError("decoder=pairwise needs a pairwise decoder: see fit_pairwise_decoder (pairwise_decoder=)")
    if not len(searcher):
        raise DataError("the index holds no vectors")
    prepared_QD, nearest_Q = prepared_queries(searcher, queries, ground_truth)
    if (missing := searcher.missing_ids(np.unique(nearest_Q))).size:
        raise DataError(
            f"the ground truth names vector {missing[0]}, which is not in the index: it is of another database, or the "
            "index leaves vectors out"
        )
    if not searcher.has_graph and len(set(ef_search)) > 1:
        log.info("all %s centroids are compared: ef_search has no effect", f"{searcher.num_lists:,}")
    values = {
        "nprobe": [min(value, searcher.num_lists) for value in nprobe],
        "quantizer_efSearch": ef_search if searcher.has_graph else sorted(ef_search)[:1],
        "nshort": [0] if decoder == "lookup" else num_short,  # the tables' order is final, whatever its length
        "nmid_short": [0] if decoder == "lookup" or searcher.pairwise is None else mid_factors,
    }
    facts = {"decoder": decoder, "batch size": str(batch_size)} | (conditions or {})
    facts["queries"] = sha256(prepared_QD.tobytes() + nearest_Q.tobytes()).hexdigest()
    facts.setdefault("index", _fingerprint_of(searcher))
    if decoder == "neural":
        facts["model"] = searcher.codec.fingerprint()
        facts["precision, engine or device"] = (
            f"{precision} {searcher.codec.encode_options.engine} {searcher.codec.device.type}"
        )
    found = Conditions(facts, torch.get_num_threads(), processor_name())
    with reporting(progress) as report:
        return record_sweep(
            values, lambda options: measure(
                searcher, prepared_QD, nearest_Q, options, batch_size, precision=precision, decoder=decoder
            ), found, output, resume, report,
        )  # fmt: skip


def open_searcher(path, codec: Codec | None = None, pairwise=None, device: str = "cpu") -> Index | FaissSearcher:
    """An index folder or a faiss file, with this codec and pairwise decoder where they are given."""
    is_folder = is_directory(path)
    if is_folder:
        index = Index.load(path, codec=codec, device=device)
        codec, lookup, centroids_VD = index.codec, index.tables.lookup, index.tables.centroids_VD
    else:
        index = FaissSearcher(path, codec)
        lookup, centroids_VD = index.lookup, index.lookup.centroids_VD
    if codec is not None and codec.is_ivf:
        centroids_VD = codec.coarse_centroids  # which those of the index may be moved from
    decoder = open_pairwise(pairwise, lookup.num_codes, lookup.codebook_size, lookup.dim, centroids_VD)
    return index if decoder is None else index.with_pairwise(decoder)


def fingerprint_of_index(path: str | os.PathLike) -> str:
    """SHA-256 that tells indexes apart: of a folder's checksums, or of blocks spread over a faiss file."""
    if is_directory(path):
        files = {name: stored.crc32 for name, stored in read_manifest(path, "index").files.items()}
        return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return fingerprint_of_file(path)


def fingerprint_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's size and of blocks spread over it."""
    size = Path(path).stat().st_size
    digest = sha256(str(size).encode())
    with Path(path).open("rb") as file:
        for start in np.linspace(0, max(0, size - _FINGERPRINT_BYTES), _FINGERPRINT_BLOCKS).astype(np.int64):
            file.seek(start)
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _fingerprint_of(searcher: Index | FaissSearcher) -> str:
    if isinstance(searcher, FaissSearcher):
        return fingerprint_of_file(searcher.path)
    digest = sha256(searcher.tables.lookup.tables_MKD.tobytes())
    for segment in searcher.parts.segments:
        rows = np.unique(np.linspace(0, max(0, len(segment) - 1), _FINGERPRINT_BLOCKS).astype(np.int64))[: len(segment)]
        digest.update(segment.starts.tobytes() + segment.rows(rows)[0].tobytes() + segment.ids[rows].tobytes())
    return digest.hexdigest()
