"""Statistics of collections, whether their vectors have names or not."""

from typing import Any


def parts_of(stats: dict[str, Any]) -> list[dict[str, Any]]:
    """The statistics of each kind of vector: those of a collection, or of the names of a NamedCollection.

    All have the collection's version, which any of its changes raises.

    Example:
        >>> [part["fresh"] for part in parts_of(collection.stats())]  # doctest: +SKIP
        [2, 1]
    """
    each = stats.get("vectors")
    return [one | {"version": stats["version"]} for one in each.values()] if isinstance(each, dict) else [stats]
