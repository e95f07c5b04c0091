"""k-means, plain and residual: by compiled kernels or numpy on the processor, by torch on other devices.

Torch is imported where tensors are given.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from qinco.machine import num_threads
from qinco.maths.devices import CPU, holds, to_device
from qinco.native.flat import Flat
from qinco.native.tables import sum_by_row
from qinco.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

BEAM_WIDTH, ITERATIONS = 4, 10
KMEANS_ROWS = 200_000
COARSE_ITERATIONS = 20
_PART_BYTES = 1 << 28
_PIECE_VALUES = 1 << 22  # of numpy's calls, which are not interrupted
_LEAST_TRUE = 1e-3  # of the variance of points, that codewords are taken to have
# Four hypotheses of a vector tell as much as two vectors: the error of text (5,000 vectors, M=4) is .963 of what it is
# unshrunk if they count as one, .955 as two, and .961 as four.
_ALIKE = 0.5
_MOST_AXES, _AXES_ROWS = 2048, 20_000
_NUDGE = 1 / 1024  # moves apart the two centroids that a split gives, as in faiss


def kmeans(
    x_ND: "np.ndarray | Tensor", num_centroids: int, *, iterations: int = ITERATIONS, seed: int = 0, threads: int = 1
) -> np.ndarray:
    """Fit a codebook, float32 (K, D), to float32 vectors; a tensor is clustered on its device.

    The centroids start as noise around the mean rather than at data points: more of them end up in use, which later
    decides how much information a code carries. There may be fewer vectors than centroids.
    """
    given: Any = x_ND if _is_on_device(x_ND) else np.asarray(x_ND, np.float32)
    spread_D = given.std(0) if isinstance(given, np.ndarray) else given.std(0, correction=0)
    drawn_KD = np.random.default_rng(seed).standard_normal((num_centroids, given.shape[1]))
    start_KD = (_array(given.mean(0)) + _array(spread_D) * drawn_KD).astype(np.float32)
    if len(given) <= num_centroids:
        start_KD[: len(given)] = _array(given)
        return start_KD
    if not isinstance(given, np.ndarray):
        from qinco.maths.device_clustering import lloyd

        return _array(lloyd([given], to_device(start_KD, given.device), iterations, seed))
    centroids_KD, _ = improve_centroids(given, start_KD, iterations, threads)
    unusable = ~np.isfinite(centroids_KD).all(1)
    centroids_KD[unusable] = start_KD[unusable]
    return centroids_KD


def coarse_kmeans(
    x_ND: np.ndarray,
    num_centroids: int,
    *,
    iterations: int = COARSE_ITERATIONS,
    seed: int = 0,
    device: str = CPU,
    part_rows: int | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Fit the coarse centroids of inverted lists, float32 (V, D), to float32 vectors, at least as many.

    They start at data points, which keeps the lists balanced.

    Args:
        device: where to compute.
        part_rows: on another device, send so many vectors at a time, in every iteration; None: all stay there if they
            fit, else 256 MiB at a time.
        progress: hears of every iteration, with `mse`, the mean squared distance (summed over dimensions) before it.
    """
    # Squares of very large or small values leave float32's range.
    scale = max(float(np.abs(part).max()) for part in _pieces(x_ND)) or 1.0
    given_ND, x_ND = x_ND, np.empty(x_ND.shape, np.float32)
    for given, part in zip(_pieces(given_ND), _pieces(x_ND), strict=True):
        np.divide(given, np.float32(scale), out=part, casting="unsafe")
    centroids_VD = x_ND[np.random.default_rng(seed).choice(len(x_ND), num_centroids, replace=False)]

    def report(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        progress(stage, done, total, unit, mse=fields["mse"] * scale**2)

    if device != CPU:
        from qinco.maths.device_clustering import lloyd

        rows = part_rows or max(1, _PART_BYTES // (4 * x_ND.shape[1]))
        parts = [x_ND[start : start + rows] for start in range(0, len(x_ND), rows)]
        if part_rows is None and holds(device, x_ND.nbytes):
            parts = [to_device(part, device) for part in parts]
        centroids_VD = _array(lloyd(parts, to_device(centroids_VD, device), iterations, seed, report))
        return centroids_VD * np.float32(scale)
    for iteration in range(iterations):
        centroids_VD, total = improve_centroids(x_ND, centroids_VD, 1, num_threads())
        report("k-means", iteration + 1, iterations, "iteration", mse=total / len(x_ND))
    return centroids_VD * np.float32(scale)


@np.errstate(over="ignore", invalid="ignore")  # the caller sees what is not finite
def improve_centroids(
    x_ND: np.ndarray, centroids_KD: np.ndarray, iterations: int, threads: int
) -> tuple[np.ndarray, float]:
    """Lloyd's algorithm on the processor: centroids, float32 (K, D), and their error before the last iteration."""
    size, total = len(centroids_KD), 0.0
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    if len(x_ND) == size:
        return x_ND.copy(), total
    for _ in range(iterations):
        numbers_N, distances_N = Flat(centroids_KD).nearest(x_ND, threads)
        sums_KD = np.zeros(centroids_KD.shape)
        sum_by_row(x_ND, numbers_N.astype(np.int32)[:, None], size, sums_KD, threads=threads)
        counts_K = np.bincount(numbers_N, minlength=size).astype(np.float32)
        centroids_KD = (sums_KD / np.maximum(counts_K, 1)[:, None]).astype(np.float32)
        _split(centroids_KD, counts_K, len(x_ND))
        total = float(distances_N.sum(dtype=np.float64))
    return centroids_KD, total


def _split(centroids_KD: np.ndarray, counts_K: np.ndarray, num_vectors: int) -> None:
    """Split large clusters to replace empty ones, drawn as faiss draws them; in place."""
    size, dim = centroids_KD.shape
    generator, draws = np.random.RandomState(1234), np.empty(0, np.float32)
    nudge_D = np.where(np.arange(dim) % 2, 1 - _NUDGE, 1 + _NUDGE).astype(np.float32)
    for empty in np.flatnonzero(counts_K == 0):
        chances_K = ((counts_K.astype(np.float64) - 1) / (num_vectors - size)).astype(np.float32)
        donors: np.ndarray = np.empty(0)
        while not len(donors):
            if len(draws) < size:
                fresh = generator.randint(0, 1 << 32, size, np.uint32)
                draws = np.concatenate([draws, fresh.astype(np.float32) / np.float32(1 << 32)])
            donors = np.flatnonzero(draws[:size] < chances_K)
            draws = draws[donors[0] + 1 if len(donors) else size :]
        donor = donors[0]
        centroids_KD[empty], centroids_KD[donor] = centroids_KD[donor] * nudge_D, centroids_KD[donor] * (2 - nudge_D)
        counts_K[empty] = counts_K[donor] / 2
        counts_K[donor] -= counts_K[empty]


def nearest(
    x_ND: "np.ndarray | Tensor", centroids_KD: "np.ndarray | Tensor", threads: int = 1
) -> "np.ndarray | Tensor":
    """Number of the nearest centroid of each float32 vector: int64 (N,). Tensors are compared on their device."""
    if isinstance(x_ND, np.ndarray):
        return Flat(np.asarray(centroids_KD)).nearest(x_ND, threads)[0]
    import torch

    if _is_on_device(x_ND):
        from qinco.maths.distances import closest

        return closest(x_ND, torch.as_tensor(centroids_KD))[0]
    return torch.from_numpy(Flat(np.asarray(centroids_KD)).nearest(np.asarray(x_ND), threads)[0])


def residual_kmeans(
    x_ND: "np.ndarray | Tensor", num_steps: int, num_centroids: int, *, max_rows: int = KMEANS_ROWS, seed: int = 0,
    threads: int = 1, shrinks: bool = False, progress: Progress = silent,
) -> np.ndarray:  # fmt: skip
    """Fit the codebooks of a residual quantizer, float32 (M, K, D), to float32 vectors, on the device of a tensor.

    Each codebook is fitted to the residuals of all hypotheses of a beam, at most `max_rows` of them, and not of the
    greedy one alone, because these are what it quantizes later. With `shrinks` codewords are shortened as far as few
    vectors overstate them along the principal axes (`shrunk`), so that the error of other vectors is lower.
    """
    axes_DD = _principal_axes(x_ND) if shrinks else np.eye(0)
    if shrinks:
        x_ND = x_ND @ (axes_DD if isinstance(x_ND, np.ndarray) else to_device(axes_DD, x_ND.device))
    residual_NBD = _beam_of(x_ND)
    beam, codebooks = 1, []
    for step in range(num_steps):
        points_ND = _some_residuals(residual_NBD[:, :beam], max_rows, seed + step)
        codebook_KD = kmeans(points_ND, num_centroids, seed=seed + step, threads=threads)
        if shrinks:
            codebook_KD = shrunk(codebook_KD, points_ND, max(1, _ALIKE * len(points_ND) / len(x_ND)), threads)
        codebooks.append(codebook_KD)
        progress("fitting the first codebooks", step + 1, num_steps, "codebook")
        if step + 1 < num_steps:
            beam = _extend_beam(residual_NBD, beam, codebook_KD, threads)
    return np.stack(codebooks) @ axes_DD.T if shrinks else np.stack(codebooks)


def shrunk(
    codebook_KD: np.ndarray, points_ND: "np.ndarray | Tensor", repeats: float = 1, threads: int = 1
) -> np.ndarray:  # fmt: skip
    """Codewords, (K, D), without what is due to chance, as far as it is known; float32 points are around zero.

    A mean of n vectors that vary by W around it is known to within W / n. Where true codewords vary by B around zero,
    their most likely values are the means times n / (n + W / B) (empirical Bayes), in each dimension by itself.
    `repeats` is how often the points show each vector.
    """
    book_KD = to_device(codebook_KD, points_ND.device) if _is_on_device(points_ND) else codebook_KD
    numbers_N = _array(nearest(points_ND, book_KD, threads))
    counts_K = np.bincount(numbers_N, minlength=len(codebook_KD))
    total_D = _array((points_ND * points_ND).sum(0)) / len(points_ND)
    seen_D = counts_K @ np.square(codebook_KD, dtype=np.float64) / len(points_ND)
    within_D = np.maximum(total_D - seen_D, 0)
    chance_D = within_D * (np.count_nonzero(counts_K) * repeats / len(points_ND))
    between_D = np.maximum(seen_D - chance_D, _LEAST_TRUE * total_D)
    each_K1 = np.maximum(counts_K / repeats, 1)[:, None]
    shares_KD = each_K1 * between_D / np.maximum(each_K1 * between_D + within_D, np.finfo(np.float32).tiny)
    return codebook_KD * shares_KD.astype(np.float32)


def _principal_axes(x_ND) -> np.ndarray:
    """The axes, columns of (D, D), along which some of the vectors vary independently; the usual ones if D is large."""
    dim = x_ND.shape[1]
    if dim > _MOST_AXES:
        return np.eye(dim, dtype=np.float32)
    some_ND = _array(x_ND[:: max(1, len(x_ND) // _AXES_ROWS)])
    return np.linalg.eigh((some_ND.T @ some_ND).astype(np.float64))[1].astype(np.float32)


def quantize_residually(x_ND: np.ndarray, books_MKD: np.ndarray, threads: int = 1) -> np.ndarray:
    """Reconstructions, (N, D), of float32 vectors by a residual quantizer with codebooks (M, K, D)."""
    residual_NBD, beam = _beam_of(x_ND), 1
    for book_KD in books_MKD:
        beam = _extend_beam(residual_NBD, beam, book_KD, threads)
    return x_ND - residual_NBD[:, 0]


def _beam_of(x_ND) -> Any:
    """One buffer for the residuals of all hypotheses, of which the first is in use: (N, B, D)."""
    shape = len(x_ND), BEAM_WIDTH, x_ND.shape[1]
    residual_NBD = x_ND.new_empty(shape) if _is_on_device(x_ND) else np.empty(shape, np.float32)
    residual_NBD[:, 0] = x_ND
    return residual_NBD


def _some_residuals(residual_NBD, max_rows: int, seed: int):
    """At most `max_rows` of all hypotheses' residuals, drawn at random: (n, D)."""
    num_vectors, beam, dim = residual_NBD.shape
    if num_vectors * beam <= max_rows:
        return residual_NBD.reshape(-1, dim)
    chosen = np.random.default_rng(seed).choice(num_vectors * beam, max_rows, replace=False)
    return residual_NBD[np.divmod(np.sort(chosen), beam)]


def _extend_beam(residual_NBD, beam: int, codebook_KD: np.ndarray, threads: int) -> int:
    """Replace the first `beam` residuals of each vector by those of the best continuations; returns their number."""
    if _is_on_device(residual_NBD):
        from qinco.maths.device_clustering import extend_beam

        return extend_beam(residual_NBD, beam, to_device(codebook_KD, residual_NBD.device))
    size, dim = codebook_KD.shape
    kept, near = min(residual_NBD.shape[1], beam * size), Flat(codebook_KD)
    each = min(kept, size)  # the best ones of all are among the best of each hypothesis
    rows = max(1, _PIECE_VALUES // (beam * dim))
    for start in range(0, len(residual_NBD), rows):
        part_NBD = residual_NBD[start : start + rows]
        alive_NBD = part_NBD[:, :beam]
        values, numbers = (
            found.reshape(len(part_NBD), -1) for found in near.search(alive_NBD.reshape(-1, dim), each, threads)
        )
        places_NB = np.argsort(values, axis=1, kind="stable")[:, :kept]
        parents_NBD = np.take_along_axis(alive_NBD, (places_NB // each)[..., None], 1)
        part_NBD[:, :kept] = parents_NBD - codebook_KD[np.take_along_axis(numbers, places_NB, 1)]
    return kept


def _pieces(x_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time, which numpy is done with soon."""
    rows = max(1, _PIECE_VALUES // x_ND.shape[1])
    return (x_ND[start : start + rows] for start in range(0, len(x_ND), rows))


def _is_on_device(values) -> bool:
    """Whether these are a tensor that is not on the processor."""
    return not isinstance(values, np.ndarray) and values.device.type != "cpu"


def _array(values) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
