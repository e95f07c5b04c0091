"""What Qdrant has and qinco has not: refused by name, so that nothing of a request is silently ignored."""

from enum import Enum
from typing import Any

from pydantic import BaseModel
from qdrant_client.http import models as m

from qinco.errors import ConfigError

# Fields of models that the server understands. A field that is set and is not named here is refused, and so is a model
# that is not here at all; those that a newer client adds, too.
_SELECTION = "points filter"
SUPPORTED: dict[type[BaseModel], frozenset[str]] = {
    model: frozenset(fields.split())
    for model, fields in {
        m.CreateCollection: "vectors shard_number sharding_method replication_factor write_consistency_factor "
                            "on_disk_payload payload id_tracker hnsw_config wal_config optimizers_config "
                            "quantization_config metadata",
        m.UpdateCollection: "vectors optimizers_config params hnsw_config metadata",
        m.VectorParams: "size distance hnsw_config quantization_config on_disk memory datatype",
        m.VectorParamsDiff: "hnsw_config on_disk memory",
        m.CollectionParamsDiff: "replication_factor write_consistency_factor read_fan_out_factor "
                                "read_fan_out_delay_ms on_disk_payload payload id_tracker",
        m.ProductQuantization: "product",
        m.ProductQuantizationConfig: "compression always_ram memory",
        m.HnswConfigDiff: "*",
        m.WalConfigDiff: "*",
        m.OptimizersConfigDiff: "*",
        m.PayloadStorageParams: "*",
        m.IdTrackerParams: "*",
        m.PointsList: "points update_filter update_mode",
        m.PointsBatch: "batch update_filter update_mode",
        m.PointStruct: "id vector payload",
        m.Batch: "ids vectors payloads",
        m.PointRequest: "ids with_payload with_vector",
        m.PayloadSelectorInclude: "include",
        m.PayloadSelectorExclude: "exclude",
        m.QueryRequest: "query using filter params score_threshold limit offset with_vector with_payload lookup_from",
        m.QueryRequestBatch: "searches",
        m.QueryGroupsRequest: "query using filter params score_threshold limit with_vector with_payload lookup_from "
                              "group_by group_size with_lookup",
        m.LookupLocation: "collection vector",
        m.WithLookup: "collection with_payload with_vectors",
        m.SearchParams: "hnsw_ef exact quantization",
        m.QuantizationSearchParams: "rescore oversampling",
        m.NearestQuery: "nearest mmr",
        m.Mmr: "diversity candidates_limit",
        m.RecommendQuery: "recommend",
        m.RecommendInput: "positive negative strategy",
        m.OrderByQuery: "order_by",
        m.SampleQuery: "sample",
        m.OrderBy: "key direction start_from",
        m.ScrollRequest: "offset limit filter with_payload with_vector order_by",
        m.CountRequest: "filter exact",
        m.FacetRequest: "key limit filter exact",
        m.PointIdsList: "points",
        m.FilterSelector: "filter",
        m.SetPayload: f"payload key {_SELECTION}",
        m.DeletePayload: f"keys {_SELECTION}",
        m.UpdateVectors: "points update_filter",
        m.PointVectors: "id vector",
        m.DeleteVectors: f"vector {_SELECTION}",
        m.UpdateOperations: "operations",
        m.UpsertOperation: "upsert",
        m.DeleteOperation: "delete",
        m.SetPayloadOperation: "set_payload",
        m.OverwritePayloadOperation: "overwrite_payload",
        m.DeletePayloadOperation: "delete_payload",
        m.ClearPayloadOperation: "clear_payload",
        m.UpdateVectorsOperation: "update_vectors",
        m.DeleteVectorsOperation: "delete_vectors",
        m.CreateFieldIndex: "field_name field_schema",
        m.KeywordIndexParams: "type on_disk memory is_tenant enable_hnsw",
        m.IntegerIndexParams: "type lookup range on_disk memory is_principal enable_hnsw",
        m.FloatIndexParams: "type on_disk memory is_principal enable_hnsw",
        m.BoolIndexParams: "type on_disk memory enable_hnsw",
        m.DatetimeIndexParams: "type on_disk memory is_principal enable_hnsw",
        m.UuidIndexParams: "type on_disk memory is_tenant enable_hnsw",
        m.ChangeAliasesOperation: "actions",
        m.CreateAliasOperation: "create_alias",
        m.CreateAlias: "collection_name alias_name",
        m.DeleteAliasOperation: "delete_alias",
        m.DeleteAlias: "alias_name",
        m.RenameAliasOperation: "rename_alias",
        m.RenameAlias: "old_alias_name new_alias_name",
        m.Filter: "must should must_not min_should",
        m.MinShould: "conditions min_count",
        m.FieldCondition: "key match range values_count is_empty is_null geo_bounding_box geo_radius geo_polygon",
        m.MatchValue: "value",
        m.MatchAny: "any",
        m.MatchExcept: "except_",
        m.MatchText: "text",
        m.MatchTextAny: "text_any",
        m.MatchPhrase: "phrase",
        m.MatchPrefix: "prefix",
        m.MatchSubstring: "substring",
        m.GeoBoundingBox: "top_left bottom_right",
        m.GeoRadius: "center radius",
        m.GeoPolygon: "exterior interiors",
        m.GeoLineString: "points",
        m.GeoPoint: "lat lon",
        m.Range: "lt gt gte lte",
        m.DatetimeRange: "lt gt gte lte",
        m.ValuesCount: "lt gt gte lte",
        m.IsEmptyCondition: "is_empty",
        m.IsNullCondition: "is_null",
        m.PayloadField: "key",
        m.HasIdCondition: "has_id",
        m.HasVectorCondition: "has_vector",
        m.NestedCondition: "nested",
        m.Nested: "key filter",
    }.items()
}  # fmt: skip
_JSON = frozenset({"payload", "payloads", "metadata"})  # of users, not of Qdrant
_NAMES = {
    "shard_key": "shard keys", "prefetch": "prefetches", "sparse_vectors": "sparse vectors",
    "SparseVector": "sparse vectors", "multivector_config": "multivectors", "strict_mode_config": "a strict mode",
    "ScalarQuantization": "scalar quantization, and compresses by product alone",
    "BinaryQuantization": "binary quantization, and compresses by product alone",
    "TurboQuantization": "TurboQuant, and compresses by product alone",
    "quantization_config": "another quantization of a collection that is there",
    "DiscoverQuery": "discovery", "ContextQuery": "context search", "FusionQuery": "fusion", "RrfQuery": "fusion",
    "FormulaQuery": "formulas of scores", "TextQuery": "text search",
    "RelevanceFeedbackQuery": "relevance feedback", "Document": "inference: it takes vectors, not documents",
    "Image": "inference: it takes vectors, not images", "InferenceObject": "inference: it takes vectors",
    "GeoIndexParams": "indexes of places", "SliceCondition": "slices",
    "TextIndexParams": "indexes of text", "ignore": "original vectors, which quantization.ignore would compare",
    "indexed_only": "searches that leave vectors out", "acorn": "ACORN", "idf": "sparse vectors, which idf is for",
    "prefix": "indexes of prefixes", "nested": "indexes of nested fields",
}  # fmt: skip


class UnsupportedError(ConfigError):
    """A request asks for what only Qdrant has."""

    def __init__(self, what: str, place: str):
        super().__init__(f"qinco does not have {what}: leave {place} out")


def refuse_unsupported(value: Any, place: str = "it") -> None:
    """Raise UnsupportedError for the first part of a body that the server would not understand.

    Example:
        >>> refuse_unsupported(m.CountRequest(shard_key="a"))  # doctest: +SKIP
        qinco does not have shard keys: leave shard_key out
    """
    if isinstance(value, BaseModel):
        _check_model(value, place)
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, float | int | str):  # vectors, ids and names
                break
            refuse_unsupported(one, place)
    elif isinstance(value, dict):
        for one in value.values():
            refuse_unsupported(one, place)


def _check_model(model: BaseModel, place: str) -> None:
    kind = type(model)
    known = SUPPORTED.get(kind)
    if known is None:
        raise UnsupportedError(_NAMES.get(kind.__name__, kind.__name__), place)
    for name in sorted(model.model_fields_set):
        value = getattr(model, name)
        if value is None or "*" in known:
            continue
        if name not in known:
            if value == kind.model_fields[name].default or value in ([], {}):
                continue
            raise UnsupportedError(_NAMES.get(name, name), name)
        if name not in _JSON and not isinstance(value, str | int | float | Enum):
            refuse_unsupported(value, name)


HINTS = {
    "hnsw_config": "there is no HNSW graph of vectors",
    "wal_config": "SQLite keeps the log",
    "optimizers_config": "optimize runs when it is asked for",
    "on_disk": "codes lie on disk and are mapped into memory",
    "on_disk_payload": "payload lies on disk",
    "memory": "codes lie on disk and are mapped into memory",
    "payload": "payload lies on disk",
    "id_tracker": "ids lie on disk",
}


def ignored_hints(body: Any) -> list[str]:
    """What a body says about storage or speed alone and has no effect: it is said in a collection's warnings."""
    given = {name for name in body.model_fields_set if getattr(body, name) is not None}
    vectors = getattr(body, "vectors", None)
    for params in vectors.values() if isinstance(vectors, dict) else [vectors]:
        if params is not None:
            given |= {name for name in params.model_fields_set if getattr(params, name) is not None}
    return [f"{name} has no effect: {HINTS[name]}" for name in sorted(given & HINTS.keys())]
