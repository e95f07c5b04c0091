"""What is measured of results, with standard errors, and the sizes at which a recall is reached."""

from collections.abc import Iterable

import numpy as np

from qinco.maths.metrics import RANKS

TARGETS = (0.9, 0.95, 0.99)
TARGET_RANK = "10"


def share(is_hit_Q: np.ndarray) -> list[float]:
    """A mean over queries and its standard error."""
    values_Q = np.asarray(is_hit_Q, np.float64)
    spread = values_Q.std(ddof=1) if len(values_Q) > 1 else 0.0
    return [float(values_Q.mean()), float(spread / np.sqrt(len(values_Q)))]


def judge(ids_QR: np.ndarray, nearest_QR: np.ndarray) -> dict:
    """Recall of the true nearest vector at each rank, and overlap with the true ten, of found ids (Q, 100)."""
    is_nearest_QR = ids_QR == nearest_QR[:, :1]
    recall = {str(rank): share(is_nearest_QR[:, :rank].any(1)) for rank in RANKS}
    first = min(ids_QR.shape[1], nearest_QR.shape[1])
    common_Q = [len(np.intersect1d(a, b)) for a, b in zip(ids_QR[:, :first], nearest_QR[:, :first], strict=True)]
    return {"recall": recall, "overlap_10": share(np.array(common_Q) / first)}


class Errors:
    """Squared errors of vectors, summed block by block."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, x_ND: np.ndarray, decoded_ND: np.ndarray) -> None:
        """Of vectors and what their codes decode to."""
        errors_N = np.square(x_ND - decoded_ND, dtype=np.float64).sum(1)
        self.count += len(errors_N)
        self.total += float(errors_N.sum())
        self.squares += float(np.square(errors_N).sum())

    def summary(self) -> dict:
        """`mse`, the mean over vectors of the squared error summed over dimensions, and `mse_se`."""
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean**2)
        return {"mse": mean, "mse_se": float(np.sqrt(variance / self.count))}


def crossings(cells: Iterable[dict]) -> list[dict]:
    """The least bytes for each target of recall@10, of each family, metric and set of queries, in their order.

    The best cell of a family counts at each size. Between the sizes below and above a target, recall is taken to be
    linear in log2(bytes). `between` is None where the smallest size that was measured reaches it, and `bytes` then is
    that size; where none does, both are None.
    """
    found: dict[tuple, dict[float, float]] = {}
    for cell in cells:
        for result in cell.get("results", ()) if cell["status"] == "done" else ():
            sizes = found.setdefault((result["metric"], result["queries"], cell["family"], cell["ours"]), {})
            value = result["recall"][TARGET_RANK][0]
            sizes[cell["bytes"]] = max(value, sizes.get(cell["bytes"], 0.0))
    names = "metric", "queries", "family", "ours"
    return [
        dict(zip(names, key, strict=True)) | {"target": target} | _crossing(sorted(sizes.items()), target)
        for key, sizes in found.items()
        for target in TARGETS
    ]


def _crossing(points: list[tuple[float, float]], target: float) -> dict:
    """Where the points (bytes, recall), by bytes, reach a target for the first time."""
    for number, (size, value) in enumerate(points):
        if value >= target and number == 0:
            return {"bytes": float(size), "between": None}
        if value >= target:
            below, least = points[number - 1]
            part = (target - least) / (value - least)
            return {"bytes": float(below * (size / below) ** part), "between": [below, size]}
    return {"bytes": None, "between": None}
