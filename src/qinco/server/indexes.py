"""`ServedIndex`: an index as the routes of `/v1` search it, in this process or on a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinco.collection.records import Hit
from qinco.errors import ConfigError
from qinco.search.index import Index
from qinco.store.manifest import is_kind

_KIND = "index"
_SHARE = 0.5  # of a request's time is a search's on a cluster: the rest is for waiting, and for the answer


class Hits(list[Hit]):
    """Hits of a query; `missing` are the rows of the index that did not answer in time."""

    def __init__(self, hits, missing: list[range]):
        super().__init__(hits)
        self.missing = missing


class ServedIndex:
    """A read-only index.

    Args:
        folder: that `Index.save`, `build_index` or `qinco build_index` wrote.
        cluster: None to search it in this process; else see `qinco.distributed.ShardedIndex`.
        timeout: seconds of a request; after half of them a search on a cluster answers with what it has.
    """

    def __init__(self, folder: Path, cluster: str | None, timeout: float | None):
        self._folder, self._cluster = folder, cluster
        if cluster is None:
            self._index: Any = Index.load(folder)
        else:
            from qinco.distributed import ShardedIndex

            self._index = ShardedIndex(folder, cluster=cluster, timeout=None if timeout is None else timeout * _SHARE)

    def search(
        self, queries, k: int = 10, *, nprobe: int | None = None, num_short: int | None = None,
        timeout: float | None = None, **others,
    ) -> Hits | list[Hits]:  # fmt: skip
        """The hits of one query (D,), or of each of several (Q, D), as `Index.search` finds them.

        `timeout` are the seconds of this request. What only collections have is refused.
        """
        if given := sorted(name for name, value in others.items() if value):
            raise ConfigError(f"{self._folder.name} is an index, without payloads, names and originals: leave out "
                              f"{', '.join(given)}")  # fmt: skip
        queries = np.asarray(queries, np.float32)
        index = self._index  # a reload changes it at any time, and the names with it
        own = {} if timeout is None or self._cluster is None else {"timeout": timeout * _SHARE}
        found = index.search(np.atleast_2d(queries), k, nprobe, num_short, **own)
        missing = getattr(found, "missing", [])
        names = index.names if self._cluster is None else found.names
        hits = [
            Hits((Hit(int(id) if names is None else names[id], float(score)) for score, id in zip(*row, strict=True)
                  if id != -1), missing)
            for row in zip(*found, strict=True)
        ]  # fmt: skip
        return hits[0] if queries.ndim == 1 else hits

    def stats(self) -> Mapping[str, Any]:
        """What the index holds."""
        index = self._index
        return {"kind": _KIND, "vectors": len(index), "dim": index.dim, "metric": index.metric,
                "lists": index.num_lists, "cluster": self._cluster}  # fmt: skip

    def reload(self) -> Mapping[str, Any]:
        """Search what the folder holds now; searches that have begun end with what it held before."""
        if self._cluster is None:
            self._index = Index.load(self._folder)
        else:
            self._index.reload()
        return self.stats()

    def close(self) -> None:
        """End the actors of a cluster."""
        if self._cluster is not None:
            self._index.close()


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index."""
    return is_kind(folder, _KIND)
