"""`optimize`: train a codec, encode fresh vectors into a segment, and merge segments.

Others may read and write meanwhile: each step ends in a transaction, in which what has been deleted since it began is
marked as such in the segment that it wrote.

Shape suffixes: N vectors, n some of them, D dimension.
"""

import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.collection import histograms, segments, stages
from qinco.collection.moments import Moment, Moments, View
from qinco.collection.schema import Database, set_value, value_of
from qinco.collection.spaces import Space
from qinco.config import require_number
from qinco.errors import ConfigError
from qinco.native.bits import packed
from qinco.progress import Progress, counted
from qinco.search.build import metric_of_codec, prepared, zero_rows
from qinco.search.calibrate import corrections_of
from qinco.search.fill import fill_lists
from qinco.search.grow import build_parts, extended
from qinco.search.index_file import put_lists
from qinco.search.lists import InvertedLists
from qinco.search.metric import Metric
from qinco.search.parts import IndexParts
from qinco.search.sample import assign_decoded
from qinco.store.codes import Codes
from qinco.vectors.arrays import ComputedRows
from qinco.vectors.rows import VectorSource

log = logging.getLogger(__name__)
MAX_SEGMENTS, MAX_DEAD = 8, 0.2
LEAST_TRAINED = 1000  # vectors that a codec is trained on at least
_READ_ROWS = 4096


@dataclass(frozen=True)
class Written:
    """A segment that was written, or made ready to be listed."""

    token: str
    crc32: int
    rows: int
    error: float | None
    shares: list[float] | None = None  # of errors, see `histograms`


class Optimizer:
    """One call of `Collection.optimize`."""

    def __init__(self, database: Database | Space, moments: Moments, report: Progress):
        self.database, self.moments, self.report = database, moments, report
        self.folder: Path = database.folder

    def run(self, settings: dict) -> dict:
        """Do all that is due; returns what was done. `settings` are those of training."""
        trained, encoded, merged = False, 0, 0
        with self.database.optimizing():
            codec = self._codec()
            if codec is None:
                codec = self._train(settings)
                trained = codec is not None
            if codec is not None:
                encoded = self._encode(codec)
                stages.forget_encoding(self.folder)  # also what a kill left after it was listed
                while chosen := self._to_merge():
                    merged += self._merge(chosen)
            self.tidy()
        return {"trained": trained, "encoded": encoded, "merged_segments": merged}

    def _codec(self) -> Codec | None:
        with self.database.reading() as connection:
            fingerprint = value_of(connection, "codec")
        if fingerprint is None:
            return None
        return Codec.load(segments.codec_path(self.folder, fingerprint), self.moments.device)

    def _train(self, settings: dict) -> Codec | None:
        """A new codec, where there are enough fresh vectors."""
        with self.database.reading() as connection:
            rows = fresh_rows(connection)[0]
            least, num_steps = value_of(connection, "exact_below"), value_of(connection, "bytes")
        if len(rows) < max(least, LEAST_TRAINED):
            log.info("%s: vectors are kept exactly until there are %d", counted(len(rows), "vector"),
                     max(least, LEAST_TRAINED))  # fmt: skip
            return None
        settings = {"num_steps": num_steps, **settings}
        if not stages.is_begun(self.folder, settings):
            with self.database.reading() as connection:
                source = prepared(self._source(connection, rows), self.moments.metric)
                stages.begin(self.folder, source, settings, self.report)
        codec, error = stages.train(self.folder, settings, self.report)
        codec.save(segments.codec_path(self.folder, codec.fingerprint()))
        with self.database.writing() as connection:
            set_value(connection, "codec", codec.fingerprint())
            set_value(connection, "first_error", error)
        stages.forget_training(self.folder)
        return codec.to(self.moments.device)

    def _encode(self, codec: Codec) -> int:
        """Encode the fresh vectors that there are into a segment; returns their number."""
        with self.database.reading() as connection:
            rows_N, _ = fresh_rows(connection)
        if not len(rows_N):
            return 0
        pieces, metric = stages.EncodedPieces(self.folder, codec), metric_of_codec(self.moments.metric.name, codec)

        def read(some_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with self.database.reading() as connection:
                there = np.isin(some_n, fresh_rows(connection, int(some_n[0]), int(some_n[-1]))[0])
                x_nD = self._source(connection, some_n[there])[:]
            return some_n[there], metric.prepare(x_nD) if metric.name == "cosine" else x_nD

        pieces.encode(rows_N, read, self.report)
        with self.database.reading() as connection:  # vectors stay as they are from here on
            moment = View(connection, self.moments).moment
            rows_n, keys_n = fresh_rows(connection, last=int(rows_N[-1]))
            if len(pieces.missing(rows_n)):
                raise AssertionError("fresh vectors are encoded")
            source = self._source(connection, rows_n)
            done = self._written(codec, moment, metric, source, keys_n, pieces.codes(rows_n)) if len(rows_n) else None
        if done is not None:
            self._commit(moment, *done, encoded=(rows_n, keys_n))
        return len(rows_n)

    def _written(
        self, codec: Codec, moment: Moment, metric: Metric, source: VectorSource, keys_n: np.ndarray, codes: Codes
    ) -> tuple[Written, str | None, Sequence[segments.Segment]]:
        """Write a segment of fresh vectors; with the tables, if they are new, and the segments that it replaces."""
        vectors = prepared(source, metric)
        errors_n = stages.sample_errors(codec, vectors, codes)
        error, shares = stages.mean_of(errors_n), histograms.shares_of(errors_n)
        zeros = keys_n[zero_rows(source, metric)]
        old = moment.tables
        if old is not None and not old.fitted.outgrown(moment.num_stored + len(keys_n)):
            if not codes.has_lists:
                codes = codes.with_lists(assign_decoded(codec, codes, old.tables.centroids_VD, self.report))
            own_n = self._corrections(codec, codes, vectors, old)
            own = None if own_n is None else lambda first, block: own_n[first : first + len(block)]

            def write(writer) -> None:
                lists = fill_lists(old.tables, codes, keys_n, self.report, writer.array, corrections=own)
                writer.put("starts", lists.starts)

            written = segments.write_segment(self.folder, write, zeros)
            return Written(*written, len(keys_n), error, shares), None, ()
        if old is None:
            parts = build_parts(codec, source, None, keys_n, False, metric.name, 0, codes, self.report)
        else:  # all vectors move to new lists
            live = _live_parts(moment, old)
            own_n = self._corrections(codec, codes, vectors, old)
            parts = extended(codec, live, codes, own_n, keys_n, self.report, vectors)
            zeros = np.concatenate([live.zeros, zeros])
        token = segments.write_tables(self.folder, parts)
        written = segments.write_segment(self.folder, lambda writer: put_lists(writer, parts.segments), zeros)
        return Written(*written, len(parts), error, shares), token, moment.segments

    def _corrections(self, codec: Codec, codes: Codes, vectors: VectorSource, parts: IndexParts) -> np.ndarray | None:
        ranking = parts.tables.ranking
        return (
            None
            if ranking is None
            else corrections_of(codec, parts.tables.lookup, codes, vectors, ranking.mean_D, self.report)
        )

    def _commit(
        self, moment: Moment, written: Written, tables: str | None, replaced: Sequence[segments.Segment], *,
        encoded: tuple[np.ndarray, np.ndarray] | None = None, meta: dict | None = None,
    ) -> None:  # fmt: skip
        """List a segment instead of those that it replaces, and of the fresh rows and keys that it holds.

        `meta` are values that change with it.
        """
        with self.database.writing() as connection:
            number = connection.execute(
                "INSERT INTO segments(token, rows, crc32, error) VALUES (?, ?, ?, ?)",
                (written.token, written.rows, written.crc32, written.error),
            ).lastrowid
            connection.executemany("DELETE FROM segments WHERE segment = ?", ((one.number,) for one in replaced))
            histograms.keep(connection, written.token, written.shares, [one.token for one in replaced])
            if replaced:
                self._move_tombstones(connection, moment, replaced, int(number or 0))
            if encoded is not None:
                rows_n, keys_n = encoded
                is_left_n = np.isin(rows_n, fresh_rows(connection, last=int(rows_n[-1]))[0])
                gone = [(key, number) for key in keys_n[~is_left_n].tolist()]
                connection.executemany("DELETE FROM dead WHERE key = ?", ((key,) for key, _ in gone))
                connection.executemany("INSERT INTO dead(key, segment) VALUES (?, ?)", gone)
                connection.execute("DELETE FROM fresh WHERE row <= ?", (int(rows_n[-1]),))
                if value_of(connection, "first_error") is None:
                    set_value(connection, "first_error", written.error)
            if tables is not None:
                set_value(connection, "tables", tables)
            for name, value in (meta or {}).items():
                set_value(connection, name, value)
        segments.touch_unused(self.folder, [one.token for one in replaced])
        if tables is not None and moment.tables_token is not None:
            segments.touch_unused(self.folder, [f"tables-{moment.tables_token}"])

    def _move_tombstones(
        self, connection: sqlite3.Connection, moment: Moment, replaced: Sequence[segments.Segment], number: int
    ) -> None:
        """Keep tombstones that other segments need, and let those since the moment reach to the new segment."""
        numbers = {one.number for one in replaced}
        rows = connection.execute("SELECT key, segment FROM dead WHERE row <= ?", (moment.last_dead,)).fetchall()
        keys, until = (np.array([row[column] for row in rows], np.int64) for column in (0, 1))
        is_needed = np.zeros(len(keys), bool)
        for one in moment.segments:
            if one.number not in numbers:
                is_needed |= (until >= one.number) & np.isin(keys, one.lists.ids)
        connection.executemany("DELETE FROM dead WHERE key = ?", ((key,) for key in keys[~is_needed].tolist()))
        connection.execute("UPDATE dead SET segment = ? WHERE row > ?", (number, moment.last_dead))

    def _to_merge(self) -> list[int]:
        """The numbers of segments to be written as one: those with many deleted vectors, and small ones of many."""
        with self.database.reading() as connection:
            moment = View(connection, self.moments).moment
        rows = {one.number: len(one) for one in moment.segments}
        pairs = zip(moment.segments, moment.live, strict=True)
        left = {one.number: len(one) if mask is None else int(np.count_nonzero(mask)) for one, mask in pairs}
        chosen = [number for number in rows if left[number] < (1 - MAX_DEAD) * rows[number]]
        others = sorted((number for number in rows if number not in chosen), key=rows.__getitem__)
        if len(others) + bool(chosen) > MAX_SEGMENTS:
            chosen += others[: len(others) + 1 - MAX_SEGMENTS // 2]
        return sorted(chosen)

    def _merge(self, numbers: list[int]) -> int:
        """Copy the vectors of segments that are not deleted into one; returns the number of segments."""
        with self.database.reading() as connection:
            moment = View(connection, self.moments).moment
        pairs = [pair for pair in zip(moment.segments, moment.live, strict=True) if pair[0].number in numbers]
        self.report("merging", 0, len(pairs), "segment")
        kept = [None if mask is None else packed(mask) for _, mask in pairs]
        rows = sum(len(one) if mask is None else int(np.count_nonzero(mask)) for one, mask in pairs)
        errors = [(one.error, len(one)) for one, _ in pairs if one.error is not None]
        error = sum(one * count for one, count in errors) / sum(count for _, count in errors) if errors else None
        replaced = [one for one, _ in pairs]
        with self.database.reading() as connection:
            shares = histograms.merged(connection, {one.token: len(one) for one in replaced})
        if rows:
            lists, zeros = [one.lists for one in replaced], np.concatenate([one.zeros for one in replaced])
            written = segments.write_segment(self.folder, lambda writer: put_lists(writer, lists, kept), zeros)
            self._commit(moment, Written(*written, rows, error, shares), None, replaced)
        else:
            self._drop(moment, replaced)
        self.report("merging", len(pairs), len(pairs), "segment")
        return len(pairs)

    def _drop(self, moment: Moment, emptied: Sequence[segments.Segment]) -> None:
        """Unlist segments all of whose vectors are deleted."""
        with self.database.writing() as connection:
            connection.executemany("DELETE FROM segments WHERE segment = ?", ((one.number,) for one in emptied))
            histograms.forget(connection, [one.token for one in emptied])
            self._move_tombstones(connection, moment, emptied, max(one.number for one in moment.segments))
        segments.touch_unused(self.folder, [one.token for one in emptied])

    def tidy(self) -> None:
        """Remove files that no row names any more, and give what fresh vectors took back to the file system."""
        with self.database.reading() as connection:
            used = named_files(connection)
        segments.remove_unused(self.folder, used)
        self.database.shrink()

    def _source(self, connection: sqlite3.Connection, rows_N: np.ndarray) -> VectorSource:
        """Fresh vectors by their rows, which are read where they lie."""
        dim = value_of(connection, "dim")

        def read(key) -> np.ndarray:
            wanted = rows_N[key]
            found = np.empty((len(wanted), dim), np.float32)
            query = "SELECT vector FROM fresh WHERE row IN ({})"
            order = np.argsort(wanted, kind="stable")
            for start in range(0, len(wanted), _READ_ROWS):
                some = wanted[order[start : start + _READ_ROWS]]
                unique, places = np.unique(some, return_inverse=True)
                if len(unique) == unique[-1] - unique[0] + 1:
                    rows = connection.execute("SELECT vector FROM fresh WHERE row BETWEEN ? AND ? ORDER BY row",
                                              (int(unique[0]), int(unique[-1])))  # fmt: skip
                else:
                    marks = ",".join("?" * len(unique))
                    rows = connection.execute(f"{query.format(marks)} ORDER BY row", unique.tolist())
                x_nD = np.frombuffer(b"".join(blob for (blob,) in rows), "<f4").reshape(-1, dim)
                found[order[start : start + len(some)]] = x_nD[places]
            return found

        return VectorSource(ComputedRows((len(rows_N), dim), np.dtype(np.float32), read), "the collection")


def fresh_rows(
    connection: sqlite3.Connection, first: int = 0, last: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of fresh vectors between two, ascending, and their keys, int64."""
    query = "SELECT row, key FROM fresh INDEXED BY sqlite_autoindex_fresh_1 WHERE row BETWEEN ? AND ?"
    found = connection.execute(query, (first, (1 << 63) - 1 if last is None else last)).fetchall()
    rows = np.array(found, np.int64).reshape(-1, 2)
    rows = rows[np.argsort(rows[:, 0])]
    return rows[:, 0].copy(), rows[:, 1].copy()


def named_files(connection: sqlite3.Connection) -> list[str]:
    """Names of the folders and files that a collection consists of."""
    names = [token for (token,) in connection.execute("SELECT token FROM segments")]
    tables, fingerprint = value_of(connection, "tables"), value_of(connection, "codec")
    names += [] if tables is None else [f"tables-{tables}"]
    return names + ([] if fingerprint is None else [segments.codec_path(Path(), fingerprint).name])


def _live_parts(moment: Moment, parts: IndexParts) -> IndexParts:
    """The vectors of all segments that are not deleted, in memory."""
    kept = [None if mask is None else packed(mask) for mask in moment.live]
    lists = InvertedLists.merged(moment.lists, kept) if moment.segments else None
    zeros = np.concatenate([np.empty(0, np.int64), *(one.zeros for one in moment.segments)])
    return replace(parts, segments=() if lists is None else (lists,), zeros=zeros)


def check_training(settings: dict, minutes: float | None = None) -> dict:
    """Settings of training with their minutes; raises ConfigError for those that a collection decides."""
    if minutes is not None:
        require_number("minutes", minutes, above=0)
    if wrong := set(settings) & {"num_steps", "output", "resume", "overwrite", "progress", "M", "codebook_size", "K"}:
        raise ConfigError(
            f"{', '.join(sorted(wrong))}: the collection decides this; bytes= of create is what a code takes"
        )
    for name, value in settings.items():  # which are written down, to go on with after a kill
        try:
            json.dumps(value)
        except TypeError:
            raise ConfigError(f"{name} must be a JSON value, such as text or a number, not {value!r:.100}") from None
    return settings if minutes is None else settings | {"minutes": minutes}
