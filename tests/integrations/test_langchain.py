"""`QincoVectorStore` beside LangChain's own suite, with vectors as they were given and with compressed ones."""

import numpy as np
import pytest
from compressed import empty

pytest.importorskip("langchain_tests", reason="the extra integrations is not installed")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests.vectorstores import EMBEDDING_SIZE, VectorStoreIntegrationTests

from qinco import Collection, ConfigError
from qinco.integrations.langchain import QincoVectorStore

EMBEDDINGS = DeterministicFakeEmbedding(size=EMBEDDING_SIZE)
DOCUMENTS = [
    Document(id=f"{n}", page_content=f"text {n}", metadata={"year": 2000 + n, "tags": ["odd"] * (n % 2)})
    for n in range(12)
]


class TestExact(VectorStoreIntegrationTests):
    kind = "exact"

    @pytest.fixture
    def vectorstore(self, tmp_path):
        with empty(self.kind, tmp_path / "a.qinco", EMBEDDING_SIZE) as collection:
            yield QincoVectorStore(self.get_embeddings(), collection=collection)


class TestCompressed(TestExact):
    kind = "compressed"


@pytest.fixture(params=["exact", "compressed"])
def store(request, tmp_path):
    with empty(request.param, tmp_path / "a.qinco", EMBEDDING_SIZE) as collection:
        store = QincoVectorStore(EMBEDDINGS, collection=collection)
        store.add_documents(DOCUMENTS)
        yield store


def ids(documents) -> set[str]:
    return {one.id for one in documents}


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"year": {"gte": 2010}}, {"10", "11"}),
        ({"$or": [{"year": 2003}, {"$not": {"year": {"lt": 2011}}}]}, {"3", "11"}),
        ({"tags": "odd", "year": {"lt": 2004}}, {"1", "3"}),
        ({"$id": ["4", "x"]}, {"4"}),
        (lambda document: document.metadata["year"] % 5 == 0, {"0", "5", "10"}),
        (lambda document: document.page_content.endswith("7"), {"7"}),
    ],
)
def test_filters(store, filter, expected):
    assert ids(store.similarity_search("text", k=12, filter=filter)) == expected
    assert ids(store.max_marginal_relevance_search("text", k=12, filter=filter)) == expected
    vector = EMBEDDINGS.embed_query("text")
    assert ids(store.similarity_search_by_vector(vector, k=12, filter=filter)) == expected


def test_fields_with_an_index_are_compared_by_their_kind(tmp_path):
    store = QincoVectorStore(EMBEDDINGS, tmp_path / "a.qinco", fields={"metadata.at": "datetime"})
    store.add_texts(["a", "b"], [{"at": "2024-05-01T12:00:00+02:00"}, {"at": "2024-05-01T12:00:00Z"}])
    found = store.similarity_search("a", filter={"at": {"lt": "2024-05-01T11:00:00Z"}})
    assert [one.page_content for one in found] == ["a"]


def test_scores_and_relevance(store):
    found = store.similarity_search_with_score("text 3", k=3)
    assert found[0][0].id == "3" and found[0][1] == pytest.approx(1, abs=0.1)
    relevance = store.similarity_search_with_relevance_scores("text 3", k=12)
    assert [one.id for one, _ in relevance][:3] == [one.id for one, _ in found]
    assert all(0 <= score <= 1 for _, score in relevance)
    assert ids(
        one for one, _ in store.similarity_search_with_relevance_scores("text 3", k=12, score_threshold=0.9)
    ) >= {"3"}


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_relevance_falls_with_rank_for_every_metric(metric):
    store = QincoVectorStore(EMBEDDINGS, metric=metric)
    store.add_documents(DOCUMENTS)
    scores = [score for _, score in store.similarity_search_with_relevance_scores("text 3", k=12)]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= 0 and scores[0] <= 1


def test_marginal_relevance(store):
    store.add_documents([Document(id="twin", page_content="text 3", metadata={"year": 1999})])
    nearest = store.max_marginal_relevance_search("text 3", k=2, lambda_mult=1.0)
    assert ids(nearest) == {"3", "twin"}
    assert ids(store.max_marginal_relevance_search("text 3", k=2, lambda_mult=0.3)) != {"3", "twin"}


def test_search_options_reach_the_collection(store):
    assert store.similarity_search("text 3", k=1, exact=True)[0].id == "3"
    with pytest.raises(TypeError, match="no_such_option"):
        store.similarity_search("text 3", no_such_option=1)


def test_a_folder_is_opened_again(tmp_path):
    folder = tmp_path / "a.qinco"
    first = QincoVectorStore(EMBEDDINGS, folder, metric="cosine")
    first.add_documents(DOCUMENTS)
    assert QincoVectorStore(EMBEDDINGS, folder).collection is first.collection
    expected = first.similarity_search_with_score("text 5", k=12)
    first.collection.close()
    with QincoVectorStore(EMBEDDINGS, folder).collection as collection:
        again = QincoVectorStore(EMBEDDINGS, collection=collection)
        assert again.similarity_search_with_score("text 5", k=12) == expected
        reader = QincoVectorStore(EMBEDDINGS, folder, read_only=True)
        assert reader.similarity_search("text 5", k=1)[0].id == "5"
        with pytest.raises(ConfigError, match="read_only"):
            reader.add_texts(["more"])
        with pytest.raises(ConfigError, match="metric"):
            QincoVectorStore(EMBEDDINGS, folder, metric="l2")


def test_wrong_arguments_are_refused(tmp_path):
    with Collection.create(tmp_path / "a.qinco") as collection:
        with pytest.raises(ConfigError, match="collection="):
            QincoVectorStore(EMBEDDINGS, tmp_path / "b.qinco", collection=collection)
        store = QincoVectorStore(EMBEDDINGS, collection=collection)
        with pytest.raises(ConfigError, match="2, not 1"):
            store.add_documents(DOCUMENTS[:2], ids=["a"])
        assert store.add_documents([]) == [] and len(collection) == 0


def test_a_retriever_in_a_chain():
    store = QincoVectorStore.from_texts(
        ["Ada wrote programs.", "Grace wrote compilers."], EMBEDDINGS, [{"year": 1843}, {"year": 1952}], ids=["a", "g"]
    )
    retriever = store.as_retriever(search_kwargs={"k": 1, "filter": {"year": {"gt": 1900}}})
    chain = retriever | RunnableLambda(lambda documents: " ".join(one.page_content for one in documents))
    assert chain.invoke("Ada wrote programs.") == "Grace wrote compilers."
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 2})
    assert ids(diverse.invoke("anything")) == {"a", "g"}
    sure = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99})
    assert ids(sure.invoke("Ada wrote programs.")) == {"a"}


async def test_async_searches(store):
    found = await store.asimilarity_search("text 3", k=1, filter={"year": {"gt": 2000}})
    assert found[0].id == "3"
    assert np.isclose((await store.asimilarity_search_with_score("text 3", k=1))[0][1], 1, atol=0.1)
