"""`NamedCollection`: records with several vectors each, which have names, such as that of an image and that of a text.

Shape suffixes: N records, n vectors of a name, D dimension.
"""

from collections.abc import Collection as Several
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinco.atomic import user_path
from qinco.collection import filling
from qinco.collection.collection import Collection, check_fields
from qinco.collection.named_changed import Columns, NamedChanged, columns_by_name
from qinco.collection.named_creation import Names, make_folder_of_names
from qinco.collection.optimize import check_training
from qinco.collection.records import Id, Record
from qinco.collection.schema import Database
from qinco.collection.sources import open_rows
from qinco.collection.spaces import numbers_of
from qinco.config import EXACT_BELOW, require_bool
from qinco.errors import ConfigError
from qinco.progress import ProgressOption


class NamedCollection(NamedChanged):
    """Records of an id, a payload, and vectors by name, in a folder; see `create` and `open`.

    Each name has vectors of a dimension, metric and codec of its own; a record may lack any of them. Else it is as
    `qinco.Collection`: writes are whole and durable, threads share it, and other processes may read.

    Example:
        >>> places = qinco.NamedCollection.create("places.qinco", {"image": {"dim": 8}, "text": {"dim": 4}})
        >>> places.upsert(["a", "b"], {"image": vectors[:2], "text": [vectors[0, :4], None]}, [{"year": 2009}, None])
        >>> [hit.id for hit in places.search(vectors[1], k=1, using="image")]
        ['b']
        >>> places.count({"$vector": "text"})
        1
        >>> places.close()
    """

    @classmethod
    def create(
        cls, folder, vectors: Mapping[str, Mapping[str, Any]], source=None, *, ids=None, payload=None,
        vector: Columns = None, fields: Mapping[str, str] | None = None, minutes: float | None = None,
        progress: ProgressOption = None, exact_below: int = EXACT_BELOW, overwrite: bool = False, device: str = "cpu",
    ) -> "NamedCollection":  # fmt: skip
        """Create a collection, empty or of all records of a source, and open it.

        With a source its records are stored and encoded, and recall is measured by each name, as `Collection.create`
        does; after a kill the same call goes on where it was.

        Args:
            folder: to be made; by custom its name ends in .qinco.
            vectors: settings by name, each with some of "dim", "metric" ("cosine"), "bytes" (8) and "codec", as of
                `Collection.create`: {"image": {"dim": 512, "metric": "l2", "bytes": 16}, "text": {}}.
            source, ids, payload, vector: as of `upsert_from`.
            fields: of payloads that get an index, with their kinds, as of `add_field`.
            minutes: of training each codec, with a source.
            progress: see `qinco.progress`.
            exact_below: with fewer vectors of a name none is encoded, unless a codec is given.
            overwrite: replace a collection that is there.
            device: where codecs compute.
        """
        folder, rows, more = Path(user_path(folder)), None, {}
        check_training({}, minutes)
        names = Names.of(vectors, fields, exact_below, device)
        if source is not None:
            columns = columns_by_name(vector, names.metas)
            dims = {name: meta["dim"] for name, meta in names.metas.items()}
            rows = open_rows(source, ids=ids, payload=payload, vector=columns, dim=dims, missing=True)
            check_fields(names.fields, rows)
            if not overwrite and filling.is_begun(folder, rows, names.settings()):
                return cls.open(folder, device=device)._filled(rows, minutes, progress)
            more = {filling.STATE: filling.new_state(rows, names.settings())}
        elif ids is not None or payload is not None or vector is not None:
            raise ConfigError("ids, payload and vector are columns of a source: give one, or leave them out")
        make_folder_of_names(folder, names, overwrite, more)
        collection = cls(Database(folder, read_only=False), device)
        return collection if rows is None else collection._filled(rows, minutes, progress)

    @classmethod
    def open(cls, folder, *, read_only: bool = False, device: str = "cpu") -> "NamedCollection":
        """Open a collection; see `Collection.open`."""
        require_bool("read_only", read_only)
        database = Collection.database_of(folder, read_only)
        try:
            database.check()
            with database.reading() as connection:
                names = numbers_of(connection)
            if names is None:
                raise ConfigError(f"{database.folder} holds vectors without names: use Collection.open")
            return cls(database, device)
        except BaseException:
            database.close()
            raise

    def __getstate__(self):
        raise TypeError("a NamedCollection cannot be copied or pickled: open it where it is needed")

    def __repr__(self) -> str:
        return f"NamedCollection({str(self.folder)!r}, {', '.join(self._parts)})"

    def search(
        self, queries, k: int = 10, where=None, *, using: str | None = None, with_vectors=False, **options
    ) -> Any:
        """Find the k records whose vectors of a name are nearest to each query.

        Args:
            queries, k, where, **options: as of `Collection.search`.
            using: the name; None if there is only one.
            with_vectors: True, or names: hits hold these vectors in a dict.
        """
        part = self.part(using)
        return part.search(queries, k, where, with_vectors=self._checked(with_vectors), **options)

    def search_by_id(
        self, ids, k: int = 10, where=None, *, using: str | None = None, with_vectors=False, **options
    ) -> Any:
        """Find the k records nearest to a record that is there, which is no hit itself; arguments are as of `search`.

        Args:
            ids: an id, or a list of Q.
        """
        part = self.part(using)
        return part.search_by_id(ids, k, where, with_vectors=self._checked(with_vectors), **options)

    def get(self, ids=None, where=None, *, with_vectors: bool | Several[str] = False, **options) -> list[Record]:
        """Records by their ids, or page by page; arguments are as of `Collection.get`.

        Args:
            with_vectors: True, or names: `Record.vector` is a dict of those of these vectors that there are.
        """
        return self._main.get(ids, where, with_vectors=self._checked(with_vectors), **options)

    def sample(self, number: int = 1, where=None, *, has_vector: bool = True, seed: int | None = None) -> list[Id]:
        """Ids of random records, in random order; see `Collection.sample`.

        Args:
            where: a filter, such as {"$vector": "text"}.
            has_vector: only records that have a vector, of any name.
        """
        return self._main.sample(number, where, has_vector=has_vector, seed=seed)

    def count(self, where=None) -> int:
        """The number of records, or of those for which a filter is true."""
        return self._main.count(where)

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        return True  # also without records

    def __contains__(self, id: Id) -> bool:
        return id in self._main

    __iter__ = None  # see `get`

    def facet(self, path: str, where=None, limit: int | None = 10) -> list[tuple[str | int | bool, int]]:
        """The most frequent values of a field, with the numbers of their records; see `Collection.facet`."""
        return self._main.facet(path, where, limit)

    def _checked(self, with_vectors: bool | Several[str]) -> Any:
        if isinstance(with_vectors, bool | np.bool_):
            return bool(with_vectors)
        names = [with_vectors] if isinstance(with_vectors, str) else list(with_vectors)
        for name in names:
            self._number(name)
        return names
