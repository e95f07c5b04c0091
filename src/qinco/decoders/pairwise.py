"""The pairwise decoder: beside a table row for each code, one for each of some pairs of codes (arXiv 2501.03078, 4.2).

A vector has M + I streams of numbers below K: its M codes, then I for its list, which are the codes of its centroid in
a residual quantizer. A pair of streams has a table of K² rows, of which a vector takes the one of its joint code.

Shape suffixes: N vectors, n vectors of a block, D dimension, M codes of a vector, K codewords, V lists, I streams of a
list, S = M + I streams, P pairs, J = K² joint codes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from qinco.decoders.lookup import LookupDecoder, checked_codes
from qinco.decoders.pair_tables import fit_pair_tables
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.machine import free_memory
from qinco.maths.clustering import kmeans, nearest

LIST_STREAMS = 5
MOST_CODEWORDS = 256
PAIRS_PER_CODE = 2
_BLOCK_ROWS = 1024
_TORCH_TYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16}
_CLUSTERED_LISTS = 1 << 16


@dataclass(frozen=True, eq=False)
class PairwiseDecoder:
    """Tables of codes and of pairs of codes, in data space.

    tables_MKD:   float32 (M, K, D), one row for each code
    pairs_P2:     int64 (P, 2), the two streams of each pair
    tables_PJD:   float32 or float16 (P, K², D), in units of `scale`; the joint code of codes a, b is a · K + b
    scale:        what the rows of tables_PJD are multiplied by, which keeps float16 in its range
    list_codes_VI: uint8 (V, I), the streams of each list; None where there are no lists
    centroids_VD: float32 (V, D), what the tables are added to; None: `decode` yields what is to be added to them
    """

    tables_MKD: np.ndarray
    pairs_P2: np.ndarray
    tables_PJD: np.ndarray
    scale: float = 1.0
    list_codes_VI: np.ndarray | None = None
    centroids_VD: np.ndarray | None = None

    @classmethod
    def fit(
        cls,
        codes: np.ndarray,
        lists: np.ndarray | None,
        x: np.ndarray,
        lookup: LookupDecoder,
        *,
        num_pairs: int | None = None,
        dtype: type = np.float32,
        seed: int = 0,
        on_round: Callable[[int, int, float], None] = lambda done, rounds, mse: None,
    ) -> "PairwiseDecoder":
        """A decoder of codes (N, M), their lists (N,) and vectors float32 (N, D) that starts from look-up tables.

        A part of the vectors is held out of the fit. Each round adds the pair that lowers their error most; pairs that
        do not are left out, so that on vectors of the same kind the decoder is no worse than the look-up tables. The
        decoded vectors of a neural codec are better to fit to than the vectors that it encoded: they are what codes
        say, without the noise of what codes do not say.

        num_pairs: at most so many; 2 M unless it is given
        dtype: of the pairs' tables, float32 or float16
        on_round: hears how many tables are fitted, of how many, and the mean squared error of the held-out vectors

        Raises ConfigError where K is above 256, DataError where codes, lists and vectors do not belong together,
        ResourceError where there is too little memory.
        """
        check_codebook_size(lookup.codebook_size)
        codes, lists = checked_codes(codes, lists, lookup.code_size, lookup.codebook_size, lookup.num_lists)
        if x.shape != (len(codes), lookup.dim):
            raise DataError(f"there are {len(codes)} codes of dimension {lookup.dim} for vectors of shape {x.shape}")
        num_pairs = PAIRS_PER_CODE * lookup.code_size if num_pairs is None else num_pairs
        _check_memory(fit_bytes(len(codes), num_pairs, lookup.codebook_size, lookup.dim, dtype))
        streams_NS, words_SKD, list_codes_VI = codes, np.array(lookup.tables_MKD), None
        if lookup.num_lists:
            list_codes_VI, books_IKD = quantize_lists(lookup.centroids_VD, lookup.codebook_size, seed)
            streams_NS = np.concatenate([codes, list_codes_VI[lists]], 1)
            words_SKD = np.concatenate([words_SKD, books_IKD])
        left_ND = lookup.decode(codes, lists)
        np.subtract(x, left_ND, out=left_ND, casting="same_kind")
        pairs_P2, tables_PJD, scale = fit_pair_tables(
            streams_NS, words_SKD, left_ND,
            num_pairs=num_pairs, dtype=_TORCH_TYPES[np.dtype(dtype)], seed=seed, on_round=on_round,
        )  # fmt: skip
        return cls(lookup.tables_MKD, pairs_P2, tables_PJD, scale, list_codes_VI, lookup.centroids_VD)

    @property
    def code_size(self) -> int:
        return self.tables_MKD.shape[0]

    @property
    def codebook_size(self) -> int:
        return self.tables_MKD.shape[1]

    @property
    def dim(self) -> int:
        return self.tables_MKD.shape[2]

    @property
    def num_lists(self) -> int:
        return 0 if self.list_codes_VI is None else len(self.list_codes_VI)

    @property
    def num_pairs(self) -> int:
        return len(self.pairs_P2)

    def decode(self, codes: np.ndarray, lists: np.ndarray | None = None) -> np.ndarray:
        """Vectors, float32 (N, D), of codes (N, M) and, where there are lists, list numbers (N,).

        Raises DataError for codes or lists out of range.
        """
        codes, lists = checked_codes(codes, lists, self.code_size, self.codebook_size, self.num_lists)
        decoded_ND = self._lookup.decode(codes, lists)
        for first in range(0, len(codes) if self.num_pairs else 0, _BLOCK_ROWS):
            rows = slice(first, first + _BLOCK_ROWS)
            joint_nP = self._joint_rows(codes[rows], None if lists is None else lists[rows])
            sums_nD = embedding_bag(joint_nP, self._pair_rows, mode="sum")
            decoded_ND[rows] += sums_nD.float().mul_(self.scale).numpy()
        return decoded_ND

    def _joint_rows(self, codes_nM: np.ndarray, lists_n: np.ndarray | None) -> Tensor:
        """Joint codes as rows of the pairs' tables laid one after the other: int32 (n, P)."""
        streams_nS = codes_nM.astype(np.int32)
        if lists_n is not None:
            streams_nS = np.concatenate([streams_nS, self.list_codes_VI[lists_n]], 1, dtype=np.int32)
        size = np.int32(self.codebook_size)
        joint_nP = streams_nS[:, self.pairs_P2[:, 0]] * size
        joint_nP += streams_nS[:, self.pairs_P2[:, 1]]
        joint_nP += np.arange(self.num_pairs, dtype=np.int32) * size**2
        return torch.from_numpy(joint_nP)

    @cached_property
    def _lookup(self) -> LookupDecoder:
        return LookupDecoder(self.tables_MKD, self.centroids_VD)

    @cached_property
    def _pair_rows(self) -> Tensor:
        return torch.from_numpy(np.require(self.tables_PJD, requirements="CW")).flatten(0, 1)


def table_bytes(num_pairs: int, codebook_size: int, dim: int, dtype: type = np.float32) -> int:
    """Size of the pairs' tables, in memory and on disk."""
    return num_pairs * codebook_size**2 * dim * np.dtype(dtype).itemsize


def fit_bytes(num_vectors: int, num_pairs: int, codebook_size: int, dim: int, dtype: type = np.float32) -> int:
    """Memory that fitting takes beyond codes and vectors: the tables, what look-up leaves, and a few tables' sums."""
    return table_bytes(num_pairs, codebook_size, dim, dtype) + 4 * dim * (3 * num_vectors + 6 * codebook_size**2)


def check_codebook_size(codebook_size: int) -> None:
    """Raise ConfigError for codes that the decoder is not for."""
    if codebook_size > MOST_CODEWORDS:
        raise ConfigError(
            f"a pairwise decoder needs a table of K² rows for each pair of codes, {codebook_size**2:,} for "
            f"K={codebook_size}: it is for K up to {MOST_CODEWORDS}, use the look-up decoder"
        )


def quantize_lists(centroids_VD: np.ndarray, codebook_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the centroids in a residual quantizer of their own, uint8 (V, I), and its codebooks, float32 (I, K, D).

    Any number of lists will do: the first codebook holds all centroids where it can.
    """
    left_VD = centroids_VD - centroids_VD.mean(0, dtype=np.float64).astype(np.float32)
    unit = np.float32(np.abs(left_VD).max() or 1)  # squares of very large or small values leave float32's range
    left_VD /= unit
    some = np.random.default_rng(seed).permutation(len(left_VD))[:_CLUSTERED_LISTS]
    codes, books = [], []
    for stream in range(LIST_STREAMS):
        book_KD = kmeans(left_VD[some], codebook_size, seed=seed + stream, threads=torch.get_num_threads())
        codes_V = nearest(left_VD, book_KD, threads=torch.get_num_threads())
        left_VD -= book_KD[codes_V]
        codes.append(codes_V.astype(np.uint8))
        books.append(book_KD * unit)
    return np.stack(codes, 1), np.stack(books)


def _check_memory(needed: int) -> None:
    free = free_memory()
    if needed > free:
        raise ResourceError(
            f"fitting the pairwise decoder takes {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free: "
            "fit fewer pairs (n_pairwise_codebooks=), tables in float16, or to fewer vectors"
        )
