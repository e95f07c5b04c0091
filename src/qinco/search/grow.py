"""Indexes in memory: built of vectors, and extended. What an index has outgrown is fitted anew, as if built at once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from qinco.codec.codec import Codec
from qinco.config import require_bool, require_int
from qinco.decoders.pairwise import PAIRS_PER_CODE, PairwiseDecoder, check_memory
from qinco.errors import ConfigError, DataError
from qinco.progress import Progress
from qinco.search.build import (
    CLUSTER_ROWS_EACH,
    FIT_ROWS,
    MIN_ROWS_EACH,
    choose_num_lists,
    fit_tables,
    metric_of_codec,
    partition,
    prepared,
    zero_rows,
)  # fmt: skip
from qinco.search.calibrate import calibrated, corrections_of, mean_of, with_other_tables, with_spread
from qinco.search.fill import fill_lists
from qinco.search.ids import as_ids
from qinco.search.metric import Metric, choose_metric
from qinco.search.options import SearchOptions
from qinco.search.parts import MIN_RANKED, Fitted, IndexParts, merge_small
from qinco.search.sample import FitSample, assign_decoded, codes_of_codec, sample_rows
from qinco.search.scan import ENTRIES
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource, as_source, check_not_empty

log = logging.getLogger(__name__)
PAIRWISE_ROWS, _AGAIN_ROWS_EACH = 300_000, 64


def build_parts(
    codec: Codec, vectors, num_lists: int | None, ids, pairwise: bool, metric: str | None, seed: int, codes,
    report: Progress,
) -> IndexParts:  # fmt: skip
    """Encode vectors and build an index of them in memory: see `Index.build`."""
    if codec.config.codebook_size > ENTRIES:
        raise ConfigError(f"an index holds codes of one byte, and the codec has K={codec.config.codebook_size} "
                          f"codewords, not {ENTRIES} at most: use exhaustive_search")  # fmt: skip
    require_int("seed", seed, 0)
    require_bool("pairwise", pairwise)
    source = check_not_empty(as_source(vectors))
    codec.check_dim(source)
    if pairwise:
        size = PAIRS_PER_CODE * codec.num_codes, codec.config.codebook_size, codec.dim
        check_memory(min(len(source), PAIRWISE_ROWS), *size, np.float16)
    if codec.is_ivf and num_lists not in (None, codec.config.num_lists):
        raise ConfigError(f"num_lists={num_lists} is not the codec's {codec.config.num_lists}: leave num_lists out")
    if not codec.is_ivf:
        choose_num_lists(num_lists, len(source))
    ids = range(len(source)) if ids is None else as_ids(ids, len(source))
    measure = metric_of_codec(choose_metric(metric, vectors, compared=source), codec)
    with encoded(codec, source, measure, codes, report) as codes:
        fitted = Fitted(0, None if codec.is_ivf else 0, 0 if pairwise else None, num_lists, seed)
        vectors = prepared(source, measure), np.arange(len(source))
        parts = _fit(codec, None, codes, None, ids, measure, fitted, report, *vectors)
        ids = np.asarray(ids, np.int64)
        return parts.with_zeros(ids[zero_rows(source, measure)]).with_recent(ids, vectors[0])


@contextmanager
def encoded(codec: Codec, source: VectorSource, metric: Metric, codes, report: Progress) -> Iterator[Codes]:
    """Yield the codes of vectors, of which the first may be given; an interrupt carries those that there are."""
    if codes is None:
        codes = np.empty((0, codec.num_codes), np.uint8), np.empty(0, np.int32) if codec.is_ivf else None
        found = Codes(*codes)
    else:
        found = codec.check_codes(codes)
        if found.shape[1] != codec.num_codes:
            raise DataError(f"codes must be whole, {codec.num_codes} of each vector, not {found.shape[1]}")
    if len(found) > len(source):
        raise DataError(f"codes must be those of the first vectors, {len(source)} or fewer, not {len(found)}")
    try:
        if len(found) < len(source):
            rest = prepared(source.window(len(found), len(source)), metric)
            found = Codes.concatenate([found, codec.encode(rest, progress=report)])
        yield found
    except KeyboardInterrupt as stop:
        if codes := vars(stop).get("codes"):  # of the rest
            found = Codes.concatenate([found, codes])
        vars(stop)["codes"] = found
        stop.args = (
            f"{len(found):,} of {len(source):,} vectors are encoded, and their codes are in the exception: "
            "`except KeyboardInterrupt as stop: codes = stop.codes`, in Jupyter `import sys; codes = "
            "sys.last_value.codes`; call this again with codes=codes to go on",
        )
        raise


def extended(
    codec: Codec | None, parts: IndexParts, codes: Codes, corrections_N: np.ndarray | None, ids: np.ndarray,
    report: Progress, source: VectorSource | None = None,
) -> IndexParts:  # fmt: skip
    """An index with further vectors; what was fitted to a small part of them is fitted again, to all of them.

    That gives what building of its vectors gives, in the order of their ids. `source` has the new vectors, if there
    are any: the ranking is fitted to vectors themselves, of which an index keeps none.
    """
    if not len(ids):
        return parts
    next_id = max(parts.next_id, int(ids.max()) + 1)
    due = set() if codec is None else parts.fitted.outgrown(len(parts) + len(ids))
    if "lists" not in due and not codes.has_lists:
        codes = codes.with_lists(assign_decoded(codec, codes, parts.tables.centroids_VD, report))
    if codec is None or not due:
        lists = fill_lists(parts.tables, codes, ids, report, corrections=_rows_of(corrections_N))
        return replace(parts, segments=merge_small((*parts.segments, lists)), next_id=next_id)
    blocks = [block for segment in parts.segments for block in segment.blocks()]
    own = [Codes(block[0], block[2] if codes.has_lists else None, "the index") for block in blocks]
    ids = np.concatenate([*(block[3] for block in blocks), ids], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    if (ranking := parts.tables.ranking) is not None:
        if corrections_N is None:
            corrections_N = np.full(len(codes), ranking.typical, np.float32)
        own_N = [np.full(len(block[0]), ranking.typical, np.float32) for block in blocks]
        if ranking.lookup.correction:  # else norm codes do not tell them
            own_N = [parts.tables.corrections(*block[:3]) for block in blocks]
        corrections_N = np.concatenate([*own_N, corrections_N])[order]
    is_new_N, ids = order >= len(order) - len(codes), ids[order]
    rows_n = np.flatnonzero(is_new_N)
    source = None if source is None else source.take(order[is_new_N] - len(order) + len(codes))
    codes = Codes.concatenate([*own, codes])[order]
    codec.check_codes(codes_of_codec(codec, codes))  # mapped ones are not checked when an index is opened
    if parts.recent is not None and (source is None or len(source) < MIN_RANKED):
        source, rows_n = _with_recent(*parts.recent, ids, source, rows_n)
        if ranking is not None and corrections_N is not None:
            given = parts.tables.lookup, codes[rows_n], source, ranking.mean_D
            corrections_N[rows_n] = corrections_of(codec, *given, report)
    given = ids, parts.tables.metric, parts.fitted, report, source, rows_n
    fitted = _fit(codec, parts, codes, corrections_N, *given)
    if fitted.tables.num_lists != parts.tables.num_lists and parts.options != SearchOptions():
        now, before = fitted.tables.num_lists, parts.tables.num_lists
        log.warning("the index has %d lists now, not %d: its options were for those, tune it again", now, before)
    return replace(fitted, next_id=next_id)


def _with_recent(
    recent_ids: np.ndarray, recent_ND: np.ndarray, ids: np.ndarray, source: VectorSource | None, rows_n: np.ndarray
) -> tuple[VectorSource, np.ndarray]:
    """Vectors and their places in ascending `ids`: recent ones, and those of `source`, in the places `rows_n`."""
    rows_N, x_ND = np.searchsorted(ids, recent_ids), recent_ND
    if source is not None:
        rows_N, x_ND = np.concatenate([rows_N, rows_n]), np.concatenate([x_ND, source[:]])
    order = np.argsort(rows_N)
    return as_source(x_ND[order]), rows_N[order]


def _fit(
    codec: Codec, old: IndexParts | None, codes: Codes, corrections_N: np.ndarray | None, ids, metric: Metric,
    fitted: Fitted, report: Progress, source: VectorSource | None, rows_n: np.ndarray,
) -> IndexParts:  # fmt: skip
    """An index of all these codes, with what an index `old` has not outgrown; `source` has the vectors `rows_n`."""
    count, seed, size = len(codes), fitted.seed, codec.config.codebook_size
    due = fitted.outgrown(count)
    adds_centroids = codec.is_ivf or (old is not None and old.tables.partition_VD is None)
    centroids_VD = codec.coarse_centroids if codec.is_ivf else None if old is None else old.tables.centroids_VD
    if "lists" in due:
        num_lists = None if fitted.num_lists is None else min(fitted.num_lists, count)
        codes = codes.with_lists(None)
        each = CLUSTER_ROWS_EACH if old is None else _AGAIN_ROWS_EACH
        centroids_VD, lists_N = partition(codec, codes, choose_num_lists(num_lists, count), seed, report, each)
        codes = codes.with_lists(lists_N)

    def sample(most: int) -> FitSample:
        some = FitSample.decoded(codec, codes[sample_rows(count, most, seed)], codes.name)
        return some.with_any_codes(codec, centroids_VD if adds_centroids else None, seed)

    # Tables that are fitted to reconstructions suit vectors to come as well as these, however few these are.
    tables, pairwise, some = (None, None, None) if old is None else (old.tables, old.pairwise, None)
    if tables is None or due - {"pairwise"}:
        lookup, some = None if tables is None or "tables" in due else tables.lookup, sample(FIT_ROWS)
        tables = fit_tables(some, size, centroids_VD, metric, adds_centroids, report, lookup)
    if "pairwise" in due:
        pairs = sample(PAIRWISE_ROWS)
        data = pairs.codes.codes, pairs.codes.lists, pairs.read(np.arange(len(pairs.codes))), tables.lookup
        pairwise = PairwiseDecoder.fit(*data, dtype=np.float16, seed=seed, progress=report)
    ranking = None if old is None else old.tables.ranking
    if old is None and source is not None:
        corrections_N = corrections_of(codec, tables.lookup, codes, source, mean_of(codec, tables), report)
    elif old is not None and ranking is not None and corrections_N is not None:
        given = old.tables.lookup, tables.lookup, ranking.mean_D
        corrections_N = with_other_tables(corrections_N, codes, *given)
        if source is not None and tables.lookup is not old.tables.lookup:
            corrections_N[rows_n] = corrections_of(codec, tables.lookup, codes[rows_n], source, ranking.mean_D, report)
    if some is not None and corrections_N is not None:
        drawn_T = with_spread(corrections_N[sample_rows(count, FIT_ROWS, seed)], some.num_added, seed)
        # To as many vectors as ever, or to most of those there are.
        if source is not None and (ranking is None or len(rows_n) >= min(ranking.num_vectors + 1, count / 2)):
            mean_D = mean_of(codec, tables) if ranking is None else ranking.mean_D
            new = codes[rows_n], corrections_N[rows_n], source, mean_D, (some.codes, drawn_T)
            tables = calibrated(tables, codec, *new, seed, pairwise, report)
        else:
            tables = tables.ranked(ranking, some.codes.codes, some.codes.lists, drawn_T)
    least = {"tables": size * codec.num_codes, "lists": MIN_ROWS_EACH, "pairwise": size * codec.num_codes}
    fitted = replace(fitted, **{name: max(count, least[name]) for name in due})
    changed = {"tables": tables, "pairwise": pairwise, "fitted": fitted}
    segments = [fill_lists(tables, codes, ids, report, corrections=_rows_of(corrections_N))]
    return IndexParts(segments=segments, **changed) if old is None else replace(old, segments=segments, **changed)


def _rows_of(corrections_N: np.ndarray | None):
    """Gives the corrections of a block, for `fill_lists`."""
    return None if corrections_N is None else lambda first, block: corrections_N[first : first + len(block)]
