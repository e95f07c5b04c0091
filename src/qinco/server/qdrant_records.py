"""Points of Qdrant as records of collections, and back: ids, vectors by name, payloads and filters."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import numpy as np
from qdrant_client.http import models as m

from qinco.collection.collection import Collection
from qinco.collection.records import Id, Record
from qinco.errors import ConfigError
from qinco.server.bodies import plain
from qinco.server.catalog import Served
from qinco.server.payload_paths import excluded, included, tree_of
from qinco.server.refusals import UnsupportedError

UNNAMED = ""  # the name of a collection's only vector
_SHORTEST = float(np.finfo(np.float32).eps)  # vectors that Qdrant leaves as they are
_metrics: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()  # they never change
_HYPHENATED = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_UUID = re.compile(rf"[0-9a-fA-F]{{32}}|{_HYPHENATED}|\{{{_HYPHENATED}\}}|urn:uuid:{_HYPHENATED}")


def id_of(given: int | str | UUID) -> Id:
    """An id of a request; a UUID is one however it is spelt, and any other string is itself."""
    if isinstance(given, int):
        return given
    return str(UUID(str(given))) if _UUID.fullmatch(str(given)) else str(given)


def ids_of(given: Iterable[int | str | UUID]) -> list[Id]:
    return [id_of(one) for one in given]


def where_of(filter: m.Filter | None) -> dict | None:
    """A filter for `where=`; None if it admits everything."""
    return None if filter is None or not _clauses(filter) else _condition(filter)


def _condition(one: Any) -> dict:
    if isinstance(one, m.Filter):
        return _clauses(one) or {"must": []}  # without clauses it is true
    if isinstance(one, m.NestedCondition):
        return {"nested": {"key": one.nested.key, "filter": _condition(one.nested.filter)}}
    return {"has_id": ids_of(one.has_id)} if isinstance(one, m.HasIdCondition) else plain(one)


def _clauses(filter: m.Filter) -> dict:
    found: dict[str, Any] = {}
    for name in ("must", "should", "must_not"):
        given = getattr(filter, name)
        if given is not None:
            found[name] = [_condition(one) for one in (given if isinstance(given, list) else [given])]
    if (at_least := filter.min_should) is not None:
        conditions = [_condition(one) for one in at_least.conditions]
        found["min_should"] = {"conditions": conditions, "min_count": at_least.min_count}
    return found


def metrics_of(collection: Served) -> dict[str, str]:
    """The vectors that records of a collection may have, by name, and their metrics."""
    if isinstance(collection, Collection):
        return {UNNAMED: collection.metric}
    if (known := _metrics.get(collection)) is None:
        known = {name: settings["metric"] for name, settings in collection.vectors.items()}
        _metrics[collection] = known
    return known


def metric_of(collection: Served, using: str | None) -> str:
    """The metric of the vectors that a request is about."""
    metrics, name = metrics_of(collection), using or UNNAMED
    if name not in metrics:
        raise unknown_name(name, metrics)
    return metrics[name]


def unknown_name(name: str, known: Iterable[str]) -> ConfigError:
    """What is raised for a vector that the collection has not."""
    return ConfigError(f"Wrong input: Not existing vector name error: {name or 'none'}; the collection has "
                       f"{', '.join(sorted(known)) or 'one without a name'}")  # fmt: skip


def named(using: str | None) -> dict[str, Any]:
    """The options that tell a collection which vectors a call is about."""
    return {"using": using} if using else {}


def vectors_by_name(record: Any, metrics: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The vectors of a record; like Qdrant's, those that are compared by their cosine have length 1."""
    given = record.vector if isinstance(record.vector, dict) else {UNNAMED: record.vector}
    return {name: _unit(x_D) if metrics[name] == "cosine" else x_D for name, x_D in given.items() if x_D is not None}


def _unit(x_D: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(x_D))
    return x_D / np.float32(length) if length > _SHORTEST else x_D


def columns_of(
    points: Sequence[m.PointStruct] | m.Batch, names: Iterable[str]
) -> tuple[list[Id], Any, Sequence[dict | None]]:
    """Ids, vectors and payloads as `Collection.upsert` takes them."""
    if isinstance(points, m.Batch):
        _check_lengths(points)
        ids, payloads = ids_of(points.ids), points.payloads or [None] * len(points.ids)
        columns = points.vectors if isinstance(points.vectors, dict) else {UNNAMED: points.vectors}
        rows = [{name: column[row] for name, column in columns.items()} for row in range(len(ids))]
    else:
        ids, payloads = [id_of(one.id) for one in points], [one.payload for one in points]
        rows = [one.vector for one in points]
    if not ids:
        raise ConfigError("Bad request: Empty update request: give a point at least")
    return ids, vectors_of(rows, names), payloads


def vectors_of(rows: Sequence[Any], names: Iterable[str]) -> Any:
    """Vectors of points, None where there is none: a list, or lists by name where the collection has names."""
    columns: dict[str, list] = {name: [None] * len(rows) for name in names}
    for row, given in enumerate(rows):
        for name, vector in (given if isinstance(given, dict) else {UNNAMED: given}).items():
            if name not in columns:
                raise unknown_name(name, columns)
            columns[name][row] = dense(vector)
    return columns[UNNAMED] if columns.keys() == {UNNAMED} else columns


def dense(vector: Any) -> list[float]:
    """A vector of numbers, and nothing else that Qdrant takes for one."""
    if isinstance(vector, list) and (not vector or not isinstance(vector[0], list)):
        return vector
    kinds = {list: "multivectors: give one vector", m.SparseVector: "sparse vectors: give a dense one"}
    raise UnsupportedError(kinds.get(type(vector), "inference: give a vector"), type(vector).__name__)


def _check_lengths(batch: m.Batch) -> None:
    columns = batch.vectors if isinstance(batch.vectors, dict) else {UNNAMED: batch.vectors}
    counts = {len(column) for column in (*columns.values(), batch.payloads or batch.ids)}
    if counts != {len(batch.ids)}:
        raise ConfigError(f"Wrong input: there must be as many vectors and payloads as ids, {len(batch.ids)}, not "
                          f"{', '.join(map(str, sorted(counts)))}")  # fmt: skip


class Shape:
    """What answers hold of records besides ids."""

    def __init__(self, collection: Served, with_payload: Any, with_vector: Any, *, payload_by_default: bool):
        given = payload_by_default if with_payload is None else with_payload
        self.with_payload = given is not False
        self._part, self._metrics = _part_of(given), metrics_of(collection)
        self._has_vectors = bool(with_vector) or with_vector == []
        self._names = None if with_vector is True else set(with_vector or ())

    @property
    def kinds(self) -> dict[str, Any]:
        """As options of searches."""
        vectors: bool | tuple[str, ...] = self._has_vectors
        if self._names is not None and UNNAMED not in self._metrics:
            vectors = tuple(name for name in self._metrics if name in self._names)
        return {"with_payload": self.with_payload, "with_vectors": vectors}

    def of(self, record: Any) -> dict[str, Any]:
        """A record or hit as JSON, without a score."""
        found: dict[str, Any] = {"id": record.id}
        if self.with_payload:
            found["payload"] = self._part(record.payload or {})
        if self._has_vectors:
            found["vector"] = self._vectors(record)
        return found

    def _vectors(self, record: Any) -> Any:
        vectors, names = vectors_by_name(record, self._metrics), self._names
        chosen = {name: x_D.tolist() for name, x_D in vectors.items() if names is None or name in names}
        return chosen[UNNAMED] if chosen.keys() == {UNNAMED} else chosen


def _part_of(with_payload: Any):
    if isinstance(with_payload, bool):
        return lambda payload: payload
    if isinstance(with_payload, m.PayloadSelectorExclude):
        return partial(excluded, tree=tree_of(with_payload.exclude))
    paths = with_payload.include if isinstance(with_payload, m.PayloadSelectorInclude) else with_payload
    return partial(included, tree=tree_of(paths))


def page(
    collection: Served, where: dict | None, limit: int, offset: Id | None, kinds: dict[str, Any]
) -> tuple[list[Record], Id | None]:
    """Records in the order of their ids from that of `offset` on, and the id of the next page."""
    found: list[Record] = []
    if offset is not None:
        among = {"must": [{"has_id": [offset]}, *([] if where is None else [where])]}
        found = collection.get(where=among, **kinds)
    found += collection.get(where=where, after=offset, limit=limit + 1 - len(found), **kinds)
    return found[:limit], found[limit].id if len(found) > limit else None


def sampled(collection: Served, where: dict | None, limit: int, kinds: dict[str, Any]) -> list[Record]:
    """Random records in random order, also those without vectors."""
    ids = collection.sample(limit, where, has_vector=False)
    return collection.get(ids, **kinds) if ids else []
