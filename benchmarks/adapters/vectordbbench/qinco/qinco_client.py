"""qinco in VectorDBBench: copy this folder to `vectordb_bench/backend/clients/qinco` there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
from vectordb_bench.backend.filter import Filter, FilterOp

import qinco

from ..api import VectorDB
from .config import QincoIndexConfig

_opening = threading.Lock()  # not of an object, which is copied into other processes


class Qinco(VectorDB):
    """A collection in a folder. One process inserts and optimizes; others search meanwhile, or afterwards."""

    supported_filter_types: ClassVar[list[FilterOp]] = [FilterOp.NonFilter, FilterOp.NumGE, FilterOp.StrEqual]
    thread_safe: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        db_config: dict,
        db_case_config: QincoIndexConfig,
        collection_name: str = "vectors",
        drop_old: bool = False,
        with_scalar_labels: bool = False,
        **kwargs,
    ):
        self.name, self.case_config, self.where = "Qinco", db_case_config, None
        self.folder = Path(db_config["folder"], f"{collection_name}.qinco")
        self.with_scalar_labels, self.options = with_scalar_labels, db_case_config.search_param()
        self.collection, self.writes = None, False
        if drop_old or not self.folder.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            fields = {"id": "integer"} | ({"labels": "keyword"} if with_scalar_labels else {})
            chosen = db_case_config.index_param()
            qinco.Collection.create(
                self.folder, metric=chosen["metric"], bytes=chosen["bytes"], dim=dim, fields=fields, overwrite=drop_old
            ).close()

    @contextmanager
    def init(self) -> Iterator[None]:
        """Nothing is opened before it is used: a collection that is written can be searched by other processes."""
        try:
            yield
        finally:
            if self.collection is not None:
                self.collection.close()
            self.collection, self.writes = None, False

    def insert_embeddings(
        self, embeddings: list[list[float]], metadata: list[int], labels_data: list[str] | None = None, **kwargs
    ) -> tuple[int, Exception | None]:
        payloads = [{"id": int(number)} for number in metadata]
        if self.with_scalar_labels and labels_data is not None:
            payloads = [payload | {"labels": label} for payload, label in zip(payloads, labels_data, strict=True)]
        try:
            ids = [int(number) for number in metadata]
            self._open(writes=True).upsert(ids, np.asarray(embeddings, np.float32), payloads)
        except qinco.QincoError as error:
            return 0, error
        return len(metadata), None

    def optimize(self, data_size: int | None = None) -> None:
        """Train, and encode; of few vectors (20,000) nothing is encoded, and searches are exact."""
        self._open(writes=True).optimize(minutes=self.case_config.index_param()["minutes"])

    def prepare_filter(self, filters: Filter) -> None:
        if filters.type == FilterOp.NonFilter:
            self.where = None
        elif filters.type == FilterOp.NumGE:
            self.where = {"id": {"gte": filters.int_value}}
        elif filters.type == FilterOp.StrEqual:
            self.where = {"labels": filters.label_value}
        else:
            raise ValueError(f"qinco has no filter of type {filters.type}")

    def search_embedding(self, query: list[float], k: int = 100, **kwargs) -> list[int]:
        query_D = np.asarray(query, np.float32)
        return [hit.id for hit in self._open(writes=False).search(query_D, k=k, where=self.where, **self.options)]

    def _open(self, writes: bool) -> qinco.Collection:
        """The collection, opened at most twice: what only reads becomes what writes."""
        with _opening:
            if self.collection is None or (writes and not self.writes):
                if self.collection is not None:
                    self.collection.close()
                self.collection, self.writes = qinco.Collection.open(self.folder, read_only=not writes), writes
            return self.collection
