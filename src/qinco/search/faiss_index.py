"""faiss's index files in searches: imported into an index of ours, or scanned by faiss and re-ranked by us.

Shape suffixes: Q queries, D dimension.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.compat.faiss_files import FaissIndex
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import DataError
from qinco.search.build import fill_lists
from qinco.search.code_file import same_centroids
from qinco.search.index_file import check_codec_of
from qinco.search.metric import Metric
from qinco.search.options import SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.pipeline import Pipeline, make_pipeline
from qinco.search.scan import ENTRIES, Shortlist
from qinco.search.tables import LEVEL_ROWS, SearchTables
from qinco.store.codes import Codes


def from_faiss(path: str | os.PathLike, codec: Codec | None = None) -> IndexParts:
    """The codes, tables and ids of a faiss file as parts of an index in memory; norms are computed anew."""
    found = FaissIndex(path)
    if found.codebook_size > ENTRIES:
        raise DataError(f"{path} holds codes of K={found.codebook_size}, and an index those of one byte: use faiss")
    _check_codec(Path(path), codec, found)
    lookup = LookupDecoder(found.tables, found.centroids)
    nothing = np.empty((0, found.num_codes), np.uint8), np.empty(0, np.int32), np.empty(0, np.int64)
    codes, lists, _ = next(found.blocks(LEVEL_ROWS), nothing)
    tables = SearchTables.fit(lookup, codes, lists, Metric("inner_product" if found.inner_product else "l2"))
    ids = np.concatenate([nothing[2], *(ids for _, _, ids in found.blocks())])
    return IndexParts(tables, [fill_lists(tables, _FaissCodes(found), ids)])


class _FaissCodes:
    """The codes of a faiss file for `fill_lists`."""

    def __init__(self, index: FaissIndex):
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def blocks(self, rows: int) -> Iterator[tuple[int, Codes]]:
        for number, (codes, lists, _) in enumerate(self._index.blocks(rows)):
            yield number * rows, Codes(codes, lists)


class FaissSearcher:
    """A faiss file that faiss scans, for `sweep`. Codes of more than 256 codewords are searched, too.

    Args:
        path: the file.
        codec: the Codec that made its codes, which re-ranks; None for a search by the tables alone.
        pairwise: decoder of the pairwise stage.
    """

    def __init__(self, path: str | os.PathLike, codec: Codec | None = None, pairwise: PairwiseDecoder | None = None):
        self.path, self.codec, self.pairwise = Path(path), codec, pairwise
        self.index = FaissIndex(path)
        self.lookup = LookupDecoder(self.index.tables, self.index.centroids)
        self.metric = Metric("inner_product" if self.index.inner_product else "l2")
        self.dim, self.num_lists, self.has_graph = self.index.dim, self.index.num_lists, self.index.has_graph
        _check_codec(self.path, codec, self.index)
        if codec is not None and codec.is_ivf and not same_centroids(self.index.centroids, codec.coarse_centroids):
            raise DataError(f"{path} holds codes of another codec: its centroids are not the model's")

    def __len__(self) -> int:
        return len(self.index)

    def with_pairwise(self, pairwise: PairwiseDecoder) -> "FaissSearcher":
        """The same file with another decoder for the pairwise stage."""
        return FaissSearcher(self.path, self.codec, pairwise)

    def missing_ids(self, ids_N: np.ndarray) -> np.ndarray:
        """Those of some ids that no vector has."""
        for _, _, block in self.index.blocks():
            ids_N = ids_N[~np.isin(ids_N, block)]
        return ids_N

    def pipeline(self, options: SearchOptions, k: int, *, precision: str = "auto", decoder: str = "neural") -> Pipeline:
        """As `Index.pipeline`."""

        def scan(queries_QD: np.ndarray, length: int) -> Shortlist:
            return Shortlist(*self.index.shortlist(queries_QD, length, options.nprobe, options.ef_search))

        decoders = self.codec, self.pairwise, decoder, precision
        return make_pipeline(scan, self.metric, options, k, len(self), *decoders)


def _check_codec(path: Path, codec: Codec | None, found: FaissIndex) -> None:
    sizes = {"dim": found.dim, "code_size": found.num_codes, "codebook_size": found.codebook_size}
    check_codec_of(path, codec, sizes | {"num_lists": found.num_lists})
