"""What decoded vectors are judged by."""

import numpy as np

RANKS = (1, 10, 100)


def recall(ids_QR: np.ndarray, nearest_Q: np.ndarray, ranks: tuple[int, ...] = RANKS) -> dict[int, float]:
    """Recall@r: the share of queries whose true nearest neighbour is among the first r results, for each rank r."""
    found_QR = ids_QR == nearest_Q[:, None]
    return {rank: float(found_QR[:, :rank].any(1).mean()) for rank in ranks}
