"""The state of a collection after one of its commits, kept in memory and brought up to date by what is new.

Shape suffixes: N fresh vectors, n new ones, D dimension.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.collection.filter_sql import PLAIN_VECTORS
from qinco.collection.schema import Database, value_of
from qinco.collection.segments import Segment, codec_path, load_tables, open_segment
from qinco.collection.spaces import Space, has_vector, in_space, numbers_of
from qinco.collection.spans import Spans
from qinco.forking import new_lock
from qinco.search.exhaustive import Piece
from qinco.search.index import Index
from qinco.search.lists import InvertedLists
from qinco.search.metric import Metric
from qinco.search.parts import IndexParts
from qinco.search.selection import Selection

_NO_KEYS = np.empty(0, np.int64)
_PIECE_BYTES = 1 << 26  # of vectors whose packed copy is kept
_NEXT_ID = (1 << 63) - 1  # above all keys


@dataclass(frozen=True, eq=False)
class Fresh:
    """Vectors that are not encoded yet: rows of the table and keys, int64 (N,), and vectors as they are compared."""

    rows: np.ndarray
    keys: np.ndarray
    vectors_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def updated(self, connection: sqlite3.Connection, metric: Metric) -> "Fresh":
        """What the table holds now."""
        last = int(self.rows[-1]) if len(self) else 0
        new = connection.execute("SELECT row, key, vector FROM fresh WHERE row > ? ORDER BY row", (last,)).fetchall()
        (count,) = connection.execute("SELECT count(*) FROM fresh INDEXED BY sqlite_autoindex_fresh_1").fetchone()
        kept = self
        if count != len(self) + len(new):
            left = connection.execute("SELECT row FROM fresh INDEXED BY sqlite_autoindex_fresh_1").fetchall()
            is_left_N = np.isin(self.rows, np.array(left, np.int64).ravel())
            kept = Fresh(self.rows[is_left_N], self.keys[is_left_N], self.vectors_ND[is_left_N])
        if not new:
            return kept
        rows_n, keys_n = (np.array([row[column] for row in new], np.int64) for column in (0, 1))
        new_nD = np.frombuffer(b"".join(row[2] for row in new), "<f4").reshape(len(new), -1)
        new_nD = metric.prepare(new_nD.astype(np.float32, copy=False))
        vectors_ND = new_nD if not len(kept) else np.concatenate([kept.vectors_ND, new_nD])
        return Fresh(np.concatenate([kept.rows, rows_n]), np.concatenate([kept.keys, keys_n]), vectors_ND)


_NO_FRESH = Fresh(_NO_KEYS, _NO_KEYS, np.empty((0, 0), np.float32))


@dataclass(frozen=True, eq=False)
class Moment:
    """What a collection held after a commit.

    `live` are masks over the positions of segments, None where no vector is deleted; `last_dead` is the last row of the
    table of tombstones that they know. There are `spans` where records may have several vectors.
    """

    version: int
    metric: Metric
    fresh: Fresh = _NO_FRESH
    segments: tuple[Segment, ...] = ()
    live: tuple[np.ndarray | None, ...] = ()
    last_dead: int = 0
    codec: Codec | None = None
    tables: IndexParts | None = None
    tables_token: str | None = None
    spans: Spans | None = None

    @cached_property
    def index(self) -> Index | None:
        """All segments as an index; None without any vector in them."""
        if self.tables is None or not self.num_stored:
            return None
        zeros = np.concatenate([_NO_KEYS, *(segment.zeros for segment in self.segments)])
        return Index(self.codec, replace(self.tables, segments=self.lists, zeros=zeros, next_id=_NEXT_ID))

    @cached_property
    def compared(self) -> Piece | np.ndarray:
        """Fresh vectors for searches: as they are, or if they are few with what is computed of them once."""
        vectors_ND = self.fresh.vectors_ND
        return Piece(vectors_ND, self.metric.name != "l2") if vectors_ND.nbytes <= _PIECE_BYTES else vectors_ND

    @cached_property
    def dim(self) -> int | None:
        """D of the vectors; None without any."""
        if self.tables is not None:
            return self.tables.tables.lookup.dim
        return self.fresh.vectors_ND.shape[1] if len(self.fresh) else None

    @cached_property
    def lists(self) -> tuple[InvertedLists, ...]:
        return tuple(segment.lists for segment in self.segments)

    @cached_property
    def dead(self) -> Selection | None:
        """The vectors of segments that are deleted; None where none is."""
        if all(mask is None for mask in self.live):
            return None
        pairs = zip(self.segments, self.live, strict=True)
        masks = [np.zeros(len(segment), bool) if mask is None else ~mask for segment, mask in pairs]
        return Selection.from_masks(masks, self.lists)

    @property
    def num_stored(self) -> int:
        """Vectors in segments that are not deleted."""
        pairs = zip(self.segments, self.live, strict=True)
        return sum(len(one) if mask is None else int(np.count_nonzero(mask)) for one, mask in pairs)

    def are_stored(self, keys: np.ndarray) -> np.ndarray:
        """Which keys have a vector in a segment that is not deleted, bool."""
        found = np.zeros(len(keys), bool)
        for segment, mask in zip(self.segments, self.live, strict=True):
            ids = segment.lists.ids
            found |= np.isin(keys, ids if mask is None else ids[mask])
        return found

    @cached_property
    def keys(self) -> np.ndarray:
        """The keys of all vectors, int64, ascending; where keys are ids, those of all records."""
        pairs = zip(self.segments, self.live, strict=True)
        stored = [one.lists.ids if mask is None else one.lists.ids[mask] for one, mask in pairs]
        return np.sort(np.concatenate([self.fresh.keys, *stored], dtype=np.int64))


class View:
    """What one transaction sees of a collection; its vectors are read when they are asked for.

    `has_vector` is SQL of which vectors a record has (`filter_sql.to_sql`).
    """

    def __init__(self, connection: sqlite3.Connection, moments: "Moments"):
        self.connection, self._moments = connection, moments
        self.has_points, self.is_multi = moments.has_points, moments.is_multi
        self.has_vector, self.number = moments.has_vector, moments.number

    @cached_property
    def version(self) -> int:
        (text,) = self.connection.execute("SELECT value FROM main.meta WHERE name = 'version'").fetchone()
        return json.loads(text)

    def named(self) -> "dict[str, View]":
        """What the transaction sees of the vectors of each name; empty where vectors have none."""
        names = self._moments.names.items()
        return {name: View(in_space(self.connection, moments.number), moments) for name, moments in names}

    @cached_property
    def moment(self) -> Moment:
        return self._moments.at(self.connection, self.version)

    @property
    def name(self) -> str | None:
        """Of its vectors; None if they have none, or those of all names are in view."""
        return next((name for name, one in self._moments.names.items() if one.number == self.number), None)

    @property
    def has_own_vectors(self) -> bool:
        """Whether its moment has all vectors in view."""
        return self.name is not None or not self._moments.names


class Moments:
    """The newest known moment of a collection in this process; threads share it.

    `has_points`: ids and payloads are in the table of points, or else keys are ids. `is_multi`: records may have
    several vectors. Where vectors have names, there are `names`, moments of each, and these have a `number`.
    """

    def __init__(
        self, folder: Path, metric: Metric, has_points: bool, is_multi: bool, device: str, number: int = 0
    ):  # fmt: skip
        self.metric, self.has_points, self.is_multi = metric, has_points, is_multi
        self.number, self.names = number, {}
        self.has_vector: Mapping[str | None, str] = PLAIN_VECTORS
        self._folder, self.device = folder, device
        self._lock = new_lock()
        self._newest: Moment | None = None

    @classmethod
    def of(cls, database: "Database | Space", device: str) -> "Moments":
        """Those of an open collection."""
        with database.reading() as connection:
            metric = Metric(value_of(connection, "metric"))
            kinds = value_of(connection, "has_points"), value_of(connection, "multi")
            number = database.number if isinstance(database, Space) else 0
            moments, names = cls(database.folder, metric, *kinds, device, number), numbers_of(connection) or {}
        whole = database.whole if isinstance(database, Space) else database
        for name, number in names.items():
            moments.names[name] = cls.of(Space(whole, number), device)
        for one in (moments, *moments.names.values()) if names else ():
            one.names, one.has_vector = moments.names, has_vector(names)
        return moments

    def at(self, connection: sqlite3.Connection, version: int) -> Moment:
        """The moment that a transaction sees, whose version is given."""
        newest = self._newest
        if newest is not None and newest.version == version:
            return newest
        with self._lock:
            newest = self._newest
            if newest is not None and newest.version == version:
                return newest
            moment = self._read(connection, version, newest if newest and newest.version < version else None)
            if newest is None or newest.version < version:
                self._newest = moment
        return moment

    def _read(self, connection: sqlite3.Connection, version: int, old: Moment | None) -> Moment:
        fresh = (_NO_FRESH if old is None else old.fresh).updated(connection, self.metric)
        spans = (old.spans if old and old.spans else Spans.empty()).updated(connection) if self.is_multi else None
        moment = Moment(version, self.metric, fresh, spans=spans)
        rows = connection.execute("SELECT segment, token, rows, crc32, error FROM segments ORDER BY segment").fetchall()
        fingerprint, token = value_of(connection, "codec"), value_of(connection, "tables")
        if token is None:
            return moment
        if old is not None and old.tables_token == token:
            moment = replace(moment, codec=old.codec, tables=old.tables, tables_token=token)
        else:
            codec = Codec.load(codec_path(self._folder, fingerprint), self.device)
            moment = replace(moment, codec=codec, tables=load_tables(self._folder, token), tables_token=token)
        known = {} if old is None or old.tables_token != token else {one.number: one for one in old.segments}
        assert moment.tables is not None
        segments = tuple(known.get(row[0]) or open_segment(self._folder, row, moment.tables) for row in rows)
        return self._with_dead(connection, replace(moment, segments=segments), old)

    def _with_dead(self, connection: sqlite3.Connection, moment: Moment, old: Moment | None) -> Moment:
        """With the masks of a moment's segments; those of `old` segments are brought up to date."""
        known, last = {}, 0
        if old is not None and [one.number for one in old.segments] == [one.number for one in moment.segments]:
            known, last = {one.number: mask for one, mask in zip(old.segments, old.live, strict=True)}, old.last_dead
        dead = connection.execute("SELECT row, key, segment FROM dead WHERE row > ? ORDER BY row", (last,)).fetchall()
        last = dead[-1][0] if dead else last
        keys, until = (np.array([row[column] for row in dead], np.int64) for column in (1, 2))
        live, segments = [], []
        for segment in moment.segments:
            mask, own = known.get(segment.number), keys[until >= segment.number]
            is_dead = np.isin(segment.lists.ids, own) if len(own) else None
            if is_dead is not None and is_dead.any():
                mask = ~is_dead if mask is None else mask & ~is_dead
                segment = replace(segment, zeros=segment.zeros[~np.isin(segment.zeros, own)])
            live.append(mask)
            segments.append(segment)
        return replace(moment, segments=tuple(segments), live=tuple(live), last_dead=last)
