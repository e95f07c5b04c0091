"""`Index`: vectors in inverted lists as codes, searched compressed (QINCo2, section 4).

Shape suffixes: N vectors, Q queries, D dimension, M codes of a vector, V lists, R results.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np
import torch

from qinco.codec.codec import Codec
from qinco.config import EncodeOptions, require_int
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.search import build as building
from qinco.search.build import FIT_ROWS, Progress, silent
from qinco.search.ids import admitted_ids, as_ids, check_new, next_ids
from qinco.search.lists import InvertedLists
from qinco.search.options import SearchOptions
from qinco.search.pipeline import Stages, as_queries, network_decoder
from qinco.search.scan import make_filter
from qinco.search.tables import SearchTables
from qinco.vectors.rows import VectorSource, as_source

_BATCH_BYTES = 1 << 25  # of a batch's shortlists
_MOST_RESULTS = (1 << 31) - 1


class Index:
    """Vectors in inverted lists, compressed by a codec.

    codec:   Codec; None for an index that was made from codes alone: it is searched by its tables
    tables:  SearchTables: centroids, look-up tables, metric
    options: SearchOptions, what `search` uses unless told otherwise; `tune` fits them
    segments: the inverted lists; vectors that were added lie in lists of their own until they are many

    Make one with `Index.build` or `Index.load`. Searching from several threads at a time is safe, also while another
    thread adds or removes. A search uses as many threads of the processor as torch does (`torch.set_num_threads`).
    """

    def __init__(
        self,
        codec: Codec | None,
        tables: SearchTables,
        segments: Sequence[InvertedLists],
        *,
        pairwise: PairwiseDecoder | None = None,
        options: SearchOptions | None = None,
        next_id: int | None = None,
        codec_fingerprint: str | None = None,
    ):
        self.codec, self.tables, self.pairwise = codec, tables, pairwise
        self.options = options or SearchOptions()
        self.segments = tuple(segments) or (building.no_vectors(tables),)
        if next_id is None:
            next_id = 1 + max((int(segment.ids.max()) for segment in self.segments if len(segment)), default=-1)
        self.next_id = next_id
        if codec_fingerprint is None and codec is not None:
            codec_fingerprint = codec.fingerprint()
        self.codec_fingerprint = codec_fingerprint
        self._changing = threading.Lock()

    def __getstate__(self):
        raise TypeError("an Index is not copied or pickled: save it, and load it where it is needed")

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def __repr__(self) -> str:
        pairwise = "" if self.pairwise is None else ", pairwise"
        return (
            f"Index({len(self):,} vectors, dim={self.dim}, num_lists={self.num_lists}, metric={self.metric!r}, "
            f"{self.bytes_per_vector:.2f} bytes a vector{pairwise})"
        )

    @property
    def dim(self) -> int:
        """D, the dimension of the vectors."""
        return self.tables.lookup.dim

    @property
    def num_lists(self) -> int:
        """V."""
        return self.tables.num_lists

    @property
    def metric(self) -> str:
        """ "l2", "inner_product" or "cosine"."""
        return self.tables.metric.name

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of codes, scalars, ids and list boundaries for each vector; centroids and tables apart."""
        return sum(segment.nbytes for segment in self.segments) / max(1, len(self))

    @classmethod
    def build(
        cls,
        codec: Codec,
        vectors,
        num_lists: int | None = None,
        ids=None,
        pairwise: bool = False,
        *,
        metric: str = "l2",
        seed: int = 0,
        on_progress: Progress = silent,
    ) -> "Index":
        """Encode vectors and make an index of them.

        vectors:     (N, D) array, tensor, path or VectorSource, N at least 1
        num_lists:   V, the lists that the decoded vectors are partitioned into, those apart that would be empty; fitted
                     to N without it. An IVF codec brings its own.
        ids:         (N,) different integers from 0 on, which are kept; 0 to N − 1 without them
        pairwise:    fit a PairwiseDecoder, too: its tables take 2 · M · K² · D numbers of 2 bytes
        metric:      "l2", "inner_product" or "cosine"
        on_progress: hears (stage, done, total)

        The tables are fitted here and not by `add`: begin with vectors enough to tell what others will be like, a
        hundred thousand or more.

        Raises ConfigError for settings, DataError for vectors or ids that do not fit, ResourceError where tables of
        pairs are larger than the free memory.
        """
        building.check_codec(codec)
        require_int("seed", seed, 0)
        source = as_source(vectors)
        codec.check_dim(source)
        if not len(source):
            raise DataError(f"{source.name} holds no vectors: an index is fitted to some")
        if codec.is_ivf and num_lists not in (None, codec.config.num_lists):
            raise ConfigError(f"num_lists={num_lists}: the codec brings {codec.config.num_lists} lists, leave it out")
        count = None if codec.is_ivf else building.choose_num_lists(num_lists, len(source))
        ids = range(len(source)) if ids is None else as_ids(ids, len(source))
        measure = building.metric_of(metric, codec)
        source = building.prepared(source, measure)
        codes_NM, lists_N = building.encode_all(codec, source, on_progress)
        if lists_N is not None:
            centroids_VD = codec.coarse_centroids
        else:
            centroids_VD, lists_N = building.partition(codec, codes_NM, count, seed, on_progress)
        size, rows_S = codec.config.codebook_size, building.sample_rows(len(source), FIT_ROWS, seed)
        decoded = building.decoded_source(codec, codes_NM, lists_N, source.name)
        fitted = (decoded, codes_NM, lists_N, centroids_VD, size, measure, rows_S)
        tables = building.fit_tables(*fitted, is_ivf=codec.is_ivf)
        decoder = None
        if pairwise:
            decoder = building.fit_pairs(codec, codes_NM, lists_N, tables, seed, on_progress)
        lists = building.fill_lists(tables, lambda: building.in_blocks(codes_NM, lists_N), ids, on_progress)
        return cls(codec, tables, [lists], pairwise=decoder)

    # Searching

    def search(
        self,
        queries,
        k: int = 10,
        nprobe: int | None = None,
        num_short: int | None = None,
        filter=None,
        *,
        num_mid: int | None = None,
        ef_search: int | None = None,
        precision: str = "auto",
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest vectors of each query: distances float32 (Q, k) and ids int64 (Q, k), nearest first.

        queries:   (Q, D), or one query (D,), which gives (k,) each
        nprobe:    lists that are scanned
        num_short: vectors of the look-up shortlist that the network decodes, k at least; 0: none, distances are then
                   those of the look-up tables (or of the pairwise decoder)
        filter:    ids that may be found: an array of them, or a faiss.IDSelector. Further lists are scanned until
                   `num_short` such vectors are found or all lists are exhausted.
        num_mid:   vectors of the look-up shortlist that the pairwise decoder decodes, where there is one; 0: none
        ef_search: effort of the search for lists where there are many
        precision: arithmetic of the network, as in `Codec.decode`: "auto" is bf16 where that is fast, with distances to
                   within a per mille or so; "float32" gives those of `reconstruct`
        The first five are as in `self.options` where they are not given.

        Distances are squared L2 distances, or inner products or cosine similarities. Where fewer than k vectors are
        found, the rest is +inf (−inf for similarities) with the id −1. Raises ConfigError and DataError for what
        cannot be searched.
        """
        require_int("k", k, 1, _MOST_RESULTS)
        EncodeOptions(precision=precision)  # refuses an unknown one
        options = self._options(nprobe, num_short, num_mid, ef_search)
        source, is_single = as_queries(queries)
        segments = self.segments
        allowed = None if filter is None else admitted_ids(filter, [segment.ids for segment in segments])
        stages = self.stages(segments=segments, allowed=allowed, precision=precision)
        distances_QR, ids_QR = self.run(stages, source, k, options)
        return (distances_QR[0], ids_QR[0]) if is_single else (distances_QR, ids_QR)

    def stages(self, *, segments=None, allowed=None, precision: str = "auto", decoder: str = "neural") -> Stages:
        """The pipeline over these vectors; `decoder` is the last stage that it has: "neural", "pairwise", "lookup".

        allowed: the ids that may be found, int64, ascending and different
        """
        segments = self.segments if segments is None else segments
        admitted = None if allowed is None else make_filter(allowed)
        count = sum(map(len, segments))
        count = max(1, count if allowed is None else min(count, len(allowed)))

        def shortlist(queries_QD, num_short, options):
            threads = torch.get_num_threads()
            return self.tables.shortlist(queries_QD, min(num_short, count), options, segments, admitted, threads)

        has_network = decoder == "neural" and self.codec is not None
        neural, on_device = network_decoder(self.codec, precision) if has_network else (None, False)
        pairwise = None if self.pairwise is None or decoder == "lookup" else self.pairwise.decode
        return Stages(shortlist, neural, pairwise, self.tables.metric, on_device)

    def run(self, stages: Stages, source: VectorSource, k: int, options: SearchOptions, batch_size: int = 1 << 20):
        """Search a source of queries through stages, in batches: distances (Q, k) and ids (Q, k)."""
        if source.dim != self.dim:
            raise DataError(f"{source.name} have {source.dim} dimensions, the index holds vectors of {self.dim}")
        try:
            distances_QR, ids_QR = np.empty((len(source), k), np.float32), np.empty((len(source), k), np.int64)
        except MemoryError:
            raise ResourceError(
                f"{k} results of {len(source)} queries do not fit in memory: give a smaller k"
            ) from None
        width = min(max(options.num_mid or 4 * options.num_short, k), max(1, len(self)))
        bytes_each = width * (self.tables.lookup.code_size + 16) + 16 * min(options.nprobe, self.num_lists)
        batch = max(1, min(batch_size, _BATCH_BYTES // bytes_each))
        for start, queries_QD in source.blocks(batch):
            part = slice(start, start + len(queries_QD))
            with np.errstate(over="ignore", invalid="ignore"):  # nothing is near a query as large as that
                best, _ = stages.run(self.tables.metric.prepare(queries_QD), k, options)
            distances_QR[part], ids_QR[part] = self.tables.metric.distances(best.values), best.ids
        return distances_QR, ids_QR

    def _options(self, nprobe, num_short, num_mid, ef_search) -> SearchOptions:
        given = {"nprobe": nprobe, "num_short": num_short, "num_mid": num_mid, "ef_search": ef_search}
        given = {name: value for name, value in given.items() if value is not None}
        if num_short is not None and num_mid is None:
            given["num_mid"] = None  # what was fitted to another length says nothing
        return replace(self.options, **given)

    # Changing

    def add(self, vectors, ids=None) -> np.ndarray:
        """Encode vectors (N, D) and add them; their ids, int64 (N,). On disk when `save` is called.

        ids: (N,) different integers that the index does not hold yet; the next free ones without them
        """
        if self.codec is None:
            raise ConfigError("the index has no codec to encode with: load it with codec=")
        source = as_source(vectors)
        self.codec.check_dim(source)
        given = None if ids is None else as_ids(ids, len(source))
        codes_NM, lists_N = building.encode_all(self.codec, building.prepared(source, self.tables.metric), silent)
        if lists_N is None:
            lists_N = building.lists_of_decoded(self.codec, codes_NM, self.tables.centroids_VD, silent)
        with self._changing:
            if given is None:
                given = next_ids(self.next_id, len(source))
            else:
                check_new(given, [segment.ids for segment in self.segments], self.next_id)
            if len(source):
                added = building.fill_lists(self.tables, lambda: building.in_blocks(codes_NM, lists_N), given, silent)
                self.next_id = max(self.next_id, int(given.max()) + 1)
                self.segments = building.settled((*self.segments, added))
        return given

    def remove(self, ids) -> int:
        """Remove the vectors of an id, of several, or of a faiss.IDSelector; how many there were.

        Unknown ids are passed over. On disk when `save` is called.
        """
        with self._changing:
            ids = [ids] if isinstance(ids, Integral) else ids
            removed = admitted_ids(ids, [segment.ids for segment in self.segments])
            before = len(self)
            masks = [np.isin(segment.ids, removed) for segment in self.segments]
            left = [s.without(mask) if mask.any() else s for s, mask in zip(self.segments, masks, strict=True)]
            self.segments = building.settled((left[0], *(segment for segment in left[1:] if len(segment))))
            return before - len(self)

    def reconstruct(self, id) -> np.ndarray:
        """The decoded vector of an id, float32 (D,), or of n ids, float32 (n, D); raises DataError for unknown ones.

        With metric "cosine" vectors have the length of the codec's training vectors.
        """
        wanted = as_ids(np.atleast_1d(np.asarray(id)), None, unique=False)
        segments = self.segments
        decode = self.tables.lookup.decode if self.codec is None else network_decoder(self.codec, "float32")[0]
        decoded_ND = np.full((len(wanted), self.dim), np.nan, np.float32)
        found = np.zeros(len(wanted), bool)
        for segment in segments:
            positions = np.flatnonzero(np.isin(segment.ids, wanted))
            order = np.argsort(segment.ids[positions])
            positions = positions[order]
            here = np.isin(wanted, segment.ids[positions])
            rows = positions[np.searchsorted(segment.ids[positions].astype(np.int64), wanted[here])]
            codes_NM, _ = segment.rows(rows)
            block = decode(codes_NM, segment.lists_of(rows))
            decoded_ND[here] = block.cpu().numpy() if isinstance(block, torch.Tensor) else block
            found |= here
        if not found.all():
            raise DataError(f"id {wanted[~found][0]} is not in the index: it holds {len(self)} vectors")
        return decoded_ND if np.ndim(id) else decoded_ND[0]

    # Files

    def save(self, folder: str | os.PathLike) -> None:
        """Write the index to a folder, whole or not at all; an index that is there is replaced."""
        from qinco.search.index_file import save_index

        with self._changing:
            save_index(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike, mmap: bool = True, *, codec=None, device: str = "cpu") -> "Index":
        """Read what `save` or the task build_index wrote, faiss files among it; executes no code.

        mmap:   leave the vectors on disk until they are searched
        codec:  for an index that was written without its codec, the codec that made its codes

        Raises DataError where a file is missing, damaged or foreign, or where the codec is another.
        """
        from qinco.search.index_file import load_index

        return load_index(folder, mmap=mmap, codec=codec, device=device)

    # Judging

    def tune(
        self, queries, ground_truth, target_recall: float = 0.9, k: int = 10, on_progress: Progress = silent
    ) -> SearchOptions:
        """Fit `options` to a recall: see `qinco.search.measure.tune.tune`."""
        from qinco.search.measure.tune import tune

        return tune(self, queries, ground_truth, target_recall, k, on_progress)

    def evaluate(self, vectors, num_queries: int | None = None) -> dict:
        """Estimate recall on held-out vectors: see `qinco.search.measure.evaluate`."""
        from qinco.search.measure.evaluate import evaluate

        return evaluate(self, vectors, num_queries)
