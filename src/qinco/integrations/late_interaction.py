"""Late interaction (ColBERT): an index, a retriever and a reranker with PyLate's call shapes, over token codes.

PyLate is not needed; `pylate.retrieve.ColBERT(index=LateInteractionIndex(...))` works, too.

Shape suffixes: T tokens of a query, n tokens of documents, D dimension, M codes of a token, P documents.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from qinco.atomic import user_path
from qinco.codec.given import CodecLike, as_codec
from qinco.collection.collection import Collection
from qinco.collection.records import Id, record_ids
from qinco.config import EXACT_BELOW, require_int
from qinco.errors import ConfigError, DataError
from qinco.integrations.stores import open_store
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source, check_finite

Ranking = list[list[dict[str, Any]]]


class LateInteractionIndex:
    """Documents of several token embeddings each, found by MaxSim: a `pylate.indexes` index over a `Collection`.

    The tokens are kept exactly until `exact_below` of them are there, or a codec is given; then as codes, of 8 bytes a
    token unless told otherwise. Whatever has been added is on disk.

    Args:
        index_folder, index_name: the collection is in `index_folder/index_name`, and is opened if it is there.
        override: replace a collection that is there.
        collection: an open `Collection` of multi=True to use instead.
        bytes, codec, exact_below, metric, device: of a new collection, as of `Collection.create`.
        minutes: of the training of a codec, as of `Collection.optimize`.

    Example:
        >>> index = LateInteractionIndex("indexes", "colbert", override=True)
        >>> index = index.add_documents(["a", "b"], [tokens_of_a, tokens_of_b])
        >>> index(queries_embeddings, k=1)
        [[{'id': 'b', 'score': 7.91}]]
    """

    def __init__(
        self, index_folder="indexes", index_name: str = "colbert", override: bool = False, *,
        collection: Collection | None = None, bytes: int = 8, codec: CodecLike | None = None,
        exact_below: int = EXACT_BELOW, metric: str | None = None, minutes: float | None = None, device: str = "cpu",
    ):  # fmt: skip
        if collection is None:
            folder = Path(user_path(index_folder), index_name)
            create: dict[str, Any] = {"multi": True, "metric": metric, "bytes": bytes, "codec": codec,
                                      "exact_below": exact_below, "device": device}  # fmt: skip
            folder.parent.mkdir(parents=True, exist_ok=True)
            if override:
                collection = Collection.create(folder, overwrite=True, **create)
            else:
                collection = open_store(folder, False, create)
        if not collection.is_multi:
            raise ConfigError("records of the collection hold one vector each: create one with multi=true")
        self.collection, self.minutes = collection, minutes

    def __len__(self) -> int:
        return len(self.collection)

    def close(self) -> None:
        """Close the collection."""
        self.collection.close()

    def add_documents(self, documents_ids, documents_embeddings, **ignored) -> Self:
        """Add documents, or replace those whose ids are there; compress tokens once there are enough.

        Args:
            documents_ids: P strings or integers from 0 on, or one string.
            documents_embeddings: P arrays or tensors (n, D) of tokens; of one string, the array (n, D).
            **ignored: what other indexes take, such as batch_size.
        """
        if isinstance(documents_ids, str):
            documents_ids = [documents_ids]
            documents_embeddings = (
                [documents_embeddings] if np.ndim(documents_embeddings) == 2 else documents_embeddings
            )
        self.collection.upsert(record_ids(documents_ids, many=True), list(documents_embeddings))
        self.collection.optimize(minutes=self.minutes)
        return self

    def remove_documents(self, documents_ids) -> Self:
        """Remove documents by their ids, of which unknown ones are passed over."""
        self.collection.delete(documents_ids)
        return self

    def __call__(
        self, queries_embeddings, k: int = 10, subset: Sequence | None = None, *, candidates: int | None = None
    ) -> Ranking:
        """The k documents of each query with the largest MaxSim.

        Args:
            queries_embeddings: arrays or tensors (T, D), one for each query; (Q, T, D); or one query (T, D).
            k: documents of each query; fewer where there are fewer.
            subset: ids of documents that may be found: a list for all queries, or a list of lists, one for each.
            candidates: tokens that each query token finds, and documents that are then compared in full; see
                `Collection.search_multi`.

        Returns:
            For each query a list of {"id", "score"}, nearest first.
        """
        queries = _queries(queries_embeddings)
        options = {"candidates": candidates, "with_payload": False}
        if subset is None or not _is_of_each(subset):
            found = self.collection.search_multi(queries, k, filter=subset, **options) if queries else []
            return list(map(_ranking, found))
        if len(subset) != len(queries):
            raise DataError(f"subset must have a list for each of {len(queries)} queries, not {len(subset)}")
        pairs = zip(queries, subset, strict=True)
        return [_ranking(self.collection.search_multi(query, k, filter=ids, **options)) for query, ids in pairs]

    def rerank(self, documents_ids, queries_embeddings) -> Ranking:
        """Rank candidates of each query, such as those of BM25, by MaxSim with their tokens as the index holds them.

        Args:
            documents_ids: for each query the ids of its candidates; unknown ones are passed over.
            queries_embeddings: as of a call.
        """
        queries, found = _queries(queries_embeddings), []
        _check_count("documents_ids", documents_ids, queries)
        for query, given in zip(queries, documents_ids, strict=True):
            ids = record_ids(given)
            options = {"filter": ids, "exact": True, "with_payload": False}
            found.append(_ranking(self.collection.search_multi(query, len(ids), **options)) if ids else [])
        return found

    def get_documents_embeddings(self, documents_ids) -> list[list[np.ndarray]]:
        """The tokens of documents, float32 (n, D) each, decoded where they are compressed.

        Args:
            documents_ids: lists of ids, as many as there are queries. An id that is unknown is a DataError.
        """
        groups = [record_ids(group) for group in documents_ids]
        wanted = list(dict.fromkeys(id for group in groups for id in group))
        records = self.collection.get(wanted, with_payload=False, with_vectors=True)
        empty_0D = np.empty((0, self.collection.dim or 0), np.float32)
        found = {record.id: empty_0D if record.vector is None else record.vector for record in records}
        if missing := [id for id in wanted if id not in found]:
            raise DataError(f"no document has the id {missing[0]!r:.60}: add_documents adds it")
        return [[found[id] for id in group] for group in groups]


class LateInteractionRetriever:
    """What finds the documents of a `LateInteractionIndex`, called as `pylate.retrieve.ColBERT`.

    Example:
        >>> LateInteractionRetriever(index).retrieve(queries_embeddings, k=10)
    """

    def __init__(self, index: LateInteractionIndex):
        self.index = index

    def retrieve(
        self, queries_embeddings, k: int = 10, k_token: int | None = None, device: str | None = None,
        batch_size: int = 50, subset: Sequence | None = None,
    ) -> Ranking:  # fmt: skip
        """The k documents of each query with the largest MaxSim.

        Args:
            queries_embeddings, k, subset: as of a call of the index.
            k_token: tokens that each query token finds first, k at least; None: as many as the index takes.
            device: is passed over: the collection has one.
            batch_size: queries at a time.
        """
        require_int("batch_size", batch_size)
        queries, found = _queries(queries_embeddings), []
        candidates = None if k_token is None else max(k, k_token)
        each = _is_of_each(subset)
        for first in range(0, len(queries), batch_size):
            part = slice(first, first + batch_size)
            chosen = subset[part] if each and subset is not None else subset
            found += self.index(queries[part], k, chosen, candidates=candidates)
        return found


def rerank(
    documents_ids, queries_embeddings, documents_embeddings, device: str | None = None, *,
    codec: CodecLike | None = None,
) -> Ranking:  # fmt: skip
    """Rank candidates of each query by MaxSim, the sum of each query token's largest inner product with a token.

    Args:
        documents_ids: for each query the ids of its candidates.
        queries_embeddings: as of `LateInteractionIndex`.
        documents_embeddings: for each query the tokens of its candidates: arrays or tensors (n, D) or, with a codec,
            their codes, (n, M) arrays or `Codes`, which are decoded a query at a time.
        device: is passed over, as numpy computes.
        codec: a Codec, or the path of one.

    Returns:
        For each query a list of {"id", "score"}, nearest first. A document without tokens has the score -inf.

    Example:
        >>> codes = [codec.encode(tokens) for tokens in documents_embeddings]
        >>> rerank([[0, 1]], queries_embeddings, [codes], codec=codec)
        [[{'id': 1, 'score': 6.52}, {'id': 0, 'score': 5.13}]]
    """
    queries, found = _queries(queries_embeddings), []
    codec = None if codec is None else as_codec(codec)
    _check_count("documents_ids", documents_ids, queries)
    _check_count("documents_embeddings", documents_embeddings, queries)
    for query_TD, given, documents in zip(queries, documents_ids, documents_embeddings, strict=True):
        ids, documents = record_ids(given), list(documents)
        if len(ids) != len(documents):
            raise DataError(f"a query has {len(ids)} documents_ids, and {len(documents)} documents_embeddings")
        tokens_nD, counts_P = _tokens(documents, query_TD.shape[1], codec)
        scores_P = _maxsim(query_TD, tokens_nD, counts_P)
        order = np.argsort(-scores_P, kind="stable")
        found.append([{"id": ids[place], "score": float(scores_P[place])} for place in order])
    return found


def _is_of_each(subset: Any) -> bool:
    """Whether a subset has a list of ids for each query."""
    one = subset[0] if isinstance(subset, list | tuple) and len(subset) else None
    return isinstance(one, Iterable) and not isinstance(one, str)


def _tokens(documents: list, dim: int, codec) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of documents one after the other, float32 (n, D), and how many each has, int64 (P,)."""
    counts_P = np.array([len(one) for one in documents], np.int64)
    filled = [one for one, count in zip(documents, counts_P, strict=True) if count]
    if not filled:
        return np.empty((0, dim), np.float32), counts_P
    if codec is not None:
        parts = [codec.check_codes(one) for one in filled]
        lists = np.concatenate([np.asarray(one.lists) for one in parts]) if codec.is_ivf else None
        tokens_nD = codec.decode(Codes(np.concatenate([np.asarray(one.codes) for one in parts]), lists))
    else:
        tokens_nD = np.concatenate([_read(one, "documents_embeddings") for one in filled])
    if tokens_nD.shape[1] != dim:
        raise DataError(f"queries_embeddings must have dimension {tokens_nD.shape[1]}, that of documents, not {dim}")
    return tokens_nD, counts_P


def _maxsim(query_TD: np.ndarray, tokens_nD: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
    scores_P, filled = np.full(len(counts_P), -np.inf, np.float32), counts_P > 0
    if filled.any():
        starts = (np.cumsum(counts_P) - counts_P)[filled]
        scores_P[filled] = np.maximum.reduceat(query_TD @ tokens_nD.T, starts, 1).sum(0)
    return scores_P


def _queries(given) -> list[np.ndarray]:
    """Queries, float32 (T, D) each."""
    is_list = isinstance(given, list | tuple)
    is_single = np.ndim(given) == 2 if not is_list else bool(len(given)) and np.ndim(given[0]) == 1
    queries = [_read(one, "queries_embeddings") for one in ([given] if is_single else given)]
    for query_TD in queries:
        if not len(query_TD):
            raise DataError("a query must hold a token, (T, D), not none")
    return queries


def _read(vectors, name: str) -> np.ndarray:
    x_ND = as_source(vectors, name)[:]
    check_finite(x_ND, name=name)
    return x_ND


def _check_count(name: str, given, queries: list) -> None:
    if len(given) != len(queries):
        raise DataError(f"{name} must have a list for each of {len(queries)} queries, not {len(given)}")


def _ranking(hits) -> list[dict[str, Id | float]]:
    return [{"id": hit.id, "score": hit.score} for hit in hits]
