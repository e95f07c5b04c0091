"""Upkeep of collections: `MaintainedCollection` has the methods of `Collection` that are not about single records."""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, cast

from qinco.atomic import check_output, user_path
from qinco.codec.codec import Codec
from qinco.collection import changes, histograms, upkeep
from qinco.collection.child import Child
from qinco.collection.moments import Moments, View
from qinco.collection.optimize import Optimizer, check_training
from qinco.collection.schema import Database, value_of
from qinco.collection.shared import SharedCollection
from qinco.collection.spaces import Space
from qinco.config import require_bool
from qinco.errors import ConfigError
from qinco.forking import new_lock
from qinco.progress import Progress, ProgressOption, reporting

log = logging.getLogger(__name__)


class MaintainedCollection(SharedCollection):
    """An open collection, and how it is kept small, fast and sound."""

    def __init__(self, database: Database | Space, device: str, moments: Moments | None = None):
        self._database, self.folder = cast(Database, database), database.folder  # a Space does the same
        self._close = weakref.finalize(self, database.close)
        try:
            database.check()
            self._moments = moments or Moments.of(database, device)
        except BaseException:
            self._close()  # at once: who handles the exception may open or create it again
            raise
        self._optimizing = new_lock()
        self._child: Child | None = None

    def close(self) -> None:
        """Close the files, so that another process may write. What was written is on disk before."""
        if (child := self._child) is not None:
            child.stop()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    closed = property(lambda self: not self._close.alive, doc="Whether `close` was called.")
    metric = property(lambda self: self._moments.metric.name, doc='"cosine", "inner_product" or "l2".')

    is_multi = property(lambda self: self._moments.is_multi, doc="Whether records hold several vectors each.")

    @property
    def dim(self) -> int | None:
        """D of the vectors; None before there are any."""
        with self._database.reading() as connection:
            return value_of(connection, "dim")

    @property
    def codec(self) -> Codec | None:
        """The codec of compressed vectors; None before there is one."""
        with self._viewing() as view:
            return view.moment.codec

    @property
    def fields(self) -> dict[str, str]:
        """The kinds of those fields that have an index, by their paths."""
        with self._database.reading() as connection:
            return dict(connection.execute("SELECT path, kind FROM fields ORDER BY path"))

    def optimize(
        self, *, minutes: float | None = None, in_child: bool = False, progress: ProgressOption = None, **training
    ) -> dict:
        """Encode fresh vectors, after training a codec if there is none and `exact_below` vectors are there; merge.

        It may be interrupted, also by a kill, and called again: it goes on where it was. Other threads may read and
        write meanwhile.

        Args:
            minutes: of training; None: one for 10,000 vectors, and ten at most, unless epochs= is given.
            in_child: let another process do the work, with a low priority and memory of its own, for servers: searches
                of this process stay fast. It ends when this process does, and loses nothing.
            progress: see `qinco.progress`.
            **training: other settings of `Codec.fit`, such as preset="qinco2-M".

        Returns:
            What was done: "trained", whether a codec was; "encoded", vectors; "merged_segments", their number.

        Example:
            >>> docs.optimize()["trained"]
            False
        """
        settings = check_training(training, minutes)
        require_bool("in_child", in_child)
        with self._exclusively(progress) as report:
            if in_child:
                done = self._optimize_in_child(settings, report)
            else:
                done = Optimizer(self._database, self._moments, report).run(settings)
        for warning in self.stats()["warnings"] if done["encoded"] else ():
            log.warning("%s: %s", self.folder, warning)
        return done

    def add_field(self, path: str, kind: str) -> None:
        """Make an index of a field of payloads, which makes filters on it some hundred times as fast.

        Args:
            path: as in filters, such as "author.name".
            kind: "keyword", "integer", "float", "bool" or "datetime".

        Example:
            >>> docs.add_field("year", "integer")
            >>> docs.stats()["fields"]
            {'year': 'integer'}
        """
        if not self._moments.has_points:
            raise ConfigError("the collection was created with payload=false: it has no fields")
        with self._database.writing() as connection:
            changes.add_field(connection, path, kind)

    def drop_field(self, path: str) -> bool:
        """Remove the index of a field; returns whether there was one."""
        with self._database.writing() as connection:
            return changes.drop_field(connection, path)

    def stats(self) -> dict:
        """Numbers of records, vectors and bytes, the error of segments, and warnings.

        "error" is the mean of ‖x − x̂‖² / ‖x‖² of vectors that the codec was not trained on, or that it encoded first;
        "drift" is how many times larger it is in the newest segment. "recall" is what `create`, `retrain` or
        `evaluate(keep=True)` measured last, when, and whether vectors are the same since.

        Example:
            >>> docs.stats()["records"]
            2
        """
        with self._viewing() as view:
            return upkeep.statistics(view, self._database)

    def histograms(self) -> dict:
        """How errors of compressed vectors and sizes of inverted lists are spread.

        Returns:
            "error": "edges", the lower ends of bins of ‖x − x̂‖² / ‖x‖², and "segments", of each of which "shares" is
            the share of its vectors in each bin, measured when it was written. "list_size": "edges" of bins, and
            "lists", how many inverted lists are in each; None without any.

        Example:
            >>> docs.histograms()["list_size"] is None  # nothing is compressed
            True
        """
        with self._viewing() as view:
            return histograms.of_view(view)

    def verify(self) -> list[str]:
        """Read everything, and compare checksums and counts; returns what is wrong, a sentence each."""
        with self._viewing() as view:
            return upkeep.faults(view, self._database)

    def snapshot(self, folder) -> None:
        """Copy the collection as it is now to a new folder, a collection of its own, while others read and write.

        Segments are hard links where the file system has them, which take no space.
        """
        upkeep.copy(self._database, Path(user_path(folder)))

    def export(self, output, *, with_vectors: bool = False, overwrite: bool = False) -> int:
        """Write all records to a Parquet file; returns their number.

        Args:
            output: .parquet file of columns id, payload (JSON), code (not with multi=True) and, `with_vectors`, vector;
                null where a record has none.
            with_vectors: exact vectors of fresh records, and decoded ones.
            overwrite: replace a file that is there.
        """
        path = check_output(output, suffixes=(".parquet",), overwrite=overwrite)
        with self._viewing() as view:
            return upkeep.export(view, path, with_vectors)

    def _optimize_in_child(self, settings: dict, report: Progress) -> dict:
        self._child = Child(self._database, self._moments.device, settings)
        try:
            return self._child.result(report)
        finally:
            self._child = None

    @contextmanager
    def _exclusively(self, progress: ProgressOption) -> Iterator[Progress]:
        """For one thread of the process that writes, what it reports to."""
        self._database.check_writable()
        if not self._optimizing.acquire(blocking=False):
            raise ConfigError(f"{self.folder} is being optimized by another thread: wait for it")
        try:
            with reporting(progress) as report:
                yield report
        finally:
            self._optimizing.release()

    @contextmanager
    def _viewing(self) -> Iterator[View]:
        with self._database.reading() as connection:
            yield View(connection, self._moments)
