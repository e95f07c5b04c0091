import pytest

pytest.importorskip("qdrant_client")

from qdrant_client.http import models as m

from qinco.errors import ConfigError
from qinco.server.refusals import SUPPORTED, ignored_hints, refuse_unsupported

VECTOR = m.VectorParams(size=4, distance=m.Distance.COSINE)
REFUSED = {
    "shard keys": m.CountRequest(shard_key="a"),
    "prefetches": m.QueryRequest(query=[1.0], prefetch=m.Prefetch(query=[1.0])),
    "sparse vectors": m.CreateCollection(vectors=VECTOR, sparse_vectors={"s": m.SparseVectorParams()}),
    "multivectors": m.CreateCollection(vectors={"a": m.VectorParams(
        size=4, distance="Dot", multivector_config=m.MultiVectorConfig(comparator="max_sim"))}),
    "scalar quantization": m.CreateCollection(
        vectors=VECTOR, quantization_config=m.ScalarQuantization(scalar=m.ScalarQuantizationConfig(type="int8"))
    ),
    "fusion": m.QueryRequest(query=m.FusionQuery(fusion=m.Fusion.RRF)),
    "discovery": m.QueryRequest(query=m.DiscoverQuery(discover=m.DiscoverInput(target=1, context=[]))),
    "documents": m.QueryRequest(query=m.Document(text="a", model="b")),
    "original vectors": m.QueryRequest(
        query=[1.0], params=m.SearchParams(quantization=m.QuantizationSearchParams(ignore=True))
    ),
    "slices": m.CountRequest(filter=m.Filter(must=[m.SliceCondition(slice=m.Slice(total=2, index=1))])),
    "indexes of text": m.CreateFieldIndex(field_name="a", field_schema=m.TextIndexParams(type="text")),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_only_qdrant_has_is_refused_by_name(what):
    with pytest.raises(ConfigError, match=f"does not have .*{what}.*: leave .* out"):
        refuse_unsupported(REFUSED[what])


@pytest.mark.parametrize("body", [
    m.CountRequest(shard_key=None, filter=None, exact=False),
    m.QueryRequest(query=[1.0, 2.0], prefetch=[], params=m.SearchParams(indexed_only=False, exact=True)),
    m.PointsList(points=[m.PointStruct(id=1, vector={"a": [1.0]}, payload={"shard_key": {"geo_radius": 1}})]),
    m.CreateCollection(vectors={"a": VECTOR}, metadata={"sparse_vectors": 1}, hnsw_config=m.HnswConfigDiff(m=4)),
])  # fmt: skip
def test_what_is_not_asked_for_is_not_refused(body):
    refuse_unsupported(body)


def test_all_names_are_fields_of_their_models():
    for model, names in SUPPORTED.items():
        assert names == {"*"} or names <= set(model.model_fields), model


def test_hints_that_have_no_effect_are_said():
    body = m.CreateCollection(vectors={"a": m.VectorParams(size=4, distance="Dot", on_disk=True)},
                              hnsw_config=m.HnswConfigDiff(m=4))  # fmt: skip
    assert [hint.split()[0] for hint in ignored_hints(body)] == ["hnsw_config", "on_disk"]
