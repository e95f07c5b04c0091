"""The look-up decoder: a vector is the sum of one table row for each code, added to its list's centroid.

Inverted lists are scanned with it (QINCo2 paper, section 4). Shape suffixes: N vectors, n vectors of a block,
D dimension, M codes of a vector, K codewords, V lists.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qinco.errors import DataError
from qinco.machine import num_threads
from qinco.maths.leastsquares import fit_additive_tables
from qinco.native.tables import decode_rows
from qinco.packing import check_codes, check_lists


class TableDecoder:
    """What decoders share that add rows of tables (M, K, D), one for each code, to centroids (V, D) or to nothing."""

    tables_MKD: np.ndarray
    centroids_VD: np.ndarray | None

    @property
    def num_codes(self) -> int:
        return self.tables_MKD.shape[0]

    @property
    def codebook_size(self) -> int:
        return self.tables_MKD.shape[1]

    @property
    def dim(self) -> int:
        return self.tables_MKD.shape[2]

    @property
    def num_lists(self) -> int:
        """V; 0 without lists."""
        return 0 if self.centroids_VD is None else len(self.centroids_VD)

    def decode(self, codes: np.ndarray, lists: np.ndarray | None = None) -> np.ndarray:
        """Decode codes (N, M), and list numbers (N,) where there are lists, to float32 (N, D)."""
        return self._decode(*self._checked(codes, lists))

    def _checked(self, codes, lists) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes (N, M), and list numbers (N,) where there are lists; raises DataError for any others."""
        if isinstance(codes, tuple) and lists is None:  # of an IVF codec
            codes, lists = codes
        lists = getattr(codes, "lists", None) if lists is None else lists
        codes = check_codes(codes, self.num_codes, self.codebook_size)
        if codes.shape[1] != self.num_codes:
            raise DataError(f"codes must be whole, of the shape (N, {self.num_codes}), not {codes.shape}")
        if not self.num_lists:
            return codes, None
        if lists is None:
            raise DataError("list numbers are missing: the decoder was fitted to codes with lists, give lists")
        return codes, check_lists(lists, len(codes), self.num_lists)

    def _decode(self, codes: np.ndarray, lists: np.ndarray | None) -> np.ndarray:
        codes_NM, threads = np.ascontiguousarray(codes, np.int32), num_threads()
        decoded_ND = decode_rows(self._tables_TD, codes_NM, self.codebook_size, threads=threads)
        if self._origins_VD is not None and lists is not None:
            lists_N1 = np.ascontiguousarray(lists[:, None], np.int32)
            decode_rows(self._origins_VD, lists_N1, self.num_lists, threads=threads, add_to=decoded_ND)
        return decoded_ND

    @cached_property
    def _tables_TD(self) -> np.ndarray:
        return np.require(self.tables_MKD, np.float32, "C").reshape(-1, self.dim)

    @cached_property
    def _origins_VD(self) -> np.ndarray | None:
        return None if self.centroids_VD is None else np.require(self.centroids_VD, np.float32, "C")


@dataclass(frozen=True, eq=False)
class LookupDecoder(TableDecoder):
    """Additive tables, in data space. `qinco.fit_lookup_decoder` fits them to vectors and codes of any form.

    Attributes:
        tables_MKD: float32 (M, K, D).
        centroids_VD: float32 (V, D), what the tables are added to; None where there are no lists.
    """

    tables_MKD: np.ndarray
    centroids_VD: np.ndarray | None = None

    @classmethod
    def fit(
        cls, blocks: Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray]], num_codes: int, codebook_size: int,
        centroids_VD: np.ndarray | None = None, *, ridge: float = 1.0,
    ) -> "LookupDecoder":  # fmt: skip
        """Fit the tables with the least squared error on vectors that come in blocks, which are read once.

        Any number of vectors will do; codewords that none uses hold their table's share of the mean.

        Args:
            blocks: (codes (n, M) of integers below K, list numbers (n,) or None, vectors float32 (n, D)).
            num_codes, codebook_size: M and K.
            centroids_VD: of the lists; None where there are none.
            ridge: see `fit_additive_tables`.
        """
        empty = cls(np.empty((num_codes, codebook_size, 0), np.float32), centroids_VD)
        tables_MKD = fit_additive_tables(empty._targets(blocks), num_codes, codebook_size, ridge=ridge)
        if not np.isfinite(tables_MKD).all():
            raise DataError("the vectors to fit the look-up tables to hold values that are not finite or too large")
        return cls(tables_MKD, centroids_VD)

    def _targets(self, blocks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Checked codes, and what the tables must add up to; raises DataError at the end if there were no vectors."""
        num_vectors = 0
        for codes, lists, x_nD in blocks:
            codes, lists = self._checked(codes, lists)
            if x_nD.shape[0] != len(codes):
                raise DataError(f"there must be as many codes as vectors, {x_nD.shape[0]}, not {len(codes)}")
            num_vectors += len(codes)
            yield codes, x_nD if lists is None or self.centroids_VD is None else x_nD - self.centroids_VD[lists]
        if not num_vectors:
            raise DataError("there are no vectors to fit the look-up tables to")
