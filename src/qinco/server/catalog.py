"""`Catalog`: the collections and indexes that a server serves, by name, and other names for collections."""

import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qinco.atomic import flush_folder, make_folder, user_path, write_atomically
from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.collection.opened import open_collection
from qinco.collection.schema import FILE
from qinco.errors import ConfigError, DataError
from qinco.server.envelope import ConflictError, NotFoundError
from qinco.server.indexes import ServedIndex, is_index

STATE, SUFFIX = "catalog.json", ".qinco"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")  # a folder's name, which has 255 bytes at most
_DROPPED = ".dropped-"
Served = Collection | NamedCollection


class Catalog:
    """Open collections by name. Its methods may be called by several threads.

    Attributes:
        folder: of the collections, in which new ones are made; None if the server serves single ones.
        read_only: whether nothing can be changed.
    """

    def __init__(self, folder: Path | None, read_only: bool):
        self.folder, self.read_only = folder, read_only
        self._lock = threading.Lock()
        self._open: dict[str, Served] = {}
        self._indexes: dict[str, ServedIndex] = {}
        self._aliases: dict[str, str] = {}
        self._details: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(
        cls, *paths, read_only: bool = False, cluster: str | None = None, timeout: float | None = None
    ) -> "Catalog":
        """Open collections and indexes, or the collections of one folder, which is made if it is not there.

        Args:
            paths: folders of collections and indexes, whose names are those of the folders without their suffix; or one
                folder of collections.
            read_only: do not change anything, so that another process may.
            cluster: search the shards of indexes on a cluster of Ray; see `qinco.distributed.ShardedIndex`.
            timeout: seconds of a request; after half of them a search there answers with what it has.
        """
        folders = [Path(user_path(path)).absolute() for path in paths]
        are_indexes = [is_index(folder) for folder in folders]
        if cluster is not None and not any(are_indexes):
            raise ConfigError(f"cluster={cluster} is for indexes, and none of these is one: make one with build_index, "
                              "or leave cluster out")  # fmt: skip
        is_one = len(folders) == 1 and not are_indexes[0]
        if is_one and not (folders[0] / FILE).is_file() and folders[0].suffix != SUFFIX:
            return cls._of_folder(folders[0], read_only)
        catalog = cls(None, read_only)
        try:
            for folder, has_index in zip(folders, are_indexes, strict=True):
                name = folder.stem if has_index else folder.name.removesuffix(SUFFIX)
                check_name(name)
                if name in catalog._open or name in catalog._indexes:
                    raise ConfigError(f"{folder} is the second one with the name {name}: rename its folder")
                if has_index:
                    catalog._indexes[name] = ServedIndex(folder, cluster, timeout)
                else:
                    catalog._open[name] = open_collection(folder, read_only=read_only)
        except BaseException:
            catalog.close()
            raise
        return catalog

    @classmethod
    def _of_folder(cls, folder: Path, read_only: bool) -> "Catalog":
        if not folder.is_dir() and not read_only:
            make_folder(folder)
        elif not folder.is_dir():
            raise ConfigError(f"{folder} does not exist, and read_only=true makes no folder: give another")
        catalog = cls(folder, read_only)
        try:
            for path in sorted(folder.iterdir()):
                if path.name.startswith(_DROPPED) and not read_only:
                    shutil.rmtree(path, ignore_errors=True)  # what a kill left
                elif path.suffix == SUFFIX and (path / FILE).is_file():
                    catalog._open[path.stem] = open_collection(path, read_only=read_only)
            catalog._read_state()
        except BaseException:
            catalog.close()
            raise
        return catalog

    def names(self) -> list[str]:
        """The names of collections, without aliases, sorted."""
        return sorted(self._open)

    def index_names(self) -> list[str]:
        """The names of indexes, sorted."""
        return sorted(self._indexes)

    def aliases(self) -> dict[str, str]:
        """Other names, and the collections that they are of."""
        return dict(self._aliases)

    def resolve(self, name: str) -> str:
        """The name of the collection that a name or an alias is of."""
        found = self._aliases.get(name, name)
        if found in self._indexes:
            raise ConfigError(f"{found} is an index, which only POST /v1/{found}/search answers from")
        if found not in self._open:
            raise NotFoundError(f"Not found: Collection `{name:.100}` doesn't exist!")
        return found

    def get(self, name: str) -> Served:
        """The collection of a name or an alias; NotFoundError if there is none."""
        return self._open[self.resolve(name)]

    def searched(self, name: str) -> tuple[str, Served | ServedIndex]:
        """The index of a name, or the collection of a name or an alias, and that name."""
        if name in self._indexes:
            return name, self._indexes[name]
        found = self.resolve(name)
        return found, self._open[found]

    def index(self, name: str) -> ServedIndex:
        """The index of a name; NotFoundError if there is none."""
        if name not in self._indexes:
            raise NotFoundError(f"Not found: there is no index `{name:.100}`")
        return self._indexes[name]

    def details(self, name: str) -> dict[str, Any]:
        """What is kept of a collection besides its records: "metadata" of its users, and "warnings"."""
        return dict(self._details.get(name, {}))

    def create(self, name: str, make: Callable[[Path], Any], details: dict[str, Any]) -> None:
        """Make a collection in a folder of its name, and open it."""
        check_name(name)
        folder = self._require_folder("new collections")
        with self._lock:
            if name in self._open or name in self._aliases:
                raise ConflictError(f"Wrong input: Collection `{name}` already exists!")
            self._write_state(self._aliases, self._details | {name: details})
            self._open[name] = make(folder / f"{name}{SUFFIX}")

    def drop(self, name: str) -> bool:
        """Delete a collection with its folder and its aliases; whether there was one."""
        folder = self._require_folder("collections that are dropped")
        with self._lock:
            collection = self._open.pop(name, None)
            if collection is None:
                return False
            collection.close()
            hidden = folder / f"{_DROPPED}{secrets.token_hex(8)}"
            os.rename(folder / f"{name}{SUFFIX}", hidden)  # noqa: PTH104
            flush_folder(folder)
            kept = {alias: of for alias, of in self._aliases.items() if of != name}
            self._write_state(kept, {other: one for other, one in self._details.items() if other != name})
        shutil.rmtree(hidden, ignore_errors=True)
        return True

    def change_details(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace what is kept of a collection by what a function makes of it."""
        self._require_folder("other settings")
        with self._lock:
            self._write_state(self._aliases, self._details | {name: change(self._details.get(name, {}))})

    def change_aliases(self, changes: Iterable[tuple[str, str, str]]) -> None:
        """Change aliases, all or none: ("create", alias, collection), ("delete", alias, "") or ("rename", old, new)."""
        self._require_folder("aliases")
        with self._lock:
            aliases = dict(self._aliases)
            for kind, first, second in changes:
                if kind == "create":
                    check_name(first)
                    if second not in self._open:
                        raise NotFoundError(f"Not found: Collection `{second:.100}` doesn't exist!")
                    self._check_free(first)
                    aliases[first] = second
                elif kind == "delete":
                    aliases.pop(first, None)
                else:
                    check_name(second)
                    if first not in aliases:
                        raise NotFoundError(f"Not found: Alias {first:.100} does not exist!")
                    self._check_free(second)
                    aliases[second] = aliases.pop(first)
            self._write_state(aliases, self._details)

    def close(self) -> None:
        """Close all collections, so that other processes may write to them, and indexes."""
        for served in (self._open, self._indexes):
            while served:
                served.popitem()[1].close()

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _check_free(self, alias: str) -> None:
        if alias in self._open:
            raise ConflictError(f"Wrong input: Collection `{alias}` already exists, and an alias is another name")

    def _require_folder(self, what: str) -> Path:
        if self.read_only:
            raise ConfigError(f"the server was started with read_only=true, and has no {what}")
        if self.folder is None:
            raise ConfigError(f"the server was started with single collections, and has no {what}: start it with a "
                              "folder of collections")  # fmt: skip
        return self.folder

    def _read_state(self) -> None:
        assert self.folder is not None
        path = self.folder / STATE
        if not path.is_file():
            return
        try:
            state = json.loads(path.read_text("utf-8"))
            aliases, details = dict(state["aliases"]), dict(state["collections"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!s:.60}): restore or delete it") from None
        self._aliases = {alias: name for alias, name in aliases.items() if name in self._open}
        self._details = {name: one for name, one in details.items() if name in self._open}

    def _write_state(self, aliases: dict[str, str], details: dict[str, dict[str, Any]]) -> None:
        assert self.folder is not None
        with write_atomically(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps({"aliases": aliases, "collections": details}, indent=1), "utf-8")
        self._aliases, self._details = aliases, details


def part_of(collection: Served, using: str | None) -> Collection:
    """The collection with the vectors of a name; of one whose vectors have none, itself."""
    if isinstance(collection, NamedCollection):
        return collection.part(using)
    if using is not None:
        raise ConfigError(f"the vectors of this collection have no names: leave using={using:.60} out")
    return collection


def check_name(name: str) -> None:
    """Raise ConfigError unless a name can be a collection's."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the name {name[:60]!r} is no collection's: use 1 to 200 letters, digits, _ and -")
