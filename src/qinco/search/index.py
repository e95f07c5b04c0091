"""`Index`: vectors in inverted lists as codes, searched compressed (QINCo2 paper, section 4)."""

from dataclasses import replace
from numbers import Real
from operator import index
from typing import Any

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.config import accepts_keys, require_int
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError
from qinco.machine import num_threads
from qinco.progress import Progress, ProgressOption, counted, reporting
from qinco.search.decoded_search import search_among, search_decoded
from qinco.search.edit import decode_ids
from qinco.search.elsewhere import ListsElsewhere, check_rows, scan_of
from qinco.search.grow import build_parts
from qinco.search.measure.evaluate import evaluate_index
from qinco.search.measure.timing import tune
from qinco.search.metric import choose_metric
from qinco.search.options import MAX_SHORTLIST, SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.pipeline import BATCH_BYTES, Decoder, NeuralDecoder, Pipeline, plan_stages, search_queries
from qinco.search.range_search import search_ranges
from qinco.search.refine import Originals, choose_originals, choosing_stages
from qinco.search.selection import Selection, select, selection_of
from qinco.search.stored import StoredIndex
from qinco.vectors.rows import VectorSource, as_queries, check_dim


def _part(name: str, doc: str) -> property:
    """A field of `Index.parts` as an attribute of the index."""

    def change(self, value) -> None:
        with self._changing:
            self.parts = self.parts.given(name, value)

    return property(lambda self: getattr(self.parts, name), change, doc=doc)


class Index(StoredIndex):
    """Vectors in inverted lists, compressed by a codec (None: searched by its tables alone); see `build` and `load`.

    Threads may search at the same time, also while another thread adds or removes vectors. A search uses as many
    processor threads as `qinco.set_num_threads` says, and `batch_bytes` for the shortlists of a batch.

    Example:
        >>> index = Index.build(codec, vectors)
        >>> distances, ids = index.search(queries, k=10)
        >>> index.ntotal, index.d, 42 in index, index[42].shape
        (1000000, 128, True, (128,))
    """

    def __init__(self, codec: Codec | None, parts: IndexParts):
        super().__init__(codec, parts)
        self.batch_bytes = BATCH_BYTES

    def __getstate__(self):
        raise TypeError("an Index cannot be copied or pickled: save it, and load it where it is needed")

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, id) -> bool:
        """Whether a vector has this id."""
        try:
            number = index(id)
        except TypeError:
            return False
        return any((ids == number).any() for ids in self.parts.ids)

    def __getitem__(self, id) -> np.ndarray:
        """The decoded vector of an id, float32 (D,), or of n ids, (n, D): see `reconstruct`."""
        return self.reconstruct(id)

    __iter__ = None  # ids are not positions

    def __repr__(self) -> str:
        pairwise = "" if self.pairwise is None else ", pairwise"
        return (
            f"Index({counted(len(self), 'vector')}, dim={self.dim}, num_lists={self.num_lists}, "
            f"metric={self.metric!r}, {self.bytes_per_vector:.2f} bytes a vector{pairwise})"
        )

    dim = d = property(lambda self: self.tables.lookup.dim, doc="Dimension of the vectors.")
    is_trained = property(lambda self: True, doc="Always: an index is built with its tables.")
    ntotal = property(__len__, doc="Number of vectors.")
    num_lists = property(lambda self: self.tables.num_lists, doc="Number of inverted lists.")
    metric = property(lambda self: self.tables.metric.name, doc='"l2", "inner_product" or "cosine".')

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of codes, norm codes, ids and list boundaries for each vector, without centroids and tables."""
        return sum(segment.nbytes for segment in self.segments) / max(1, len(self))

    tables = _part("tables", "SearchTables: centroids, look-up tables and metric.")
    segments = _part("segments", "The inverted lists; recently added vectors are in segments of their own.")
    pairwise = _part("pairwise", "The PairwiseDecoder of the pairwise stage, or None.")
    options = _part("options", "SearchOptions that a search uses unless it is given others.")
    next_id = _part("next_id", "The id of the next vector added without one.")
    names = _part("names", "`Names`, the strings of the ids, which are row numbers then: see `build_index`. Else None.")
    codec_fingerprint = _part("codec_fingerprint", "Of the codec that made the codes, or None if unknown.")

    @classmethod
    def build(
        cls, codec: CodecLike, vectors, num_lists: int | None = None, ids=None, pairwise: bool = False, *,
        metric: str | None = None, seed: int = 0, codes=None, progress: ProgressOption = None,
    ) -> "Index":  # fmt: skip
        """Encode vectors and make an index of them in memory. `build_index` makes one from code files of any size.

        It may begin with a few vectors and grow: see `add`.

        Args:
            codec: a Codec, or the path of one, of at most 256 codewords a step.
            vectors: (N, D) array, tensor, path or VectorSource, N at least 1.
            num_lists: V, lists that the decoded vectors are partitioned into (empty ones are dropped); about 4 √N if
                None. An IVF codec has its own lists.
            ids: (N,) different integers from 0 on; 0 to N − 1 if None.
            pairwise: also fit a PairwiseDecoder, whose tables take 2 · M · K² · D numbers of 2 bytes.
            metric: "l2", "inner_product" or "cosine"; if None what the file states (ann-benchmarks' HDF5), else
                "cosine" for vectors of length 1 and "l2" for others.
            seed: of the partition and of the samples that tables are fitted to.
            codes: of the first vectors, which are not encoded again: those of an interrupted call.
            progress: see `qinco.progress`.

        Raises:
            KeyboardInterrupt: with an attribute `codes`, those of the first vectors.

        Example:
            >>> try:
            ...     index = Index.build(codec, vectors)
            ... except KeyboardInterrupt as stop:
            ...     codes = stop.codes
            >>> index = Index.build(codec, vectors, codes=codes)
        """
        codec = as_codec(codec)
        with reporting(progress) as report:
            return cls(codec, build_parts(codec, vectors, num_lists, ids, pairwise, metric, seed, codes, report))

    @accepts_keys(SearchOptions)
    def search(
        self, queries, k: int = 10, nprobe: int | None = None, num_short: int | None = None, filter=None, *,
        exclude=None, num_mid: int | None = None, ef_search: int | None = None, ranking: str = "calibrated",
        precision: str = "auto", refine=None, num_refine: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Find the k nearest vectors of each query. Options that are not given are those of `self.options`.

        Args:
            queries: (Q, D) array, tensor, path or VectorSource; or one query (D,), which gives results (k,).
            k: results for each query.
            nprobe: lists that are scanned; more, where these hold fewer than k vectors.
            num_short: vectors that the network decodes at most, or k if that is more; 0: none, distances are those of
                the tables. It decodes fewer where those left are too far by the tables to be among the k.
            filter: ids that may be found: an array or column, set, range or slice of them, a faiss.IDSelector, or a
                Selection (see `select`). More lists are scanned until `num_short` such vectors are found or no list is
                left. Of few vectors (2,000 at most) the nearest are found wherever they lie.
            exclude: ids that are not found, given in the same ways.
            num_mid: vectors that the pairwise decoder decodes, if there is one; 0: none.
            ef_search: effort of the graph search for lists, where there are many.
            ranking: "calibrated" by what the index knows of vectors besides their codes (docs/ranking.md), or "decoded"
                by distances to what codes decode to, as in the papers.
            precision: of the network: "auto" is bf16 where that is fast, with distances within about a per mille.
            refine: the original vectors (N, D), an id being a row number: an array, path, VectorSource or list of them.
                The first `num_refine` results are ranked by these, which are read where they lie, and distances are
                exact. None: those of the attribute `refine`, if any; False: none.
            num_refine: results that are ranked so, 100 or k if None. The network decodes only if `num_short` is larger.

        Returns:
            Distances, float32 (Q, k), and ids, int64 (Q, k), nearest first. Distances are squared L2 distances, inner
            products or cosine similarities: estimates of those to the vectors themselves, or with ranking="decoded"
            those to what codes decode to. Where fewer than k vectors are found, the rest is +inf (−inf for
            similarities) with the id −1.
        """
        given = {"nprobe": nprobe, "num_short": num_short, "num_mid": num_mid, "ef_search": ef_search}
        stages = {"ranking": ranking, "precision": precision}
        return self.search_lists(None, queries, k, given, (filter, exclude), (refine, num_refine), stages)

    def search_lists(
        self, elsewhere: ListsElsewhere | None, queries, k: int, given: dict, chosen: tuple[Any, Any],
        refine: tuple[Any, int | None], stages: dict,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """`search` of lists that may lie elsewhere, by the arguments of `search` in groups."""
        require_int("k", k, 1, MAX_SHORTLIST)
        changed = {name: value for name, value in given.items() if value is not None}
        if given["num_short"] is not None and given["num_mid"] is None:
            changed["num_mid"] = None  # it was fitted to another length
        options = replace(self.options, **changed)
        source, is_single = self._queries(queries)
        parts = self.parts
        refined = choose_originals(*refine, k, self._originals, parts)
        if elsewhere is None:
            selection = select(parts.segments, *chosen, parts.next_id)
        else:
            check_rows(refined[0], parts.next_id)
            elsewhere, parts, selection = elsewhere.select(parts, *chosen)
        stages = stages | {"selection": selection, "refined": refined, "elsewhere": elsewhere}
        pipeline = self.pipeline(options, k, parts=parts, **stages)
        scanned = min(options.nprobe, self.num_lists)
        found = search_queries(pipeline, source, k, scanned, self.tables.lookup.num_codes, self.batch_bytes)
        return tuple(column[0] for column in found) if is_single else found

    def select(self, ids=None, exclude=None) -> Selection:
        """The vectors that have one of `ids` (None: all) and none of `exclude`, to `filter` several searches by.

        Ids are given as `filter` of `search` takes them. A selection is of the vectors that the index holds now: once
        some are added or removed, make another.
        """
        parts = self.parts
        found = select(parts.segments, ids, exclude, parts.next_id)
        return Selection.from_masks([None] * len(parts.segments), parts.segments) if found is None else found

    def search_among(
        self, queries, ids, k: int = 10, *, ranking: str = "calibrated", precision: str = "auto", refine=None,
        num_refine: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Find the k nearest of the vectors that have one of `ids`: all of these are decoded, and no list is scanned.

        Args:
            queries: (Q, D), or one (D,), as `search` takes them.
            ids: as `filter` of `search`: ids in any of its ways, or a Selection.
            k, ranking, precision, refine, num_refine: as in `search`.

        Returns:
            Distances, float32 (Q, k), and ids, int64 (Q, k), as `search` returns them.
        """
        require_int("k", k, 1, MAX_SHORTLIST)
        (source, is_single), parts = self._queries(queries), self.parts
        refined = choose_originals(refine, num_refine, k, self._originals, parts)
        selection = selection_of(parts.segments, ids, parts.next_id)
        found = search_among(parts, self._decoder(parts, precision), source, k, selection, ranking, refined)
        return tuple(column[0] for column in found) if is_single else found

    def search_and_reconstruct(self, queries, k: int = 10, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`search`, with the decoded vectors, float32 (Q, k, D), which are NaN where nothing was found."""
        current = Index(self.codec, self.parts)  # as it is at this moment
        current.batch_bytes, current._originals = self.batch_bytes, self._originals
        distances, ids = current.search(queries, k, **options)
        return distances, ids, decode_ids(current.codec, current.parts, ids, skips_unknown=True)

    @accepts_keys(SearchOptions)
    def range_search(
        self, queries, radius: float, nprobe: int | None = None, filter=None, *, exclude=None,
        ef_search: int | None = None, ranking: str = "calibrated", precision: str = "auto",
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Find all vectors whose squared distance is below a radius, or whose similarity is above it.

        Every vector in the `nprobe` lists nearest to a query is decoded and compared, without shortlists. What is
        approximate: vectors in other lists are not found, and distances are those that `search` returns.

        Args:
            queries: (Q, D), or one (D,), as `search` takes them.
            radius: a squared L2 distance, inner product or cosine similarity, by the metric of the index; inf (for
                similarities −inf) gives all vectors of these lists, as in faiss.
            nprobe: lists that are scanned, those of `self.options` if None; `num_lists` for all.
            filter, exclude, ef_search, ranking, precision: as in `search`, but that a filter lets no more lists be
                scanned.

        Returns:
            As in faiss `lims`, int64 (Q + 1,), distances, float32, and ids, int64: those of query i, nearest first, are
            `ids[lims[i] : lims[i + 1]]`.
        """
        if not isinstance(radius, Real) or np.isnan(radius):
            raise ConfigError(f"radius must be a number, a squared distance or a similarity, not {radius!r}")
        given = {"nprobe": nprobe, "ef_search": ef_search}
        options = replace(self.options, **{name: value for name, value in given.items() if value is not None})
        (source, _), parts = self._queries(queries), self.parts
        selection = select(parts.segments, filter, exclude, parts.next_id)
        decoder = self._decoder(parts, precision)
        return search_ranges(parts, decoder, source, float(radius), options, selection, ranking)

    def compare_all(self, queries_QD: np.ndarray, k: int, ranking: str, report: Progress) -> tuple:
        """What `exhaustive_search` of the index returns."""
        parts = self.parts
        return search_decoded(parts, self._decoder(parts, "auto"), queries_QD, k, ranking, report)

    def _decoder(self, parts: IndexParts, precision: str) -> Decoder:
        """What decodes to arrays, as exactly as the index can."""
        return parts.tables.lookup if self.codec is None else NeuralDecoder(self.codec, precision, keeps=False)

    def _queries(self, queries) -> tuple[VectorSource, bool]:
        source, is_single = as_queries(queries)
        choose_metric(None, queries, own=self.metric)
        check_dim(source, self.dim, "the index")
        return source, is_single

    def pipeline(
        self, options: SearchOptions, k: int, *, parts: IndexParts | None = None,
        selection: Selection | None = None, ranking: str = "calibrated", precision: str = "auto",
        decoder: str = "neural", fills: bool = True, refined: tuple[Originals | None, int] = (None, 0),
        elsewhere: ListsElsewhere | None = None,
    ) -> Pipeline:  # fmt: skip
        """The scan and stages of one search, down to a last decoder.

        If it `fills`, more than `nprobe` lists are scanned where these hold fewer than k vectors. `refined` is what
        ranks the first results in the end, and how many. Lists that lie `elsewhere` are scanned there.
        """
        parts = self.parts if parts is None else parts
        whole = len(parts) if elsewhere is None else len(elsewhere)
        count = whole if selection is None else selection.count
        scan_lists = scan_of(parts, self.codec, elsewhere)
        scanned: dict[str, Any] = {} if scan_lists is None else {"scan_lists": scan_lists}
        k = max(k, refined[1])

        def scan(queries_QD: np.ndarray, length: int):
            threads = num_threads()
            least = min(k, count) if fills else 0
            given = options, parts.segments, selection, threads, least
            return parts.tables.shortlist(queries_QD, length, *given, **scanned)

        neural = NeuralDecoder(self.codec, precision) if decoder == "neural" and self.codec is not None else None
        pairwise, tables = None if decoder == "lookup" else parts.pairwise, parts.tables
        length, stages = plan_stages(options, k, pairwise, neural, tables, ranking)
        stages = stages if refined[0] is None else choosing_stages(length, stages)
        length = min(length, max(1, count))
        rank = None if elsewhere is None else elsewhere.ranker(options, k, ranking, precision, refined[0] is not None)
        return Pipeline(scan, length, stages, tables.metric, tables, parts.zeros, *refined, rank)

    def tune(
        self, queries, ground_truth, target_recall: float = 0.9, k: int = 10, *, metric: str | None = None,
        progress: ProgressOption = None,
    ) -> SearchOptions:  # fmt: skip
        """Find the fastest options that reach a recall, and keep them as `options`, which `save` stores.

        Args:
            queries: (Q, D), as `search` takes them; a thousand give a reliable figure.
            ground_truth: (Q,) or (Q, any): ids of the true neighbours, the nearest first, as for `qinco.sweep`.
            target_recall: share of queries whose nearest neighbour must be among the first k results, above 0.
            k: results that are counted.
            metric: of the ground truth, which must be that of the index.

        Raises:
            ConfigError: no options reach the target; the message says what recall is reached.
            KeyboardInterrupt: with an attribute `measured`, as that of `qinco.sweep`.
        """
        self.options = tune(self, queries, ground_truth, target_recall, k, progress, metric=metric)
        return self.options

    def evaluate(self, vectors, num_queries: int | None = None, *, progress: ProgressOption = None) -> dict:
        """Estimate recall on held-out vectors: see `qinco.search.measure.evaluate.evaluate_index`."""
        return evaluate_index(self, vectors, num_queries, progress)

    def emptied(self) -> "Index":
        """An index with the same codec, tables and options, and no vectors."""
        return Index(self.codec, self.parts.emptied())

    has_graph = property(lambda self: self.tables.coarse is not None, doc="Whether lists are found by an HNSW graph.")

    def with_pairwise(self, pairwise: PairwiseDecoder | None) -> "Index":
        """The same vectors with another decoder for the pairwise stage."""
        other = Index(self.codec, self.parts.given("pairwise", pairwise))
        other._originals = self._originals
        return other
