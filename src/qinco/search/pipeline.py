"""The search pipeline: shortlist by look-up tables, pairwise stage, neural re-rank (QINCo2, section 4).

Shape suffixes: Q queries, D dimension, M codes of a vector, S vectors of a shortlist, R results.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qinco.codec.codec import Codec
from qinco.errors import DataError
from qinco.maths.devices import to_device
from qinco.search.metric import L2, Metric
from qinco.search.options import SearchOptions
from qinco.search.scan import Shortlist
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource, as_source

_BLOCK_VALUES = 1 << 19  # of reconstructions that are compared at a time: they stay in the cache
_DEVICE_BLOCK_VALUES = 1 << 25  # a device needs more of them to be busy
STAGES = ("search", "pairwise", "decode", "rerank")

Decode = Callable[[np.ndarray, np.ndarray], np.ndarray | Tensor]


@dataclass
class Stages:
    """What a search is made of.

    shortlist: gives the vectors of least value by the look-up tables: (queries (Q, D), S, options) → Shortlist
    neural:    decodes codes (n, M) and lists (n,) to float32 (n, D); None: nothing decodes better than the tables
    pairwise:  the same, by pairs of codes; None: no such stage
    on_device: whether the network decodes on another device than the processor, and so to tensors, compared there
    seconds:   spent so far in each of STAGES
    """

    shortlist: Callable[[np.ndarray, int, SearchOptions], Shortlist]
    neural: Decode | None
    pairwise: Decode | None = None
    metric: Metric = L2
    on_device: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def run(self, queries_QD: np.ndarray, k: int, options: SearchOptions) -> tuple[Shortlist, Shortlist]:
        """The k nearest of prepared float32 queries, and the shortlist that they were chosen from.

        As many vectors are decoded by the network as `num_short` says, and k at least.
        """
        decoded = max(options.num_short, k) if options.num_short and self.neural else 0
        wanted = max(decoded, k)
        has_middle = self.pairwise is not None and options.num_mid != 0
        begun = time.perf_counter()
        length = max(options.num_mid or 4 * wanted, wanted) if has_middle else wanted
        first = self.shortlist(queries_QD, length, options)
        self.seconds["search"] += time.perf_counter() - begun
        best = first
        if has_middle:
            best = self._decode_and_rank(self.pairwise, queries_QD, first, wanted, "pairwise", "pairwise")
        if decoded:
            best = self._decode_and_rank(self.neural, queries_QD, best, k, "decode", "rerank")
        return take(best, k), first

    def _decode_and_rank(
        self, decode: Decode, queries_QD: np.ndarray, shortlist: Shortlist, keep: int, decoding: str, ranking: str
    ) -> Shortlist:
        """The `keep` nearest of a shortlist by the values of what `decode` makes of their codes."""
        places_N = np.flatnonzero(shortlist.lists.ravel() >= 0)
        width = shortlist.lists.shape[1]
        codes_NM, lists_N = shortlist.codes.reshape(-1, shortlist.codes.shape[2]), shortlist.lists.ravel()
        values_N = np.full(lists_N.shape, np.inf, np.float32)
        size = max(1, (_DEVICE_BLOCK_VALUES if self.on_device else _BLOCK_VALUES) // queries_QD.shape[1])
        for start in range(0, len(places_N), size):
            part = places_N[start : start + size]
            before = time.perf_counter()
            decoded_ND = decode(codes_NM[part], lists_N[part])
            between = time.perf_counter()
            values_N[part] = self.metric.values(_beside(decoded_ND, queries_QD, part // width), decoded_ND)
            self.seconds[decoding] += between - before
            self.seconds[ranking] += time.perf_counter() - between
        before = time.perf_counter()
        ranked = _ranked(shortlist, values_N.reshape(shortlist.values.shape), keep)
        self.seconds[ranking] += time.perf_counter() - before
        return ranked


def network_decoder(codec: Codec, precision: str) -> tuple[Decode, bool]:
    """What decodes by a codec's network, for `Stages`, and whether it does so on another device than the processor."""
    size = codec.config.codebook_size
    on_device = codec.device.type != "cpu"
    blocks = codec.decode_tensors if on_device else codec.decode_blocks

    def decode(codes_NM: np.ndarray, lists_N: np.ndarray) -> np.ndarray | Tensor:
        if codes_NM.max(initial=0) >= size:  # codes that are mapped are believed until they are met
            raise DataError(f"the index is damaged: it holds the code {codes_NM.max()}, the codec's are below {size}")
        decoded = [block for _, block in blocks(Codes(codes_NM, lists_N if codec.is_ivf else None), precision)]
        if not decoded:
            return np.empty((0, codec.dim), np.float32)
        return torch.cat(decoded) if on_device else np.concatenate(decoded)

    return decode, on_device


def as_queries(queries) -> tuple[VectorSource, bool]:
    """Queries as `as_source` takes them or one query (D,) as a source, and whether they are one."""
    is_list = isinstance(queries, list | tuple)
    shape = np.shape(queries[:1]) if is_list else getattr(queries, "shape", ())
    if len(shape) != 1:
        return as_source(queries, "queries"), False
    return as_source([queries] if is_list else queries[None], "queries"), True


def take(shortlist: Shortlist, count: int) -> Shortlist:
    """The first `count` vectors of each query, with empty places where there are fewer."""
    missing = count - shortlist.values.shape[1]
    if missing <= 0:
        return Shortlist(*(array[:, :count] for array in _columns(shortlist)), shortlist.scanned)
    fillings = (np.inf, -1, -1, 0)
    padded = (
        np.pad(array, ((0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)), constant_values=value)
        for array, value in zip(_columns(shortlist), fillings, strict=True)
    )
    return Shortlist(*padded, shortlist.scanned)


def _beside(decoded_ND: np.ndarray | Tensor, queries_QD: np.ndarray, rows_N: np.ndarray) -> np.ndarray | Tensor:
    """The query of each decoded vector, on its device."""
    if isinstance(decoded_ND, np.ndarray):
        return queries_QD[rows_N]
    return to_device(queries_QD, decoded_ND.device)[to_device(rows_N, decoded_ND.device)]


def _ranked(shortlist: Shortlist, values_QS: np.ndarray, keep: int) -> Shortlist:
    """The shortlist in the order of other values, cut; of equal ones the first stays first."""
    order_QS = np.argsort(values_QS, axis=1, kind="stable")[:, :keep]
    rows_Q1 = np.arange(len(values_QS))[:, None]
    _, *others = _columns(shortlist)
    return Shortlist(values_QS[rows_Q1, order_QS], *(array[rows_Q1, order_QS] for array in others), shortlist.scanned)


def _columns(shortlist: Shortlist) -> tuple[np.ndarray, ...]:
    return shortlist.values, shortlist.ids, shortlist.lists, shortlist.codes
