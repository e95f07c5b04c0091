"""The SQLite file of a collection: tables, connections and transactions.

It holds all that changes: ids, payloads, vectors that are not encoded yet (`fresh`), tombstones (`dead`), and the list
of segments. Readers, in any process, see whole commits and take no lock.
"""

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qinco import forking
from qinco.atomic import lock_file
from qinco.collection.functions import add_functions, raised_within
from qinco.errors import ConfigError, DataError, QincoError, ResourceError

FILE, LOCK, OPTIMIZE_LOCK = "collection.sqlite", "lock", "lock-optimize"
APPLICATION_ID, FORMAT_VERSION = 0x51494E43, 1
_BUSY_SECONDS = 60.0  # for another process that recovers or copies the file
_CACHE_KIB, _JOURNAL_BYTES = 16 << 10, 64 << 20
# A key is never used twice. A record has `vectors`, so many, whose keys are its own and the next ones. A row of `dead`
# says that the vector of a key in segments up to that number is deleted or replaced: where keys are ids, a newer
# segment may hold a newer one. Rows of `fresh` and `dead` are numbered, so that readers read what is new.
TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE points(key INTEGER PRIMARY KEY AUTOINCREMENT, id NOT NULL UNIQUE, payload TEXT,
                    vectors INTEGER NOT NULL);
CREATE TABLE fresh(row INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL UNIQUE, vector BLOB NOT NULL);
CREATE TABLE dead(row INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL UNIQUE, segment INTEGER NOT NULL);
CREATE TABLE segments(segment INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL,
                      crc32 INTEGER NOT NULL, error REAL);
CREATE TABLE fields(path TEXT PRIMARY KEY, kind TEXT NOT NULL);
"""
_REMEDIES = {"SQLITE_FULL": "make room on the disk", "SQLITE_IOERR": "see that the disk works and has room",
             "SQLITE_CANTOPEN": "see that the folder can be written to and has room", "SQLITE_NOMEM": "free memory",
             "SQLITE_READONLY": "see that the folder can be written to"}  # fmt: skip
_abandoned: list = []  # connections of a parent process, which must not even be closed in a child


class Database:
    """The connections of one collection in this process: one that writes, and one for each thread that reads.

    A forked child reads by connections of its own, and cannot write. A process that optimizes for the one that holds
    the lock writes without it (`locked=False`).
    """

    def __init__(self, folder: Path, *, read_only: bool, locked: bool = True):
        self.folder, self.path, self.read_only = folder, folder / FILE, read_only
        self._generation, self._is_open = forking.generation, True
        self._idle_of = self._generation  # the process that made the idle connections
        self._pooling, self._writing = forking.new_lock(), forking.new_lock()
        self._idle: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._lock = _lock(folder) if locked and not read_only else -1
        self._is_immutable = False

    def create(self, meta: dict[str, Any], prepare: Callable[[sqlite3.Connection], None] = lambda _: None) -> None:
        """Make the tables of a new collection, with values by name in `meta` and what `prepare` adds."""
        with self._errors():
            connection = self._connected("rwc")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            self._writer = connection
        with self.writing(is_new=True) as connection:
            for statement in filter(str.strip, TABLES.split(";")):
                connection.execute(statement)
            rows = ((name, json.dumps(value)) for name, value in {"version": 0, **meta}.items())
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            prepare(connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def check(self) -> None:
        """Raise DataError unless the file is one of this format."""
        if not self.path.is_file():
            raise DataError(f"{self.folder} is not a collection: it has no {FILE}")
        with self.reading() as connection:
            found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            strange = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('view', 'trigger') OR "
                                         "sql LIKE 'CREATE VIRTUAL%'").fetchone()  # fmt: skip
        if found[0] != APPLICATION_ID:
            raise DataError(f"{self.path} is not that of a collection, or it was not completed: create it again")
        if strange is not None:  # SQL that would run when records are read
            raise DataError(f"{self.path} holds {strange[0]!r:.60}, which no collection has: do not open it")
        if found[1] > FORMAT_VERSION:
            raise DataError(f"{self.path} has format version {found[1]}, newer than {FORMAT_VERSION}: update qinco")

    def is_empty(self) -> bool:
        """Whether the file has no tables: a kill ended `create`."""
        with self._errors():
            connection = self._connected("rw")
            try:
                return connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
            finally:
                connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees the state of one moment until the block ends."""
        with self._errors():
            connection = self._taken()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_back(connection)

    @contextmanager
    def writing(self, *, is_new: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction: what the block has written is on disk when it ends, and nothing of it after an exception."""
        self.check_writable()
        with self._writing, self._errors():
            if self._writer is None:
                self._writer = self._connected("rw")
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                if not is_new:
                    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'version'")
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back already where the disk is full
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def optimizing(self) -> Iterator[None]:
        """Wait until no other process optimizes the collection, such as one whose parent was killed just now."""
        path = self.folder / OPTIMIZE_LOCK
        try:
            file = lock_file(path)
        except OSError as error:
            raise ResourceError(f"cannot write {path} ({error.strerror}): make room, and try again") from None
        forking.keep_from_children(file)
        try:
            yield
        except (OSError, QincoError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ResourceError(
                    f"{error}; nothing is lost: make room on the disk, and call again to go on"
                ) from cause
            raise
        finally:
            forking.release(file)

    def check_writable(self) -> None:
        if not self._is_open:
            raise ConfigError(f"{self.folder} is closed: open it again")
        if self.read_only:
            raise ConfigError(f"{self.folder} is open with read_only=true: open it without to change it")
        if self._generation != forking.generation:
            raise ConfigError(f"{self.folder} was opened by the parent of this process, which alone may change it: "
                              "close it there, and open it in this process")  # fmt: skip

    def shrink(self) -> None:
        """Give pages that are not used any more back to the file system, where it has room to do so."""
        with self._writing, self._errors():
            if self._writer is None:
                self._writer = self._connected("rw")
            with suppress(sqlite3.OperationalError):  # a script, as `execute` would end it after its first page
                self._writer.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def close(self) -> None:
        self._is_open = False
        with self._pooling:
            idle, self._idle = self._idle, []
            is_ours = self._idle_of == forking.generation
        if not is_ours:
            _abandoned.extend(idle)
            idle = []
        for connection in idle:
            connection.close()
        if self._generation != forking.generation:
            _abandoned.append(self._writer)
            return
        with self._writing:
            if self._writer is not None:  # the last one: closing it moves the log into the file
                self._writer.close()
            self._writer = None
        if self._lock >= 0:
            forking.release(self._lock)
        self._lock = -1

    def _taken(self) -> sqlite3.Connection:
        if not self._is_open:
            raise ConfigError(f"{self.folder} is closed: open it again")
        with self._pooling:
            if self._idle_of != forking.generation:
                _abandoned.extend(self._idle)
                self._idle, self._idle_of = [], forking.generation
            if self._idle:
                return self._idle.pop()
        return self._connected("ro")

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pooling:
            if self._is_open:
                self._idle.append(connection)
                return
        connection.close()

    def _connected(self, mode: str) -> sqlite3.Connection:
        """A new connection; on read-only media one that expects no changes."""
        if mode != "ro" or not self._is_immutable:
            try:
                return self._configured(f"mode={mode}")
            except sqlite3.OperationalError as error:
                is_refused = error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
                if mode != "ro" or not is_refused or not self.path.is_file():
                    raise
            log = Path(f"{self.path}-wal")
            if log.exists() and log.stat().st_size:
                raise ResourceError(f"{self.folder} cannot be written to, and {log.name} holds changes: close it where "
                                    "it is written, and copy it again")  # fmt: skip
            self._is_immutable = True
        return self._configured("mode=ro&immutable=1")

    def _configured(self, options: str) -> sqlite3.Connection:
        name = f"file:{quote(str(self.path.absolute()))}?{options}"
        connection = sqlite3.connect(name, _BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
        for pragma in (
            "synchronous = FULL", f"cache_size = -{_CACHE_KIB}", f"journal_size_limit = {_JOURNAL_BYTES}",
            "secure_delete = OFF", "temp_store = MEMORY", f"query_only = {int('ro' in options)}",
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the file
        add_functions(connection)
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of SQLite as those of qinco."""
        try:
            yield
        except sqlite3.Error as error:
            if (within := raised_within()) is not None:
                raise within from None
            name = getattr(error, "sqlite_errorname", None) or ""
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")):
                raise DataError(f"{self.path} is damaged: {error}") from error
            if name.startswith("SQLITE_BUSY"):
                raise ResourceError(f"{self.path} is locked by another program: try again when it is done") from error
            remedy = next((text for start, text in _REMEDIES.items() if name.startswith(start)), None)
            if remedy is None:
                raise
            raise ResourceError(f"{self.path}: {error}; nothing of this call was written: {remedy}, and try "
                                "again") from error  # fmt: skip


def value_of(connection: sqlite3.Connection, name: str, default: Any = None) -> Any:
    """A value of the table `meta`."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return default if row is None else json.loads(row[0])


def set_value(connection: sqlite3.Connection, name: str, value: Any) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))


def _lock(folder: Path) -> int:
    """Lock a collection for the one process that writes, until the descriptor is released."""
    path = folder / LOCK
    try:
        file = lock_file(path, wait=False)
    except BlockingIOError:
        process = ""
        with suppress(OSError):
            process = path.read_text("utf-8").strip()
        where = f"in process {process}" if process else "elsewhere"
        raise ConfigError(f"{folder} is open for writing {where}: wait until it is closed there, or only read it "
                          "meanwhile (query, stats, read_only=true)") from None  # fmt: skip
    except OSError as error:
        raise ResourceError(f"cannot write {path} ({error.strerror}): see that the folder can be written to, or only "
                            "read it (query, stats, read_only=true)") from None  # fmt: skip
    forking.keep_from_children(file)
    with suppress(OSError):  # on a full disk nobody is told which process it is
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
