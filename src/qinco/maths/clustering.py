"""k-means, plain and residual: by faiss on the processor, by torch on other devices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import faiss
import numpy as np
import torch
from torch import Tensor

from qinco.machine import num_threads
from qinco.maths.devices import CPU, holds, to_device
from qinco.maths.distances import closest, smallest, squared_distances
from qinco.progress import Progress, silent

BEAM_WIDTH = 4
KMEANS_ROWS = 200_000
COARSE_ITERATIONS = 20
_TILE_DISTANCES, _PART_BYTES = 1 << 21, 1 << 28
_CALL_OPERATIONS, _PIECE_VALUES = 4e9, 1 << 22  # of a call that is not interrupted: a tenth of a second on a slow core
_FAISS_ROWS = 4096  # a block of faiss
_FUSED_DIM, _FUSED_VALUES = 32, 1 << 18  # up to so many dimensions faiss is fastest, with so many values or more
_NUDGE = 1 / 1024  # moves apart the two centroids that a split gives, as in faiss


@contextmanager
def faiss_threads(count: int | None) -> Iterator[None]:
    """Let faiss use `count` threads, by default as many as before, but no more than there are cores, in the block."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(count or before, num_threads()))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def kmeans(
    x_ND: np.ndarray | Tensor, num_centroids: int, *, iterations: int = 10, seed: int = 0, threads: int = 1
) -> np.ndarray:
    """Fit a codebook, float32 (K, D), to float32 vectors; a tensor is clustered on its device.

    The centroids start as noise around the mean rather than at data points: more of them end up in use, which later
    decides how much information a code carries. There may be fewer vectors than centroids.
    """
    on_device = isinstance(x_ND, Tensor) and x_ND.device.type != "cpu"
    x_ND = x_ND if on_device else np.asarray(x_ND)
    spread_D = x_ND.std(0, correction=0) if on_device else x_ND.std(0)
    drawn_KD = np.random.default_rng(seed).standard_normal((num_centroids, x_ND.shape[1]))
    start_KD = (_array(x_ND.mean(0)) + _array(spread_D) * drawn_KD).astype(np.float32)
    if len(x_ND) <= num_centroids:
        start_KD[: len(x_ND)] = _array(x_ND)
        return start_KD
    if isinstance(x_ND, Tensor):
        return _array(lloyd([x_ND], to_device(start_KD, x_ND.device), iterations, seed))
    with faiss_threads(threads):
        centroids_KD, _ = _lloyd_by_faiss(np.ascontiguousarray(x_ND, np.float32), start_KD, iterations)
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
        device: where to compute; on the processor with faiss's current number of threads.
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
        rows = part_rows or max(1, _PART_BYTES // (4 * x_ND.shape[1]))
        parts = [x_ND[start : start + rows] for start in range(0, len(x_ND), rows)]
        if part_rows is None and holds(device, x_ND.nbytes):
            parts = [to_device(part, device) for part in parts]
        centroids_VD = _array(lloyd(parts, to_device(centroids_VD, device), iterations, seed, report))
        return centroids_VD * np.float32(scale)
    for iteration in range(iterations):
        with faiss_threads(None):
            centroids_VD, total = _lloyd_by_faiss(x_ND, centroids_VD, 1)
        report("k-means", iteration + 1, iterations, "iteration", mse=total / len(x_ND))
    return centroids_VD * np.float32(scale)


def search_flat(index: faiss.IndexFlat, x_ND: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`index.search`, in calls so short that Ctrl-C is heard between them; distances and numbers, (N, count) each."""
    least = _FUSED_VALUES // index.d if index.d <= _FUSED_DIM else 64
    size = max(least, int(_CALL_OPERATIONS / max(1, 2 * index.ntotal * index.d)))
    size = size // _FAISS_ROWS * _FAISS_ROWS or size
    starts = list(range(0, max(1, len(x_ND) - size + 1), size))  # no call is smaller than that
    if len(starts) == 1:
        return index.search(x_ND, count)
    distances, numbers = np.empty((len(x_ND), count), np.float32), np.empty((len(x_ND), count), np.int64)
    for begin, end in zip(starts, [*starts[1:], len(x_ND)], strict=True):
        index.search(x_ND[begin:end], count, D=distances[begin:end], I=numbers[begin:end])
    return distances, numbers


def _lloyd_by_faiss(x_ND: np.ndarray, centroids_KD: np.ndarray, iterations: int) -> tuple[np.ndarray, float]:
    """What faiss.Kmeans finds, to the bit, and its last error, in pieces between which Ctrl-C is heard."""
    size, index, total = len(centroids_KD), faiss.IndexFlatL2(x_ND.shape[1]), 0.0
    if len(x_ND) == size:
        return x_ND.copy(), total
    for _ in range(iterations):
        index.reset()
        index.add(centroids_KD)
        distances_N1, numbers_N1 = search_flat(index, x_ND, 1)
        numbers_N = torch.from_numpy(numbers_N1[:, 0])
        sums_KD, done = torch.zeros(centroids_KD.shape), 0
        for part_ND in _pieces(x_ND):
            sums_KD.index_add_(0, numbers_N[done : done + len(part_ND)], torch.from_numpy(part_ND))
            done += len(part_ND)
        counts_K = torch.bincount(numbers_N, minlength=size).numpy().astype(np.float32)
        centroids_KD = sums_KD.numpy() * (1 / np.maximum(counts_K, 1))[:, None]
        _split_as_faiss(centroids_KD, counts_K, len(x_ND))
        total = float(distances_N1.sum(dtype=np.float64))
    return centroids_KD, total


def _split_as_faiss(centroids_KD: np.ndarray, counts_K: np.ndarray, num_vectors: int) -> None:
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


def _pieces(x_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time, which numpy and torch are done with soon."""
    rows = max(1, _PIECE_VALUES // x_ND.shape[1])
    return (x_ND[start : start + rows] for start in range(0, len(x_ND), rows))


def lloyd(
    parts: Sequence[np.ndarray | Tensor], centroids_KD: Tensor, iterations: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Lloyd's algorithm on the device of the first centroids: float32 (K, D).

    `parts` are the vectors, float32 (n, D) each, on that device or sent there in every iteration. The seed chooses the
    clusters that are split.
    """
    size, device = len(centroids_KD), centroids_KD.device
    for iteration in range(iterations):
        # In float64 the order in which a device adds up does not show in float32.
        sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64, device=device)
        counts_K = torch.zeros(size, dtype=torch.int64, device=device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for part in parts:
            x_ND = part if isinstance(part, Tensor) else to_device(part, device)
            numbers_N, distances_N = closest(x_ND, centroids_KD)
            sums_KD.index_add_(0, numbers_N, x_ND.double())
            counts_K += torch.bincount(numbers_N, minlength=size)
            total += distances_N.sum(dtype=torch.float64)
        means_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).float()
        centroids_KD = torch.where(counts_K[:, None] > 0, means_KD, centroids_KD)
        if iteration + 1 < iterations:
            centroids_KD = _split(centroids_KD, counts_K, np.random.default_rng((seed, iteration)))
        progress("k-means", iteration + 1, iterations, "iteration", mse=float(total) / sum(map(len, parts)))
    return centroids_KD


def _split(centroids_KD: Tensor, counts_K: Tensor, generator: np.random.Generator) -> Tensor:
    """Split large clusters to replace empty ones (as faiss does)."""
    counts = _array(counts_K)
    empty = np.flatnonzero(counts == 0)
    if not empty.size:
        return centroids_KD
    shares = np.maximum(counts - 1, 0) / max(1, np.maximum(counts - 1, 0).sum())
    count = min(len(empty), np.count_nonzero(shares))
    donors = to_device(generator.choice(len(counts), count, replace=False, p=shares), centroids_KD.device)
    others = to_device(empty[:count], centroids_KD.device)
    nudge_D = 1 + _NUDGE * (1 - 2 * (torch.arange(centroids_KD.shape[1], device=centroids_KD.device) % 2))
    split_KD = centroids_KD.clone()
    split_KD[others] = centroids_KD[donors] * nudge_D
    split_KD[donors] = centroids_KD[donors] * (2 - nudge_D)
    return split_KD


def nearest(x_ND: np.ndarray | Tensor, centroids_KD: np.ndarray | Tensor, threads: int = 1) -> np.ndarray | Tensor:
    """Number of the nearest centroid of each float32 vector: int64 (N,). Tensors are compared on their device."""
    if isinstance(x_ND, Tensor) and x_ND.device.type != "cpu":
        return closest(x_ND, torch.as_tensor(centroids_KD))[0]
    index = faiss.IndexFlatL2(centroids_KD.shape[1])
    index.add(np.ascontiguousarray(centroids_KD, np.float32))
    with faiss_threads(threads):
        numbers_N = search_flat(index, np.ascontiguousarray(x_ND, np.float32), 1)[1][:, 0]
    return torch.from_numpy(numbers_N) if isinstance(x_ND, Tensor) else numbers_N


def residual_kmeans(
    x_ND: np.ndarray | Tensor, num_steps: int, num_centroids: int, *, max_rows: int = KMEANS_ROWS, seed: int = 0,
    threads: int = 1, progress: Progress = silent,
) -> np.ndarray:  # fmt: skip
    """Fit the codebooks of a residual quantizer, float32 (M, K, D), to float32 vectors, on the device of a tensor.

    Each codebook is fitted to the residuals of all hypotheses of a beam, at most `max_rows` of them, and not of the
    greedy one alone, because these are what it quantizes later.
    """
    # One buffer for all hypotheses, of which the first `beam` are in use.
    x_ND = torch.as_tensor(x_ND)
    residual_NBD = torch.empty(len(x_ND), BEAM_WIDTH, x_ND.shape[1], device=x_ND.device)
    residual_NBD[:, 0] = x_ND
    beam, codebooks = 1, []
    for step in range(num_steps):
        points_ND = _some_residuals(residual_NBD[:, :beam], max_rows, seed + step)
        codebook_KD = kmeans(points_ND, num_centroids, seed=seed + step, threads=threads)
        codebooks.append(codebook_KD)
        progress("fitting the first codebooks", step + 1, num_steps, "codebook")
        if step + 1 < num_steps:
            beam = _extend_beam(residual_NBD, beam, to_device(codebook_KD, x_ND.device))
    return np.stack(codebooks)


def quantize_residually(x_ND: np.ndarray, books_MKD: np.ndarray, threads: int = 1) -> np.ndarray:
    """Reconstructions, (N, D), of float32 vectors by a residual quantizer with codebooks (M, K, D), K a power of 2."""
    num_steps, num_centroids, _ = books_MKD.shape
    with faiss_threads(threads):
        quantizer = faiss.ResidualQuantizer(x_ND.shape[1], num_steps, num_centroids.bit_length() - 1)
        faiss.copy_array_to_vector(books_MKD.ravel(), quantizer.codebooks)
        quantizer.max_beam_size = BEAM_WIDTH
        quantizer.is_trained = True
        return quantizer.decode(quantizer.compute_codes(np.ascontiguousarray(x_ND, np.float32)))


def _some_residuals(residual_NBD: Tensor, max_rows: int, seed: int) -> Tensor:
    """At most `max_rows` of all hypotheses' residuals, drawn at random: (n, D)."""
    num_vectors, beam, _ = residual_NBD.shape
    if num_vectors * beam <= max_rows:
        return residual_NBD.flatten(0, 1)
    chosen = np.random.default_rng(seed).choice(num_vectors * beam, max_rows, replace=False)
    rows, hypotheses = (to_device(part, residual_NBD.device) for part in np.divmod(np.sort(chosen), beam))
    return residual_NBD[rows, hypotheses]


def _extend_beam(residual_NBD: Tensor, beam: int, codebook_KD: Tensor) -> int:
    """Replace the first `beam` residuals of each vector by those of the best continuations; returns their number."""
    size, dim = codebook_KD.shape
    kept = min(residual_NBD.shape[1], beam * size)
    for part_NBD in residual_NBD.split(max(1, _TILE_DISTANCES // (beam * size))):
        alive_NBD = part_NBD[:, :beam]
        distances = squared_distances(alive_NBD.flatten(0, 1), codebook_KD).view(len(part_NBD), -1)
        pairs_NB = smallest(distances, kept)[1]
        parents_NBD = alive_NBD.gather(1, (pairs_NB // size)[..., None].expand(-1, -1, dim))
        part_NBD[:, :kept] = parents_NBD - codebook_KD[pairs_NB % size]
    return kept


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values
