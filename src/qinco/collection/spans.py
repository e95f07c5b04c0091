"""Which vectors are of which record, where a record may have several: their keys are its own and the next ones.

Shape suffixes: P records, n vectors.
"""

import sqlite3
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Spans:
    """Keys of records, int64 (P,), ascending, and how many vectors each has; also of records that are deleted since."""

    keys: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls) -> "Spans":
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def updated(self, connection: sqlite3.Connection) -> "Spans":
        """With the records that came since."""
        last = int(self.keys[-1]) if len(self.keys) else 0
        query = "SELECT key, vectors FROM points WHERE key > ? ORDER BY key"
        new = np.array(connection.execute(query, (last,)).fetchall(), np.int64).reshape(-1, 2)
        if not len(new):
            return self
        return Spans(np.concatenate([self.keys, new[:, 0]]), np.concatenate([self.counts, new[:, 1]]))

    def counts_of(self, keys_P: np.ndarray) -> np.ndarray:
        """The number of vectors of each of some records, all of which there are."""
        return self.counts[np.searchsorted(self.keys, keys_P)]

    def vector_keys(self, keys_P: np.ndarray) -> np.ndarray:
        """The keys of all vectors of some records, in their order, int64 (n,)."""
        return expanded(keys_P, self.counts_of(keys_P))

    def owners(self, keys_n: np.ndarray) -> np.ndarray:
        """The keys of the records that vectors are of."""
        return self.keys[np.searchsorted(self.keys, keys_n, "right") - 1]


def expanded(first_P: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
    """The numbers from each of `first_P` on, so many of each, int64 (n,)."""
    ends_P = np.cumsum(counts_P)
    return np.arange(int(counts_P.sum())) + np.repeat(first_P - ends_P + counts_P, counts_P)
