"""The pairwise decoder: a table row for each code, and one for each of some pairs of codes (QINCo2 paper, section 4.2).

A vector has M + I streams of numbers below K: its M codes, then the I codes of its list's centroid in a residual
quantizer. A pair of streams has a table of K² rows, of which a vector takes the one of its joint code.

Shape suffixes: N vectors, n vectors of a block, D dimension, M codes of a vector, K codewords, V lists, I streams of a
list, W = M + I streams, P pairs, J = K² joint codes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qinco.decoders.lookup import LookupDecoder, TableDecoder
from qinco.decoders.pair_tables import fit_pair_tables
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.machine import free_memory, num_threads
from qinco.maths.clustering import kmeans, nearest
from qinco.native.tables import decode_rows
from qinco.progress import ProgressOption, reporting

LIST_STREAMS = 5
MAX_CODEWORDS = 256
PAIRS_PER_CODE = 2
_CLUSTERED_LISTS = 1 << 16


@dataclass(frozen=True, eq=False)
class PairwiseDecoder(TableDecoder):
    """Tables of codes and of pairs of codes, in data space. `qinco.fit_pairwise_decoder` fits them to files.

    Attributes:
        tables_MKD: float32 (M, K, D), one row for each code.
        pairs_P2: int64 (P, 2), the two streams of each pair.
        tables_PJD: float32 or float16 (P, K², D), in units of `scale`; the joint code of codes a, b is a · K + b.
        scale: what the rows of tables_PJD are multiplied by, which keeps float16 in its range.
        list_codes_VI: uint8 (V, I), the streams of each list; None where there are no lists.
        centroids_VD: float32 (V, D), what the tables are added to; None: `decode` returns what is to be added to them.
    """

    tables_MKD: np.ndarray
    pairs_P2: np.ndarray
    tables_PJD: np.ndarray
    scale: float = 1.0
    list_codes_VI: np.ndarray | None = None
    centroids_VD: np.ndarray | None = None

    @classmethod
    def fit(
        cls, codes: np.ndarray, lists: np.ndarray | None, x: np.ndarray, lookup: LookupDecoder, *,
        num_pairs: int | None = None, dtype: type = np.float32, seed: int = 0, progress: ProgressOption = None,
    ) -> "PairwiseDecoder":  # fmt: skip
        """Fit pairs to what look-up tables leave of vectors.

        A part of the vectors is held out. Each round adds the pair that lowers their error most; pairs that do not are
        left out, so that on similar vectors the decoder is no worse than the look-up tables. Fit to the
        reconstructions of a neural codec rather than to the vectors: they lack the noise that codes cannot express.

        Args:
            codes: (N, M) integers.
            lists: (N,) list numbers; None for codes without lists.
            x: float32 (N, D).
            lookup: fitted to such codes.
            num_pairs: P at most; 2 M if None.
            dtype: of the pairs' tables, float32 or float16.
            seed: of the vectors held out.
            progress: see `qinco.progress`.
        """
        check_codebook_size(lookup.codebook_size)
        codes, lists = lookup._checked(codes, lists)
        if x.shape != (len(codes), lookup.dim):
            raise DataError(f"vectors must have the shape ({len(codes)}, {lookup.dim}) of decoded codes, not {x.shape}")
        num_pairs = PAIRS_PER_CODE * lookup.num_codes if num_pairs is None else num_pairs
        check_memory(len(codes), num_pairs, lookup.codebook_size, lookup.dim, dtype)
        streams_NW, words_WKD, list_codes_VI = codes, np.array(lookup.tables_MKD), None
        if lookup.centroids_VD is not None:
            list_codes_VI, books_IKD = quantize_lists(lookup.centroids_VD, lookup.codebook_size, seed)
            streams_NW = np.concatenate([codes, list_codes_VI[lists]], 1)
            words_WKD = np.concatenate([words_WKD, books_IKD])
        left_ND = lookup._decode(codes, lists)
        np.subtract(x, left_ND, out=left_ND, casting="same_kind")
        options = num_pairs, np.dtype(dtype), seed
        with reporting(progress) as report:
            pairs = fit_pair_tables(streams_NW, words_WKD, left_ND, *options, report)
        return cls(lookup.tables_MKD, *pairs, list_codes_VI, lookup.centroids_VD)

    @property
    def num_lists(self) -> int:
        return 0 if self.list_codes_VI is None else len(self.list_codes_VI)

    @property
    def num_pairs(self) -> int:
        return len(self.pairs_P2)

    def _decode(self, codes: np.ndarray, lists: np.ndarray | None) -> np.ndarray:
        decoded_ND, streams_NW = super()._decode(codes, lists), codes
        if lists is not None and self.list_codes_VI is not None:
            streams_NW = np.concatenate([codes, self.list_codes_VI[lists]], 1, dtype=np.int32, casting="unsafe")
        streams_NW = np.ascontiguousarray(streams_NW, np.int32)
        pairs = {"pairs_P2": self._pairs_P2, "scale": self.scale, "threads": num_threads(), "add_to": decoded_ND}
        return decode_rows(self._pair_rows_TD, streams_NW, self.codebook_size, **pairs)

    @cached_property
    def _pairs_P2(self) -> np.ndarray:
        lists_VI = np.empty((0, 0), np.uint8) if self.list_codes_VI is None else self.list_codes_VI
        num_streams = self.num_codes + lists_VI.shape[1]
        assert ((self.pairs_P2 >= 0) & (self.pairs_P2 < num_streams)).all() and (lists_VI < self.codebook_size).all()
        return np.ascontiguousarray(self.pairs_P2, np.int32)

    @cached_property
    def _pair_rows_TD(self) -> np.ndarray:
        return np.require(self.tables_PJD, requirements="C").reshape(-1, self.dim)


def check_memory(num_vectors: int, num_pairs: int, codebook_size: int, dim: int, dtype: type = np.float32) -> str:
    """What fitting takes beyond codes and vectors, in words; raises ResourceError where it is not free."""
    tables = num_pairs * codebook_size**2 * dim * np.dtype(dtype).itemsize
    work = 4 * dim * (3 * num_vectors + 6 * codebook_size**2)
    size = f"tables of {tables / 2**20:,.0f} MiB, and {work / 2**20:,.0f} MiB while they are fitted"
    free = free_memory()
    if tables + work > free:
        raise ResourceError(
            f"num_pairs={num_pairs} at {num_vectors:,} vectors takes {size}, and {free / 2**20:,.0f} MiB are free: "
            "fit fewer pairs (n_pairwise_codebooks=), tables in float16, or to fewer vectors"
        )
    return size


def check_codebook_size(codebook_size: int) -> None:
    if codebook_size > MAX_CODEWORDS:
        raise ConfigError(
            f"a pairwise decoder needs {codebook_size**2:,} table rows a pair for K={codebook_size}, and is for K to "
            f"{MAX_CODEWORDS}: use the look-up decoder"
        )


def quantize_lists(centroids_VD: np.ndarray, codebook_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the centroids in a residual quantizer of their own, uint8 (V, I), and its codebooks, float32 (I, K, D).

    Any number of lists will do: the first codebook holds all centroids where it can.
    """
    left_VD = centroids_VD - centroids_VD.mean(0, dtype=np.float64).astype(np.float32)
    unit = np.float32(np.abs(left_VD).max() or 1)  # squares of very large or small values leave float32's range
    left_VD /= unit
    some = np.random.default_rng(seed).permutation(len(left_VD))[:_CLUSTERED_LISTS]
    codes, books, threads = [], [], num_threads()
    for stream in range(LIST_STREAMS):
        book_KD = kmeans(left_VD[some], codebook_size, seed=seed + stream, threads=threads)
        codes_V = nearest(left_VD, book_KD, threads)
        left_VD -= book_KD[codes_V]
        codes.append(np.asarray(codes_V, np.uint8))
        books.append(book_KD * unit)
    return np.stack(codes, 1), np.stack(books)
