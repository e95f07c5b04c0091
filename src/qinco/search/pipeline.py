"""The search pipeline (QINCo2 paper, section 4): scan of the lists, then stages that decode and re-rank a shortlist."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qinco.codec.codec import Codec
from qinco.config import PRECISIONS, RANKINGS, require_choice
from qinco.engines.native_engine import NativeCoder
from qinco.errors import DataError, ResourceError
from qinco.machine import free_memory
from qinco.maths.devices import CPU, to_device
from qinco.search.metric import L2, Metric
from qinco.search.options import SearchOptions
from qinco.search.ranking import Ranking, Score
from qinco.search.refine import Originals
from qinco.search.scan import Shortlist
from qinco.search.tables import SearchTables
from qinco.search.walk import walk, walked_values
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_VALUES = 1 << 19  # of reconstructions that are compared at a time: they stay in the cache
_DEVICE_BLOCK_VALUES = 1 << 25  # a device needs more of them to be busy
BATCH_BYTES = 1 << 25  # of a batch's shortlists
_LARGE_BYTES = 1 << 28
_SPARE = 2  # times as many vectors as are wanted, where another order chooses from them
STAGE_TIMINGS = ("search", "pairwise", "decode", "rerank")


class Decoder(Protocol):
    """Decodes codes (n, M) in lists (n,) to float32 (n, D): an array, or a tensor that is compared on its device."""

    def decode(self, codes: np.ndarray, lists: np.ndarray) -> "np.ndarray | Tensor": ...


@dataclass(frozen=True)
class Stage:
    """Decode a shortlist and keep the vectors nearest to the query; `timings` name the seconds of each.

    Without a score, near is what decodes to something near. With a margin only those vectors are decoded that may be
    kept, if values are smaller than the shortlist's by no more than that.
    """

    decoder: Decoder
    keep: int
    timings: tuple[str, str]
    score: Score | None = None
    margin: float | None = None


def plan_stages(
    options: SearchOptions, k: int, pairwise: Decoder | None = None, neural: Decoder | None = None,
    tables: SearchTables | None = None, ranking: str = "calibrated",
) -> tuple[int, list[Stage]]:  # fmt: skip
    """The length of the first shortlist of a search for k results, and its stages."""
    require_choice("ranking", ranking, RANKINGS)
    fitted, has_scores = None if tables is None else tables.ranking, ranking == "calibrated"
    scores = (fitted.pairwise, fitted.neural) if fitted is not None and has_scores else (None, None)
    stages, wanted = [], k  # planned from the last to the first: each must pass on what the next one wants
    has_pairwise = pairwise is not None and options.num_mid != 0
    if neural is not None and options.num_short:
        walks = scores[1] is not None and not getattr(neural, "on_device", False)  # a device decodes many at a time
        margin = None
        if fitted is not None and walks:
            margin = fitted.pairwise_margin if has_pairwise else fitted.margin
        stages, wanted = [Stage(neural, wanted, ("decode", "rerank"), scores[1], margin)], max(options.num_short, k)
    if pairwise is not None and has_pairwise:
        stages.insert(0, Stage(pairwise, wanted, ("pairwise", "pairwise"), scores[0]))
        wanted = max(options.num_mid or 4 * wanted, wanted)
    if not stages and tables is not None and fitted is not None and not has_scores:  # the scan's are calibrated
        stages, wanted = [Stage(tables.lookup, wanted, ("rerank", "rerank"))], _SPARE * wanted
    return wanted, stages


@dataclass
class Pipeline:
    """A scan of inverted lists and the stages that re-rank what it finds.

    Attributes:
        scan: gives the nearest vectors by the look-up tables: (queries (Q, D), length) → Shortlist.
        length: vectors in each query's shortlist.
        stages, metric: in order; of the scan and of all stages.
        tables: of an index whose ranking is calibrated.
        zeros: ids of vectors that are zero, int64; for "cosine".
        originals, num_refine: what ranks the first results in the end, and how many, if any.
        rank: does elsewhere what `ranked` does, given the pipeline and the same arguments.
        seconds: spent so far, by the stages' timings.
    """

    scan: Callable[[np.ndarray, int], Shortlist]
    length: int
    stages: Sequence[Stage] = ()
    metric: Metric = L2
    tables: SearchTables | None = None
    zeros: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    originals: Originals | None = None
    num_refine: int = 0
    rank: "Callable[[Pipeline, np.ndarray, Shortlist], Shortlist] | None" = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float, dict.fromkeys(STAGE_TIMINGS, 0.0)))

    @np.errstate(over="ignore", invalid="ignore")  # nothing is near a query of very large values
    def run(self, queries_QD: np.ndarray, k: int) -> tuple[Shortlist, Shortlist]:
        """The k nearest of prepared float32 queries, and the shortlist of the scan."""
        begun, given_QD = time.perf_counter(), queries_QD
        queries_QD, factors_Q1 = scaled_queries(queries_QD, self.metric, self._ranking is not None)
        shortlist, score = self.scan(queries_QD, self.length), None if self._ranking is None else self._ranking.lookup
        values_QS = self._defined(queries_QD, shortlist, shortlist.values, score)
        if values_QS is not shortlist.values:
            shortlist = shortlist.ranked(values_QS, values_QS.shape[1])
        self.seconds["search"] += time.perf_counter() - begun
        best = self.ranked(queries_QD, shortlist) if self.rank is None else self.rank(self, queries_QD, shortlist)
        score = self.stages[-1].score if self.stages else score
        if self.originals is not None:
            begun = time.perf_counter()
            best = self.originals.ranked(self.metric, given_QD, best.first(min(self.num_refine, best.ids.shape[1])), k)
            self.seconds["refine"] += time.perf_counter() - begun
            return best.first(k), shortlist
        best = best.first(k)
        values_QR = best.values
        if score is not None:
            values_QR = estimated(self.metric, score, values_QR, self._is_zero(queries_QD, best))
        return best.valued(values_QR if factors_Q1 is None else scaled(values_QR, factors_Q1)), shortlist

    def ranked(self, queries_QD: np.ndarray, shortlist: Shortlist) -> Shortlist:
        """What the stages make of the shortlist of scaled queries."""
        for stage in self.stages:
            shortlist = self._rerank(stage, queries_QD, shortlist)
        return shortlist

    @property
    def _ranking(self) -> Ranking | None:
        return None if self.tables is None else self.tables.ranking

    def _defined(
        self, queries_QD: np.ndarray, shortlist: Shortlist, values_QS: np.ndarray, score: Score | None = None
    ) -> np.ndarray:
        """Values that are those of similarity 0 where, for "cosine", the query or the vector is zero."""
        if self.metric.name != "cosine":
            return values_QS
        is_zero_QS = self._is_zero(queries_QD, shortlist)
        if not is_zero_QS.any():
            return values_QS
        zero = np.float32(2 * self.metric.unit_length**2)
        zero = zero if score is None else zero - np.float32(score.offset)
        return np.where(is_zero_QS & (shortlist.lists >= 0), zero, values_QS)

    def _is_zero(self, queries_QD: np.ndarray, shortlist: Shortlist) -> np.ndarray:
        """Where for "cosine" the query or the vector is zero, bool (Q, S) or (Q, 1)."""
        if self.metric.name != "cosine":
            return np.zeros((1, 1), bool)
        is_zero_QS = np.asarray(~queries_QD.any(1, keepdims=True))
        return np.logical_or(is_zero_QS, np.isin(shortlist.ids, self.zeros)) if len(self.zeros) else is_zero_QS

    def _rerank(self, stage: Stage, queries_QD: np.ndarray, shortlist: Shortlist) -> Shortlist:
        values_QS = self._walked(stage, queries_QD, shortlist)
        if values_QS is None:
            values_QS = self._valued(stage, queries_QD, shortlist)
        before = time.perf_counter()
        ranked = shortlist.ranked(values_QS, stage.keep)
        self.seconds[stage.timings[1]] += time.perf_counter() - before
        return ranked

    def _walked(self, stage: Stage, queries_QD: np.ndarray, shortlist: Shortlist) -> np.ndarray | None:
        """`_valued` by the compiled engine alone; None where it cannot."""
        decoder = stage.decoder
        if not isinstance(decoder, NeuralDecoder) or self.tables is None or stage.score is None:
            return None
        if self.metric.name == "cosine" and (len(self.zeros) or not queries_QD.any(1).all()):
            return None
        if (coder := decoder.native()) is None:
            return None
        decoder.check(shortlist.codes)
        found = walked_values(coder, self.tables, stage.score, queries_QD, shortlist, stage.keep, stage.margin)
        if found is None:
            return None
        for timing, seconds in zip(stage.timings, found[1].tolist(), strict=True):
            self.seconds[timing] += seconds
        return found[0]

    def _valued(self, stage: Stage, queries_QD: np.ndarray, shortlist: Shortlist) -> np.ndarray:
        """The values of shortlists' vectors by a stage, float32 (Q, S); +inf of those that are not decoded."""
        values_QS = np.full(shortlist.values.shape, np.inf, np.float32)
        for rows_N in walk(shortlist, values_QS, stage.keep, stage.margin):
            self._value(stage, queries_QD, shortlist, rows_N, values_QS.reshape(-1))
            before = time.perf_counter()
            values_QS[:] = self._defined(queries_QD, shortlist, values_QS, stage.score)
            self.seconds[stage.timings[1]] += time.perf_counter() - before
        return values_QS

    def _value(self, stage: Stage, queries_QD, shortlist: Shortlist, rows_N: np.ndarray, values_N: np.ndarray) -> None:
        """Put the values of some vectors of the flattened shortlists in their places."""
        width = shortlist.lists.shape[1]
        codes_NM, lists_N = shortlist.codes.reshape(-1, shortlist.codes.shape[2]), shortlist.lists.ravel()
        on_device = getattr(stage.decoder, "on_device", False)
        size = max(1, (_DEVICE_BLOCK_VALUES if on_device else _BLOCK_VALUES) // queries_QD.shape[1])
        norm_codes_N = shortlist.norm_codes.ravel()
        decoding, ranking = stage.timings
        for start in range(0, len(rows_N), size):
            part = rows_N[start : start + size]
            before = time.perf_counter()
            decoded_ND = stage.decoder.decode(codes_NM[part], lists_N[part])
            between = time.perf_counter()
            given = _queries_of(decoded_ND, queries_QD, part // width), decoded_ND
            if self.tables is None or stage.score is None:
                values_N[part] = self.metric.values(*given)
            else:
                known = self.tables.corrections(codes_NM[part], norm_codes_N[part], lists_N[part], decoded_ND)
                values_N[part] = self.tables.values(stage.score, *given, known)
            self.seconds[decoding] += between - before
            self.seconds[ranking] += time.perf_counter() - between


class NeuralDecoder:
    """Decodes by a codec's network, to arrays, or to tensors that it `keeps` on another device than the processor."""

    def __init__(self, codec: Codec, precision: str = "auto", keeps: bool = True):
        require_choice("precision", precision, PRECISIONS)  # before a search
        self.codec, self.precision = codec, precision
        self.on_device = keeps and codec.device != CPU

    def check(self, codes: np.ndarray) -> None:
        """Raise DataError for codes that the codec lacks: mapped ones are not checked when an index is opened."""
        size = self.codec.config.codebook_size
        if size < 1 << 8 * codes.itemsize and codes.max(initial=0) >= size:
            raise DataError(f"the index is damaged: it holds the code {codes.max()}, the codec's are below {size}")

    def native(self) -> NativeCoder | None:
        """The codec as the compiled engine has packed it, if that decodes its codes by itself."""
        packings = [] if self.on_device else self.codec.packings(self.precision)
        return packings[0] if len(packings) == 1 and isinstance(packings[0], NativeCoder) else None

    def decode(self, codes: np.ndarray, lists: np.ndarray) -> "np.ndarray | Tensor":
        self.check(codes)
        found = Codes(codes, lists if self.codec.is_ivf else None)
        blocks = self.codec.decode_tensors if self.on_device else self.codec.decode_blocks
        decoded: list = [block for _, block in blocks(found, self.precision)]
        if len(decoded) <= 1:
            return decoded[0] if decoded else np.empty((0, self.codec.dim), np.float32)
        if not self.on_device:
            return np.concatenate(decoded)
        import torch

        return torch.cat(decoded)


def search_queries(
    pipeline: Pipeline, source: VectorSource, k: int, nprobe: int, num_codes: int, batch_bytes: int = BATCH_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Run queries through a pipeline, in batches of bounded memory; what `Index.search` returns."""
    size = k * (12 * len(source) + 4 * (num_codes + 16))  # with the work of one query
    if size > _LARGE_BYTES and size > free_memory():
        raise ResourceError(f"results of shape ({len(source)}, {k}) do not fit in memory: give a smaller k")
    distances_QR, ids_QR = np.empty((len(source), k), np.float32), np.empty((len(source), k), np.int64)
    bytes_each = max(pipeline.length, k) * (num_codes + 16) + 16 * nprobe
    for start, queries_QD in source.blocks(max(1, min(1 << 20, batch_bytes // bytes_each))):
        part = slice(start, start + len(queries_QD))
        best, _ = pipeline.run(pipeline.metric.prepare(queries_QD), k)
        distances_QR[part], ids_QR[part] = pipeline.metric.distances(best.values), best.ids
    return distances_QR, ids_QR


def estimated(metric: Metric, score: Score, values: np.ndarray, is_zero: np.ndarray) -> np.ndarray:
    """What calibrated values say of the true ones: similarity 0 under "cosine" where a query or a vector is zero."""
    values = score.estimates(values)
    if metric.scans_inner_products:
        return values
    values = np.maximum(values, 0)
    if metric.name != "cosine":
        return values
    return np.where(is_zero & (values < np.inf), np.float32(2 * metric.unit_length**2), values)


def scaled_queries(queries_QD: np.ndarray, metric: Metric, is_ranked: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Queries as they are compared, and the factors, float32 (Q, 1), that their values are multiplied by, or None.

    Calibrated inner products are those of queries of length 1.
    """
    if is_ranked and metric.scans_inner_products:
        lengths_Q1 = np.linalg.norm(queries_QD.astype(np.float64), axis=1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            return (queries_QD / np.where(lengths_Q1 > 0, lengths_Q1, 1)).astype(np.float32), lengths_Q1
    scale_Q1 = metric.scale(queries_QD)
    return (queries_QD, None) if scale_Q1 is None else (queries_QD * scale_Q1, 1 / scale_Q1)


def scaled(values_QR: np.ndarray, factors_Q1: np.ndarray) -> np.ndarray:
    """Values times the factors of their queries; +inf stays for what was not found."""
    return np.where(values_QR == np.inf, values_QR, values_QR * factors_Q1).astype(np.float32)


def _queries_of(decoded_ND, queries_QD: np.ndarray, rows_N: np.ndarray) -> "np.ndarray | Tensor":
    if isinstance(decoded_ND, np.ndarray):
        return queries_QD[rows_N]
    return to_device(queries_QD, decoded_ND.device)[to_device(rows_N, decoded_ND.device)]
