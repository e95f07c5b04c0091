"""The vectors of each name of a `NamedCollection`, and its upkeep."""

from collections.abc import Iterable
from typing import Any, Self, cast

from qinco.atomic import check_output
from qinco.collection import upkeep
from qinco.collection.collection import Collection
from qinco.collection.moments import Moments, View
from qinco.collection.schema import Database, value_of
from qinco.collection.shared import SharedCollection
from qinco.collection.spaces import Space, in_space
from qinco.config import suggest
from qinco.errors import ConfigError
from qinco.progress import ProgressOption


class NamedParts(SharedCollection):
    """An open collection of named vectors, and how it is kept small, fast and sound."""

    _hub_kind = "named_collection"

    def __init__(self, database: Database, device: str):
        moments = Moments.of(database, device)
        self._database, self._main = database, Collection(database, device, moments)
        self._moments, self.folder = moments, database.folder
        self._parts = {name: self._opened(own) for name, own in moments.names.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self.close()

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

    @property
    def parts(self) -> dict[str, Collection]:
        """The records with the vectors of one name, by name, to be read: for `Collection.histograms` and the like."""
        return dict(self._parts)

    def part(self, using: str | None = None) -> Collection:
        """One of `parts`; of None the only one."""
        if using is None and len(self._parts) > 1:
            raise ConfigError(f"using= must name the vectors, one of {', '.join(map(repr, self._parts))}")
        name = next(iter(self._parts)) if using is None else using
        self._number(name)
        return self._parts[name]

    def _number(self, name: str) -> int:
        """The number of a name, by which its tables are called; ConfigError for others."""
        check_name(name, self._parts)
        return self._numbers[name]

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
        return self.part(using).retrain(ids, vectors, **options)

    def stats(self) -> dict:
        """Numbers of records and bytes of the database, and as "vectors" `Collection.stats` of each name."""
        main, each = self._main.stats(), {name: part.stats() for name, part in self._parts.items()}
        warnings = [f"{name}: {warning}" for name, stats in each.items() for warning in stats["warnings"]]
        size = {part: sum(stats["bytes"][part] for stats in (main, *each.values())) for part in main["bytes"]}
        kept = {name: main[name] for name in ("records", "version", "fields")}
        return kept | {"vectors": each, "bytes": size, "warnings": warnings}

    def verify(self) -> list[str]:
        """Read everything, and compare checksums and counts; returns what is wrong, a sentence each."""
        found = {name: part.verify() for name, part in self._parts.items()}
        return [f"vectors {name!r}: {fault}" for name, faults in found.items() for fault in faults]

    def snapshot(self, folder) -> None:
        """Copy the collection as it is now to a new folder; see `Collection.snapshot`."""
        self._main.snapshot(folder)

    def export(self, output, *, with_vectors: bool = False, overwrite: bool = False) -> int:
        """Write all records to a Parquet file; returns their number.

        Args:
            output: .parquet file of columns id, payload (JSON), and for each name code_NAME and, `with_vectors`,
                vector_NAME; null where a record has none.
            with_vectors: exact vectors of fresh records, and decoded ones.
            overwrite: replace a file that is there.
        """
        path = check_output(output, suffixes=(".parquet",), overwrite=overwrite)
        with self._database.reading() as connection:
            return upkeep.export(View(connection, self._moments), path, with_vectors)

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

    def _hub_config(self) -> tuple[dict, dict]:
        stats = self.stats()
        names = ("dim", "metric", "bytes_per_vector", "codec")
        each = {name: {"num_vectors": own["vectors"]} | {one: own[one] for one in names}
                for name, own in stats["vectors"].items()}  # fmt: skip
        recall = {name: own["recall"] for name, own in stats["vectors"].items() if own["recall"]}
        return {"records": stats["records"], "vectors": each}, {"vectors": recall} if recall else {}


def check_name(name: Any, names: Iterable[str]) -> None:
    """Raise ConfigError unless vectors have such a name."""
    if name not in (names := list(names)):
        known = f"{suggest(str(name), names, 0.6)}There are {', '.join(map(repr, names))}"
        raise ConfigError(f"there is no vector {name!r:.60}. {known}")
