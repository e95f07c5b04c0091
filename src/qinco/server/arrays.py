"""Routes of arrays, `/v1`: searches, codes and streams of records as .npy and Arrow, and optimizations as jobs."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from qinco.codec.codec import Codec
from qinco.collection.collection import Collection
from qinco.collection.optimize import check_training
from qinco.collection.records import Hit
from qinco.config import require_int, require_number
from qinco.errors import ConfigError, DataError
from qinco.search.metric import Metric
from qinco.server import arrow_stream, npy
from qinco.server.catalog import part_of
from qinco.server.envelope import RESPONSES, MediaTypeError, TimedRoute, TooLargeError, answer
from qinco.server.indexes import ServedIndex
from qinco.server.upserts import Upserts
from qinco.vectors.arrow import column_arrays

router = APIRouter(prefix="/v1/{name}", route_class=TimedRoute, responses=RESPONSES, tags=["arrays"])
MISSING = "X-Missing-Rows"  # header of an answer that is partial
MAX_RESULTS = 1 << 18  # of all queries of a request
_FEW_BYTES = 1 << 16  # of queries that the event loop itself looks at
_JSON = "application/json"
_INTEGERS = ("k", "nprobe", "num_short")
_SWITCHES = ("exact", "with_payload")
_SEARCH = (*_INTEGERS, *_SWITCHES, "where", "using")


@router.post("/search", include_in_schema=False)
async def search(request: Request, name: str) -> Response:
    """The nearest records of many queries: .npy or Arrow, and the same or JSON as `Accept` says."""
    state = request.app.state
    name, searched = state.catalog.searched(name)
    options, body = _search_options(request), await request.body()
    kind = _body_type(request, npy.TYPE, arrow_stream.TYPE)
    accepted, most = _accepted(request, kind), state.settings
    if not isinstance(searched, ServedIndex):
        part_of(searched, options.get("using"))  # there is such a name
    elif asked := request.query_params.getlist("timeout"):  # the first, a number, as RequestLimits takes it
        options["timeout"] = min(float(asked[0]), most.timeout)
    if options["k"] > most.max_k:
        raise TooLargeError(f"a query may ask for {most.max_k:,} results, not {options['k']:,}")

    def answered(hits: Any) -> Response:
        content = _FORMATS[accepted](hits, options["k"], options["with_payload"])
        return Response(content, headers=_missing_rows(hits), media_type=accepted)

    if kind == npy.TYPE and len(body) < _FEW_BYTES:
        queries_QD = _rows(body, kind, most.max_body_bytes, "queries")
        if len(queries_QD) == 1:  # it may be answered together with those of other requests
            one = state.work.search(name, searched, queries_QD[0], **options)
            return answered([await one])

    def run() -> Response:
        queries_QD = _rows(body, kind, most.max_body_bytes, "queries")
        number = len(queries_QD)
        if number > most.max_queries or number * options["k"] > MAX_RESULTS:
            raise TooLargeError(f"a request may have {most.max_queries:,} queries and ask for {MAX_RESULTS:,} results, "
                                f"not {number:,} and {number * options['k']:,}: send several")  # fmt: skip
        return answered(searched.search(queries_QD, **options))

    return await state.work.read(run)


@router.post("/encode", include_in_schema=False)
async def encode(request: Request, name: str) -> Response:
    """The codes, unsigned integers (N, M), of vectors (N, D); `using` is the name of named ones."""
    state = request.app.state
    collection, body = _part(request, name), await request.body()
    kind = _body_type(request, npy.TYPE)

    def run() -> bytes:
        codec = _codec(collection)
        codes = codec.encode(Metric(collection.metric).prepare(_rows(body, kind, len(body), "vectors")), progress=False)
        if codes.lists is not None:
            raise ConfigError("the codec has coarse centroids, and its codes are more than an array: use the library")
        return npy.array_bytes(codes.codes)

    return Response(await state.work.read(run), media_type=npy.TYPE)


@router.post("/decode", include_in_schema=False)
async def decode(request: Request, name: str) -> Response:
    """The vectors, float32 (N, D), that codes (N, M) stand for; `using` is the name of named ones."""
    state = request.app.state
    collection, body = _part(request, name), await request.body()
    _body_type(request, npy.TYPE)

    def run() -> bytes:
        codec = _codec(collection)
        return npy.array_bytes(codec.decode(npy.read_array(body, "codes", "iu"), progress=False))

    return Response(await state.work.read(run), media_type=npy.TYPE)


@router.post("/points", include_in_schema=False)
@router.put("/points", include_in_schema=False)
async def upsert(request: Request, name: str) -> Response:
    """Upsert a stream of Arrow batches; each is on disk when its line of the answer says so."""
    _body_type(request, arrow_stream.TYPE)
    columns = {"id": None, "vector": None, "payload": None} | dict(request.query_params)
    _check_names(columns, ("id", "vector", "payload"))
    return Upserts(request.app.state, name, request.app.state.catalog.get(name), columns)


@router.get("/stats")
async def stats(request: Request, name: str) -> Response:
    """Numbers of records, vectors and bytes, the error of segments, and warnings; or what an index holds."""
    state = request.app.state
    return answer(request, await state.work.read(state.catalog.searched(name)[1].stats))


@router.post("/reload")
async def reload(request: Request, name: str) -> Response:
    """Search what the folder of an index holds now; searches that have begun end with what it held before."""
    state = request.app.state
    return answer(request, await state.work.read(state.catalog.index(name).reload))


@router.post("/optimize", status_code=202)
async def optimize(request: Request, name: str, minutes: float | None = None, preset: str | None = None) -> Response:
    """Begin to train, if it is due, and to compress fresh vectors, in the background."""
    state = request.app.state
    settings: dict[str, Any] = {} if preset is None else {"preset": preset}
    check_training(settings)
    if minutes is not None:
        require_number("minutes", minutes, above=0)
        settings["minutes"] = minutes
    found = state.jobs.start(state.catalog.resolve(name), state.catalog.get(name), settings)
    answered = answer(request, found)
    answered.status_code = 202
    return answered


@router.get("/optimize")
async def optimization(request: Request, name: str) -> Response:
    """How the last optimization of this collection goes or ended."""
    state = request.app.state
    return answer(request, state.jobs.state(state.catalog.resolve(name)))


def _search_options(request: Request) -> dict[str, Any]:
    """Arguments of `Collection.search` in the query string."""
    given = dict(request.query_params)
    _check_names(given, _SEARCH)
    options: dict[str, Any] = {"k": 10, "with_payload": False}
    for name in _INTEGERS:
        if name in given:
            options[name] = int(given[name]) if given[name].isdecimal() and len(given[name]) < 19 else given[name]
            require_int(name, options[name])
    for name in _SWITCHES:
        if name in given:
            if given[name] not in ("true", "false"):
                raise ConfigError(f"{name} must be true or false, not {given[name]!r:.40}")
            options[name] = given[name] == "true"
    if "where" in given:
        try:
            options["where"] = json.loads(given["where"])
        except (ValueError, RecursionError):
            raise ConfigError(f'where must be JSON, such as {{"year": 2010}}, not {given["where"]!r:.60}') from None
        if not isinstance(options["where"], dict):
            raise ConfigError(f'where must be an object, such as {{"year": 2010}}, not {given["where"]!r:.60}')
    if "using" in given:
        options["using"] = given["using"]
    return options


def _missing_rows(found: list[list[Hit]]) -> dict[str, str]:
    """A header that names the rows of an index which did not answer in time, if any."""
    missing = getattr(found[0], "missing", []) if found else []
    return {MISSING: ", ".join(f"{rows.start}-{rows.stop - 1}" for rows in missing)} if missing else {}


def _check_names(given, known: tuple[str, ...]) -> None:
    if unknown := sorted(set(given) - {*known, "timeout"}):
        raise ConfigError(f"there is no parameter {unknown[0]!r:.40} here: known are {', '.join(known)}")


def _body_type(request: Request, *known: str) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in known:
        raise MediaTypeError(f"the body must have the Content-Type {' or '.join(known)}, not {kind or 'none'!r:.60}")
    return kind


def _accepted(request: Request, kind: str) -> str:
    """The type of the answer: the first that is asked for and known, and that of the body unless one is."""
    for one in request.headers.get("accept", "*/*").split(","):
        asked = one.partition(";")[0].strip().lower()
        if asked in _FORMATS:
            return asked
        if asked in ("*/*", "application/*"):
            return kind
    raise MediaTypeError(f"an answer can have the type {', '.join(_FORMATS)}: ask for one of these by Accept")


def _rows(body: bytes, kind: str, max_bytes: int, what: str) -> np.ndarray:
    """Vectors, float32 (N, D), of a body."""
    if kind == npy.TYPE:
        found = npy.read_array(body, what, "fiu")
    else:
        arrays = [array for table in arrow_stream.tables(body, max_bytes) for array in _vector_arrays(table, what)]
        if len({array.shape[1] for array in arrays}) != 1:
            raise DataError(f"{what} must be vectors of one dimension, one at least")
        found = np.concatenate(arrays)
    with np.errstate(over="ignore"):  # infinity is refused with its row
        return found.astype(np.float32, copy=False)


def _vector_arrays(table: Any, what: str) -> Iterator[np.ndarray]:
    columns = [column for column in table.columns if column_arrays(column.slice(0, 0), what) is not None]
    if len(columns) != 1:
        raise DataError(f"{what} must be one column of lists of numbers, and there are {len(columns)}")
    yield from column_arrays(columns[0], what) or ()


def _part(request: Request, name: str) -> Collection:
    """The collection whose codec is asked for: of named vectors that with those of the name `using`."""
    _check_names(request.query_params, ("using",))
    return part_of(request.app.state.catalog.get(name), request.query_params.get("using"))


def _codec(collection: Collection) -> Codec:
    codec = collection.codec
    if codec is None:
        raise ConfigError("the collection has no codec yet: POST /v1/{name}/optimize trains one on enough vectors")
    return codec


def _as_npy(found: list[list[Hit]], k: int, with_payload: bool) -> bytes:
    """An array (Q, k) of ids and scores, with id -1 or "" and score NaN where there are fewer."""
    if with_payload:
        raise ConfigError(f"an array has no payloads: ask for Accept: {arrow_stream.TYPE} or {_JSON}")
    ids = [hit.id for hits in found for hit in hits]
    are_texts = [isinstance(id, str) for id in ids]
    if any(are_texts) and not all(are_texts):
        raise DataError(f"ids are integers and strings: ask for Accept: {_JSON}")
    values = np.array(ids) if ids and are_texts[0] else np.array(ids, np.int64)
    results = np.zeros((len(found), k), [("id", values.dtype), ("score", np.float32)])
    if values.dtype == np.int64:
        results["id"] = -1
    results["score"] = np.nan
    places = np.arange(k) < np.array([len(hits) for hits in found])[:, None]
    results["id"][places], results["score"][places] = values, [hit.score for hits in found for hit in hits]
    return npy.array_bytes(results)


def _as_arrow(found: list[list[Hit]], k: int, with_payload: bool) -> bytes:
    """A row for each hit: query, rank, id, score and, if they are asked for, payload as JSON."""
    import pyarrow as pa

    hits = [hit for own in found for hit in own]
    counts = [len(own) for own in found]
    try:
        ids = pa.array([hit.id for hit in hits])
    except pa.ArrowException:
        raise DataError(f"ids are integers and strings: ask for Accept: {_JSON}") from None
    columns = {
        "query": pa.array(np.repeat(np.arange(len(found), dtype=np.int32), counts)),
        "rank": pa.array(np.concatenate([np.empty(0, np.int32), *map(np.arange, counts)]).astype(np.int32)),
        "id": ids, "score": pa.array([hit.score for hit in hits], pa.float32()),
    }  # fmt: skip
    if with_payload:
        texts = [None if hit.payload is None else json.dumps(hit.payload, ensure_ascii=False) for hit in hits]
        columns["payload"] = pa.array(texts, pa.string())
    return arrow_stream.table_bytes(pa.table(columns))


def _as_json(found: list[list[Hit]], k: int, with_payload: bool) -> bytes:
    results = [[{"id": hit.id, "score": hit.score} | ({"payload": hit.payload} if with_payload else {}) for hit in hits]
               for hits in found]  # fmt: skip
    return json.dumps({"result": results, "status": "ok"}, ensure_ascii=False).encode()


_FORMATS = {npy.TYPE: _as_npy, arrow_stream.TYPE: _as_arrow, _JSON: _as_json}
