"""The columns of vectors and of codes that each model of a codec has (PQ-QINCo, OPQ)."""

from collections.abc import Sequence

import numpy as np


def cut(x_ND: np.ndarray, part: int, width: int, rotation_DD: np.ndarray | None) -> np.ndarray:
    """The columns of the rotated vectors that model number `part` encodes."""
    columns = slice(part * width, (part + 1) * width)
    if rotation_DD is None:
        return x_ND[:, columns]
    with np.errstate(over="ignore", invalid="ignore"):  # of vectors near the limit of float32
        return x_ND @ rotation_DD[columns].T


def join(parts: Sequence[np.ndarray], rotation_DD: np.ndarray | None, out_ND: np.ndarray | None = None) -> np.ndarray:
    """The vectors whose rotated columns the models decoded, (N, D), in `out_ND` if it is given."""
    x_ND = parts[0] if len(parts) == 1 and out_ND is None else np.concatenate(parts, 1, out=out_ND)
    if rotation_DD is not None:
        x_ND[:] = x_ND @ rotation_DD
    return x_ND


def first_steps(num_parts: int, num_steps: int, count: int) -> list[int]:
    """The columns of codes that hold the first `count` of the `num_steps` steps of each model."""
    return [part * num_steps + step for part in range(num_parts) for step in range(count)]
