"""Which records a call is about: filters and ids as keys, and records as they are read.

Shape suffixes: n keys, D dimension.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from qinco.collection.changes import find, keys_of
from qinco.collection.filter_sql import find_keys, to_sql
from qinco.collection.moments import Moment, View
from qinco.collection.records import Id, Record, payload_of, record_ids
from qinco.collection.where import parse
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.forking import new_lock
from qinco.search.edit import decode_ids
from qinco.search.selection import Selection, select

_CACHE_BYTES = 64 << 20
_MAX_KEY = (1 << 63) - 1
_FEW = 1024
# In one row: before each the interpreter lets another thread run, which a search that is short would wait for. Older
# SQLite (3.40) ends a string of JSON at a NUL.
_IDS = """SELECT json_group_array(key), json_group_array(id), max(instr(id, char(0))) FROM points
          WHERE key IN (SELECT value FROM json_each(?))"""


def condition(where, view: View) -> tuple[str, Sequence]:
    """A filter as an SQL expression over `points` and its parameters."""
    if where is None:
        return "1", ()
    if not view.has_points:
        raise ConfigError("the collection was created with payload=false: choose records by their ids, not by where=")
    kinds = dict(view.connection.execute("SELECT path, kind FROM fields"))
    return to_sql(parse(where, kinds), view.has_vector)


class Allowed:
    """Records that a search may find, by their keys, int64, ascending."""

    def __init__(self, keys: np.ndarray):
        self.keys = keys
        self._vector_keys: np.ndarray | None = None
        self._selection: Selection | None = None

    def vector_keys(self, moment: Moment) -> np.ndarray:
        """The keys of their vectors, some of which there may not be; the moment is always the same."""
        if self._vector_keys is None:
            self._vector_keys = self.keys if moment.spans is None else moment.spans.vector_keys(self.keys)
        return self._vector_keys

    def selection(self, moment: Moment) -> Selection:
        """Their vectors in segments."""
        if self._selection is None:
            self._selection = select(moment.lists, self.vector_keys(moment), moment.dead)
            assert self._selection is not None
        return self._selection


class KeyCache:
    """Records that filters admit, of the last filters up to 64 MB, each for one version of the collection."""

    def __init__(self):
        self._lock, self._bytes = new_lock(), 0
        self._kept: OrderedDict[tuple, Allowed] = OrderedDict()

    def allowed(self, view: View, where) -> Allowed:
        """The records for which a filter is true."""
        expression, parameters = condition(where, view)
        name = expression, parameters, view.version
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        found = Allowed(find_keys(view.connection, expression, parameters))
        with self._lock:
            if name not in self._kept:
                self._kept[name] = found
                self._bytes += _size(found)
            while self._bytes > _CACHE_BYTES:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found


def _size(allowed: Allowed) -> int:
    return 2 * allowed.keys.nbytes + 1000  # with the bits of a selection, of which there may be fewer


def keys_among(view: View, ids) -> np.ndarray:
    """The keys of those ids that there are, int64, ascending."""
    given = record_ids(ids)
    if view.has_points:
        return np.array(sorted(keys_of(view.connection, given).values()), np.int64)
    known = np.unique(np.array([id for id in given if not isinstance(id, str)], np.int64))
    return known[np.isin(known, view.moment.fresh.keys) | view.moment.are_stored(known)]


def keys_by_id(view: View, ids: list[Id]) -> dict[Id, int]:
    """The keys of those ids that there are."""
    if view.has_points:
        return keys_of(view.connection, ids)
    return {key: key for key in keys_among(view, ids).tolist()}


def count(view: View, where) -> int:
    """How many records there are, or those for which a filter is true."""
    if where is None and not view.has_points:
        return view.moment.num_stored + len(view.moment.fresh)
    expression, parameters = condition(where, view)
    return view.connection.execute(f"SELECT count(*) FROM points WHERE {expression}", parameters).fetchone()[0]


def sample(view: View, number: int, seed: int | None, where, has_vector: bool) -> list[Id]:
    """What `Collection.sample` returns."""
    random = np.random.default_rng(seed)
    if where is None and not view.has_points:
        return random.permutation(view.moment.keys)[:number].tolist()
    if where is None and has_vector and view.has_own_vectors:
        keys = random.permutation(view.moment.keys)[: number if not view.is_multi else 4 * number].tolist()
        query = "SELECT id FROM points WHERE key <= ? ORDER BY key DESC LIMIT 1"  # the record that a vector is of
        ids = (view.connection.execute(query, (key,)).fetchone()[0] for key in keys)
        return list(dict.fromkeys(ids))[:number]
    expression, parameters = condition(where, view)
    if has_vector:
        expression = f"({expression}) AND {view.has_vector[view.name]}"
    keys = random.permutation(find_keys(view.connection, expression, parameters))[:number].tolist()
    known = ids_of(view, keys)
    return [known[key] for key in keys]


def ids_of(view: View, keys: Sequence[int]) -> dict[int, Id]:
    """The ids of the records of keys, by the keys that there are."""
    if not view.has_points:
        return {key: key for key in keys}
    if len(keys) <= _FEW:
        found, ids, nul = view.connection.execute(_IDS, (json.dumps(keys),)).fetchone()
        if not nul:
            return dict(zip(json.loads(found), json.loads(ids), strict=True))
    return dict(find(view.connection, "SELECT key, id FROM points WHERE key IN ({})", keys))


def records_of(
    view: View, keys: Sequence[int], *, with_payload: bool, with_vectors: bool | Collection[str]
) -> dict[int, Record]:
    """The records of keys that there are; of vectors with names all, or some."""
    found: dict[int, tuple[Any, dict | None]] = {key: (key, None) for key in keys}
    if view.has_points:
        columns = "key, id, payload" if with_payload else "key, id, NULL"
        rows = find(view.connection, f"SELECT {columns} FROM points WHERE key IN ({{}})", keys)
        found = {key: (id, payload_of(text)) for key, id, text in rows}
    vectors: Mapping[int, Any] = {}
    if with_vectors:
        named = view.named()
        vectors = _named_vectors(named, keys, with_vectors) if named else vectors_of(view, keys)
    return {key: Record(id, payload, vectors.get(key)) for key, (id, payload) in found.items()}


def _named_vectors(named: Mapping[str, View], keys: Sequence[int], names: bool | Collection[str]) -> dict[int, Any]:
    """`vectors_of` by names, of all of them or of some."""
    found: dict[int, dict[str, np.ndarray]] = {key: {} for key in keys}
    for name, view in named.items():
        if names is True or (names and name in names):
            for key, x_D in vectors_of(view, keys).items():
                found[key][name] = x_D
    return found


def vectors_of(view: View, keys: Sequence[int]) -> dict[int, np.ndarray]:
    """Vectors of records by their keys, float32 (D,), or (n, D) of several; of those that have any.

    Fresh ones are as they were given, and others decoded.
    """
    if view.moment.spans is None:
        return _vectors(view, keys)
    found, records = {}, np.array(keys, np.int64)
    vectors = _vectors(view, view.moment.spans.vector_keys(records).tolist())
    for key, count in zip(keys, view.moment.spans.counts_of(records).tolist(), strict=True):
        if count:
            found[key] = np.stack([vectors[one] for one in range(key, key + count)])
    return found


def vectors_at(moment: Moment, keys_n: np.ndarray) -> np.ndarray:
    """Vectors of ascending keys, all of which there are, as they are compared, float32 (n, D)."""
    fresh = moment.fresh
    places, is_fresh = np.zeros(len(keys_n), np.int64), np.zeros(len(keys_n), bool)
    if len(fresh):
        order = np.argsort(fresh.keys, kind="stable")  # an older record may get its vector later
        places = order[np.minimum(np.searchsorted(fresh.keys, keys_n, sorter=order), len(fresh) - 1)]
        is_fresh = fresh.keys[places] == keys_n
    if is_fresh.all():
        return fresh.vectors_ND[places]
    assert moment.index is not None
    decoded_nD = decode_ids(moment.index.codec, moment.index.parts, keys_n[~is_fresh])
    found = np.empty((len(keys_n), decoded_nD.shape[1]), np.float32)
    found[~is_fresh] = moment.metric.prepare(decoded_nD)
    found[is_fresh] = fresh.vectors_ND[places[is_fresh]] if is_fresh.any() else 0
    return found


def _vectors(view: View, keys: Sequence[int]) -> dict[int, np.ndarray]:
    """`vectors_of` by the keys of vectors."""
    rows = find(view.connection, "SELECT key, vector FROM fresh WHERE key IN ({})", keys)
    vectors = {key: np.frombuffer(blob, "<f4").astype(np.float32) for key, blob in rows}
    others = np.array([key for key in keys if key not in vectors], np.int64)
    others = others[view.moment.are_stored(others)]  # a record stays that has lost its vector of a name
    if len(others) and (index := view.moment.index) is not None:
        decoded_nD = view.moment.metric.prepare(decode_ids(index.codec, index.parts, others))
        vectors |= dict(zip(others.tolist(), decoded_nD, strict=True))
    return vectors


def get(
    view: View, ids, where, *, limit: int | None, after: Id | None,
    order_by: str | None, with_payload: bool, with_vectors: bool | Collection[str],
) -> list[Record]:  # fmt: skip
    """What `Collection.get` returns."""
    if limit is not None:
        require_int("limit", limit, 0)
    if ids is not None:
        if where is not None or after is not None or order_by is not None:
            raise ConfigError("get takes ids= alone, and returns their records in that order")
        keys = _in_order(view, record_ids(ids))[:limit]
    elif view.has_points:
        keys = _page(view, where, limit, after, order_by)
    else:
        condition(where, view)
        if order_by is not None:
            raise ConfigError(
                "the collection was created with payload=false: its records come in the order of their ids"
            )
        first = 0 if after is None else int(np.searchsorted(view.moment.keys, record_ids(after)[0], "right"))
        keys = view.moment.keys[first : None if limit is None else first + limit].tolist()
    kinds = {"with_payload": with_payload, "with_vectors": with_vectors}
    found = records_of(view, list(dict.fromkeys(keys)), **kinds)
    return [found[key] for key in keys if key in found]


def _in_order(view: View, ids: list[Id]) -> list[int]:
    known = keys_by_id(view, ids)
    return [known[id] for id in ids if id in known]


def _page(view: View, where, limit: int | None, after: Id | None, order_by: str | None) -> list[int]:
    """Keys in the order of ids, integers first, or of a field and then ids, from behind the record `after` on."""
    expression, given = condition(where, view)
    order, parameters = "id", list(given)
    if order_by is None and after is not None:
        expression, parameters = f"({expression}) AND id > ?", [*parameters, *record_ids(after)]
    if order_by is not None:
        value, word = _field(order_by.removeprefix("-")), "DESC" if order_by.startswith("-") else "ASC"
        order = f"{value} IS NULL, {value} {word}, id"
        if after is not None:
            sign = "<" if word == "DESC" else ">"
            last = _place(view, value, after)
            beyond = f"({value} IS NULL) = ? AND ({value} {sign} ? OR ({value} IS ? AND id > ?))"
            expression = f"({expression}) AND (({value} IS NULL) > ? OR ({beyond}))"
            parameters += [last[0], last[0], last[1], last[1], last[2]]
    query = f"SELECT key FROM points WHERE {expression} ORDER BY {order} LIMIT ?"
    return [key for (key,) in view.connection.execute(query, [*parameters, _MAX_KEY if limit is None else limit])]


def _field(path: str) -> str:
    """The value of a field, names apart by dots, as SQL."""
    if '"' in path or not all(path.split(".")):
        raise ConfigError(f"order_by is the path of a field, such as author.name or -year, not {path!r:.60}")
    steps = "".join(f'."{name}"' for name in path.replace("'", "''").split("."))
    return f"json_extract(payload, '${steps}')"


def _place(view: View, value: str, after: Id) -> tuple:
    """Whether a record lacks the value, the value, and its id."""
    query = f"SELECT {value} IS NULL, {value}, id FROM points WHERE id = ?"
    last = view.connection.execute(query, record_ids(after)).fetchone()
    if last is None:
        raise DataError(f"after={after!r} is the id of no record, of which order_by needs the value: begin again")
    return last
