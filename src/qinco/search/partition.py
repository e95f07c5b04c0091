"""Partition of vectors into inverted lists.

Shape suffixes: N vectors, D dimension, M codes of a vector, V lists.
"""

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import MAX_LISTS, require_int
from qinco.errors import ConfigError
from qinco.maths.clustering import coarse_kmeans, nearest
from qinco.maths.devices import to_device
from qinco.progress import Progress, silent
from qinco.store.codes import Codes

_CLUSTER_ROWS_EACH, _MIN_ROWS_EACH = 256, 39  # vectors of a list


def codes_of_codec(codec: Codec, codes: Codes) -> Codes:
    """Codes as their codec decodes them: without the lists of a partition that the codec does not know."""
    return codes if codec.is_ivf else codes.with_lists(None)


def choose_num_lists(num_lists: int | None, num_vectors: int) -> int:
    """`num_lists` if given, else about 4 √N, with at least 39 vectors per list."""
    if num_lists is None:
        wanted = 1 << max(0, round(np.log2(4 * np.sqrt(max(num_vectors, 1)))))
        return max(1, min(wanted, num_vectors // _MIN_ROWS_EACH))
    require_int("num_lists", num_lists, 1, MAX_LISTS)
    if num_lists > num_vectors:
        raise ConfigError(f"num_lists={num_lists} is more than the {num_vectors} vectors: give fewer lists")
    return num_lists


def partition(
    codec: Codec, codes: Codes, num_lists: int, seed: int, report: Progress = silent
) -> tuple[np.ndarray, np.ndarray]:
    """k-means of the reconstructions of codes: centroids, float32 (V, D), and the list of each code, int32 (N,).

    Empty lists, of which duplicate vectors make many, are dropped.
    """
    rows = sample_rows(len(codes), _CLUSTER_ROWS_EACH * num_lists, seed)
    decoded_ND = np.concatenate([block for _, block in codec.decode_blocks(codes[rows], "auto")])
    report("partitioning", 0, num_lists, "list")
    if num_lists == 1:
        centroids_VD = decoded_ND.mean(0, keepdims=True)
    else:
        centroids_VD = coarse_kmeans(decoded_ND, num_lists, seed=seed, device=codec.device)
    report("partitioning", num_lists, num_lists, "list")
    used_V, lists_N = np.unique(assign_decoded(codec, codes, centroids_VD, report), return_inverse=True)
    return centroids_VD[used_V], lists_N.astype(np.int32)


def assign_decoded(codec: Codec | None, codes: Codes, centroids_VD, report: Progress = silent) -> np.ndarray:
    """The nearest centroid of each code's reconstruction, int32 (N,); a single one needs no codec."""
    lists_N = np.zeros(len(codes), np.int32)
    if len(centroids_VD) == 1:
        return lists_N
    assert codec is not None
    on_device = to_device(centroids_VD, codec.device)
    for first, block in codec.decode_blocks(codes, "auto"):
        found_N = torch.as_tensor(nearest(to_device(block, codec.device), on_device, torch.get_num_threads()))
        lists_N[first : first + len(block)] = found_N.cpu().numpy()
        report("assigning vectors to lists", first + len(block), len(codes))
    return lists_N


def sample_rows(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of `count` row numbers, drawn at random, in ascending order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
