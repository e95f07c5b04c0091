"""`ChangedCollection` has the methods of `Collection` that change records.

Shape suffixes: n vectors, D dimension.
"""

from typing import Any

import numpy as np

from qinco.collection import changes, conditional, finding
from qinco.collection.moments import View
from qinco.collection.records import Id, payload_texts, record_ids, require_one_of, vector_rows
from qinco.collection.schema import set_value, value_of
from qinco.collection.searched import SearchedCollection
from qinco.errors import ConfigError, DataError


class ChangedCollection(SearchedCollection):
    """An open collection, and what adds, changes and deletes its records."""

    def upsert(self, ids, vectors, payloads=None, *, mode: str = "upsert", only_where=None) -> None:
        """Add records, and let each whose id is there replace that record: all of them, or none after an exception.

        Batches of 100 to 10,000 are fast.

        Args:
            ids: N integers from 0 on or strings, of which 1 and "1" are two. Of equal ones the last counts.
            vectors: (N, D) array, tensor or list of vectors, all values finite; with multi=True a list of N such
                arrays (n, D). None instead of a vector, or of all of them: the record has none, and no search finds it.
            payloads: N objects of JSON values (dates become ISO 8601 text), or None.
            mode: "upsert"; "insert": records whose id is there stay as they are; "update": others are not added.
            only_where: a filter, as of `search`: a record that is there is replaced only if it fulfils it. Of equal ids
                each is compared with what those before have left.

        Example:
            >>> docs.upsert([1, "b"], vectors[:2], [{"tags": ["x"]}, None])
            >>> docs.upsert(["b"], vectors[:1], [{"version": 2}], only_where={"version": {"lt": 2}})
        """
        self.put_block(ids, vectors, payloads, {}, mode, only_where)

    def put_block(
        self, ids, vectors, payloads, values: dict[str, Any], mode: str = "upsert", only_where=None
    ) -> None:  # fmt: skip
        """`upsert`, and in the same transaction set values of the table `meta`."""
        self._database.check_writable()
        conditional.check_mode(mode)
        ids, has_points = record_ids(ids, many=True), self._moments.has_points
        texts = payload_texts(payloads, ids)
        rows_n, vectors_nD = vector_rows(vectors, len(ids), self.dim, multi=self._moments.is_multi)
        if not has_points and (any(texts) or len(rows_n) < len(ids) or any(isinstance(id, str) for id in ids)):
            raise ConfigError("the collection was created with payload=false, for vectors with integer ids: create "
                              "another without it")  # fmt: skip
        with self._database.writing() as connection:
            if len(rows_n):
                self.check_dim(connection, vectors_nD.shape[1])
            view = View(connection, self._moments)
            for rows in conditional.rounds(view, ids, mode, only_where):
                chosen = [ids[row] for row in rows]
                own_n, own_nD = conditional.rows_of(rows, rows_n, vectors_nD, len(ids))
                if has_points:
                    changes.put(connection, chosen, [texts[row] for row in rows], own_n, own_nD)
                else:
                    self._put_ids(view, chosen, own_nD)
            for name, value in values.items():
                set_value(connection, name, value)

    def update_vectors(self, ids, vectors) -> None:
        """Give records other vectors, all of them or none after an exception; ids and payloads stay.

        Args:
            ids: of records, all of which there must be. Of equal ones the last counts.
            vectors: as of `upsert`; None instead of one: the record has none from then on.

        Example:
            >>> docs.update_vectors(["a"], vectors[2:3])
        """
        self._database.check_writable()
        ids = record_ids(ids, many=True)
        rows_n, vectors_nD = vector_rows(vectors, len(ids), self.dim, multi=self._moments.is_multi)
        with self._database.writing() as connection:
            if len(rows_n):
                self.check_dim(connection, vectors_nD.shape[1])
            view = View(connection, self._moments)
            known = finding.keys_by_id(view, ids)
            if (unknown := next((id for id in ids if id not in known), None)) is not None:
                raise DataError(f"no record has the id {unknown!r:.60}: upsert adds one")
            rows = sorted({id: row for row, id in enumerate(ids)}.values())
            own_n, own_nD = conditional.rows_of(rows, rows_n, vectors_nD, len(ids))
            if self._moments.has_points:
                changes.replace_vectors(connection, [known[ids[row]] for row in rows], own_n, own_nD)
            elif len(own_n) < len(rows):
                raise ConfigError("records of a collection created with payload=false are their vectors: give one each")
            else:
                self._put_ids(view, [ids[row] for row in rows], own_nD)

    def delete_vectors(self, ids=None, where=None) -> int:
        """Delete vectors of records, which stay without one; returns the number of those that had any.

        Args:
            ids: of the records; unknown ones are passed over. Or:
            where: a filter, as of `search`.
        """
        require_one_of(ids, where, "delete_vectors")
        self._database.check_writable()
        if not self._moments.has_points:
            raise ConfigError("records of a collection created with payload=false are their vectors: use delete")
        with self._database.writing() as connection:
            keys = self.keys_of(View(connection, self._moments), ids, where).tolist()
            query = "SELECT key FROM points WHERE vectors > 0 AND key IN ({})"
            having = [key for (key,) in changes.find(connection, query, keys)]
            changes.replace_vectors(connection, having, np.empty(0, np.int64), np.empty((0, 0), np.float32))
        return len(having)

    def update_payload(self, payload, *, ids=None, where=None, mode: str = "merge", key: str | None = None) -> int:
        """Change the payload of records, whose vectors stay; returns their number.

        Args:
            payload: an object; for mode "remove" a list of names; or a function of the old payload, {} without one,
                that returns the new one, alone.
            ids: of the records; unknown ones are passed over. Or:
            where: a filter, as of `search`.
            mode: "merge": its fields replace those of the same names; "replace": it replaces the whole payload;
                "remove": the fields of these names are removed.
            key: the path of an object in the payload that is changed instead of the whole, such as "author".

        Example:
            >>> docs.update_payload({"seen": True}, where={"year": 2012})
            1
            >>> docs.update_payload(lambda payload: payload | {"old": payload.get("year", 0) < 2010}, ids=["a", "b"])
            2
        """
        require_one_of(ids, where, "update_payload")
        self._database.check_writable()
        if not self._moments.has_points:
            raise ConfigError("the collection was created with payload=false: create another to keep payloads")
        change = payload
        if not callable(payload):
            change = changes.payload_change(changes.check_changed(payload, mode), mode, key)
        elif mode != "merge" or key is not None:
            raise ConfigError("a function makes the whole payload: leave mode= and key= out")
        with self._database.writing() as connection:
            keys = self.keys_of(View(connection, self._moments), ids, where)
            changes.change_payloads(connection, keys.tolist(), change)
        return len(keys)

    def delete(self, ids=None, where=None) -> int:
        """Delete records by their ids, of which unknown ones are passed over, or by a filter; returns their number."""
        require_one_of(ids, where, "delete")
        self._database.check_writable()
        with self._database.writing() as connection:
            keys = self.keys_of(View(connection, self._moments), ids, where).tolist()
            (changes.remove if self._moments.has_points else changes.remove_vectors)(connection, keys)
        return len(keys)

    def clear(self) -> None:
        """Delete all records; the codec stays."""
        with self._database.writing() as connection:
            changes.remove_all(connection)

    def _put_ids(self, view: View, ids: list[Id], vectors_nD: np.ndarray) -> None:
        """Put vectors where ids are keys."""
        (segments,) = view.connection.execute("SELECT count(*) FROM segments").fetchone()
        are_stored = view.moment.are_stored if segments else np.zeros_like
        changes.put_vectors(view.connection, [int(id) for id in ids], vectors_nD, are_stored)

    def keys_of(self, view: View, ids, where) -> np.ndarray:
        """The keys of records by their ids or a filter, int64."""
        return finding.keys_among(view, ids) if where is None else self._keys.allowed(view, where).keys

    def check_dim(self, connection, dim: int) -> None:
        """Raise DataError for vectors of another dimension than those before; the first ones say it."""
        there = value_of(connection, "dim")
        if there is None:
            set_value(connection, "dim", dim)
        elif there != dim:
            raise DataError(f"vectors must have dimension {there}, that of the collection, not {dim}")
