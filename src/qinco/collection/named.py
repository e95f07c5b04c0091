"""`NamedCollection`: records with several vectors each, which have names, such as that of an image and that of a text.

Shape suffixes: N records, n vectors of a name, D dimension.
"""

from collections.abc import Collection as Names
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from qinco.atomic import user_path
from qinco.collection import conditional, finding, named_changes
from qinco.collection.collection import Collection
from qinco.collection.moments import Moments, View
from qinco.collection.named_creation import make_folder_of_names
from qinco.collection.records import Id, Record, payload_texts, record_ids, require_one_of, vector_rows
from qinco.collection.schema import Database, value_of
from qinco.collection.spaces import Space, in_space, numbers_of
from qinco.config import EXACT_BELOW, require_bool, require_int, suggest
from qinco.errors import ConfigError, DataError
from qinco.progress import ProgressOption


class NamedCollection:
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

    def __init__(self, database: Database, device: str):
        moments = Moments.of(database, device)
        self._database, self._main = database, Collection(database, device, moments)
        self._moments, self.folder = moments, database.folder
        self._parts = {name: self._opened(own) for name, own in moments.names.items()}

    @classmethod
    def create(
        cls, folder, vectors: Mapping[str, Mapping[str, Any]], *, fields: Mapping[str, str] | None = None,
        exact_below: int = EXACT_BELOW, overwrite: bool = False, device: str = "cpu",
    ) -> "NamedCollection":  # fmt: skip
        """Create an empty collection, and open it.

        Args:
            folder: to be made; by custom its name ends in .qinco.
            vectors: settings by name, each with some of "dim", "metric" ("cosine"), "bytes" (8) and "codec", as of
                `Collection.create`: {"image": {"dim": 512, "metric": "l2", "bytes": 16}, "text": {}}.
            fields: of payloads that get an index, with their kinds, as of `add_field`.
            exact_below: with fewer vectors of a name none is encoded, unless a codec is given.
            overwrite: replace a collection that is there.
            device: where codecs compute.
        """
        folder, fields = Path(user_path(folder)), dict(fields or {})
        require_int("exact_below", exact_below, 0)
        make_folder_of_names(folder, vectors, fields, exact_below, overwrite, device)
        return cls(Database(folder, read_only=False), device)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __getstate__(self):
        raise TypeError("a NamedCollection cannot be copied or pickled: open it where it is needed")

    def __repr__(self) -> str:
        return f"NamedCollection({str(self.folder)!r}, {', '.join(self._parts)})"

    closed = property(lambda self: self._main.closed, doc="Whether `close` was called.")
    fields = property(lambda self: self._main.fields, doc="The kinds of fields that have an index, by their paths.")

    @property
    def vectors(self) -> dict[str, dict[str, Any]]:
        """ "dim" (None before there are any), "metric" and "bytes" of the vectors of each name."""
        found = {}
        with self._database.reading() as connection:
            for name, number in self._numbers.items():
                own = in_space(connection, number)
                found[name] = {setting: value_of(own, setting) for setting in ("dim", "metric", "bytes")}
        return found

    def upsert(self, ids, vectors, payloads=None, *, mode: str = "upsert", only_where=None) -> None:
        """Add records, and let each whose id is there replace that record with all its vectors; all of them, or none.

        Args:
            ids: N integers from 0 on or strings.
            vectors: by name, an array (N, D) or a list of N vectors, of which some may be None; names may be left out.
            payloads, mode, only_where: as of `Collection.upsert`.
        """
        self._database.check_writable()
        conditional.check_mode(mode)
        ids = record_ids(ids, many=True)
        texts, columns = payload_texts(payloads, ids), self._columns(vectors, len(ids))
        with self._database.writing() as connection:
            self._check_dims(connection, columns)
            for rows in conditional.rounds(View(connection, self._moments), ids, mode, only_where):
                rows = sorted({ids[row]: row for row in rows}.values())
                named_changes.put(connection, [ids[row] for row in rows], [texts[row] for row in rows],
                                  _of_rows(columns, rows, len(ids)))  # fmt: skip

    def update_vectors(self, ids, vectors) -> None:
        """Give records other vectors of some names, all of them or none after an exception; the rest stays.

        Args:
            ids: N ids of records, all of which there must be. Of equal ones the last counts.
            vectors: by name, as of `upsert`; where one is None, the record keeps what it has.
        """
        self._database.check_writable()
        ids = record_ids(ids, many=True)
        columns = self._columns(vectors, len(ids))
        with self._database.writing() as connection:
            self._check_dims(connection, columns)
            known = finding.keys_by_id(View(connection, self._moments), ids)
            if (unknown := next((id for id in ids if id not in known), None)) is not None:
                raise DataError(f"no record has the id {unknown!r:.60}: upsert adds one")
            for number, (rows_n, vectors_nD) in columns.items():  # the last vector of a name and an id counts
                last = {known[ids[row]]: place for place, row in enumerate(rows_n.tolist())}
                own = {number: (np.arange(len(last)), vectors_nD[list(last.values())])}
                named_changes.replace_vectors(connection, list(last), own)

    def delete_vectors(self, names, ids=None, where=None) -> int:
        """Delete vectors of some names; returns the number of records that had any. They stay, if without vectors.

        Args:
            names: one name or several.
            ids: of the records; unknown ones are passed over. Or:
            where: a filter, as of `search`.
        """
        require_one_of(ids, where, "delete_vectors")
        numbers = [self._number(name) for name in ([names] if isinstance(names, str) else names)]
        self._database.check_writable()
        with self._database.writing() as connection:
            keys = self._main.keys_of(View(connection, self._moments), ids, where).tolist()
            return len(named_changes.remove_vectors_of(connection, keys, numbers))

    def delete(self, ids=None, where=None) -> int:
        """Delete records by their ids, of which unknown ones are passed over, or by a filter; returns their number."""
        require_one_of(ids, where, "delete")
        self._database.check_writable()
        with self._database.writing() as connection:
            keys = self._main.keys_of(View(connection, self._moments), ids, where).tolist()
            named_changes.remove(connection, keys)
        return len(keys)

    def clear(self) -> None:
        """Delete all records; codecs stay."""
        with self._database.writing() as connection:
            named_changes.clear(connection, list(self._numbers.values()))

    def search(
        self, queries, k: int = 10, where=None, *, using: str | None = None, with_vectors=False, **options
    ) -> Any:
        """Find the k records whose vectors of a name are nearest to each query.

        Args:
            queries, k, where, **options: as of `Collection.search`.
            using: the name; None if there is only one.
            with_vectors: True, or names: hits hold these vectors in a dict.
        """
        part = self._part(using)
        return part.search(queries, k, where, with_vectors=self._checked(with_vectors), **options)

    def search_by_id(
        self, ids, k: int = 10, where=None, *, using: str | None = None, with_vectors=False, **options
    ) -> Any:
        """Find the k records nearest to a record that is there, which is no hit itself; arguments are as of `search`.

        Args:
            ids: an id, or a list of Q.
        """
        part = self._part(using)
        return part.search_by_id(ids, k, where, with_vectors=self._checked(with_vectors), **options)

    def get(self, ids=None, where=None, *, with_vectors: bool | Names[str] = False, **options) -> list[Record]:
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

    def update_payload(self, payload, *, ids=None, where=None, mode: str = "merge", key: str | None = None) -> int:
        """Change the payload of records, whose vectors stay; see `Collection.update_payload`."""
        return self._main.update_payload(payload, ids=ids, where=where, mode=mode, key=key)

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

    def add_field(self, path: str, kind: str) -> None:
        """Make an index of a field of payloads; see `Collection.add_field`."""
        self._main.add_field(path, kind)

    def drop_field(self, path: str) -> bool:
        """Remove the index of a field; returns whether there was one."""
        return self._main.drop_field(path)

    def optimize(
        self, *, minutes: float | None = None, in_child: bool = False, progress: ProgressOption = None, **training
    ) -> dict[str, dict]:
        """`Collection.optimize` of the vectors of each name, one after the other; returns what was done by name."""
        options = training | {"minutes": minutes, "in_child": in_child, "progress": progress}
        return {name: part.optimize(**options) for name, part in self._parts.items()}

    def retrain(self, ids, vectors, *, using: str | None = None, **options) -> dict:
        """Train another codec on the original vectors of a name; arguments are as of `Collection.retrain`.

        Args:
            using: the name; None if there is only one.
        """
        return self._part(using).retrain(ids, vectors, **options)

    def stats(self) -> dict:
        """Numbers of records and bytes of the database, and as "vectors" `Collection.stats` of each name."""
        main, each = self._main.stats(), {name: part.stats() for name, part in self._parts.items()}
        warnings = [f"{name}: {warning}" for name, stats in each.items() for warning in stats["warnings"]]
        size = {part: sum(stats["bytes"][part] for stats in (main, *each.values())) for part in main["bytes"]}
        kept = {name: main[name] for name in ("records", "version", "fields")}
        return kept | {"vectors": each, "bytes": size, "warnings": warnings}

    @property
    def parts(self) -> dict[str, Collection]:
        """The records with the vectors of one name, by name, to be read: for `Collection.histograms` and the like."""
        return dict(self._parts)

    def verify(self) -> list[str]:
        """Read everything, and compare checksums and counts; returns what is wrong, a sentence each."""
        found = {name: part.verify() for name, part in self._parts.items()}
        return [f"vectors {name!r}: {fault}" for name, faults in found.items() for fault in faults]

    def snapshot(self, folder) -> None:
        """Copy the collection as it is now to a new folder; see `Collection.snapshot`."""
        self._main.snapshot(folder)

    def close(self) -> None:
        """Close the files, so that another process may write. What was written is on disk before."""
        for part in self._parts.values():
            part.close()
        self._main.close()

    def _opened(self, own: Moments) -> Collection:
        """The records and the vectors of one name, which is not written to."""
        return Collection(cast(Database, Space(self._database, own.number)), own.device, own)

    @property
    def _numbers(self) -> dict[str, int]:
        return {name: own.number for name, own in self._moments.names.items()}

    def _number(self, name: str) -> int:
        if name not in self._parts:
            known = f"{suggest(str(name), self._parts, 0.6)}There are {', '.join(map(repr, self._parts))}"
            raise ConfigError(f"there is no vector {name!r:.60}. {known}")
        return self._numbers[name]

    def _part(self, using: str | None) -> Collection:
        if using is None and len(self._parts) > 1:
            raise ConfigError(f"using= must name the vectors to search, one of {', '.join(map(repr, self._parts))}")
        name = next(iter(self._parts)) if using is None else using
        self._number(name)
        return self._parts[name]

    def _checked(self, with_vectors: bool | Names[str]) -> Any:
        if isinstance(with_vectors, bool | np.bool_):
            return bool(with_vectors)
        names = [with_vectors] if isinstance(with_vectors, str) else list(with_vectors)
        for name in names:
            self._number(name)
        return names

    def _columns(self, vectors: Any, count: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        if not isinstance(vectors, Mapping):
            raise DataError(f"vectors must be a dict by name, {', '.join(map(repr, self._parts))}, not {vectors!r:.60}")
        dims = {name: one["dim"] for name, one in self.vectors.items()}
        found = {}
        for name, given in vectors.items():
            number = self._number(name)
            rows_n, vectors_nD = vector_rows(given, count, dims[name])
            if len(rows_n):
                found[number] = rows_n, vectors_nD
        return found

    def _check_dims(self, connection, columns) -> None:
        for number, (_, vectors_nD) in columns.items():
            self._main.check_dim(in_space(connection, number), vectors_nD.shape[1])


def _of_rows(columns: Mapping[int, tuple[np.ndarray, np.ndarray]], rows: list[int], count: int):
    return {number: conditional.rows_of(rows, *column, count) for number, column in columns.items()}
