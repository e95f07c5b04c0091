"""Changes that requests of Qdrant make to the records of a collection: blocking calls for its one writer.

All are on disk when they return. Like Qdrant's, those that name points which are not there change the others, and then
raise NotFoundError.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from qdrant_client.http import models as m

from qinco.collection.paths import path_steps
from qinco.collection.records import Id
from qinco.errors import ConfigError
from qinco.server.envelope import NotFoundError, TooLargeError
from qinco.server.payload_paths import changed_at, merged, without
from qinco.server.qdrant_records import UNNAMED, columns_of, ids_of, metrics_of, unknown_name, vectors_of, where_of

_MODES = {m.UpdateMode.UPSERT: "upsert", m.UpdateMode.INSERT_ONLY: "insert", m.UpdateMode.UPDATE_ONLY: "update"}


def upsert(collection: Any, body: m.PointsList | m.PointsBatch, max_payload_bytes: int) -> None:
    points = body.batch if isinstance(body, m.PointsBatch) else body.points
    ids, vectors, payloads = columns_of(points, metrics_of(collection))
    check_payloads(ids, payloads, max_payload_bytes)
    options: dict[str, Any] = {}
    if body.update_mode is not None:
        options["mode"] = _MODES[body.update_mode]
    if body.update_filter is not None:
        options["only_where"] = where_of(body.update_filter)
    collection.upsert(ids, vectors, payloads, **options)


def delete(collection: Any, body: m.PointIdsList | m.FilterSelector, _: int) -> None:
    collection.delete(**selected(body))


def set_payload(collection: Any, body: m.SetPayload, max_payload_bytes: int) -> None:
    """Merge fields into payloads, or into the objects at a path; null removes a field."""
    check_payloads([body.key or "payload"], [body.payload], max_payload_bytes)
    steps = () if body.key is None else path_steps(body.key)
    _change_payloads(collection, body, lambda old: changed_at(old, steps, lambda there: merged(there, body.payload)))


def overwrite_payload(collection: Any, body: m.SetPayload, max_payload_bytes: int) -> None:
    check_payloads([body.key or "payload"], [body.payload], max_payload_bytes)
    steps = () if body.key is None else path_steps(body.key)
    _change_payloads(collection, body, lambda old: changed_at(old, steps, lambda _: body.payload))


def delete_payload(collection: Any, body: m.DeletePayload, _: int) -> None:
    paths = [path_steps(key) for key in body.keys]

    def change(old: dict) -> dict:
        for steps in paths:
            old = without(old, steps)
        return old

    _change_payloads(collection, body, change)


def clear_payload(collection: Any, body: m.PointIdsList | m.FilterSelector, _: int) -> None:
    _change_payloads(collection, body, lambda old: {})


def update_vectors(collection: Any, body: m.UpdateVectors, _: int) -> None:
    if not body.points:
        raise ConfigError("Bad request: there must be points to update: give one at least")
    names = metrics_of(collection)
    ids, vectors = ids_of(one.id for one in body.points), vectors_of([one.vector for one in body.points], names)
    there = {record.id for record in collection.get(ids, with_payload=False)}
    if body.update_filter is not None and (where := where_of(body.update_filter)) is not None:
        among = {"must": [{"has_id": sorted(there, key=str)}, where]}
        chosen = {record.id for record in collection.get(where=among, with_payload=False)}
    else:
        chosen = there
    for name, column in (vectors if isinstance(vectors, dict) else {UNNAMED: vectors}).items():
        rows = [row for row, id in enumerate(ids) if id in chosen and column[row] is not None]  # the others stay
        new = [column[row] for row in rows]
        if rows:
            collection.update_vectors([ids[row] for row in rows], {name: new} if isinstance(vectors, dict) else new)
    _check_found(ids, there)


def delete_vectors(collection: Any, body: m.DeleteVectors, _: int) -> None:
    if not body.vector:
        raise ConfigError("Bad request: there must be names of vectors to delete: give one at least")
    chosen, names = selected(body), metrics_of(collection)
    for name in body.vector:
        if name not in names:
            raise unknown_name(name, names)
    there = _there(collection, chosen)
    if names.keys() == {UNNAMED}:
        collection.delete_vectors(**chosen)
    else:
        collection.delete_vectors(body.vector, **chosen)
    _check_found(chosen.get("ids", ()), there)


def batch(collection: Any, body: m.UpdateOperations, max_payload_bytes: int) -> None:
    """Several changes, one after the other."""
    for operation in body.operations:
        name = next(iter(operation.model_fields_set))
        CHANGES[name](collection, getattr(operation, name), max_payload_bytes)


CHANGES: dict[str, Callable[[Any, Any, int], None]] = {
    "upsert": upsert, "delete": delete, "set_payload": set_payload, "overwrite_payload": overwrite_payload,
    "delete_payload": delete_payload, "clear_payload": clear_payload, "update_vectors": update_vectors,
    "delete_vectors": delete_vectors,
}  # fmt: skip


def check_payloads(ids: list[Id], payloads: Sequence[dict | None], max_bytes: int) -> None:
    """Raise TooLargeError for a payload of more bytes as JSON."""
    for id, payload in zip(ids, payloads, strict=True):
        if payload and (size := len(json.dumps(payload, ensure_ascii=False).encode(errors="replace"))) > max_bytes:
            raise TooLargeError(f"the payload of {id!r:.60} has {size:,} bytes, and {max_bytes:,} are the most: keep "
                                "long texts elsewhere")  # fmt: skip


def selected(body: Any) -> dict[str, Any]:
    """The records that a request is about, as `ids` or `where`; ids win."""
    if getattr(body, "points", None) is not None:
        if not body.points:
            raise ConfigError("Bad request: Empty update request: give the id of a point at least")
        return {"ids": ids_of(body.points)}
    if getattr(body, "filter", None) is not None:
        return {"where": where_of(body.filter) or {"must": []}}
    raise ConfigError("Bad request: No filter or points provided: give one of both")


def _change_payloads(collection: Any, body: Any, change: Callable[[dict], dict]) -> None:
    chosen = selected(body)
    there = _there(collection, chosen)
    collection.update_payload(change, **chosen)
    _check_found(chosen.get("ids", ()), there)


def _there(collection: Any, chosen: dict[str, Any]) -> set[Id]:
    """Those of the chosen ids that there are."""
    return {record.id for record in collection.get(chosen["ids"], with_payload=False)} if "ids" in chosen else set()


def _check_found(ids: Any, there: set[Id]) -> None:
    missing = next((id for id in ids if id not in there), None)
    if missing is not None:
        raise NotFoundError(f"Not found: No point with id {missing!r:.60} found; the others were changed")
