"""Folders of collections, whether vectors have names in them or not."""

from pathlib import Path

from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.collection.spaces import numbers_of


def open_collection(folder, *, read_only: bool = False, device: str = "cpu") -> Collection | NamedCollection:
    """Open a collection, whichever it is; see `Collection.open`."""
    database = Collection.database_of(folder, read_only=True)
    try:
        database.check()
        with database.reading() as connection:
            has_names = numbers_of(connection) is not None
    finally:
        database.close()
    return (NamedCollection if has_names else Collection).open(folder, read_only=read_only, device=device)


def describe_collection(path: Path) -> dict:
    """What `qinco.describe` says of a collection."""
    with open_collection(path, read_only=True) as collection:
        stats = collection.stats()
    names = ("records", "dim", "metric", "vectors", "fresh", "compressed", "bytes_per_vector", "fields", "codec")
    found = {"kind": "collection", "bytes": sum(stats["bytes"].values())}
    if isinstance(collection, NamedCollection):
        each = {name: {one: own[one] for one in names if one in own and one != "records"}
                for name, own in stats["vectors"].items()}  # fmt: skip
        return found | {"records": stats["records"], "fields": stats["fields"], "vectors": each}
    return found | {name: stats[name] for name in names}
