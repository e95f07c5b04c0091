"""`QincoVectorStore`: a collection as a vector store of LangChain."""

# pyright: reportMissingImports=false
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qinco.collection.collection import Collection
from qinco.collection.filters import Filter
from qinco.collection.records import Hit, Record
from qinco.errors import ConfigError, needs_extra
from qinco.integrations.stores import below, matching, open_store, relevance

with needs_extra("qinco.integrations.langchain", "langchain_core", "langchain"):
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance

TEXT, METADATA = "page_content", "metadata"  # in payloads, as langchain-qdrant has them
FilterOption = Mapping | Filter | Callable[[Document], bool] | None


class QincoVectorStore(VectorStore):
    """Documents in a collection, whose vectors are kept exactly until `store.collection.optimize()` compresses them.

    Args:
        embedding: what makes vectors of texts.
        folder: of the collection, which is made if there is none; None: a temporary one.
        collection: an open `Collection` instead of a folder.
        read_only: the documents are only searched; another process may write meanwhile.
        **create: settings of `Collection.create` for a new folder: metric, bytes, codec, fields (paths begin with
            "metadata.") and others.

    Searches take `filter=`, a mapping on the metadata as `where=` of `Collection`, {"year": {"gte": 2010}}, or a
    function of a Document; and options of `Collection.search`, such as exact=True.

    Example:
        >>> store = QincoVectorStore(embeddings, "notes.qinco", bytes=8)
        >>> store.add_texts(["Ada wrote programs."], [{"year": 1843}])
        >>> store.similarity_search("programming", k=4, filter={"year": {"lt": 1900}})
    """

    def __init__(
        self, embedding: Embeddings, folder=None, *, collection: Collection | None = None, read_only: bool = False,
        **create: Any,
    ):  # fmt: skip
        if collection is not None and (folder is not None or create):
            raise ConfigError("collection= is open already: leave folder and settings of creation out")
        self._embedding = embedding
        self.collection = open_store(folder, read_only, create) if collection is None else collection

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    def add_documents(self, documents: list[Document], ids: Sequence[str | None] | None = None, **kwargs) -> list[str]:
        """Add documents, and let each whose id is there replace that one; returns their ids.

        An id is that of `ids`, else the document's, else a new UUID.
        """
        given = [None] * len(documents) if ids is None else list(ids)
        if len(given) != len(documents):
            raise ConfigError(f"there must be as many ids as documents, {len(documents)}, not {len(given)}")
        chosen = [id or one.id or str(uuid.uuid4()) for id, one in zip(given, documents, strict=True)]
        if documents:
            vectors = self._embedding.embed_documents([one.page_content for one in documents])
            payloads = [{TEXT: one.page_content, METADATA: one.metadata} for one in documents]
            self.collection.upsert(chosen, vectors, payloads)
        return chosen

    def delete(self, ids: Sequence[str] | None = None, **kwargs) -> bool:
        """Delete documents by their ids, of which unknown ones are passed over; all documents if ids is None."""
        if ids is None:
            self.collection.clear()
        else:
            self.collection.delete(list(ids))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents in the order of their ids; unknown ones are passed over."""
        return [_document(record) for record in self.collection.get(list(ids))]

    def similarity_search(self, query: str, k: int = 4, *, filter: FilterOption = None, **search) -> list[Document]:
        """The k documents nearest to a text."""
        return [one for one, _ in self.similarity_search_with_score(query, k, filter=filter, **search)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: FilterOption = None, **search
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a text, with scores: cosine similarity, inner product, or squared L2 distance."""
        return self.similarity_search_with_score_by_vector(
            self._embedding.embed_query(query), k, filter=filter, **search
        )

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: FilterOption = None, **search
    ) -> list[Document]:
        """The k documents nearest to a vector."""
        return [one for one, _ in self.similarity_search_with_score_by_vector(embedding, k, filter=filter, **search)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: FilterOption = None, **search
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a vector, with scores."""
        return [(_document(hit), hit.score) for hit in self._hits(embedding, k, filter, search)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, *, filter: FilterOption = None,
        **search,
    ) -> list[Document]:  # fmt: skip
        """k of the fetch_k documents nearest to a text, that differ from each other; see the next."""
        return self.max_marginal_relevance_search_by_vector(
            self._embedding.embed_query(query), k, fetch_k, lambda_mult, filter=filter, **search
        )

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, *,
        filter: FilterOption = None, **search,
    ) -> list[Document]:  # fmt: skip
        """k of the fetch_k documents nearest to a vector, chosen by maximal marginal relevance.

        lambda_mult is from 0, for the most diverse, to 1. Vectors that are compressed are compared as they decode.
        """
        hits = self._hits(embedding, max(k, fetch_k), filter, search | {"with_vectors": True})
        vectors: list[Any] = [hit.vector for hit in hits]
        return [
            _document(hits[row]) for row in maximal_marginal_relevance(np.array(embedding), vectors, lambda_mult, k)
        ]

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict] | None = None, *,
        ids: list[str] | None = None, **kwargs,
    ) -> "QincoVectorStore":  # fmt: skip
        """A store of these texts; other arguments are those of the class."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Scores as relevance from 0 to 1, of which larger is nearer."""
        return functools.partial(relevance, self.collection)

    def _hits(self, embedding: list[float], k: int, filter: FilterOption, search: dict) -> list[Hit]:
        if callable(filter):
            accepts = filter
            found = matching(self.collection, None, lambda record: accepts(_document(record)))
            return self.collection.search(embedding, k, filter=[record.id for record in found], **search)
        where = None if filter is None else below(filter, METADATA, self.collection.fields)
        return self.collection.search(embedding, k, where, **search)


def _document(record: Record | Hit) -> Document:
    payload = record.payload or {}
    return Document(id=str(record.id), page_content=payload.get(TEXT) or "", metadata=payload.get(METADATA) or {})
