"""Filling a collection from a source: block by block, resumable after a kill.

How far it has come is written in the same transactions as the records.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qinco.collection.row_source import RowSource
from qinco.collection.schema import FILE, Database, set_value, value_of
from qinco.errors import ConfigError, DataError, differences
from qinco.progress import Progress, ProgressOption, counted, reporting

log = logging.getLogger(__name__)
STATE = "filling"
MAX_FRESH_BYTES = 2 << 30  # of vectors that are kept exactly before they are encoded


def new_state(rows: RowSource, settings: dict) -> dict:
    """What a collection says of a source of which nothing is stored yet."""
    return {"source": rows.fingerprint(), "row": 0, "settings": settings}


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is a collection that was being filled from a source."""
    if not (folder / FILE).is_file() or not (folder / FILE).stat().st_size:
        return False
    database = Database(folder, read_only=True)
    try:
        database.check()
        with database.reading() as connection:
            return value_of(connection, STATE) is not None
    finally:
        database.close()


def is_begun(folder: Path, rows: RowSource, settings: dict) -> bool:
    """Whether a folder is a collection that was being filled from this source; ConfigError if with other settings."""
    if rows.is_read_once or not (folder / FILE).is_file() or not (folder / FILE).stat().st_size:
        return False
    database = Database(folder, read_only=True)
    try:
        database.check()
        with database.reading() as connection:
            state = value_of(connection, STATE)
    except DataError:  # it was not completed, or is none
        return False
    finally:
        database.close()
    if state is None or state["source"] != rows.fingerprint():
        return False
    if found := differences(state["settings"], settings):
        raise ConfigError(f"{folder} was begun with other settings ({', '.join(found)}): give those, or overwrite=true")
    return True


def store(
    collection, database: Database, rows: RowSource, report: Progress, encode: Callable[[], object] | None = None
) -> int:  # fmt: skip
    """Upsert all rows that are not stored yet; returns the number of all.

    `encode` is called where very many wait to be encoded.
    """
    with database.reading() as connection:
        state = value_of(connection, STATE)
    fingerprint = rows.fingerprint()
    if state is None or fingerprint is None or state["source"] != fingerprint:
        state = new_state(rows, {})
    if state["row"]:
        log.info("%s of %s are stored already", counted(state["row"], "record"), rows.name)
    total, waiting = rows.num_rows, 0
    report("storing", state["row"], total or state["row"], "record")
    for ids, vectors, payloads in rows.blocks(state["row"]):
        state = state | {"row": state["row"] + len(ids)}
        collection.put_block(ids, vectors, payloads, {STATE: state})
        report("storing", state["row"], total or state["row"], "record")
        waiting += 4 * rows.dim * len(ids)
        if encode is not None and waiting >= MAX_FRESH_BYTES:
            encode()
            waiting = 0
    for name, part in rows.parts.items():
        if part.missing:
            what = "a vector, which no search finds" if name is None else f"a vector {name!r}"
            log.warning("%s without %s", counted(part.missing, "record"), what)
    return state["row"]


def upsert_from(collection, database: Database, rows: RowSource, progress: ProgressOption) -> int:
    """What `Collection.upsert_from` does."""
    with reporting(progress) as report:
        for guess in rows.guesses:
            log.info("%s", guess)
        number = store(collection, database, rows, report)
        finish(database)
    return number


def fill(
    collection, database: Database, rows: RowSource, progress: ProgressOption, encode: Callable[[Progress], object],
    measure: Callable[[int, Progress], object], job: Callable[[Progress], Progress],
) -> None:  # fmt: skip
    """What `Collection.create` does with a source; the collection is closed if it fails.

    Args:
        encode: what is fresh.
        measure: recall, given the number of records.
        job: makes what is told of all that is done.
    """
    try:
        with reporting(progress) as report:
            report = job(report)
            for guess in rows.guesses:
                log.info("%s", guess)
            number = store(collection, database, rows, report, partial(encode, report))
            encode(report)
            measure(number, report)
            finish(database)
    except BaseException as stop:
        if isinstance(stop, KeyboardInterrupt):
            again = "optimize goes on with these" if rows.is_read_once else "the same call goes on"
            stop.args = (f"what is in {collection.folder} is kept: {again}",)
        collection.close()
        raise


def tell_recall(found: dict, name: str | None = None) -> None:
    """Log what `evaluate` has measured, of the vectors of a name or of those without."""
    by = "" if name is None else f" by {name!r}"
    log.info("recall@%d is %.3f: the share of the %d nearest records of an exact search that search finds%s (%s)",
             found["k"], found["recall"], found["k"], by, counted(found["num_queries"], "query"))  # fmt: skip


def finish(database: Database) -> None:
    """Forget the source."""
    with database.writing() as connection:
        set_value(connection, STATE, None)
