"""From vectors, or from codes that are there, to what an index consists of.

Shape suffixes: N vectors, D dimension, M codes of a vector, V lists.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import MAX_LISTS, require_int
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.maths.clustering import coarse_kmeans, nearest
from qinco.maths.devices import to_device
from qinco.search.lists import InvertedLists, ListsBuilder, id_dtype
from qinco.search.metric import Metric
from qinco.search.scan import ENTRIES
from qinco.search.tables import SearchTables
from qinco.vectors.rows import VectorSource

FIT_ROWS = 1_000_000  # that look-up tables are fitted to, at most
PAIRWISE_ROWS = 300_000
BLOCK_ROWS = 1 << 17
_CLUSTER_ROWS_EACH, _FEWEST_EACH = 256, 39
_OFFSET_PULL = np.float32(30)  # vectors of a list whose mean is believed by half

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody hears: of a stage, so many of so many vectors or rounds are done."""


def check_codec(codec) -> None:
    """Raise ConfigError for a codec whose codes do not fit in a byte each."""
    if not isinstance(codec, Codec):
        raise ConfigError(f"codec must be a Codec, not {type(codec).__name__}: see qinco.Codec.load")
    if codec.config.codebook_size > ENTRIES:
        raise ConfigError(
            f"an index holds codes of one byte, the codec has K={codec.config.codebook_size} codewords "
            f"(codebook_size): train one with {ENTRIES} at most, or search its decoded vectors exhaustively"
        )


def metric_of(name: str, codec) -> Metric:
    """The metric called `name`, for vectors of a codec."""
    if name != "cosine":
        return Metric(name)
    squares = [float(m.mean.double().square().sum() + m.config.dim * m.scale.double() ** 2) for m in codec.models]
    return Metric(name, float(np.sqrt(sum(squares))))


def prepared(source: VectorSource, metric: Metric) -> VectorSource:
    """A source whose vectors are as the metric wants them, and checked as those of the original."""
    return source.map(metric.prepare) if metric.name == "cosine" else source


class DecodedRows:
    """What a codec decodes of codes (N, M) and lists (N,), for a VectorSource."""

    def __init__(self, codec, codes_NM: np.ndarray, lists_N: np.ndarray | None):
        self._codec, self._codes_NM, self._lists_N = codec, codes_NM, lists_N if codec.is_ivf else None
        self.shape, self.dtype = (len(codes_NM), codec.dim), np.dtype(np.float32)

    def __getitem__(self, key) -> np.ndarray:
        lists = None if self._lists_N is None else self._lists_N[key]
        return self._codec.decode(self._codes_NM[key], lists, precision="auto")


def decoded_source(codec, codes_NM: np.ndarray, lists_N: np.ndarray | None, name: str) -> VectorSource:
    """What codes decode to, in the place of the vectors `name`: all that codes can tell, without what they cannot.

    Tables that are fitted to it know vectors to come as well as those there are, however few these are.
    """
    return VectorSource(DecodedRows(codec, codes_NM, lists_N), name)


def encode_all(codec, source: VectorSource, progress: Progress) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes, uint8 (N, M), and list numbers, int32 (N,), or None for a codec without lists."""
    codes_NM = np.empty((len(source), codec.num_codes), np.uint8)
    lists_N = np.empty(len(source), np.int32) if codec.is_ivf else None
    for start, codes in codec.encode_blocks(source):
        codes_NM[start : start + len(codes)] = codes.codes
        if lists_N is not None:
            lists_N[start : start + len(codes)] = codes.lists
        progress("encoding", start + len(codes), len(source))
    return codes_NM, lists_N


def choose_num_lists(num_lists: int | None, num_vectors: int) -> int:
    """How many lists partition vectors: so many as asked for, or about 4 √N of 39 vectors each at least."""
    if num_lists is None:
        wanted = 1 << max(0, round(np.log2(4 * np.sqrt(max(num_vectors, 1)))))
        return max(1, min(wanted, num_vectors // _FEWEST_EACH))
    require_int("num_lists", num_lists, 1, MAX_LISTS)
    if num_lists > num_vectors:
        raise ConfigError(f"num_lists={num_lists} is more than the {num_vectors} vectors: give fewer lists")
    return num_lists


def partition(
    codec, codes_NM: np.ndarray, num_lists: int, seed: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids, float32 (V, D), of the reconstructions of codes, and the list of each, int32 (N,).

    Centroids that nothing is near to are left out: vectors that are often repeated make many of them.
    """
    generator = np.random.default_rng(seed)
    count = min(len(codes_NM), _CLUSTER_ROWS_EACH * num_lists)
    rows = np.sort(generator.choice(len(codes_NM), count, replace=False))
    decoded_ND = np.concatenate([block for _, block in codec.decode_blocks(codes_NM[rows], "auto")])
    progress("partitioning", 0, num_lists)
    if num_lists == 1:
        centroids_VD = decoded_ND.mean(0, keepdims=True)
    else:
        centroids_VD = coarse_kmeans(decoded_ND, num_lists, seed=seed, device=codec.device)
    used_V, lists_N = np.unique(lists_of_decoded(codec, codes_NM, centroids_VD, progress), return_inverse=True)
    return centroids_VD[used_V], lists_N.astype(np.int32)


def lists_of_decoded(codec, codes_NM: np.ndarray, centroids_VD: np.ndarray, progress: Progress) -> np.ndarray:
    """The nearest centroid of each code's reconstruction, int32 (N,)."""
    lists_N = np.zeros(len(codes_NM), np.int32)
    if len(centroids_VD) == 1:
        return lists_N
    on_device = to_device(centroids_VD, codec.device)
    for start, block in codec.decode_blocks(codes_NM, "auto"):
        found_N = nearest(to_device(block, codec.device), on_device, torch.get_num_threads())
        lists_N[start : start + len(block)] = found_N.cpu().numpy()
        progress("assigning", start + len(block), len(codes_NM))
    return lists_N


def sample_rows(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of `count` rows, drawn at random, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def fit_tables(
    source: VectorSource,
    codes,
    lists,
    centroids_VD: np.ndarray,
    codebook_size: int,
    metric: Metric,
    rows_S,
    *,
    is_ivf: bool = True,
) -> SearchTables:
    """Look-up tables fitted to the vectors `rows_S` of a source, given all of its codes (N, M) and lists (N,).

    Codes and lists are whatever has rows that are chosen by an array of integers.
    is_ivf: whether the codes say what the centroids do not, and so the tables; otherwise both describe whole vectors

    The centroids of an IVF codec's lists are fitted, too: their lists stay what they are.
    """

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, len(rows_S), BLOCK_ROWS):
            part = rows_S[start : start + BLOCK_ROWS]
            yield np.asarray(codes[part]), np.asarray(lists[part]).reshape(-1), source[part]

    if not len(rows_S):
        raise DataError(f"{source.name} holds no vectors that look-up tables could be fitted to")
    lookup = fit_lookup(blocks, codes.shape[1], codebook_size, centroids_VD if is_ivf else None)
    some = rows_S[:: max(1, len(rows_S) // BLOCK_ROWS)]
    codes_SM, lists_S = np.asarray(codes[some]), np.asarray(lists[some]).reshape(-1)
    return SearchTables.fit(lookup, codes_SM, lists_S, metric, None if is_ivf else centroids_VD)


def fit_lookup(
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray]]],
    code_size: int,
    codebook_size: int,
    centroids_VD: np.ndarray | None,
) -> LookupDecoder:
    """Look-up tables and, where there are some, centroids that are fitted to blocks of (codes, lists, vectors)."""
    lookup = LookupDecoder.fit(blocks(), code_size, codebook_size, centroids_VD)
    if centroids_VD is None:
        return lookup
    lookup = LookupDecoder.fit(blocks(), code_size, codebook_size, _moved_centroids(lookup, blocks()))
    return lookup.with_centroids(_moved_centroids(lookup, blocks()))


def _moved_centroids(lookup: LookupDecoder, blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Centroids moved by what the tables leave of their lists' vectors on average, less where those are few: (V, D).

    The tables alone know nothing of what codes mean in one list and not in another: this makes up for some of it.
    """
    sums_VD = torch.zeros(lookup.centroids_VD.shape)
    counts_V = np.zeros(lookup.num_lists, np.float32)
    for codes_NM, lists_N, x_ND in blocks:
        left_ND = x_ND - lookup.decode(codes_NM, lists_N)
        sums_VD.index_add_(0, torch.from_numpy(lists_N.astype(np.int64)), torch.from_numpy(left_ND))
        counts_V += np.bincount(lists_N, minlength=len(counts_V))
    return lookup.centroids_VD + sums_VD.numpy() / (counts_V + _OFFSET_PULL)[:, None]


def fit_pairs(codec, codes_NM, lists_N, tables: SearchTables, seed: int, progress: Progress) -> PairwiseDecoder:
    """A pairwise decoder of an index's codes (N, M) and lists (N,), its tables in float16."""
    rows_S = sample_rows(len(codes_NM), PAIRWISE_ROWS, seed)
    decoded = decoded_source(codec, codes_NM, lists_N, "vectors")
    return PairwiseDecoder.fit(
        codes_NM[rows_S], lists_N[rows_S], decoded[rows_S], tables.lookup, dtype=np.float16, seed=seed,
        on_round=lambda done, rounds, _: progress("fitting pairs", done, rounds),
    )  # fmt: skip


def fill_lists(
    tables: SearchTables,
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    ids: np.ndarray | range,
    progress: Progress,
    create: Callable[[str, np.dtype, tuple], np.ndarray] | None = None,
) -> InvertedLists:
    """Inverted lists of vectors whose codes (n, M) and lists (n,) come in blocks, which are read twice.

    ids:    of all vectors: int64 (N,), or a range
    create: where the arrays are made; in memory without it: see `ListsBuilder.allocate`
    """
    builder = ListsBuilder(tables.num_lists, tables.lookup.code_size)
    for _, lists_N in blocks():
        builder.add_counts(lists_N)
    edges = np.array([ids[0], ids[-1]], np.int64) if isinstance(ids, range) and len(ids) else np.asarray(ids, np.int64)
    builder.allocate(id_dtype(edges), create)
    start = 0
    for codes_NM, lists_N in blocks():
        codes_NM = np.ascontiguousarray(codes_NM, np.uint8)
        scalars_N = tables.scalar_bytes(codes_NM, lists_N, torch.get_num_threads())
        part = ids[start : start + len(codes_NM)]
        builder.fill(codes_NM, scalars_N, np.asarray(lists_N), np.asarray(part, np.int64))
        start += len(codes_NM)
        progress("filling lists", start, len(ids))
    return builder.finish()


def in_blocks(codes_NM: np.ndarray, lists_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes and lists of BLOCK_ROWS vectors at a time."""
    for start in range(0, len(codes_NM), BLOCK_ROWS):
        yield codes_NM[start : start + BLOCK_ROWS], lists_N[start : start + BLOCK_ROWS]


def no_vectors(tables: SearchTables) -> InvertedLists:
    """Lists that are all empty."""
    none_NM, none_N = np.empty((0, tables.lookup.code_size), np.uint8), np.empty(0, np.int64)
    return InvertedLists.from_arrays(none_NM, none_N.astype(np.uint8), none_N, none_N, tables.num_lists)


def settled(segments: tuple[InvertedLists, ...]) -> tuple[InvertedLists, ...]:
    """Small lists that were added last, merged until each is less than half of the one before it.

    So an addition costs little, a search meets few segments, and every vector is moved few times.
    """
    while len(segments) > 1 and 2 * len(segments[-1]) >= len(segments[-2]):
        segments = (*segments[:-2], InvertedLists.merged(segments[-2:]))
    return segments
