"""What a collection holds and costs, whether it is sound, and copies of it."""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from qinco.atomic import flush_folder, write_atomically, write_to_disk
from qinco.collection import segments
from qinco.collection.changes import find
from qinco.collection.creation import clear_leftovers, hidden_folder
from qinco.collection.evaluation import kept_recall
from qinco.collection.finding import vectors_of
from qinco.collection.moments import Moment, View
from qinco.collection.optimize import named_files
from qinco.collection.schema import FILE, Database, value_of
from qinco.collection.spaces import FOLDER, Space, in_space, numbers_of
from qinco.collection.spans import expanded
from qinco.errors import ConfigError, DataError, QincoError, ResourceError, needs_extra

MAX_DRIFT, MEASURED = 1.25, 500  # of fewer vectors the error says little
_EXPORTED_ROWS = 1 << 12


def statistics(view: View, database: Database | Space) -> dict:
    """What `Collection.stats` returns."""
    moment, connection, folder = view.moment, view.connection, database.folder
    first, number = value_of(connection, "first_error"), len(moment.fresh) + moment.num_stored
    each = []
    for segment, mask in zip(moment.segments, moment.live, strict=True):
        live = len(segment) if mask is None else int(np.count_nonzero(mask))
        drift = segment.error / first if segment.error and first and len(segment) >= MEASURED else None
        each.append({"token": segment.token, "vectors": live, "deleted": len(segment) - live,
                     "bytes": _size(folder / segments.SEGMENTS / segment.token), "error": segment.error,
                     "drift": drift})  # fmt: skip
    drifts = [one["drift"] for one in each if one["drift"]]
    drift, code_bytes = drifts[-1] if drifts else None, sum(one["bytes"] for one in each)
    warnings = []
    if drift is not None and drift > MAX_DRIFT:
        warnings.append(f"the newest vectors lose {drift:.2f} times what the first lost: retrain makes another "
                        "codec of the originals")  # fmt: skip
    (records,) = connection.execute("SELECT count(*) FROM points").fetchone()
    fingerprint, tables = value_of(connection, "codec"), moment.tables_token
    records = records if view.has_points else number
    database_bytes = sum(_size(path) for path in folder.glob(f"{FILE}*"))
    return {
        "records": records,
        "dim": value_of(connection, "dim"), "metric": moment.metric.name, "version": moment.version,
        "vectors": number, "fresh": len(moment.fresh), "compressed": moment.num_stored,
        "deleted": sum(one["deleted"] for one in each), "segments": each, "codec": fingerprint,
        "bytes": {
            "codes": code_bytes,
            "tables": 0 if tables is None else _size(folder / f"tables-{tables}"),
            "codec": 0 if fingerprint is None else _size(segments.codec_path(folder, fingerprint)),
            "database": database_bytes,
        },
        "database_bytes_per_record": database_bytes / records if records else None,
        "bytes_per_vector": code_bytes / moment.num_stored if moment.num_stored else None,
        "exact_below": value_of(connection, "exact_below"),
        "fields": dict(connection.execute("SELECT path, kind FROM fields ORDER BY path")),
        "error": first, "drift": drift, "recall": kept_recall(connection), "warnings": warnings,
    }  # fmt: skip


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    return 0


def faults(view: View, database: Database | Space) -> list[str]:
    """What `Collection.verify` returns."""
    found = [f"{FILE}: {row[0]}" for row in view.connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    try:
        moment = view.moment
    except QincoError as error:
        return [*found, str(error)]
    for segment in moment.segments:
        row = view.connection.execute("SELECT segment, token, rows, crc32, error FROM segments WHERE segment = ?",
                                      (segment.number,)).fetchone()  # fmt: skip
        try:
            assert moment.tables is not None
            segments.open_segment(database.folder, row, moment.tables, verified_bytes=1 << 62)
        except QincoError as error:
            found.append(str(error))
    found += _faults_of_keys(view, moment)
    if moment.codec is not None and moment.codec.fingerprint() != value_of(view.connection, "codec"):
        found.append("the codec is another than the one that made the codes")
    return found


def _faults_of_keys(view: View, moment: Moment) -> Iterator[str]:
    """Vectors that are there twice, or of no record."""
    keys = moment.keys
    if len(twice := keys[1:][keys[1:] == keys[:-1]]):
        yield f"{len(twice)} vectors are there twice, such as that of key {twice[0]}"
    (count,) = view.connection.execute("SELECT count(*) FROM fresh WHERE length(vector) != 4 * ?",
                                       (value_of(view.connection, "dim") or 0,)).fetchone()  # fmt: skip
    if count:
        yield f"{count} fresh vectors have another dimension than the collection"
    if view.has_points:
        count = "vectors" if not view.number else f"vectors >> {view.number - 1} & 1"
        rows = view.connection.execute(f"SELECT key, {count} FROM points").fetchall()
        known = expanded(*np.array(rows, np.int64).reshape(-1, 2).T)
        if len(lost := keys[~np.isin(keys, known)]):
            yield f"{len(lost)} vectors are of no record, such as that of key {lost[0]}"
        if len(lost := known[~np.isin(known, keys)]):
            yield f"{len(lost)} vectors are missing, such as that of key {lost[0]}"


def copy(database: Database, path: Path) -> None:
    """What `Collection.snapshot` does."""
    clear_leftovers(path)
    if path.exists():
        raise ConfigError(f"{path} exists: give another name")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"the folder {path.parent} of {path} does not exist: create it first")
    try:
        with hidden_folder(path) as temporary:
            with database.reading() as connection:
                _copy_database(connection, temporary / FILE)
                _link_files(connection, database.folder, temporary)
                for number in (numbers_of(connection) or {}).values():
                    folder = Path(FOLDER, str(number))
                    _link_files(in_space(connection, number), database.folder / folder, temporary / folder)
            write_to_disk(temporary / FILE)
            for folder in [one for one in temporary.rglob("*") if one.is_dir()]:
                flush_folder(folder)
            flush_folder(temporary)
            os.rename(temporary, path)  # noqa: PTH104 (Path.rename would replace an empty folder silently, too)
        flush_folder(path.absolute().parent)
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(f"cannot write {path} ({reason}), and nothing of it is there: make room, or give another "
                            "disk") from error  # fmt: skip


def _copy_database(connection: sqlite3.Connection, path: Path) -> None:
    target = sqlite3.connect(path)
    try:
        connection.backup(target)
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
    finally:
        target.close()


def _link_files(connection: sqlite3.Connection, folder: Path, target: Path) -> None:
    """Links of what vectors in a folder consist of besides the database."""
    for name in named_files(connection):
        place = Path(name) if (folder / name).exists() else Path(segments.SEGMENTS, name)
        _link(folder / place, target / place)


def _link(source: Path, target: Path) -> None:
    """A hard link of a file, or of those in a folder; copies where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir()
        for file in source.iterdir():
            if not file.name.startswith("."):
                _link(file, target / file.name)
        return
    try:
        os.link(os.path.realpath(source), target)  # files in the cache of the Hugging Face hub are symbolic links
    except OSError:
        shutil.copyfile(source, target)
        write_to_disk(target)


def export(view: View, output: Path, with_vectors: bool) -> int:
    """What `Collection.export` does."""
    with needs_extra("export", "pyarrow", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    connection = view.connection
    kinds = {"integer"} if not view.has_points else {
        kind for (kind,) in connection.execute("SELECT DISTINCT typeof(id) FROM points")
    }  # fmt: skip
    if len(kinds) > 1:
        raise DataError(
            "a column of Parquet has ids of one kind, and the collection has integers and strings: write what "
            "Collection.get returns, such as in two files"
        )
    views = {f"_{name}": own for name, own in view.named().items()} or {"": view}
    fields, coded = [("id", pa.string() if "text" in kinds else pa.int64()), ("payload", pa.string())], {}
    for name, own in views.items():
        if own.moment.codec is not None and not view.is_multi:
            fields.append((f"code{name}", pa.binary(own.moment.codec.num_codes)))
            coded[name] = own
    for name, own in views.items() if with_vectors else ():
        vector = pa.list_(pa.float32(), value_of(own.connection, "dim") or 1)
        fields.append((f"vector{name}", pa.list_(vector) if view.is_multi else vector))
    schema, count = pa.schema(fields), 0
    pieces = _pieces(view, view.moment) if "" in views else _named_pieces(view, coded)
    with write_atomically(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for keys, codes in pieces:
            rows = {key: (key, None) for key in keys}
            if view.has_points:
                found = find(connection, "SELECT key, id, payload FROM points WHERE key IN ({})", keys)
                rows = {key: (id, text) for key, id, text in found}
            columns = [[rows[key][0] for key in keys], [rows[key][1] for key in keys]]
            columns += [[codes[name].get(key) for key in keys] for name in coded]
            for own in views.values() if with_vectors else ():
                vectors, several = vectors_of(own, keys), list if view.is_multi else np.asarray
                columns.append([None if key not in vectors else several(vectors[key]) for key in keys])
            writer.write_table(pa.Table.from_arrays([pa.array(column, field.type) for column, field in
                                                     zip(columns, schema, strict=True)], schema=schema))  # fmt: skip
            count += len(keys)
    return count


def _pieces(view: View, moment: Moment) -> Iterator[tuple[list[int], dict[str, dict[int, bytes]]]]:
    """The keys of all records, some at a time, and under "" codes by key of those that are compressed."""
    for segment, mask in zip(moment.segments, moment.live, strict=True) if not view.is_multi else ():
        places = None if mask is None else np.flatnonzero(mask)
        for codes_nM, _, _, keys_n in segment.lists.blocks(_EXPORTED_ROWS, places):
            keys = keys_n.astype(np.int64).tolist()
            yield keys, {"": dict(zip(keys, (row.tobytes() for row in codes_nM), strict=True))}
    keys = moment.fresh.keys
    if view.has_points:
        rows = view.connection.execute("SELECT key FROM points ORDER BY key")
        known = np.fromiter((key for (key,) in rows), np.int64)
        keys = known if view.is_multi else known[~moment.are_stored(known)]
    for start in range(0, len(keys), _EXPORTED_ROWS):
        yield keys[start : start + _EXPORTED_ROWS].tolist(), {"": {}}


def _named_pieces(
    view: View, coded: Mapping[str, View]
) -> Iterator[tuple[list[int], dict[str, dict[int, bytes]]]]:  # fmt: skip
    """`_pieces` with codes by the names of those that have a codec."""
    keys = np.fromiter((key for (key,) in view.connection.execute("SELECT key FROM points ORDER BY key")), np.int64)
    codes = {name: _Codes(own.moment) for name, own in coded.items()}
    for start in range(0, len(keys), _EXPORTED_ROWS):
        some = keys[start : start + _EXPORTED_ROWS]
        yield some.tolist(), {name: own.of(some) for name, own in codes.items()}


class _Codes:
    """The codes of a moment by their keys; up to 16 bytes a vector are held."""

    def __init__(self, moment: Moment):
        self._segments = []
        for segment, mask in zip(moment.segments, moment.live, strict=True):
            places = np.arange(len(segment)) if mask is None else np.flatnonzero(mask)
            places = places[np.argsort(segment.lists.ids[places])]
            self._segments.append((segment.lists, places, segment.lists.ids[places]))

    def of(self, keys_n: np.ndarray) -> dict[int, bytes]:
        """Those of ascending keys, where they are compressed."""
        found = {}
        for lists, places, ids in self._segments:
            first, stop = np.searchsorted(ids, [keys_n[0], keys_n[-1] + 1])
            some = np.arange(first, stop)[np.isin(ids[first:stop], keys_n)]
            codes_nM = lists.rows(places[some])[0]
            found |= dict(zip(ids[some].tolist(), (row.tobytes() for row in codes_nM), strict=True))
        return found
