"""What a query of Qdrant finds: vectors of its examples, options of searches, scores and groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from qdrant_client.http import models as m

from qinco.collection.paths import nodes, path_steps
from qinco.collection.records import Hit, Id, Record
from qinco.errors import ConfigError
from qinco.server.envelope import NotFoundError
from qinco.server.qdrant_order import ordered
from qinco.server.qdrant_records import (
    UNNAMED,
    Shape,
    dense,
    id_of,
    metric_of,
    metrics_of,
    named,
    page,
    sampled,
    vectors_by_name,
    where_of,
)
from qinco.server.refusals import UnsupportedError

_EF_OF_A_LIST = 8  # of hnsw_ef: its usual 128 are the 16 lists that an index scans by itself
_DIVERSITY, _GROUP_SIZE, _MORE = 0.5, 3, 4
Request = m.QueryRequest | m.QueryGroupsRequest


@dataclass(frozen=True)
class Target:
    """What is searched for: a vector, points that are no results, and options of the search."""

    vector: Any
    left_out: frozenset[Id] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A result of a query."""

    record: Hit | Record
    score: float
    order_value: float | None = None

    def json(self, shape: Shape) -> dict[str, Any]:
        order = {} if self.order_value is None else {"order_value": self.order_value}
        return {"version": 0, "score": self.score, **shape.of(self.record), **order}


async def find(state: Any, name: str, body: Request, k: int, kinds: dict[str, Any]) -> list[Found]:
    """The first k results of a query, whatever kind it is."""
    collection, where, query = state.catalog.get(name), where_of(body.filter), body.query
    _options(body.params, k)  # refuses wrong ones also where they have no effect
    if query is None or isinstance(query, m.OrderByQuery | m.SampleQuery):
        if body.score_threshold is not None:
            raise ConfigError("Wrong input: a score_threshold needs a query that gives scores: leave it out")
        if query is None:
            records, _ = await state.work.read(page, collection, where, k, None, kinds)
            return [Found(record, 1.0) for record in records]
        if isinstance(query, m.SampleQuery):
            records = await state.work.read(sampled, collection, where, k, kinds)
            return [Found(record, 1.0) for record in records]
        pairs = await state.work.read(ordered, collection, where, query.order_by, k, kinds)
        return [Found(record, 1.0, value) for record, value in pairs]
    metric = metric_of(collection, body.using)
    target = await _target(state, name, body, k)
    width = k + len(target.left_out)
    if target.left_out and target.options:  # hits are to differ from each other, not from these
        rest = {"must_not": [{"has_id": sorted(target.left_out, key=str)}]}
        where = rest if where is None else {"must": [where, rest]}
    options = target.options | _options(body.params, width) | named(body.using) | kinds
    threshold = body.score_threshold
    if threshold is not None:
        if metric == "l2" and threshold <= 0:
            return []
        options["score_limit"] = threshold * threshold if metric == "l2" else threshold
    hits = await state.work.search(
        state.catalog.resolve(name), collection, target.vector, width, where=where, **options
    )
    found = [Found(hit, math.sqrt(max(hit.score, 0)) if metric == "l2" else hit.score) for hit in hits]
    if threshold is not None:  # the threshold itself is no result
        found = [one for one in found if (one.score < threshold if metric == "l2" else one.score > threshold)]
    return [one for one in found if one.record.id not in target.left_out][:k]


async def groups(state: Any, name: str, body: m.QueryGroupsRequest, limit: int) -> list[dict[str, Any]]:
    """The groups of the best results, by a field of their payloads."""
    size = _GROUP_SIZE if body.group_size is None else body.group_size
    if not 1 <= size <= state.settings.max_k:
        raise ConfigError(f"Wrong input: group_size must be from 1 to {state.settings.max_k:,}, not {size}")
    shape = Shape(state.catalog.get(name), body.with_payload, body.with_vector, payload_by_default=False)
    steps = path_steps(body.group_by)
    k = min(_MORE * limit * size, state.settings.max_k)
    while True:
        results = await find(state, name, body, k, shape.kinds | {"with_payload": True})
        found: dict[Any, list[Found]] = {}
        for one in results:
            for value in _group_ids(one.record.payload, steps):
                hits = found.setdefault(value, [])
                if len(hits) < size:
                    hits.append(one)
        first = list(found.items())[:limit]
        is_complete = len(first) == limit and all(len(hits) == size for _, hits in first)
        if is_complete or len(results) < k or k == state.settings.max_k:
            break
        k = min(_MORE * k, state.settings.max_k)
    answer = [{"id": value, "hits": [one.json(shape) for one in hits]} for value, hits in first]
    if body.with_lookup is not None:
        await _look_up(state, answer, body.with_lookup)
    return answer


def _group_ids(payload: dict | None, steps: tuple) -> list[int | str]:
    """The groups that a record is in: none if one of its values can be no group's."""
    values: list[Any] = []
    for value in nodes(payload or {}, steps):
        values += value if isinstance(value, list) else [value]
    return list(dict.fromkeys(values)) if all(type(value) in (int, str) for value in values) else []


async def _look_up(state: Any, answer: list[dict[str, Any]], lookup: str | m.WithLookup) -> None:
    """Put the record of another collection, whose id is the group's, into each group."""
    lookup = m.WithLookup(collection=lookup) if isinstance(lookup, str) else lookup
    source = state.catalog.get(lookup.collection)
    shape = Shape(source, lookup.with_payload, lookup.with_vectors, payload_by_default=True)
    ids = [id_of(group["id"]) for group in answer if not isinstance(group["id"], int) or group["id"] >= 0]
    records = await state.work.read(source.get, ids, **shape.kinds) if ids else []
    known = {record.id: shape.of(record) for record in records}
    for group in answer:
        group["lookup"] = known.get(id_of(group["id"]))


def _options(params: m.SearchParams | None, k: int) -> dict[str, Any]:
    """Options of `Collection.search` that mean what Qdrant's do."""
    options: dict[str, Any] = {}
    if params is None:
        return options
    if params.exact:
        options["exact"] = True
    if params.hnsw_ef is not None:
        if params.hnsw_ef < 1:
            raise ConfigError(f"Wrong input: hnsw_ef must be 1 or more, not {params.hnsw_ef}")
        options["nprobe"] = max(1, min(params.hnsw_ef, 1 << 20) // _EF_OF_A_LIST)
    quantization = params.quantization
    if quantization is not None and quantization.oversampling is not None:
        if not 1 <= quantization.oversampling <= 1000:
            raise ConfigError(f"Wrong input: oversampling must be from 1 to 1000, not {quantization.oversampling}")
        options["num_short"] = math.ceil(quantization.oversampling * k)
    if quantization is not None and quantization.rescore is False:
        options["num_short"] = 0
    return options


async def _target(state: Any, name: str, body: Request, k: int) -> Target:
    """The vector of a query, of the points that it names and of others."""
    query, options = body.query, {}
    if isinstance(query, m.NearestQuery):
        if query.mmr is not None:
            options["diversity"] = _DIVERSITY if query.mmr.diversity is None else query.mmr.diversity
            options["candidates"] = max(k, query.mmr.candidates_limit or 0)
        query = query.nearest
    if not isinstance(query, m.RecommendQuery):
        vectors, ids = await _examples(state, name, body, [query])
        if options:
            options["candidates"] += len(ids)
        return Target(vectors[0], ids, options)
    recommend = query.recommend
    if recommend.strategy not in (None, m.RecommendStrategy.AVERAGE_VECTOR):
        raise UnsupportedError(f"the strategy {recommend.strategy.value}: use average_vector", "it")
    positive, negative = recommend.positive or [], recommend.negative or []
    if not positive:
        raise ConfigError("Bad request: positive must name a point or a vector at least, from which the others differ")
    vectors, ids = await _examples(state, name, body, [*positive, *negative])
    with np.errstate(over="ignore"):  # what is infinite then is refused
        rows = [np.asarray(one, np.float32) for one in vectors]
    if len({len(row) for row in rows}) > 1:
        raise ConfigError("Wrong input: the vectors of examples must have the dimension of the collection, all of them")
    with np.errstate(over="ignore", invalid="ignore"):
        mean_D = np.mean(rows[: len(positive)], 0)
        if negative:
            mean_D = mean_D + mean_D - np.mean(rows[len(positive) :], 0)
    return Target(mean_D, ids)


async def _examples(state: Any, name: str, body: Request, given: Sequence[Any]) -> tuple[list[Any], frozenset[Id]]:
    """Vectors as they are given or of points, and those ids that are of the collection that is searched."""
    ids = [id_of(one) for one in given if isinstance(one, int | str | UUID)]
    if not ids:
        return [dense(one) for one in given], frozenset()
    place, using = name, body.using
    if body.lookup_from is not None:
        place, using = body.lookup_from.collection, body.lookup_from.vector or body.using
    source = state.catalog.get(place)
    metric_of(source, using)
    metrics = metrics_of(source)
    records = await state.work.read(source.get, ids, with_payload=False, with_vectors=True)
    known = {record.id: vectors_by_name(record, metrics).get(using or UNNAMED) for record in records}
    for id in ids:
        if id not in known:
            raise NotFoundError(f"Not found: No point with id {id!r:.60} found")
        if known[id] is None:
            raise NotFoundError(f"Not found: Point {id!r:.60} has no vector {using or ''} to search with")
    vectors = [known[id_of(one)] if isinstance(one, int | str | UUID) else dense(one) for one in given]
    is_same = state.catalog.resolve(place) == state.catalog.resolve(name)
    return vectors, frozenset(ids if is_same else ())
