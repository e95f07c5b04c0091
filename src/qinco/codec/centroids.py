"""Coarse centroids for IVF codecs and indexes, from training vectors of any size."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qinco.atomic import check_output
from qinco.codec.plan import check_values
from qinco.config import require_int
from qinco.errors import DataError
from qinco.machine import free_memory
from qinco.maths.clustering import COARSE_ITERATIONS, coarse_kmeans
from qinco.maths.devices import choose_device
from qinco.progress import ProgressOption, reporting
from qinco.vectors.formats import input_files, write_vectors
from qinco.vectors.rows import as_source, sample

_LOG = logging.getLogger(__name__)
MAX_POINTS_PER_CENTROID, _MIN_POINTS_PER_CENTROID = 256, 39  # as in faiss, which warns below the second
_SPARE_POINTS = 256


def kmeans(
    x, num_centroids: int, *, num_iterations: int = COARSE_ITERATIONS,
    max_points_per_centroid: int = MAX_POINTS_PER_CENTROID, seed: int = 0, device: str = "auto",
    output: str | Path | None = None, overwrite: bool = False, inputs: Iterable = (), progress: ProgressOption = None,
) -> np.ndarray:  # fmt: skip
    """Fit coarse centroids to vectors by k-means.

    A source that is larger is sampled: `max_points_per_centroid` vectors for each centroid, and no more than half of
    the free memory holds. Logs a warning where memory limits the sample, and for fewer than 39 vectors a centroid.

    Args:
        x: (N, D) vectors: array, memory map, torch tensor, path or VectorSource of any integer or float type.
        num_centroids: V, at most N.
        num_iterations: of Lloyd's algorithm.
        max_points_per_centroid: size of the sample, in vectors for each centroid.
        seed: of the sample and of the first centroids.
        device: "auto", "cpu", "cuda" or "cuda:N".
        output: .npy file to write; None writes nothing.
        overwrite, inputs: replace `output`; files that are read, which it must not replace.
        progress: see `qinco.progress`; counts iterations and shows the mean squared distance.

    Returns:
        float32 (V, D), in the space of the vectors.

    Example:
        >>> centroids_VD = kmeans("train.fvecs", 4096, output="centroids.npy")  # doctest: +SKIP
    """
    source = as_source(x, "training vectors")
    require_int("num_centroids (ivf_K)", num_centroids)
    require_int("num_iterations", num_iterations)
    require_int("seed", seed, 0)
    require_int("max_points_per_centroid", max_points_per_centroid)
    target = choose_device(device)
    if output is not None:
        check_output(output, suffixes=(".npy",), overwrite=overwrite, inputs=[*inputs, *input_files(x)])
    if len(source) < num_centroids:
        need = f"at least {num_centroids} vectors, one for each centroid (ivf_K)"
        raise DataError(f"{source.name} must hold {need}, not {len(source)}")
    with reporting(progress) as report:
        check_values(source, report)
        enough = _MIN_POINTS_PER_CENTROID * num_centroids
        if len(source) < enough:
            _LOG.warning(f"{enough:,} vectors or more are better for ivf_K={num_centroids}, not {len(source):,}")
        least = num_centroids + _SPARE_POINTS
        wanted = min(len(source), max(max_points_per_centroid * num_centroids, least))
        held = max(least, free_memory() // 2 // (4 * source.dim))
        if wanted > held:
            _LOG.warning(f"k-means takes {held:,} of {wanted:,} vectors: more do not fit into half of the free memory")
        x_ND = sample(source, min(wanted, held), seed)
        _LOG.info(f"k-means on {len(x_ND):,} of {len(source):,} vectors")
        options = {"iterations": num_iterations, "seed": seed, "device": target, "progress": report}
        centroids_VD = coarse_kmeans(x_ND, num_centroids, **options)
    if output is not None:
        write_vectors(output, centroids_VD)
    return centroids_VD
