"""faiss's index files in searches: imported into an index of ours, or scanned by faiss and re-ranked by us."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from qinco.codec.codec import Codec
from qinco.compat.faiss_files import FaissIndex, faiss_threads
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import DataError
from qinco.search.code_file import same_centroids
from qinco.search.fill import fill_lists
from qinco.search.index_file import check_codec_of
from qinco.search.lists import InvertedLists
from qinco.search.metric import Metric
from qinco.search.parts import Fitted, IndexParts
from qinco.search.scan import ENTRIES, Shortlist
from qinco.search.tables import LEVEL_ROWS, SearchTables
from qinco.store.codes import Codes


def from_faiss(path: str | os.PathLike, codec: Codec | None = None) -> IndexParts:
    """The codes, tables and ids of a faiss file as parts of an index in memory; norms are computed anew."""
    found, tables = _open(path, codec)
    if found.codebook_size > ENTRIES:
        raise DataError(f"{path} holds codes of K={found.codebook_size}, and an index those of one byte: use faiss")
    nothing = np.empty((0, found.num_codes), np.uint8), np.empty(0, np.int32), np.empty(0, np.int64)
    codes, lists, _ = next(found.blocks(LEVEL_ROWS), nothing)
    fitted, vectors = SearchTables.fit(tables.lookup, codes, lists, tables.metric), _FaissLists(found)
    return IndexParts(fitted, [fill_lists(fitted, cast(Codes, vectors), vectors.ids)], fitted=Fitted(tables=len(found)))


def scanned_by_faiss(path: str | os.PathLike, codec: Codec | None = None) -> IndexParts:
    """Parts of an index that faiss scans in its file, for `sweep`; K may be above 256."""
    found, tables = _open(path, codec)
    if codec is not None and codec.is_ivf and not same_centroids(found.centroids, codec.coarse_centroids):
        raise DataError(f"{path} holds codes of another codec: its centroids are not the model's")
    return IndexParts(tables, [cast(InvertedLists, _FaissLists(found))], next_id=0)


def _open(path: str | os.PathLike, codec: Codec | None) -> tuple[FaissIndex, SearchTables]:
    found = FaissIndex(path)
    sizes = {"dim": found.dim, "code_size": found.num_codes, "codebook_size": found.codebook_size}
    check_codec_of(Path(path), codec, sizes | {"num_lists": found.num_lists})
    return found, cast(SearchTables, _FaissTables(found))


class _FaissTables:
    """Stands in for the `SearchTables` of an index: the same tables, and faiss's scan."""

    def __init__(self, index: FaissIndex):
        self._index, self.lookup = index, LookupDecoder(index.tables, index.centroids)
        self.centroids_VD, self.num_lists, self.ranking = index.centroids, index.num_lists, None
        self.metric = Metric("inner_product" if index.inner_product else "l2")
        self.coarse = index if index.has_graph else None

    def shortlist(self, queries_QD, num_short, options, segments, selection, threads, least) -> Shortlist:
        with faiss_threads(threads):
            found = self._index.shortlist(queries_QD, num_short, options.nprobe, options.ef_search)
        values_QS, ids_QS, lists_QS, codes_QSM, scanned_Q = found
        norm_codes_QS = np.zeros(ids_QS.shape, np.uint8)  # nothing is read of them
        return Shortlist(values_QS, ids_QS, lists_QS, codes_QSM, norm_codes_QS, scanned_Q)


class _FaissLists:
    """Stands in for the `InvertedLists` of an index; codes and ids stay in the file."""

    def __init__(self, index: FaissIndex):
        self._index, self.nbytes = index, len(index) * index.bytes_per_vector

    def __len__(self) -> int:
        return len(self._index)

    def blocks(self, rows: int) -> Iterator[tuple[int, Codes]]:
        for number, (codes, lists, _) in enumerate(self._index.blocks(rows)):
            yield number * rows, Codes(codes, lists)

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(ids for _, _, ids in self._index.blocks())])
