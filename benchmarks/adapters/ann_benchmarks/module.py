"""qinco in ann-benchmarks: copy this folder to `ann_benchmarks/algorithms/qinco` there.

Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

import numpy as np

import qinco

from ..base.module import BaseANN

METRICS = {"euclidean": "l2", "angular": "cosine"}


class Qinco(BaseANN):
    """An index of codes of a few bytes. A codec is trained on the vectors that are indexed.

    `settings` are `bytes` of a code, `refine` (whether the original vectors, which then stay in memory, rank the first
    results), and arguments of `qinco.Codec.fit`, such as `minutes`.
    """

    def __init__(self, metric: str, settings: dict):
        if metric not in METRICS:
            raise NotImplementedError(f"qinco searches by {', '.join(METRICS)}, not by {metric}")
        self.metric, self.settings, self.options = METRICS[metric], dict(settings), {}

    def fit(self, X: np.ndarray) -> None:
        training = dict(self.settings)
        num_steps, refines = training.pop("bytes"), training.pop("refine", False)
        x_ND = np.ascontiguousarray(X, np.float32)
        if self.metric == "cosine":  # lengths do not count
            x_ND = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-30)
        codec = qinco.Codec.fit(x_ND, num_steps=num_steps, **training)
        self.index = qinco.Index.build(codec, x_ND, metric=self.metric)
        self.originals = {"refine": x_ND} if refines else {}

    def set_query_arguments(self, nprobe: int, num_short: int) -> None:
        """Lists that are scanned, and vectors that the network decodes, or originals that are read, at most."""
        refined = {"num_refine": num_short} if self.originals else {}
        self.options = {"nprobe": nprobe, "num_short": 0 if refined else num_short} | refined

    def query(self, q: np.ndarray, n: int) -> np.ndarray:
        return self._search(q, n)

    def batch_query(self, X: np.ndarray, n: int) -> None:
        self.res = self._search(X, n)

    def _search(self, queries: np.ndarray, n: int) -> np.ndarray:
        return self.index.search(np.ascontiguousarray(queries, np.float32), n, **self.options, **self.originals)[1]

    def get_additional(self) -> dict:
        return {"bytes_per_vector": self.index.bytes_per_vector}

    def __str__(self) -> str:
        return f"qinco({self.settings}, {self.options})"
