"""`FilledCollection` has the methods of `Collection` that read whole sources of records."""

import logging
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryFile
from typing import Self

import numpy as np

from qinco.collection import evaluation, filling, finding
from qinco.collection.maintained import MaintainedCollection
from qinco.collection.optimize import LEAST_TRAINED, Optimizer, check_training
from qinco.collection.records import record_ids
from qinco.collection.retrain import Retrainer
from qinco.collection.row_source import RowSource
from qinco.collection.schema import value_of
from qinco.collection.sources import check_column, open_rows
from qinco.collection.stages import usual_minutes
from qinco.collection.whole_job import WholeJob
from qinco.config import require_bool
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.progress import Progress, ProgressOption, reporting
from qinco.vectors.rows import as_source

log = logging.getLogger(__name__)


class FilledCollection(MaintainedCollection):
    """An open collection, and how files and tables get into it."""

    def upsert_from(
        self, source, *, ids=None, payload=None, vector: str | None = None, progress: ProgressOption = None
    ) -> int:  # fmt: skip
        """Upsert all records of a source; returns their number. See `upsert`.

        What was guessed is logged. After a kill the same call goes on where it was, unless the source is an iterator.

        Args:
            source: a path of vectors, `"text.parquet:embedding"`, a folder, pattern or list of Parquet files, a .jsonl
                file; a table of pyarrow, pandas, Polars or Hugging Face; a dict of columns, a list of dicts; an
                array or tensor (N, D); or an iterator of batches of these, or of (ids, vectors, payloads).
            ids: the column of ids, or N ids; False: row numbers. None: the first that can be of the columns id, _id,
                ids, uuid, doc_id, document_id, key and pk, else row numbers.
            payload: columns of the payload, or N dicts; False: none. None: all others, without bytes and large values;
                NaN and infinities become null, times RFC 3339 text.
            vector: the column of vectors; None: the only one, or that named embedding, vector or the like.
            progress: see `qinco.progress`.

        Example:
            >>> docs.upsert_from({"id": ["c"], "vector": vectors[:1], "year": [2015]})
            1
        """
        self._database.check_writable()
        rows = self.rows_of(source, ids=ids, payload=payload, vector=vector)
        return filling.upsert_from(self, self._database, rows, progress)

    def rows_of(self, source, *, ids=None, payload=None, vector: str | None = None) -> RowSource:
        """The records of a source, as `upsert_from` reads them."""
        if self._moments.is_multi:
            raise ConfigError("a source has one vector a row, and records of multi=true hold several: use "
                              "Collection.upsert")  # fmt: skip
        check_column(vector)
        has_points = self._moments.has_points
        payload = False if payload is None and not has_points else payload
        return open_rows(source, ids=ids, payload=payload, vector=vector, dim=self.dim, missing=has_points)

    def evaluate(
        self, source, *, ids=None, vector: str | None = None, queries=None, num_queries: int = 100, k: int = 10,
        nprobe: int | None = None, num_short: int | None = None, keep: bool = False, progress: ProgressOption = None,
    ) -> dict:  # fmt: skip
        """Measure the recall of `search` beside an exact search over the original vectors, and its time.

        Args:
            source, ids, vector: what the records were made of, as of `upsert_from`.
            queries: (Q, D) array, tensor, path or VectorSource, held out; None: `num_queries` records of all parts of
                the source, each of which is no hit of itself.
            num_queries: records to take.
            k: hits of each query.
            nprobe, num_short: as of `search`.
            keep: write what was measured into the collection, for `stats` and the page about it.
            progress: see `qinco.progress`.

        Returns:
            "recall", the share of the k nearest records that `search` finds; "k", "num_queries" and "num_vectors";
            "latency", the median time of a query without payloads: "microseconds" where queries come one by one,
            "batch_microseconds" in batches of "batch" queries, and the number of "threads" and the "machine" it was on.

        Example:
            >>> docs.evaluate({"id": ["a", "b"], "vector": vectors[:2]}, k=1)["recall"]
            1.0
        """
        if self._moments.is_multi:
            raise ConfigError("a source has one vector a row, and records of multi=true hold several: compare search "
                              "with exact=true")  # fmt: skip
        rows = self._originals(source, ids, vector)
        if rows.is_read_once and queries is None:
            raise ConfigError(f"{rows.name} is read once, and the queries would be taken of it: give queries=")
        require_bool("keep", keep)
        if keep:
            self._database.check_writable()
        options = {"nprobe": nprobe, "num_short": num_short}
        with self._viewing() as view:
            state = evaluation.state_of(view.connection)  # others may write meanwhile
        with reporting(progress) as report:
            found = evaluation.evaluate(self, rows, queries, num_queries, k, options, report)
        if keep:
            with self._database.writing() as connection:
                evaluation.keep_recall(connection, found, state)
        return found

    def retrain(
        self, ids, vectors, *, minutes: float | None = None, progress: ProgressOption = None, **training
    ) -> dict:
        """Train another codec on the original vectors, and encode all of them anew: for data that has changed.

        Until it is done everything is found as before. It may be interrupted, and goes on if it is called again. If all
        records are given, recall is measured again by `evaluate`.

        Args:
            ids: of the records, of which all that are compressed must be there; others are passed over.
            vectors: (N, D) array, tensor, path or VectorSource, their original vectors.
            minutes, progress, **training: as of `optimize`.

        Returns:
            What was done, as `optimize` returns it.
        """
        settings = check_training(training, minutes)
        if self._moments.is_multi:
            raise ConfigError("retrain takes a vector for each record, and those of multi=true hold several: create "
                              "another collection of the originals")  # fmt: skip
        given, source = record_ids(ids, many=True), as_source(vectors)
        if len(given) != len(source):
            raise DataError(f"there must be as many vectors as ids, {len(given)}, not {len(source)}")
        with self._exclusively(progress) as report:
            done = Retrainer(self._database, self._moments, report).retrain(given, source, settings)
            rest = Optimizer(self._database, self._moments, report).run({})
            with self._viewing() as view:
                is_whole = len(given) == len(finding.keys_by_id(view, given)) == len(view.moment.keys) > 1
            if is_whole:
                self._measure({"source": source, "ids": given}, report)
        return done | {"encoded": done["encoded"] + rest["encoded"]}

    def retrain_from(
        self, source, *, ids=None, vector: str | None = None, minutes: float | None = None,
        progress: ProgressOption = None, **training,
    ) -> dict:  # fmt: skip
        """`retrain` on the original vectors of a source, of which a copy lies in the folder until it is done.

        Args:
            source, ids, vector: as of `upsert_from`: those that the records were made of.
            minutes, progress, **training: as of `optimize`.

        Returns:
            What was done, as `optimize` returns it.
        """
        check_training(training, minutes)
        self._database.check_writable()
        rows = self._originals(source, ids, vector)
        given, done = [], 0
        with reporting(progress) as report, ExitStack() as files:
            for guess in rows.guesses:
                log.info("%s", guess)
            try:
                file = files.enter_context(TemporaryFile(dir=self.folder))
                for some, vectors, _ in rows.blocks():
                    ids_n, x_nD = evaluation.with_vectors(some, vectors, rows.dim)
                    file.write(np.ascontiguousarray(x_nD, np.float32).data)
                    given += ids_n.tolist()
                    done += len(some)
                    report("copying originals", done, rows.num_rows or done, "record")
                file.flush()
            except OSError as error:
                raise ResourceError(f"cannot copy originals to {self.folder} ({error.strerror}); nothing is lost: make "
                                    "room on the disk, and call again") from error  # fmt: skip
            if not given:
                raise DataError(f"{rows.name} holds no vectors: give the originals of all that are compressed")
            originals = np.memmap(file, np.float32, "r", shape=(len(given), rows.dim))
            return self.retrain(given, originals, minutes=minutes, progress=report, **training)

    def _originals(self, source, ids, vector: str | None) -> RowSource:
        check_column(vector)
        return open_rows(source, ids=ids, payload=False, vector=vector, dim=self.dim, missing=True)

    def _job(self, rows: RowSource, minutes: float | None, report: Progress) -> Progress:
        """What also tells how long all of `create` takes, where the number of records is known."""
        if rows.num_rows is None:
            return report
        with self._viewing() as view:
            encoded, exact_below = view.moment.num_stored, value_of(view.connection, "exact_below")
            has_codec = value_of(view.connection, "codec") is not None
        if not has_codec and rows.num_rows < max(exact_below, LEAST_TRAINED):
            return WholeJob(report, {"storing": rows.num_rows}, rows.dim)
        left = rows.num_rows - encoded
        counts = {"storing": rows.num_rows, "encoding": left, "indexing": left}
        counts |= {} if rows.is_read_once else {"evaluating": rows.num_rows}
        minutes = usual_minutes(rows.num_rows) if minutes is None else minutes
        return WholeJob(report, counts, rows.dim, 0.0 if has_codec else 60 * minutes)

    def _measure(self, originals: dict, report: Progress) -> None:
        """Measure recall, say it, and write it down; `originals` are arguments of `evaluate`."""
        found = self.evaluate(**originals, keep=True, progress=report)
        filling.tell_recall(found)

    def _measured(self, rows: RowSource, originals: dict, number: int, report: Progress) -> None:
        """Say what a source has become, and measure recall if that can be."""
        stats = self.stats()
        if stats["compressed"]:
            log.info("codes take %.1f bytes a vector, ids and payloads %.1f bytes a record",
                     stats["bytes_per_vector"], stats["database_bytes_per_record"])  # fmt: skip
            if number > 1 and not rows.is_read_once:
                self._measure(originals, report)

    def _filled(self, rows: RowSource, originals: dict, minutes: float | None, progress: ProgressOption) -> Self:
        """Do what `create` does with a source, and return the collection; `originals` are arguments of `evaluate`."""
        filling.fill(
            self, self._database, rows, progress, lambda report: self.optimize(minutes=minutes, progress=report),
            partial(self._measured, rows, originals), lambda report: self._job(rows, minutes, report),
        )  # fmt: skip
        return self
