"""Whether faiss can search an HNSW graph of a file: it follows the numbers that it has read into its arrays.

Shape suffixes: V vectors of the graph, N members of a level, L links of a level.
"""

import numpy as np


def graph_fault(
    levels_V: np.ndarray, offsets: np.ndarray, neighbors: np.ndarray, most: np.ndarray, entry: int, max_level: int,
    count: int,
) -> str | None:  # fmt: skip
    """What would lead a search among `count` vectors out of the arrays; None if nothing would.

    Args:
        levels_V: on how many levels each vector is.
        offsets: int64 (V + 1,), where the links of each vector begin in `neighbors`.
        neighbors: numbers of vectors, level by level; -1 for none.
        most: int64, where the links of each level begin among those of a vector, and where the last ones end.
        entry: the vector at which searches begin.
        max_level: its highest level, from 0 on.
    """
    if levels_V.shape != (count,) or not count or levels_V.min() < 1:
        return f"its graph has {len(levels_V)} vectors or levels below 1, and there are {count} lists"
    top = int(levels_V.max())
    if len(most) <= top or most[0] != 0 or (np.diff(most) < 0).any():
        return f"the numbers of links of its {top} levels are {most.tolist()[:9]}"
    is_laid_out = offsets.shape == (count + 1,) and offsets[0] == 0 and offsets[-1] == len(neighbors)
    if not is_laid_out or not np.array_equal(np.diff(offsets), most[levels_V]):
        return "the links of its graph do not lie where its levels say"
    if max_level != top - 1 or not 0 <= entry < count or levels_V[entry] != top:
        return f"searches of its graph begin at {entry} on level {max_level}, and its highest level is {top - 1}"
    if len(neighbors) and not -1 <= neighbors.min() <= neighbors.max() < count:
        return f"its graph links {neighbors.min()} or {neighbors.max()}, and there are {count} lists"
    for level in range(1, top):  # who is linked to on a level is on it
        begins_N = offsets[:-1][levels_V > level] + most[level]
        linked_NL = neighbors[begins_N[:, None] + np.arange(most[level + 1] - most[level])]
        if (levels_V[linked_NL[linked_NL >= 0]] <= level).any():
            return f"its graph links vectors on level {level} that are not there"
    return None
