"""Measure a codec with another decoder than its network: error and exhaustive recall over vectors.

Shape suffixes: N vectors, n vectors of a block, D dimension.
"""

import time
from collections.abc import Iterator

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.evaluate import Evaluation
from qinco.config import EncodeOptions
from qinco.errors import DataError
from qinco.maths.metrics import RANKS, recall
from qinco.progress import Progress, ProgressOption, reporting
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.fit import assign_decoded
from qinco.vectors.rows import VectorSource, as_source


def evaluate_decoder(
    codec: Codec, vectors, decoder, options: EncodeOptions | None = None, *, progress: ProgressOption = None
) -> Evaluation:
    """Encode vectors and measure what another decoder makes of their codes.

    Args:
        codec: encodes.
        vectors: (N, D) array, tensor, path or VectorSource.
        decoder: LookupDecoder or PairwiseDecoder of such codes.
        options: of encoding; the codec's own if None.
        progress: see `qinco.progress`.

    Returns:
        Evaluation with the mean squared error of whole codes.

    Example:
        >>> evaluate_decoder(codec, "base.fvecs", fit_lookup_decoder("train.fvecs", codec=codec).decoder).mse
    """
    source, begun, error = as_source(vectors), time.monotonic(), 0.0
    codec.check_dim(source)
    if not len(source):
        raise DataError(f"{source.name} holds no vectors to evaluate on")
    with reporting(progress) as report:
        for first, decoded_nD in _decoded(codec, source, decoder, options, None, "float32", report):
            x_nD = source[first : first + len(decoded_nD)]
            error += np.square(decoded_nD - x_nD, dtype=np.float64).sum()
    return Evaluation([error / len(source)], len(source), time.monotonic() - begun)


def exhaustive_recall(
    codec: Codec,
    vectors,
    queries,
    ground_truth,
    *,
    decoder=None,
    options: EncodeOptions | None = None,
    num_steps: int | None = None,
    precision: str = "float32",
    device=None,
    progress: ProgressOption = None,
) -> dict[int, float]:
    """Recall of the exact nearest neighbours among what the codes of a database decode to, in bounded memory.

    Args:
        codec: encodes the database.
        vectors: (N, D) database.
        queries: (Q, D).
        ground_truth: (Q,) row numbers of the true nearest neighbours.
        decoder: LookupDecoder or PairwiseDecoder; the codec's network if None.
        options: of encoding; the codec's own if None.
        num_steps: use so many codes only.
        precision: of the network.
        device: where distances are computed; the codec's if None.
        progress: see `qinco.progress`.

    Returns:
        {1: share, 10: share, 100: share}.

    Example:
        >>> exhaustive_recall(codec, "base.fvecs", "query.fvecs", nearest)[10]
    """
    source, found = as_source(vectors), as_source(queries, "queries")
    codec.check_dim(source)
    codec.check_dim(found)
    with reporting(progress) as report:
        blocks = _decoded(codec, source, decoder, options, num_steps, precision, report)
        _, ids_QR = nearest_in_blocks(found[:], blocks, max(RANKS), device or codec.device)
    return recall(ids_QR, np.asarray(ground_truth))


def _decoded(
    codec: Codec, source: VectorSource, decoder, options, num_steps, precision: str, report: Progress
) -> Iterator[tuple[int, np.ndarray]]:
    """Encode and decode blocks of a source: (first row, float32 (n, D))."""
    for first, codes in codec.encode_blocks(source, options, num_steps):
        if decoder is None:
            yield first, codec.decode(codes, precision=precision)
        elif codes.has_lists or not decoder.num_lists:
            yield first, decoder.decode(codes.codes, codes.lists)
        else:  # the lists of an index that the codec does not know
            yield first, decoder.decode(codes.codes, assign_decoded(codec, codes, decoder.centroids_VD))
        report("encoding and decoding", first + len(codes), len(source))
