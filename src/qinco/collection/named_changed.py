"""What adds, changes and deletes the records of a `NamedCollection`.

Shape suffixes: N records, n vectors of a name, D dimension.
"""

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np

from qinco.collection import conditional, filling, finding, named_changes
from qinco.collection.moments import View
from qinco.collection.named_parts import NamedParts, check_name
from qinco.collection.records import payload_texts, record_ids, require_one_of, vector_rows
from qinco.collection.row_source import OneName, RowSource
from qinco.collection.schema import set_value
from qinco.collection.sources import open_rows
from qinco.collection.spaces import in_space
from qinco.errors import ConfigError, DataError
from qinco.progress import Progress, ProgressOption

Columns = str | Mapping[str, str] | None


class NamedChanged(NamedParts):
    """An open collection of named vectors, and what changes its records."""

    def upsert(self, ids, vectors, payloads=None, *, mode: str = "upsert", only_where=None) -> None:
        """Add records, and let each whose id is there replace that record with all its vectors; all of them, or none.

        Args:
            ids: N integers from 0 on or strings.
            vectors: by name, an array (N, D) or a list of N vectors, of which some may be None; names may be left out.
            payloads, mode, only_where: as of `Collection.upsert`.
        """
        self.put_block(ids, vectors, payloads, {}, mode, only_where)

    def put_block(
        self, ids, vectors, payloads, values: dict[str, Any], mode: str = "upsert", only_where=None
    ) -> None:  # fmt: skip
        """`upsert`, and in the same transaction set values of the table `meta`."""
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
            for name, value in values.items():
                set_value(connection, name, value)

    def upsert_from(
        self, source, *, ids=None, payload=None, vector: Columns = None, progress: ProgressOption = None
    ) -> int:  # fmt: skip
        """Upsert all records of a source; returns their number. See `upsert`.

        What was guessed is logged. After a kill the same call goes on where it was, unless the source is an iterator.

        Args:
            source: as of `Collection.upsert_from`; or a dict of an array or path by name; or an iterator of batches of
                these, or of (ids, {name: vectors}, payloads).
            ids, payload: as of `Collection.upsert_from`.
            vector: columns of vectors by name, null where a record has none: {"image": "image_embedding"}. Names that
                it leaves out have no vectors. None: for each name the column of that name, or such as NAME_embedding,
                NAME_vector or vector_NAME.
            progress: see `qinco.progress`.

        Example:
            >>> places.upsert_from({"id": ["c"], "image": vectors[:1], "text_embedding": vectors[:1, :4]})
            1
        """
        self._database.check_writable()
        rows = self.rows_of(source, ids=ids, payload=payload, vector=vector)
        return filling.upsert_from(self, self._database, rows, progress)

    def retrain_from(self, source, *, ids=None, using: str | None = None, vector: Columns = None, **options) -> dict:
        """`retrain` on the original vectors of a source; arguments are as of `Collection.retrain_from`.

        Args:
            using: the name; None if there is only one.
            vector: the column of its vectors, or columns by name; None: as of `upsert_from`.
        """
        return self.part(using).retrain_from(self._originals(source, ids, using, vector), **options)

    def evaluate(self, source, *, ids=None, using: str | None = None, vector: Columns = None, **options) -> dict:
        """Measure the recall of `search` by a name; arguments are as of `Collection.evaluate`.

        Args:
            using: the name; None if there is only one.
            vector: the column of its vectors, or columns by name; None: as of `upsert_from`.
        """
        return self.part(using).evaluate(self._originals(source, ids, using, vector), **options)

    def _originals(self, source, ids, using: str | None, vector: Columns) -> RowSource:
        """The vectors of one name in a source."""
        self.part(using)
        name = next(iter(self._parts)) if using is None else using
        chosen = {name: vector if isinstance(vector, str | None) else columns_by_name(vector, self._parts).get(name)}
        dims = {name: self.vectors[name]["dim"]}
        return OneName(open_rows(source, ids=ids, payload=False, vector=chosen, dim=dims, missing=True), name)

    def _filled(self, rows: RowSource, minutes: float | None, progress: ProgressOption) -> Self:
        """Do what `create` does with a source, and return the collection."""
        filling.fill(
            self, self._database, rows, progress, lambda report: self.optimize(minutes=minutes, progress=report),
            lambda _, report: self._measured(rows, report), lambda report: report,
        )  # fmt: skip
        return self

    def _measured(self, rows: RowSource, report: Progress) -> None:
        """Measure recall by the names of which there are enough vectors, and say it."""
        for name in rows.parts if not rows.is_read_once else ():
            part = self.part(name)
            if (stats := part.stats())["compressed"] and stats["vectors"] > 1:
                found = part.evaluate(OneName(rows, str(name)), keep=True, progress=report)
                filling.tell_recall(found, name)

    def rows_of(self, source, *, ids=None, payload=None, vector: Columns = None) -> RowSource:
        """The records of a source, as `upsert_from` reads them."""
        dims = {name: one["dim"] for name, one in self.vectors.items()}
        return open_rows(
            source, ids=ids, payload=payload, vector=columns_by_name(vector, self._parts), dim=dims, missing=True
        )

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

    def update_payload(self, payload, *, ids=None, where=None, mode: str = "merge", key: str | None = None) -> int:
        """Change the payload of records, whose vectors stay; see `Collection.update_payload`."""
        return self._main.update_payload(payload, ids=ids, where=where, mode=mode, key=key)

    def add_field(self, path: str, kind: str) -> None:
        """Make an index of a field of payloads; see `Collection.add_field`."""
        self._main.add_field(path, kind)

    def drop_field(self, path: str) -> bool:
        """Remove the index of a field; returns whether there was one."""
        return self._main.drop_field(path)

    def _columns(self, vectors: Any, count: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        if not isinstance(vectors, Mapping):
            raise DataError(f"vectors must be a dict by name, {', '.join(map(repr, self._parts))}, not {vectors!r:.60}")
        dims = {name: one["dim"] for name, one in self.vectors.items()}
        found = {}
        for name, given in vectors.items():
            number = self._number(name)
            rows_n, vectors_nD = vector_rows(given, count, dims[name], name=f"vectors {name!r}")
            if len(rows_n):
                found[number] = rows_n, vectors_nD
        return found

    def _check_dims(self, connection, columns) -> None:
        for number, (_, vectors_nD) in columns.items():
            self._main.check_dim(in_space(connection, number), vectors_nD.shape[1])


def columns_by_name(vector: Columns, names: Collection[str]) -> Mapping[str, str | None]:
    """Columns by name as they were given; None where they are to be found."""
    if vector is None:
        return dict.fromkeys(names)
    if isinstance(vector, str) and len(names) == 1:
        return dict.fromkeys(names, vector)
    if not isinstance(vector, Mapping) or not vector or not all(isinstance(one, str) for one in vector.values()):
        name = next(iter(names))
        raise ConfigError(f"vector must be columns by name, such as {{{name!r}: '{name}_embedding'}} (in the shell "
                          f"and over HTTP vector={name}:{name}_embedding), not {vector!r:.80}")  # fmt: skip
    for name in vector:
        check_name(name, names)
    return vector


def _of_rows(columns: Mapping[int, tuple[np.ndarray, np.ndarray]], rows: list[int], count: int):
    return {number: conditional.rows_of(rows, *column, count) for number, column in columns.items()}
