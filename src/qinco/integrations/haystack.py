"""`QincoDocumentStore` and `QincoEmbeddingRetriever`: a collection as a document store of Haystack."""

# pyright: reportMissingImports=false
import asyncio
import functools
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from qinco.collection.collection import Collection
from qinco.collection.records import Hit, Record
from qinco.errors import ConfigError, needs_extra
from qinco.integrations.stores import EVERYTHING, matching, open_store, relevance, similarity

with needs_extra("qinco.integrations.haystack", "haystack", "haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
    from haystack.utils.filters import document_matches_filter

    from qinco.integrations.haystack_filters import fields_of, part_of

Filters = dict[str, Any]
_P = ParamSpec("_P")
_T = TypeVar("_T")
_KINDS = {bool: "boolean", int: "int", float: "float"}
_SCALE = 100  # of inner products, as in InMemoryDocumentStore


def _in_thread(method: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]:
    """The async twin of a method."""

    @functools.wraps(method)
    async def twin(self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.to_thread(getattr(self, method.__name__), *args, **kwargs)

    twin.__name__, twin.__qualname__ = f"{method.__name__}_async", f"{method.__qualname__}_async"
    return twin


class QincoDocumentStore:
    """Documents in a collection, whose embeddings are kept exactly until `store.collection.optimize()` compresses them.

    Documents without an embedding are kept, too. Every method has an async twin of its name with `_async`.

    Args:
        folder: of the collection, which is made if there is none; None: a temporary one.
        collection: an open `Collection` instead of a folder.
        read_only: the documents are only searched; another process may write meanwhile.
        return_embedding: whether `filter_documents` returns embeddings.
        **create: settings of `Collection.create` for a new folder: metric, bytes, codec, fields (paths begin with
            "meta.") and others.

    Example:
        >>> store = QincoDocumentStore("notes.qinco", bytes=8)
        >>> store.write_documents([Document(content="Ada wrote programs.", meta={"year": 1843}, embedding=embedding)])
        1
        >>> store.filter_documents({"field": "meta.year", "operator": "<", "value": 1900})
    """

    def __init__(
        self, folder=None, *, collection: Collection | None = None, read_only: bool = False,
        return_embedding: bool = True, **create: Any,
    ):  # fmt: skip
        if collection is not None and (folder is not None or create):
            raise ConfigError("collection= is open already: leave folder and settings of creation out")
        self._collection = collection
        folder = folder if collection is None else collection.folder
        self.folder = None if folder is None else str(folder)
        self.read_only, self.return_embedding, self._create = read_only, return_embedding, create

    @property
    def collection(self) -> Collection:
        """What holds the documents, opened when it is first used."""
        if self._collection is None:
            self._collection = open_store(self.folder, self.read_only, self._create)
        return self._collection

    def to_dict(self) -> dict[str, Any]:
        """The settings that the store is made of again, and no documents: those stay in the folder."""
        try:
            json.dumps(self._create)
        except TypeError:
            raise ConfigError(f"{self._create!r:.100} cannot be serialized: give codec= as a path") from None
        settings = {"read_only": self.read_only, "return_embedding": self.return_embedding, **self._create}
        return default_to_dict(self, folder=self.folder, **settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "QincoDocumentStore":
        """A store of settings from `to_dict`."""
        return default_from_dict(cls, data)

    def count_documents(self) -> int:
        """The number of documents."""
        return self.collection.count()

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """All documents, or those for which a filter is true, in the order of their ids."""
        return [_document(one) for one in self._matching(filters, with_vectors=self.return_embedding)]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents, all of them or none; returns the number of those that were written.

        Args:
            documents: to be written.
            policy: for those whose ids are there: NONE and FAIL raise DuplicateDocumentError, SKIP, OVERWRITE.
        """
        if not isinstance(documents, list) or any(not isinstance(one, Document) for one in documents):
            raise ValueError(f"documents must be a list of Documents, not {documents!r:.60}")
        written = {one.id: one for one in documents}
        if policy != DuplicatePolicy.OVERWRITE:
            there = {record.id for record in self.collection.get(list(written), with_payload=False)}
            if policy != DuplicatePolicy.SKIP and (there or len(written) < len(documents)):
                ids = [one.id for one in documents]
                twice = next(id for id in ids if id in there or ids.count(id) > 1)
                raise DuplicateDocumentError(
                    f"there is a document with id {twice!r}: write it with the policy SKIP or OVERWRITE"
                )
            first = {one.id: one for one in reversed(documents)}
            written = {id: first[id] for id in written if id not in there}
        chosen = list(written.values())
        if chosen:
            self.collection.upsert(list(written), [one.embedding for one in chosen], [_payload(one) for one in chosen])
        return len(documents) if policy == DuplicatePolicy.OVERWRITE else len(chosen)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by their ids, of which unknown ones are passed over."""
        self.collection.delete(list(document_ids))

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete all documents. The collection stays as it is, so recreate_index makes no difference."""
        self.collection.clear()

    def delete_by_filter(self, filters: Filters) -> int:
        """Delete documents for which a filter is true; returns their number."""
        return self.collection.delete(self._matching_ids(filters))

    def update_by_filter(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Merge `meta` into that of documents for which a filter is true; returns their number."""
        return self.collection.update_payload(meta, ids=self._matching_ids(filters), key="meta")

    def count_documents_by_filter(self, filters: Filters) -> int:
        """The number of documents for which a filter is true."""
        part = part_of(filters) if filters else EVERYTHING
        return self.collection.count(part.where) if part.is_exact else sum(1 for _ in self._matching(filters))

    def count_unique_metadata_by_filter(self, filters: Filters, metadata_fields: list[str]) -> dict[str, int]:
        """How many values each of these fields has in documents for which a filter is true."""
        found: dict[str, set[str]] = {name.removeprefix("meta."): set() for name in metadata_fields}
        for meta in self._metas(filters):
            for name, values in found.items():
                if meta.get(name) is not None:
                    values.add(_text(meta[name]))
        return {name: len(values) for name, values in found.items()}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The types of all fields of metadata: "boolean", "int", "float" or "keyword"."""
        values = {name: value for meta in self._metas() for name, value in meta.items() if value is not None}
        return {name: {"type": _KINDS.get(type(value), "keyword")} for name, value in values.items()}

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The smallest and the largest value of a field, "min" and "max"; None if it has none that can be compared."""
        name = metadata_field.removeprefix("meta.")
        values = [meta[name] for meta in self._metas() if isinstance(meta.get(name), int | float | str)]
        try:
            return {"min": min(values, default=None), "max": max(values, default=None)}
        except TypeError:
            return {"min": None, "max": None}

    def get_metadata_field_unique_values(
        self, metadata_field: str, search_term: str | None = None, from_: int = 0, size: int = 10,
        filters: Filters | None = None,
    ) -> tuple[list[Any], int]:  # fmt: skip
        """A page of the values of a field, in the order of their text, and how many there are.

        Args:
            metadata_field: its name, with or without "meta.".
            search_term: text that values hold, in upper or lower case.
            from_, size: where the page begins, and how many values it has.
            filters: of the documents whose values these are.
        """
        name = metadata_field.removeprefix("meta.")
        values = {_text(meta[name]): meta[name] for meta in self._metas(filters) if meta.get(name) is not None}
        found = [value for value in values.values() if (search_term or "").lower() in str(value).lower()]
        found.sort(key=lambda value: (str(value), type(value).__name__))
        return found[from_ : from_ + size], len(found)

    def embedding_retrieval(
        self, query_embedding: list[float], filters: Filters | None = None, top_k: int = 10, scale_score: bool = False,
        return_embedding: bool | None = False, **search: Any,
    ) -> list[Document]:  # fmt: skip
        """The documents nearest to an embedding, with scores, of which larger is nearer.

        Args:
            query_embedding: of the query.
            filters: of the documents that may be found.
            top_k: documents at most.
            scale_score: scores from 0 to 1; else cosine similarity, inner product, or minus the squared L2 distance.
            return_embedding: whether documents have their embeddings; None: as `filter_documents`.
            **search: options of `Collection.search`, such as exact=True.
        """
        if not top_k:
            return []
        part, chosen = part_of(filters) if filters else EVERYTHING, None
        where = part.where
        if not part.is_exact:
            where, chosen = None, self._matching_ids(filters)
        with_vectors = self.return_embedding if return_embedding is None else return_embedding
        hits = self.collection.search(query_embedding, top_k, where, filter=chosen, with_vectors=with_vectors, **search)
        return [_document(hit, self._score(hit.score, scale_score)) for hit in hits]

    count_documents_async = _in_thread(count_documents)
    filter_documents_async = _in_thread(filter_documents)
    write_documents_async = _in_thread(write_documents)
    delete_documents_async = _in_thread(delete_documents)
    delete_all_documents_async = _in_thread(delete_all_documents)
    delete_by_filter_async = _in_thread(delete_by_filter)
    update_by_filter_async = _in_thread(update_by_filter)
    count_documents_by_filter_async = _in_thread(count_documents_by_filter)
    count_unique_metadata_by_filter_async = _in_thread(count_unique_metadata_by_filter)
    get_metadata_fields_info_async = _in_thread(get_metadata_fields_info)
    get_metadata_field_min_max_async = _in_thread(get_metadata_field_min_max)
    get_metadata_field_unique_values_async = _in_thread(get_metadata_field_unique_values)
    embedding_retrieval_async = _in_thread(embedding_retrieval)

    def _matching(self, filters: Filters | None, *, with_vectors: bool = False) -> Iterator[Record]:
        part = part_of(filters) if filters else EVERYTHING
        needs_vectors = not part.is_exact and "embedding" in fields_of(filters or {})

        def accepts(record: Record) -> bool:
            return part.is_exact or document_matches_filter(filters or {}, _document(record))

        return matching(self.collection, part.where, accepts, with_vectors=with_vectors or needs_vectors)

    def _matching_ids(self, filters: Filters | None) -> list:
        return [record.id for record in self._matching(filters)]

    def _metas(self, filters: Filters | None = None) -> Iterator[dict]:
        return ((record.payload or {}).get("meta") or {} for record in self._matching(filters))

    def _score(self, score: float, is_scaled: bool) -> float:
        if not is_scaled:
            return similarity(self.collection, score)
        return relevance(self.collection, score, _SCALE)


@component
class QincoEmbeddingRetriever:
    """Finds the documents of a `QincoDocumentStore` that are nearest to an embedding.

    Args:
        document_store: where they are.
        filters: of documents that may be found.
        top_k: documents at most.
        scale_score: scores from 0 to 1.
        return_embedding: whether documents have their embeddings.
        filter_policy: whether filters of a run replace these, or are merged with them.

    Example:
        >>> pipeline.add_component("retriever", QincoEmbeddingRetriever(document_store=store))
    """

    def __init__(
        self, document_store: QincoDocumentStore, filters: Filters | None = None, top_k: int = 10,
        scale_score: bool = False, return_embedding: bool = False,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ):  # fmt: skip
        if not isinstance(document_store, QincoDocumentStore):
            raise TypeError(f"document_store must be a QincoDocumentStore, not {type(document_store).__name__}")
        if top_k < 1:
            raise ConfigError(f"top_k must be 1 at least, not {top_k}")
        self.document_store, self.filters, self.top_k = document_store, filters, top_k
        self.scale_score, self.return_embedding = scale_score, return_embedding
        self.filter_policy = FilterPolicy.from_str(str(filter_policy))

    def to_dict(self) -> dict[str, Any]:
        """Its settings and those of the store."""
        return default_to_dict(
            self, document_store=self.document_store.to_dict(), filters=self.filters, top_k=self.top_k,
            scale_score=self.scale_score, return_embedding=self.return_embedding,
            filter_policy=self.filter_policy.value,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "QincoEmbeddingRetriever":
        """A retriever of settings from `to_dict`."""
        settings = dict(data["init_parameters"])
        if isinstance(settings["document_store"], dict):
            settings["document_store"] = QincoDocumentStore.from_dict(settings["document_store"])
        return default_from_dict(cls, data | {"init_parameters": settings})

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: Filters | None = None, top_k: int | None = None,
        scale_score: bool | None = None, return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:  # fmt: skip
        """The documents nearest to an embedding, as "documents"; what is not given is as the component was made."""
        settings = self._settings(filters, top_k, scale_score, return_embedding)
        return {"documents": self.document_store.embedding_retrieval(query_embedding, **settings)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: Filters | None = None, top_k: int | None = None,
        scale_score: bool | None = None, return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:  # fmt: skip
        """`run`, in a thread."""
        settings = self._settings(filters, top_k, scale_score, return_embedding)
        return {"documents": await self.document_store.embedding_retrieval_async(query_embedding, **settings)}

    def _settings(self, filters, top_k, scale_score, return_embedding) -> dict[str, Any]:
        return {
            "filters": apply_filter_policy(self.filter_policy, self.filters, filters),
            "top_k": self.top_k if top_k is None else top_k,
            "scale_score": self.scale_score if scale_score is None else scale_score,
            "return_embedding": self.return_embedding if return_embedding is None else return_embedding,
        }


def _payload(document: Document) -> dict[str, Any]:
    """What is kept besides the id and the embedding."""
    fields = document.to_dict(flatten=False)
    return {name: value for name, value in fields.items() if value is not None and name not in ("id", "embedding")}


def _document(record: Record | Hit, score: float | None = None) -> Document:
    fields: dict[str, Any] = {"meta": {}, **(record.payload or {})}
    if record.vector is not None:
        fields["embedding"] = record.vector.tolist()
    if score is not None:
        fields["score"] = score
    return Document.from_dict({**fields, "id": str(record.id)})


def _text(value: Any) -> str:
    """Of equal values of one type the same."""
    return f"{type(value).__name__} {json.dumps(value, sort_keys=True)}"
