"""Filling a collection from a source: block by block, resumable after a kill, and what compression costs in recall.

How far it has come is written in the same transactions as the records. Shape suffixes: Q queries, D dimension.
"""

import base64
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qinco.collection.row_source import RowSource
from qinco.collection.schema import FILE, Database, set_value, value_of
from qinco.errors import ConfigError, DataError, differences
from qinco.progress import Progress, counted

log = logging.getLogger(__name__)
STATE = "filling"
MAX_FRESH_BYTES = 2 << 30  # of vectors that are kept exactly before they are encoded
_QUERIES, _RECALL_K = 100, 10


def new_state(rows: RowSource, settings: dict) -> dict:
    """What a collection says of a source of which nothing is stored yet."""
    return {"source": rows.fingerprint(), "row": 0, "settings": settings}


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
        raise ConfigError(f"{folder} was begun with other settings ({', '.join(found)}): give those, or overwrite=True")
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
    if rows.removed_nuls:
        log.warning("NUL characters were removed from %s of payloads", counted(rows.removed_nuls, "string"))
    if rows.missing_vectors:
        log.warning("%s have no vector, and no search finds them", counted(rows.missing_vectors, "record"))
    return state["row"]


def finish(database: Database, found: dict | None = None) -> None:
    """Forget the source; `found` is what was measured."""
    with database.writing() as connection:
        set_value(connection, STATE, None)
        if found is not None:
            set_value(connection, "recall", found)


def note_exact_hits(collection, database: Database) -> None:
    """Search near some records exactly, and note the hits, while all vectors are kept as they were given."""
    with database.reading() as connection:
        state, (segments,) = value_of(connection, STATE), connection.execute("SELECT count(*) FROM segments").fetchone()
        rows = connection.execute("SELECT vector FROM fresh INDEXED BY sqlite_autoindex_fresh_1 ORDER BY key")
        if state is None or segments or "exact" in state:
            return
        (count,) = connection.execute("SELECT count(*) FROM fresh").fetchone()
        if count <= 2 * _RECALL_K:
            return
        places = set(np.linspace(0, count - 1, min(_QUERIES, count)).astype(int).tolist())
        queries = [vector for place, (vector,) in enumerate(rows) if place in places]
    queries_QD = np.frombuffer(b"".join(queries), "<f4").reshape(len(queries), -1)
    hits = collection.search(queries_QD, _RECALL_K + 1, exact=True, with_payload=False)
    exact = {
        "queries": base64.b64encode(queries_QD.tobytes()).decode(),
        "hits": [[hit.id for hit in each] for each in hits],
    }
    with database.writing() as connection:
        set_value(connection, STATE, state | {"exact": exact})


def measured_recall(collection, database: Database) -> dict | None:
    """How many of the exact hits compressed search finds, which is logged; None where there are none of both."""
    with database.reading() as connection:
        state = value_of(connection, STATE)
        (segments,) = connection.execute("SELECT count(*) FROM segments").fetchone()
    if state is None or "exact" not in state or not segments:
        return None
    exact = state["exact"]["hits"]
    queries_QD = np.frombuffer(base64.b64decode(state["exact"]["queries"]), "<f4").reshape(len(exact), -1)
    hits = collection.search(queries_QD, _RECALL_K + 1, with_payload=False)
    shares = []
    for wanted, found in zip(exact, hits, strict=True):
        near = set(wanted[1 : _RECALL_K + 1])  # the first is the record that the query is of
        shares.append(len(near & {hit.id for hit in found}) / len(near))
    recall = float(np.mean(shares))
    log.info(
        "recall@%d is %.3f: so many of the nearest records of an exact search does the compressed one find (%s)",
        _RECALL_K, recall, counted(len(exact), "query"),
    )  # fmt: skip
    return {"k": _RECALL_K, "recall": recall, "queries": len(exact)}
