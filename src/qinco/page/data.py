"""What the page shows of a collection, as JSON values."""

import json
from typing import Any

from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.collection.records import Hit, Id

_EXAMPLES, _NEIGHBOURS, _PAYLOAD_CHARACTERS = 12, 10, 600


def shown(collection: Collection | NamedCollection, name: str) -> dict[str, Collection]:
    """What is shown of a collection, by name; of one with named vectors, those of each name by both names."""
    if isinstance(collection, Collection):
        return {name: collection}
    return {f"{name}.{part}": one for part, one in collection.parts.items()}


def collection_data(collection: Collection, name: str) -> dict[str, Any]:
    """Numbers, bytes, errors and sizes of lists of a collection.

    "bytes" are by kind, besides "exact", what the vectors take as float32.

    Example:
        >>> collection_data(docs, "docs")["records"]
        2
    """
    stats = collection.stats()
    stats["bytes"] = stats["bytes"] | {"exact": 4 * stats["vectors"] * (stats["dim"] or 0)}
    histograms = collection.histograms()
    return {"name": name, **stats, "error_histogram": histograms["error"], "list_size": histograms["list_size"]}


def examples(collection: Collection, *, seed: int = 0) -> list[dict[str, Any]]:
    """Neighbours of some random records, for a page without a server that searches."""
    return [
        {"id": id, "payload": _short(collection.get([id])[0].payload), "hits": neighbours(collection, id)}
        for id in collection.sample(_EXAMPLES, seed=seed)
    ]


def neighbours(collection: Collection, id: Id, k: int = _NEIGHBOURS, where=None) -> list[dict[str, Any]]:
    """The records nearest to a record; "exact_rank" is their place where all vectors are compared, None beyond k."""
    found = collection.search_by_id(id, k, where)
    exact = collection.search_by_id(id, k, where, exact=True, with_payload=False)
    ranks = {hit.id: rank for rank, hit in enumerate(exact, 1)}
    return [_row(hit, ranks) for hit in found]


def _row(hit: Hit, ranks: dict[Id, int]) -> dict[str, Any]:
    return {"id": hit.id, "score": hit.score, "exact_rank": ranks.get(hit.id), "payload": _short(hit.payload)}


def _short(payload: dict | None) -> dict | str | None:
    """A payload, or the beginning of its text if that is long."""
    text = json.dumps(payload, ensure_ascii=False)
    return payload if len(text) <= _PAYLOAD_CHARACTERS else text[:_PAYLOAD_CHARACTERS] + "…"
