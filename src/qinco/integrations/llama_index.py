"""`QincoVectorStore`: a collection as a vector store of LlamaIndex."""

# pyright: reportMissingImports=false
import asyncio
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qinco.atomic import user_path
from qinco.collection.collection import Collection
from qinco.collection.filters import Empty, Eq, Exists, Has, Null, Text
from qinco.collection.paths import quoted
from qinco.collection.records import Id, Record
from qinco.collection.schema import FILE
from qinco.errors import ConfigError, DataError, needs_extra
from qinco.integrations.stores import (
    EVERYTHING,
    UNKNOWN,
    Part,
    all_of,
    any_of,
    complement,
    matching,
    not_array,
    one_of,
    open_store,
    ordered,
    said,
    similarity,
)

with needs_extra("qinco.integrations.llama_index", "llama_index", "llama-index"):
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode
    from llama_index.core.vector_stores.types import (
        DEFAULT_PERSIST_DIR,
        DEFAULT_PERSIST_FNAME,
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import (
        build_metadata_filter_fn,
        metadata_dict_to_node,
        node_to_metadata_dict,
    )

_DOCUMENT = "ref_doc_id"  # the same as doc_id, and has an index
_DEFAULT_PATH = f"{DEFAULT_PERSIST_DIR}/{DEFAULT_PERSIST_FNAME}"
_BOUNDS = {FilterOperator.GT: "gt", FilterOperator.GTE: "gte", FilterOperator.LT: "lt", FilterOperator.LTE: "lte"}
_MMR_THRESHOLD, _MMR_FACTOR = 0.5, 4


class QincoVectorStore(BasePydanticVectorStore):
    """Nodes in a collection, whose vectors are kept exactly until `store.client.optimize()` compresses them.

    Args:
        folder: of the collection, which is made if there is none; None: a temporary one.
        collection: an open `Collection` instead of a folder.
        read_only: the nodes are only searched; another process may write meanwhile.
        **create: settings of `Collection.create` for a new folder: metric, bytes, codec, fields and others.

    Filters are those of LlamaIndex with all operators and conditions, also nested. `query` takes options of
    `Collection.search`, such as exact=True.

    Example:
        >>> store = QincoVectorStore("notes.qinco", bytes=8)
        >>> context = StorageContext.from_defaults(vector_store=store)
        >>> index = VectorStoreIndex.from_documents(documents, context)
        >>> index = VectorStoreIndex.from_vector_store(QincoVectorStore("notes.qinco"))
    """

    stores_text: bool = True
    flat_metadata: bool = False
    folder: str | None = None
    read_only: bool = False
    _collection: Collection = PrivateAttr()

    def __init__(self, folder=None, *, collection: Collection | None = None, read_only: bool = False, **create: Any):
        if collection is not None and (folder is not None or create):
            raise ConfigError("collection= is open already: leave folder and settings of creation out")
        if collection is None:
            create["fields"] = {_DOCUMENT: "keyword", **(create.get("fields") or {})}
            found = open_store(folder, read_only, create)
        else:
            found, folder = collection, collection.folder
        settings: dict[str, Any] = {"folder": None if folder is None else str(folder), "read_only": read_only}
        super().__init__(**settings)
        self._collection = found

    @classmethod
    def class_name(cls) -> str:
        return "QincoVectorStore"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> "QincoVectorStore":
        """A store of what `to_dict` gave, which holds the folder and no nodes."""
        return cls(data.get("folder"), read_only=data.get("read_only", False), **kwargs)

    @property
    def client(self) -> Collection:
        """The collection."""
        return self._collection

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes with their embeddings, and let each whose id is there replace that one; returns their ids."""
        ids = [node.node_id for node in nodes]
        payloads = [node_to_metadata_dict(node, remove_text=False, flat_metadata=False) for node in nodes]
        if ids:
            self.client.upsert(ids, [node.get_embedding() for node in nodes], payloads)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self.client.delete(where=Eq(_DOCUMENT, ref_doc_id))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes with these ids for which filters are true; None, and no ids, are for all."""
        if not node_ids and not (filters and filters.filters):
            self.client.clear()
        else:
            self.client.delete([record.id for record in self._matching(node_ids, None, filters)])

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes with these ids for which filters are true, in the order of their ids; None, and no ids, are for all."""
        return [_node(record) for record in self._matching(node_ids, None, filters)]

    def clear(self) -> None:
        """Delete all nodes."""
        self.client.clear()

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to an embedding, with similarities, of which larger is nearer (for "l2" minus its square).

        Modes are DEFAULT and MMR. Of MMR `mmr_threshold`, of the query or else of kwargs, is from 0, for the most
        diverse, to 1 (0.5 if there is none), and `mmr_prefetch_factor` times as many nodes (4) are chosen from.

        Raises:
            ValueError: for other modes, and without an embedding.
        """
        threshold, factor = kwargs.pop("mmr_threshold", None), kwargs.pop("mmr_prefetch_factor", _MMR_FACTOR)
        if query.mode == VectorStoreQueryMode.MMR:
            threshold = query.mmr_threshold if query.mmr_threshold is not None else threshold
            kwargs["diversity"] = 1 - (_MMR_THRESHOLD if threshold is None else threshold)
            kwargs["candidates"] = max(1, int(query.similarity_top_k * factor))
        elif query.mode != VectorStoreQueryMode.DEFAULT:
            raise ConfigError(f"query mode {query.mode.value!r} is not supported: use default or mmr")
        if query.query_embedding is None:
            raise ConfigError("the query has no embedding: embed its text first")
        hits = []
        if query.similarity_top_k:
            part, chosen = _restricted(query.node_ids, query.doc_ids, query.filters), None
            where = part.where
            if not part.is_exact:
                found = self._matching(query.node_ids, query.doc_ids, query.filters)
                where, chosen = None, [record.id for record in found]
            hits = self.client.search(query.query_embedding, query.similarity_top_k, where, filter=chosen, **kwargs)
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits],
            similarities=[similarity(self.client, hit.score) for hit in hits],
            ids=[str(hit.id) for hit in hits],
        )

    def persist(self, persist_path: str = _DEFAULT_PATH, fs: Any = None) -> None:
        """Copy the collection as it is now to a folder, which replaces a copy that is there."""
        target = _local(persist_path, fs)
        if target.exists() and target.samefile(self.client.folder):
            return  # what was written is on disk
        if target.exists() and not (target / FILE).is_file():
            raise ConfigError(f"{target} is no collection: give another persist_path, or remove it")
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        names = [target.with_name(f".{target.name}.{secrets.token_hex(4)}") for _ in range(2)]
        try:
            self.client.snapshot(names[0])
            if target.exists():
                target.rename(names[1])
            names[0].rename(target)
        finally:
            if names[1].exists() and not target.exists():
                names[1].rename(target)
            for name in names:
                shutil.rmtree(name, ignore_errors=True)

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None) -> "QincoVectorStore":
        """The store that was persisted to a folder, which is written to from now on."""
        folder = _local(persist_path, fs)
        if not (folder / FILE).is_file():
            raise DataError(f"{folder} holds no collection: persist the store there first")
        return cls(folder)

    @classmethod
    def from_persist_dir(
        cls, persist_dir: str = DEFAULT_PERSIST_DIR, namespace: str = "default", fs: Any = None
    ) -> "QincoVectorStore":
        """The store that `StorageContext.persist` wrote to a folder."""
        return cls.from_persist_path(f"{persist_dir}/{namespace}__{DEFAULT_PERSIST_FNAME}", fs)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """`add`, in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """`delete`, in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """`delete_nodes`, in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes`, in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """`clear`, in a thread."""
        await asyncio.to_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query`, in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _matching(self, node_ids, doc_ids, filters: MetadataFilters | None):
        part, decides = _restricted(node_ids, doc_ids, filters), _decides(filters)
        chosen: set[Id] | None = set(node_ids) if node_ids and part.where is None else None
        documents = set(doc_ids) if doc_ids and part.where is None else None

        def accepts(record: Record) -> bool:
            if part.is_exact:
                return True
            payload = record.payload or {}
            is_chosen = (chosen is None or record.id in chosen) and (
                documents is None or payload.get(_DOCUMENT) in documents
            )
            return is_chosen and decides(payload)

        return matching(self.client, part.where, accepts)


def _restricted(node_ids: list[str] | None, doc_ids: list[str] | None, filters: MetadataFilters | None) -> Part:
    """What SQL can say of a query's restrictions. VectorStoreIndex sends no ids where it means all."""
    parts = [_part(filters)] if filters is not None else []
    parts += [Part(Has(tuple(node_ids)))] if node_ids else []
    parts += [one_of(_DOCUMENT, doc_ids)] if doc_ids else []
    return all_of(parts)


def _part(filters: MetadataFilter | MetadataFilters) -> Part:
    """What SQL can say of a filter."""
    if isinstance(filters, MetadataFilter):
        return _condition(filters)
    if not filters.filters:
        return EVERYTHING
    parts = [_part(one) for one in filters.filters]
    if filters.condition == FilterCondition.OR:
        return any_of(parts)
    return complement(any_of(parts)) if filters.condition == FilterCondition.NOT else all_of(parts)


def _condition(filter: MetadataFilter) -> Part:
    """What LlamaIndex's `build_metadata_filter_fn` says, whose keys are not paths, of one condition."""
    operator, value, path = filter.operator, filter.value, quoted(filter.key)
    if operator == FilterOperator.IS_EMPTY:
        return any_of([said(Empty, path), all_of([said(Eq, path, ""), not_array(path)])])
    if operator in (FilterOperator.EQ, FilterOperator.NE) and isinstance(value, list):
        found = UNKNOWN
    elif operator in (FilterOperator.EQ, FilterOperator.NE):
        found = any_of([]) if value is None else all_of([one_of(path, [value]), not_array(path)])
    elif operator in (FilterOperator.IN, FilterOperator.NIN):
        found = all_of([one_of(path, value), not_array(path)]) if isinstance(value, list) else UNKNOWN
    elif operator in _BOUNDS:
        found = ordered(path, _BOUNDS[operator], value)
    elif operator == FilterOperator.TEXT_MATCH:
        found = all_of([said(Text, path, value), not_array(path)]) if isinstance(value, str) else UNKNOWN
    elif operator == FilterOperator.CONTAINS:
        found = _contains(path, value)
    elif operator in (FilterOperator.ALL, FilterOperator.ANY) and isinstance(value, list | str):
        parts = [_contains(path, one) for one in value]
        # of no values ALL is true, but not of a field that is missing
        found = any_of(parts) if operator == FilterOperator.ANY else all_of([*parts, complement(said(Null, path))])
    else:
        found = UNKNOWN
    return complement(found) if operator in (FilterOperator.NE, FilterOperator.NIN) else found


def _contains(path: str, value: Any) -> Part:
    """An array holds the value, a text holds the text, or an object has the key."""
    is_array = said(Exists, f"{path}[]")
    if not isinstance(value, str):
        return all_of([one_of(path, [value]), is_array])
    in_text = all_of([said(Text, path, value), not_array(path)])
    return any_of([one_of(path, [value]), in_text, said(Exists, f"{path}.{quoted(value)}")])


def _decides(filters: MetadataFilter | MetadataFilters | None) -> Callable[[Mapping[str, Any]], bool]:
    """LlamaIndex's own function of payloads, which knows no filters in filters."""
    if filters is None or (isinstance(filters, MetadataFilters) and not filters.filters):
        return lambda payload: True
    if isinstance(filters, MetadataFilter):
        lookup: Any = lambda payload: payload  # noqa: E731 (what it calls the id of a node is the payload)
        decides: Any = build_metadata_filter_fn(lookup, MetadataFilters(filters=[filters]))
        return decides
    parts = [_decides(one) for one in filters.filters]
    if filters.condition == FilterCondition.OR:
        return lambda payload: any(decides(payload) for decides in parts)
    if filters.condition == FilterCondition.NOT:
        return lambda payload: not any(decides(payload) for decides in parts)
    return lambda payload: all(decides(payload) for decides in parts)


def _node(record) -> BaseNode:
    return metadata_dict_to_node(record.payload or {})


def _local(path: str, fs: Any) -> Path:
    protocol = getattr(fs, "protocol", "file")
    if "file" not in ([protocol] if isinstance(protocol, str) else protocol):
        raise ConfigError(
            f"a collection is kept on a local disk, not in a file system of {protocol!r}: give a local path"
        )
    return Path(user_path(path))
