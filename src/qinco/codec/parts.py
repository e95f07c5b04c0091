"""The parts that vectors are cut into for a codec of several models (PQ-QINCo; QINCo paper, section 5.3).

Shape suffixes: N vectors, D dimension, P parts.
"""

import numpy as np

from qinco.vectors.rows import VectorSource


class PartRows:
    """Rows of one part of the vectors, rotated and cut when they are read: float32 (N, D / P).

    Args:
        source: the whole vectors.
        part: number of the part, from 0.
        num_parts: P, which divides D.
        rotation_DD: applied before the cut, as x @ rotation_DD.T; None for none.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, source: VectorSource, part: int, num_parts: int, rotation_DD: np.ndarray | None):
        width = source.dim // num_parts
        self.source, self.columns = source, slice(part * width, (part + 1) * width)
        self.rotation_DD, self.shape = rotation_DD, (len(source), width)

    def __getitem__(self, key) -> np.ndarray:
        return cut(self.source[key], self.columns, self.rotation_DD)


def cut(x_ND: np.ndarray, columns: slice, rotation_DD: np.ndarray | None) -> np.ndarray:
    """Some columns of the rotated vectors."""
    return x_ND[:, columns] if rotation_DD is None else x_ND @ rotation_DD[columns].T
