import numpy as np
import pytest
import torch
from small_indexes import DIM, trained, vectors

from qinco.collection.collection import Collection
from qinco.errors import ConfigError, DataError
from qinco.integrations.late_interaction import LateInteractionIndex, LateInteractionRetriever, rerank

NUM_DOCUMENTS = 60


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=-1, keepdims=True)


def make_documents(normalized: bool = True) -> list[np.ndarray]:
    """Of one to nine tokens each."""
    sizes = np.random.default_rng(1).integers(1, 10, NUM_DOCUMENTS)
    x_ND = vectors(int(sizes.sum()), 3)
    return np.split(unit(x_ND) if normalized else x_ND, np.cumsum(sizes)[:-1])


def make_queries(count: int = 4, tokens: int = 5) -> np.ndarray:
    return unit(vectors(count * tokens, 7)).reshape(count, tokens, DIM)


def exact(query_TD, documents) -> np.ndarray:
    """MaxSim of every document by its definition."""
    return np.array([(query_TD.astype(np.float64) @ tokens_nD.T).max(1).sum() for tokens_nD in documents])


def ids_of(rankings) -> list[list]:
    return [[hit["id"] for hit in ranking] for ranking in rankings]


def check_same(found, expected) -> None:
    """But for rounding, which depends on how many queries are multiplied at once."""
    assert ids_of(found) == ids_of(expected)
    for ranking, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([hit["score"] for hit in ranking], [hit["score"] for hit in other], rtol=1e-5)


@pytest.fixture
def filled(tmp_path):
    index = LateInteractionIndex(tmp_path, "colbert")
    names = [f"d{number}" for number in range(NUM_DOCUMENTS)]
    assert index.add_documents(names, make_documents()) is index
    yield index
    index.close()


def test_documents_are_found_by_maxsim(filled):
    queries, documents = make_queries(), make_documents()
    found = filled(queries, k=10)
    for query_TD, ranking in zip(queries, found, strict=True):
        scores_P = exact(query_TD, documents)
        best = np.argsort(-scores_P)[:10]
        assert [hit["id"] for hit in ranking] == [f"d{place}" for place in best]
        np.testing.assert_allclose([hit["score"] for hit in ranking], scores_P[best], rtol=1e-5)


def test_queries_come_in_all_shapes_of_pylate(filled):
    queries = make_queries()
    expected = filled(queries, k=3)
    for given in (list(queries), list(torch.from_numpy(queries)), torch.from_numpy(queries), queries.tolist()):
        check_same(filled(given, k=3), expected)
    for one in (queries[0], torch.from_numpy(queries[0]), [queries[0]], queries[:1]):
        check_same(filled(one, k=3), expected[:1])
    assert filled([], k=3) == []
    ragged = [queries[0], queries[1][:2]]
    check_same(filled(ragged, k=3)[:1], expected[:1])
    assert len(filled(queries[0], k=1000)[0]) == NUM_DOCUMENTS


def test_subsets_are_of_all_queries_or_of_each(filled):
    queries = make_queries(2)
    assert {*ids_of(filled(queries, subset=["d3", "d5", "unknown"]))[1]} == {"d3", "d5"}
    each = ids_of(filled(queries, subset=[["d3"], ["d5", "d7"]]))
    assert each[0] == ["d3"] and {*each[1]} == {"d5", "d7"}
    assert filled(queries, subset=[]) == [[], []]
    with pytest.raises(DataError, match="each of 2 queries, not 1"):
        filled(queries, subset=[["d3"]])


def test_documents_are_replaced_removed_and_there_again(filled, tmp_path):
    documents, queries = make_documents(), make_queries(1)
    filled.add_documents("d0", queries[0])
    assert ids_of(filled(queries, k=1)) == [["d0"]] and len(filled) == NUM_DOCUMENTS
    assert filled.remove_documents(["d0", "unknown"]) is filled and len(filled) == NUM_DOCUMENTS - 1
    filled.close()
    with LateInteractionIndex(tmp_path, "colbert").collection as collection:
        assert "d0" not in collection and len(collection) == NUM_DOCUMENTS - 1
    again = LateInteractionIndex(tmp_path, "colbert", override=True)
    assert len(again) == 0 and again(queries) == [[]]
    again.add_documents(range(3), documents[:3])
    assert {*ids_of(again(queries))[0]} == {0, 1, 2}
    again.close()


def test_embeddings_come_back_by_groups_of_ids(filled):
    documents = make_documents()
    first, second = filled.get_documents_embeddings([["d2", "d1"], ["d2"]])
    np.testing.assert_allclose(first[0], documents[2], rtol=1e-5)
    np.testing.assert_allclose(first[1], documents[1], rtol=1e-5)
    np.testing.assert_array_equal(first[0], second[0])
    with pytest.raises(DataError, match="'d99'"):
        filled.get_documents_embeddings([["d99"]])


def test_compressed_tokens_are_ranked_by_what_they_decode_to(tmp_path):
    documents, queries = make_documents(normalized=False), make_queries()
    index = LateInteractionIndex(tmp_path, codec=trained("plain"))
    index.add_documents(range(NUM_DOCUMENTS), documents)
    assert index.collection.stats()["fresh"] == 0
    decoded = index.get_documents_embeddings([range(NUM_DOCUMENTS)])[0]
    found = index.rerank([range(NUM_DOCUMENTS)] * len(queries), queries)
    for query_TD, ranking in zip(queries, found, strict=True):
        scores_P = exact(query_TD, decoded)
        np.testing.assert_allclose([hit["score"] for hit in ranking], np.sort(scores_P)[::-1], rtol=1e-4)
        np.testing.assert_allclose([scores_P[hit["id"]] for hit in ranking], np.sort(scores_P)[::-1], rtol=1e-4)
    assert ids_of(index(queries, k=5, candidates=1000)) == [ids[:5] for ids in ids_of(found)]
    index.close()


def test_the_retriever_finds_what_the_index_finds(filled):
    queries = make_queries()
    retriever = LateInteractionRetriever(index=filled)
    expected = filled(queries, k=4)
    check_same(retriever.retrieve(queries_embeddings=queries, k=4, device="cpu"), expected)
    check_same(retriever.retrieve(queries, k=4, k_token=500, batch_size=3), expected)
    assert len(retriever.retrieve(queries, k=4, k_token=1)[0]) == 4
    subset = [[f"d{row}", "d9"] for row in range(4)]
    check_same(retriever.retrieve(queries, k=4, batch_size=3, subset=subset), filled(queries, k=4, subset=subset))
    check_same(retriever.retrieve(queries, batch_size=3, subset=["d9"]), filled(queries, subset=["d9"]))


def test_candidates_are_ranked_by_given_tokens_or_by_their_codes():
    documents, queries, codec = make_documents(normalized=False), make_queries(2), trained("plain")
    groups = [[5, 3, 8], [1, 0]]
    given = [[documents[id] for id in group] for group in groups]
    codes = [[codec.encode(one) for one in group] for group in given]
    decoded = [[codec.decode(one) for one in group] for group in codes]
    tensors = [list(map(torch.tensor, group)) for group in given]
    plain = [[np.asarray(one.codes) for one in group] for group in codes]
    for tokens, compared, options in ((given, given, {}), (tensors, given, {}), (codes, decoded, {"codec": codec}),
                                      (plain, decoded, {"codec": codec})):  # fmt: skip
        found = rerank(documents_ids=groups, queries_embeddings=queries, documents_embeddings=tokens, **options)
        for query_TD, group, some, ranking in zip(queries, groups, compared, found, strict=True):
            scores = dict(zip(group, exact(query_TD, some), strict=True))
            assert [hit["id"] for hit in ranking] == sorted(group, key=scores.get, reverse=True)
            np.testing.assert_allclose([hit["score"] for hit in ranking], sorted(scores.values())[::-1], rtol=1e-4)


def test_codes_with_list_numbers_are_decoded_with_them():
    documents, queries, codec = make_documents(normalized=False), make_queries(1), trained("ivf")
    codes = [codec.encode(one) for one in documents[:4]]
    (ranking,) = rerank([range(4)], queries, [codes], codec=codec)
    scores_P = exact(queries[0], [codec.decode(one) for one in codes])
    np.testing.assert_allclose([hit["score"] for hit in ranking], np.sort(scores_P)[::-1], rtol=1e-4)


def test_candidates_without_tokens_come_last(filled):
    queries = make_queries(1)
    filled.add_documents(["empty"], [np.empty((0, DIM), np.float32)])
    assert ids_of(filled.rerank([["empty", "d1"]], queries)) == [["d1"]]
    assert filled.rerank([[]], queries) == [[]]
    assert filled.get_documents_embeddings([["empty"]])[0][0].shape == (0, DIM)
    (ranking,) = rerank([["a", "b"]], queries, [[np.empty((0, DIM), np.float32), make_documents()[0]]])
    assert [hit["id"] for hit in ranking] == ["b", "a"] and ranking[1]["score"] == -np.inf


def test_what_does_not_fit_is_refused(filled, tmp_path):
    queries = make_queries(2)
    with pytest.raises(DataError, match="dimension 6"):
        rerank([["a"]], queries[:1, :, :2], [[make_documents()[0]]])
    with pytest.raises(DataError, match="each of 2 queries, not 1"):
        rerank([["a"]], queries, [[make_documents()[0]]] * 2)
    with pytest.raises(DataError, match="1 documents_ids, and 2"):
        rerank([["a"]], queries[:1], [make_documents()[:2]])
    with pytest.raises(DataError, match="NaN"):
        filled(np.full((2, DIM), np.nan))
    with pytest.raises(DataError, match="hold a token"):
        filled([np.empty((0, DIM))])
    with (
        Collection.create(tmp_path / "single.qinco") as collection,
        pytest.raises(ConfigError, match="multi=true"),
    ):
        LateInteractionIndex(collection=collection)
