"""`FilledCollection` has the methods of `Collection` that read whole sources of records."""

import logging
from functools import partial
from typing import Self

from qinco.collection import filling
from qinco.collection.maintained import MaintainedCollection
from qinco.collection.row_source import RowSource
from qinco.collection.sources import open_rows
from qinco.errors import ConfigError
from qinco.progress import ProgressOption, reporting

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
        if self._moments.is_multi:
            raise ConfigError("a source has one vector a row, and records of multi=True hold several: use upsert")
        has_points = self._moments.has_points
        payload = False if payload is None and not has_points else payload
        rows = open_rows(source, ids=ids, payload=payload, vector=vector, dim=self.dim, missing=has_points)
        with reporting(progress) as report:
            for guess in rows.guesses:
                log.info("%s", guess)
            number = filling.store(self, self._database, rows, report)
            filling.finish(self._database)
        return number

    def _filled(self, rows: RowSource, minutes: float | None, progress: ProgressOption) -> Self:
        """Do what `create` does with a source, and return the collection."""
        try:
            with reporting(progress) as report:
                encode = partial(self.optimize, minutes=minutes, progress=report)
                for guess in rows.guesses:
                    log.info("%s", guess)
                filling.store(self, self._database, rows, report, encode)
                filling.note_exact_hits(self, self._database)
                encode()
                filling.finish(self._database, filling.measured_recall(self, self._database))
        except BaseException:
            self.close()
            raise
        return self
