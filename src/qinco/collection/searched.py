"""Searches of collections: `SearchedCollection` has the methods of `Collection` that find records by vectors.

Shape suffixes: Q queries, T vectors of a query, R results, D dimension.
"""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from qinco.collection import finding, multi, searching
from qinco.collection.maintained import MaintainedCollection
from qinco.collection.moments import Moments, View
from qinco.collection.records import Hit, record_ids
from qinco.collection.schema import value_of
from qinco.config import require_int, require_number
from qinco.errors import ConfigError, DataError
from qinco.search.options import MAX_SHORTLIST
from qinco.vectors.rows import VectorSource, as_queries, as_source, check_dim

_LEAST_CANDIDATES = 100


class SearchedCollection(MaintainedCollection):
    """An open collection, and what finds its records by vectors."""

    def __init__(self, database, device: str = "cpu", moments: Moments | None = None):
        super().__init__(database, device, moments)
        self._keys = finding.KeyCache()

    def search(
        self, queries, k: int = 10, where=None, *, filter=None, exact: bool = False, with_payload: bool = True,
        with_vectors: bool = False, score_limit: float | None = None, diversity: float = 0.0,
        candidates: int | None = None, nprobe: int | None = None, num_short: int | None = None, precision: str = "auto",
    ) -> Any:  # fmt: skip
        """Find the k records nearest to each query.

        Args:
            queries: one query (D,), or (Q, D) as an array, tensor, list, path or VectorSource.
            k: hits for each query.
            where: a filter: `{"lang": "de", "year": {"gte": 2010}}`.
            filter: ids of records that may be found, besides `where`.
            exact: compare with all vectors: fresh ones and what compressed ones decode to.
            with_payload, with_vectors: what hits hold besides ids and scores.
            score_limit: the lowest similarity, or with metric "l2" the largest distance, of a hit.
            diversity: from 0 to 1. Above 0 hits are chosen one by one by maximal marginal relevance: similarity to the
                query times 1 - diversity, less diversity times that to the nearest hit before.
            candidates: records of which these are chosen; 5 k if None. Of a collection with multi=True: see
                `search_multi`.
            nprobe, num_short, precision: of the compressed vectors, as in `Index.search`.

        Returns:
            list[Hit], nearest first, of one query; list[list[Hit]] of several.
        """
        source, is_single = as_queries(queries)
        options = self._options(k, exact, nprobe, num_short, precision, score_limit)
        require_number("diversity", diversity, 0, 1)
        require_int("candidates", candidates or k, k, MAX_SHORTLIST)
        kinds = {"with_payload": with_payload, "with_vectors": with_vectors, "limit": score_limit}
        if self._moments.is_multi:
            if diversity:
                raise ConfigError("diversity= compares single vectors, and records of multi=true hold several: leave it"
                                  " out")  # fmt: skip
            tokens = [query_D[None] for _, block in source.blocks(1 << 14) for query_D in block]
            hits = self._among_several(tokens, options, where, filter, candidates, kinds)
            return hits[0] if is_single else hits
        with self._viewing() as view:
            _check_queries(view, source)
            allowed = self._allowed(view, where, filter)
            wide = options if not diversity else replace(options, k=candidates or 5 * k)
            scores_QR, keys_QR = searching.nearest(view.moment, source, wide, allowed)
            if diversity:
                scores_QR, keys_QR = searching.diverse(view.moment, scores_QR, keys_QR, k, float(diversity))
            hits = searching.hits_of(view, self._moments.metric, scores_QR, keys_QR, **kinds)
        return hits[0] if is_single else hits

    def search_by_id(self, ids, k: int = 10, where=None, **options) -> Any:
        """Find the k records nearest to a record that is there, which is no hit itself.

        Args:
            ids: an id, or a list of Q.
            k, where, **options: as of `search`, or with multi=True of `search_multi`.

        Returns:
            list[Hit], nearest first, of one id; list[list[Hit]] of several.

        Example:
            >>> docs.search_by_id("b", k=1)[0].id
            'a'
        """
        is_single, given = isinstance(ids, str | Integral), record_ids(ids)
        require_int("k", k, 1, MAX_SHORTLIST - 1)
        if options.get("candidates") is not None:
            require_int("candidates", options["candidates"], k, MAX_SHORTLIST - 1)
            options["candidates"] += 1  # the record itself
        with self._viewing() as view:
            keys = finding.keys_by_id(view, given)
            vectors = finding.vectors_of(view, list(dict.fromkeys(keys.values())))
        for id in given:
            if id not in keys:
                kind = "text" if isinstance(id, str) else "a number"
                raise DataError(f"no record has the id {id!r:.60}, {kind}: give one that there is")
            if keys[id] not in vectors:
                raise DataError(f"the record {id!r:.60} has no vector to search with")
        call = self.search_multi if self._moments.is_multi else self.search
        found = call([vectors[keys[id]] for id in given], k + 1, where, **options) if given else []
        hits = [[hit for hit in some if hit.id != id][:k] for id, some in zip(given, found, strict=True)]
        return hits[0] if is_single else hits

    def search_multi(
        self, queries, k: int = 10, where=None, *, filter=None, exact: bool = False, with_payload: bool = True,
        with_vectors: bool = False, score_limit: float | None = None, candidates: int | None = None,
        nprobe: int | None = None, num_short: int | None = None, precision: str = "auto",
    ) -> Any:  # fmt: skip
        """Find the k records nearest to each query of several vectors, in a collection created with multi=True.

        The score of a record is MaxSim: the similarities of the record's vector that is nearest to each vector of the
        query, summed; with metric "l2" the sum of the smallest distances. Vectors that are compressed are compared as
        they are decoded.

        Args:
            queries: one query of T vectors, (T, D), or a list of queries.
            candidates: vectors that each query vector finds first, and records of which all vectors are compared then;
                5 k, and 100 at least, if None. More take longer and miss less.
            k, where, filter, exact, with_payload, with_vectors, score_limit: as of `search`.
            nprobe, num_short, precision: of the vectors that are found first, as in `Index.search`.

        Returns:
            list[Hit], nearest first, of one query; list[list[Hit]] of several.

        Example:
            >>> texts = qinco.Collection.create("texts.qinco", multi=True)
            >>> texts.upsert(["a", "b"], [vectors[:3], vectors[3:8]])
            >>> texts.search_multi(vectors[3:5], k=1)[0].id
            'b'
        """
        if not self._moments.is_multi:
            raise ConfigError("records hold one vector each: use search, or create a collection with multi=true")
        tokens, is_single = _queries_of_several(queries)
        options = self._options(k, exact, nprobe, num_short, precision, score_limit)
        require_int("candidates", candidates or k, k, MAX_SHORTLIST)
        kinds = {"with_payload": with_payload, "with_vectors": with_vectors, "limit": score_limit}
        hits = self._among_several(tokens, options, where, filter, candidates, kinds)
        return hits[0] if is_single else hits

    def _among_several(
        self, queries: list[np.ndarray], options: searching.Search, where, filter, candidates: int | None, kinds: dict
    ) -> list[list[Hit]]:
        candidates = candidates or max(5 * options.k, _LEAST_CANDIDATES)
        with self._viewing() as view:
            for query_TD in queries[:1]:
                _check_queries(view, as_source(query_TD, "queries"))
            allowed = self._allowed(view, where, filter)
            found = multi.nearest_records(view.moment, queries, options, candidates, allowed)
            width = max((len(keys) for _, keys in found), default=0)
            scores_QR = np.zeros((len(found), width), np.float32)
            keys_QR = np.full((len(found), width), -1, np.int64)
            for row, (scores, keys) in enumerate(found):
                scores_QR[row, : len(keys)], keys_QR[row, : len(keys)] = scores, keys
            return searching.hits_of(view, self._moments.metric, scores_QR, keys_QR, **kinds)

    def _options(self, k, exact, nprobe, num_short, precision, score_limit) -> searching.Search:
        require_int("k", k, 1, MAX_SHORTLIST)
        if score_limit is not None:
            require_number("score_limit", score_limit)
        return searching.Search(k, exact, nprobe, num_short, precision)

    def _allowed(self, view: View, where, filter) -> finding.Allowed | None:
        """The records that a search may find; None for all."""
        allowed = None if where is None else self._keys.allowed(view, where)
        if filter is None:
            return allowed
        chosen = finding.keys_among(view, filter)
        return finding.Allowed(chosen if allowed is None else np.intersect1d(chosen, allowed.keys, assume_unique=True))


def _check_queries(view: View, source: VectorSource) -> None:
    dim = view.moment.dim
    if dim is None:
        dim = value_of(view.connection, "dim")
    if dim is not None:
        check_dim(source, dim, "the collection")


def _queries_of_several(queries: Any) -> tuple[list[np.ndarray], bool]:
    """Queries, float32 (T, D) each, all of one dimension; and whether they were one."""
    is_list = isinstance(queries, Sequence) and not isinstance(queries, str)
    are_several = np.ndim(queries[0]) == 2 if is_list and len(queries) else is_list or np.ndim(queries) == 3
    sources = [as_source(one, "queries") for one in (queries if are_several else [queries])]
    for source in sources:
        check_dim(source, sources[0].dim, "the first query")
        if not len(source):
            raise DataError("a query must hold a vector, (T, D), not none")
    return [np.concatenate([block for _, block in source.blocks(1 << 14)]) for source in sources], not are_several
