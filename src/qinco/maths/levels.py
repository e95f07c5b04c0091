"""Numbers in a byte: the levels that lose least."""

import numpy as np

_ITERATIONS = 20


def fit_levels(values_N: np.ndarray, count: int = 256) -> np.ndarray:
    """Ascending levels with a small squared error on values (k-means on a line): float32 (count,).

    Where there are fewer different values than levels, the last are repeated.
    """
    values_N = np.sort(np.asarray(values_N, np.float64))
    if not len(values_N):
        return np.zeros(count, np.float32)
    different = np.unique(values_N)
    if len(different) <= count:
        return np.pad(different, (0, count - len(different)), "edge").astype(np.float32)
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    # Half of the levels where the values are, half where there are few: those, too, must not be far from a level.
    quantiles = values_N[np.linspace(0, len(values_N) - 1, count // 2).astype(np.int64)]
    levels = np.sort(np.concatenate([quantiles, np.linspace(values_N[0], values_N[-1], count - count // 2)]))
    for _ in range(_ITERATIONS):
        edges = np.searchsorted(values_N, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(values_N)]])
        sizes = np.diff(edges)
        levels = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), levels)
    return np.sort(levels).astype(np.float32)


def nearest_level(values_N: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The number of the nearest of ascending levels (256 at most) for each value: uint8 (N,)."""
    return np.searchsorted(levels[1:] / 2 + levels[:-1] / 2, values_N).astype(np.uint8)
