"""Building an index: from vectors in memory (`Index.build`), and from codes of any size on disk (`build_index`)."""

import logging

import numpy as np

from qinco.codec.codec import Codec
from qinco.config import MAX_LISTS, require_int
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError
from qinco.maths.clustering import coarse_kmeans
from qinco.progress import Progress, silent
from qinco.search.fit import fit_lookup
from qinco.search.metric import Metric
from qinco.search.sample import FitSample, assign_decoded, sample_rows
from qinco.search.tables import SearchTables
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource

log = logging.getLogger(__name__)
FAISS_SUFFIX = ".faissindex"
CLUSTER_ROWS_EACH, MIN_ROWS_EACH = 256, 39  # vectors of a list
FIT_ROWS = 1_000_000
_CALIBRATION_ROWS = 1 << 17
_MEASURED_ROWS, _UNRELATED = 10_000, 0.9  # the share of what vectors are that their codes lose
_MIN_LENGTH, _MAX_LENGTH = 2.0**-60, 2.0**60
_MAX_LENGTH_SPREAD = 0.01  # of vectors that count as of one length


def choose_num_lists(num_lists: int | None, num_vectors: int) -> int:
    """`num_lists` if given, else about 4 √N, with at least 39 vectors per list."""
    if num_lists is None:
        wanted = 1 << max(0, round(np.log2(4 * np.sqrt(max(num_vectors, 1)))))
        return max(1, min(wanted, num_vectors // MIN_ROWS_EACH))
    require_int("num_lists", num_lists, 1, MAX_LISTS)
    if num_lists > num_vectors:
        raise ConfigError(f"num_lists must be at most {num_vectors}, the number of vectors, not {num_lists}")
    return num_lists


def partition(
    codec: Codec, codes: Codes, num_lists: int, seed: int, report: Progress = silent, rows_each: int = CLUSTER_ROWS_EACH
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids float32 (V, D) of reconstructions, and the list of each, int32 (N,); without lists that are empty."""
    rows = sample_rows(len(codes), rows_each * num_lists, seed)
    if len(rows) < MIN_ROWS_EACH * num_lists and num_lists > 1:
        log.warning("%d vectors for %d lists: %d or more are better", len(rows), num_lists, MIN_ROWS_EACH * num_lists)
    decoded_ND = np.concatenate([block for _, block in codec.decode_blocks(codes[rows], "auto")])
    report("partitioning", 0, num_lists, "list")
    if num_lists == 1:
        centroids_VD = decoded_ND.mean(0, keepdims=True)
    else:
        centroids_VD = coarse_kmeans(decoded_ND, num_lists, seed=seed, device=codec.device)
    report("partitioning", num_lists, num_lists, "list")
    used_V, lists_N = np.unique(assign_decoded(codec, codes, centroids_VD, report), return_inverse=True)
    return centroids_VD[used_V], lists_N.astype(np.int32)


def fit_tables(
    sample: FitSample, codebook_size: int, centroids_VD, metric: Metric, adds_centroids: bool,
    report: Progress = silent, lookup: LookupDecoder | None = None,
) -> SearchTables:  # fmt: skip
    """Fitted parts of an index; with `adds_centroids` (IVF codecs) codes say what the centroids do not."""
    if lookup is None:
        lookup = fit_lookup(sample, codebook_size, centroids_VD if adds_centroids else None, report=report)
    codes, partition_VD = sample.codes, None if adds_centroids else centroids_VD
    return SearchTables.fit(lookup, codes.codes, codes.lists, metric, partition_VD)


def metric_of_codec(name: str, codec: Codec) -> Metric:
    """The metric of this name, for vectors of a codec; raises ConfigError where float32 cannot hold its values."""
    spreads = [part.config.dim * float(part.scale) ** 2 for part in codec.weights]
    means = [float(np.square(part.mean_D, dtype=np.float64).sum()) for part in codec.weights]
    squares = [square + spread for square, spread in zip(means, spreads, strict=True)]
    length = float(np.sqrt(sum(map(float, spreads) if name == "l2" else squares)))
    if not _MIN_LENGTH < length < _MAX_LENGTH:
        raise ConfigError(f"the codec's vectors have lengths of about {length:.2g}, whose squares float32 cannot hold: "
                          f"multiply vectors by {1 / length:.1g} before a codec is trained on them")  # fmt: skip
    return Metric(name, length if name == "cosine" else 1.0)


def prepared(source: VectorSource, metric: Metric) -> VectorSource:
    """The vectors as they are encoded for a metric."""
    return source.map(metric.prepare) if metric.name == "cosine" else source


def zero_rows(source: VectorSource, metric: Metric) -> np.ndarray:
    """The numbers of vectors that are zero, int64, for "cosine", by which these are similar to nothing; else none."""
    blocks = source.blocks(1 << 16) if metric.name == "cosine" else ()
    return np.concatenate([np.empty(0, np.int64), *(first + np.flatnonzero(~x.any(1)) for first, x in blocks)])
