"""`Collection`: a durable, embedded database of records, whose vectors are kept as codes."""

from collections.abc import Mapping
from pathlib import Path

from qinco.atomic import user_path
from qinco.codec.codec import Codec
from qinco.collection import changes, facets, filling, finding
from qinco.collection.changed import ChangedCollection
from qinco.collection.creation import clear_leftovers, new_folder
from qinco.collection.filled import FilledCollection
from qinco.collection.filter_sql import index_sql
from qinco.collection.optimize import check_training
from qinco.collection.paths import path_steps
from qinco.collection.records import Id, Record, record_ids
from qinco.collection.row_source import RowSource
from qinco.collection.schema import FILE, Database
from qinco.collection.segments import codec_path
from qinco.collection.sources import check_column, open_rows
from qinco.collection.table_rows import TableRows
from qinco.config import EXACT_BELOW, require_bool, require_int, suggest
from qinco.errors import ConfigError, DataError
from qinco.progress import ProgressOption
from qinco.search.metric import Metric
from qinco.search.scan import ENTRIES
from qinco.vectors.mapped import suggest_file


class Collection(ChangedCollection, FilledCollection):
    """Records of an id, a payload and a vector, in a folder; see `create` and `open`.

    A write that has returned survives a crash, and is whole or not there. Vectors are kept exactly, and searched so,
    until `optimize` encodes them. Threads may share a collection. One process writes at a time; any number of others
    read at the same time (`read_only=True`), and see whole writes.

    Example:
        >>> docs = qinco.Collection.create("docs.qinco")
        >>> docs.upsert(["a", "b"], vectors[:2], [{"year": 2009}, {"year": 2012}])
        >>> docs.search(vectors[1], k=10, where={"year": {"gte": 2010}})[0].id
        'b'
        >>> docs.close()
    """

    @classmethod
    def create(
        cls, folder, source=None, *, ids=None, payload=None, vector: str | None = None, metric: str | None = None,
        fields: Mapping[str, str] | None = None, bytes: int = 8, dim: int | None = None, codec=None,
        multi: bool = False, minutes: float | None = None, progress: ProgressOption = None,
        exact_below: int = EXACT_BELOW, overwrite: bool = False, device: str = "cpu",
    ) -> "Collection":  # fmt: skip
        """Create a collection, empty or of all records of a source, and open it.

        With a source its records are stored and encoded by `optimize`; then recall is measured by `evaluate` and
        logged. So is what was guessed of columns and metric. After a kill the same call goes on where it was. Of an
        iterator, which is read once, it does not, and measures no recall.

        Args:
            folder: to be made; by custom its name ends in .qinco.
            source: files, tables, arrays or batches; with ids, payload and vector as of `upsert_from`.
            ids: of the source.
            payload: of the source; False: there are only integer ids and vectors, which takes 13 bytes a vector with
                bytes=8, and is the default for a source of such; True: records may have payloads.
            vector: of the source.
            metric: "cosine", "inner_product" or "l2"; None: guessed of a source, "cosine" without one.
            fields: of payloads that get an index, with their kinds, as of `add_field`: {"year": "integer"}.
            bytes: of the codes of a vector, for a codec that `optimize` trains.
            dim: D of the vectors; that of the first ones if None.
            codec: Codec, or the path of one, that encodes the vectors; None: `optimize` trains one.
            multi: True: a record holds several vectors, such as those of a text's words; see `search_multi`. Without a
                source.
            minutes: of training, with a source; None: one for 10,000 vectors, and ten at most.
            progress: see `qinco.progress`.
            exact_below: with fewer vectors none is encoded, unless a codec is given.
            overwrite: replace a collection that is there.
            device: where the codec computes.

        Example:
            >>> qinco.Collection.create("notes.qinco", {"id": ["a", "b"], "vector": vectors[:2]}).count()
            2
        """
        folder, rows, originals = Path(user_path(folder)), None, {}
        require_int("bytes", bytes, 1, 256)
        require_int("exact_below", exact_below, 0)
        require_bool("multi", multi)
        check_training({}, minutes)
        codec = codec if codec is None or isinstance(codec, Codec) else Codec.load(codec, device)
        has_points = payload is not False
        if multi and not has_points:
            raise ConfigError("multi=true needs records, which payload=false leaves out: leave payload= out")
        fields = dict(fields or {})
        for path, kind in fields.items():
            index_sql(path, kind)
        settings = {"metric": metric, "bytes": bytes, "exact_below": exact_below, "fields": fields,
                    "codec": None if codec is None else codec.fingerprint()}  # fmt: skip
        if source is not None:
            if multi:
                raise ConfigError("a source has one vector a row: create a collection with multi=true empty, and upsert"
                                  " records")  # fmt: skip
            check_column(vector)
            rows = open_rows(source, ids=ids, payload=payload, vector=vector, dim=dim, missing=has_points)
            has_points = bool(rows.payload_columns) or not rows.has_integer_ids or payload is True
            check_fields(fields, rows)
            rows.guesses += [rows.metric_guess] if metric is None else []
            metric, dim = metric or rows.metric, rows.dim
            originals = {"source": source, "ids": ids, "vector": vector}
            if not overwrite and filling.is_begun(folder, rows, settings):
                return cls.open(folder, device=device)._filled(rows, originals, minutes, progress)
        elif ids is not None or vector is not None or not isinstance(payload, bool | None):
            raise ConfigError("ids, vector and names for payload are columns of a source: give one, or leave them out")
        if fields and not has_points:
            raise ConfigError(f"fields= are of payloads, and there are none: leave out {', '.join(fields)}")
        if dim is not None:
            require_int("dim", dim)
        meta = {"metric": Metric(metric or "cosine").name, "bytes": bytes, "dim": dim, "has_points": has_points,
                "multi": multi, "exact_below": exact_below, "codec": None, "tables": None}  # fmt: skip
        meta |= {} if rows is None else {filling.STATE: filling.new_state(rows, settings)}
        if codec is not None:
            check_codec(codec, dim)
            meta |= {"dim": codec.dim, "codec": codec.fingerprint(), "bytes": codec.num_codes}

        def prepare(connection) -> None:
            for path, kind in fields.items():
                changes.add_field(connection, path, kind)

        with new_folder(folder, overwrite) as place:
            database = Database(place, read_only=False)
            try:
                if codec is not None:
                    codec.save(codec_path(place, codec.fingerprint()))
                database.create(meta, prepare)
            finally:
                database.close()
        collection = cls(Database(folder, read_only=False), device)
        return collection if rows is None else collection._filled(rows, originals, minutes, progress)

    @classmethod
    def open(cls, folder, *, read_only: bool = False, device: str = "cpu") -> "Collection":
        """Open a collection.

        Args:
            folder: of the collection.
            read_only: neither change it nor keep others from changing it; also on media that cannot be written.
            device: where the codec computes.
        """
        require_bool("read_only", read_only)
        collection = cls(cls.database_of(folder, read_only), device)
        if collection._moments.names:
            collection.close()
            raise ConfigError(
                f"{collection.folder} holds vectors of several names: open it by qinco.NamedCollection.open"
            )
        return collection

    @staticmethod
    def database_of(folder, read_only: bool) -> Database:
        """The database of a collection that is there."""
        folder = Path(user_path(folder))
        if not read_only or not folder.exists():
            clear_leftovers(folder)
        if not (folder / FILE).is_file():
            is_there = folder.exists()
            reason = f"it has no {FILE}" if is_there else "there is no such folder"
            remedy = "Collection.create or qinco index makes one"
            hint = "" if is_there else suggest_file(folder)
            raise DataError(f"{folder} is not a collection: {reason}; {remedy}" + (f". {hint}" if hint else ""))
        return Database(folder, read_only=read_only)

    def __getstate__(self):
        raise TypeError("a Collection cannot be copied or pickled: open it where it is needed")

    def __repr__(self) -> str:
        return f"Collection({str(self.folder)!r}, metric={self.metric!r})"

    def get(
        self, ids=None, where=None, *, limit: int | None = None, after: Id | None = None, order_by: str | None = None,
        with_payload: bool = True, with_vectors: bool = False,
    ) -> list[Record]:  # fmt: skip
        """Records by their ids, in that order, or page by page those for which a filter is true.

        Args:
            ids: one id or several; unknown ones are passed over.
            where: a filter, as of `search`; None for all records.
            limit: records at most.
            after: the last id of the page before.
            order_by: the path of a field, ascending, or with a minus before it descending; records without it come
                last. None: by ids, integers first.
            with_payload, with_vectors: what is read besides ids.

        Example:
            >>> [record.id for record in docs.get(limit=10, order_by="-year")]
            ['b', 'a']
        """
        with self._viewing() as view:
            page = {"limit": limit, "after": after, "order_by": order_by}
            return finding.get(view, ids, where, **page, with_payload=with_payload, with_vectors=with_vectors)

    def sample(self, number: int = 1, where=None, *, has_vector: bool = True, seed: int | None = None) -> list[Id]:
        """Ids of random records, each once, in random order: all of them if there are fewer than `number`.

        Args:
            number: of ids at most.
            where: a filter that the records fulfil; None for all.
            has_vector: only records that have a vector.
            seed: of the choice; None: another one each time.

        Example:
            >>> docs.search_by_id(docs.sample()[0])  # what is near a record
        """
        require_int("number", number)
        require_bool("has_vector", has_vector)
        with self._viewing() as view:
            return finding.sample(view, number, seed, where, has_vector)

    def count(self, where=None) -> int:
        """The number of records, or of those for which a filter is true."""
        with self._viewing() as view:
            return finding.count(view, where)

    def facet(self, path: str, where=None, limit: int | None = 10) -> list[tuple[str | int | bool, int]]:
        """The most frequent values of a field, with the numbers of their records: strings, integers and booleans.

        Of an array each element counts, once a record. It is fast if the field has an index.

        Args:
            path: as in filters, such as "author.name".
            where: a filter that records must fulfil; None for all.
            limit: values at most; None: all.

        Returns:
            (value, number of records), most frequent first; of equally frequent ones booleans, integers and then
            strings, each ascending.

        Example:
            >>> docs.facet("year")
            [(2009, 1), (2012, 1)]
        """
        with self._viewing() as view:
            return facets.facet(view, path, where, limit)

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        return True  # also without records

    def __contains__(self, id) -> bool:
        """Whether a record has this id."""
        try:
            given = record_ids(id)
        except DataError:
            return False
        with self._viewing() as view:
            return len(given) == 1 and len(finding.keys_among(view, given)) == 1

    __iter__ = None  # see `get`


def check_fields(fields: Mapping[str, str], rows: RowSource) -> None:
    """Refuse fields that no record of a table can have; records of other sources may differ."""
    for path in fields if isinstance(rows, TableRows) and rows.payload_columns else ():
        if (column := path_steps(path)[0]) not in rows.payload_columns:
            raise ConfigError(f"fields= names {path!r}, which is not in the payload. "
                              f"{suggest(str(column), rows.payload_columns, 0.6)}There are "
                              f"{', '.join(map(repr, rows.payload_columns))}")  # fmt: skip


def check_codec(codec: Codec, dim: int | None) -> None:
    """Raise ConfigError for a codec of another dimension, or of codes that a collection cannot hold."""
    if dim not in (None, codec.dim):
        raise ConfigError(f"dim must be {codec.dim}, that of the codec, not {dim}")
    if codec.config.codebook_size > ENTRIES:
        size = codec.config.codebook_size
        raise ConfigError(f"a collection holds codes of one byte, and the codec has K={size}, above {ENTRIES}")
