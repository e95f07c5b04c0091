"""`qinco.integrations.sentence_transformers` with a stand-in for a model; the real one is in tests/integrations."""

import numpy as np
import pandas
import pytest
import torch
from small_indexes import DIM, built, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.integrations.sentence_transformers import encode_to, quantize_embeddings, semantic_search_qinco


class Model:
    """The embedding of the text "7" is row 7."""

    def __init__(self, dim: int = DIM):
        self.dim, self.calls, self.stops_after = dim, [], None

    def encode(self, texts, batch_size, show_progress_bar, **settings):
        self.calls.append((len(texts), batch_size, settings))
        if self.stops_after is not None and sum(count for count, *_ in self.calls) > self.stops_after:
            raise KeyboardInterrupt
        return vectors(20_000)[[int(text) for text in texts], : self.dim]


TEXTS = [str(number) for number in range(9000)]


def test_embeddings_of_any_kind_become_codes():
    codec, x = trained("plain"), vectors(50)
    expected = codec.encode(x).codes
    for given in (x, torch.tensor(x), list(x), list(map(torch.tensor, x))):
        codes = quantize_embeddings(given, codec)
        assert isinstance(codes, np.ndarray) and codes.dtype == np.uint8
        np.testing.assert_array_equal(codes, expected)
    with pytest.raises(ConfigError, match="IVF"):
        quantize_embeddings(x, trained("ivf"))


def test_results_have_the_shape_of_sentence_transformers():
    index, queries = built(), vectors(4, 3)
    hits, seconds = semantic_search_qinco(queries, corpus_index=index, top_k=5, nprobe=12)
    scores, ids = index.search(queries, 5, nprobe=12)
    assert seconds > 0 and [[hit["corpus_id"] for hit in row] for row in hits] == ids.tolist()
    assert [[hit["score"] for hit in row] for row in hits] == scores.tolist()
    assert type(hits[0][0]["corpus_id"]) is int and type(hits[0][0]["score"]) is float
    for one in (queries[0], torch.tensor(queries[0])):
        assert semantic_search_qinco(one, corpus_index=index, top_k=5, nprobe=12)[0] == hits[:1]
    few, _ = semantic_search_qinco(queries, corpus_index=index, top_k=5, filter=[3, 4])
    assert [sorted(hit["corpus_id"] for hit in row) for row in few] == [[3, 4]] * 4


def test_a_corpus_is_embeddings_or_their_codes():
    codec, x, queries = trained("plain"), vectors(), vectors(20, 3)
    hits, _, index = semantic_search_qinco(queries, x, codec=codec, output_index=True, nprobe=1000)
    assert isinstance(index, qinco.Index) and (len(index), index.metric) == (len(x), "cosine")
    expected = qinco.Index.build(codec, x, metric="cosine").search(queries, 10, nprobe=1000)[1]
    assert [[hit["corpus_id"] for hit in row] for row in hits] == expected.tolist()

    options = {"metric": "inner_product", "nprobe": 1000, "num_short": 1500, "ranking": "decoded"}
    for codes in (codec.encode(x), quantize_embeddings(x, codec), torch.tensor(quantize_embeddings(x, codec))):
        hits, _, index = semantic_search_qinco(queries, codes, codec=codec, output_index=True, **options)
        products = queries @ codec.decode(codec.encode(x)).T
        np.testing.assert_allclose(index[3], codec.decode(codec.encode(x))[3], rtol=1e-5)
        for row, products_N in zip(hits, products, strict=True):
            assert row[0]["score"] == pytest.approx(products_N.max(), rel=1e-4)
            assert products_N[row[0]["corpus_id"]] == pytest.approx(products_N.max(), rel=1e-4)


@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_texts_are_written_as_codes(kind, tmp_path):
    codec, model = trained(kind), Model()
    result = encode_to(model, TEXTS, tmp_path / "codes", codec, batch_size=7, prompt_name="query")
    assert (result.num_vectors, result.complete) == (9000, True)
    assert {(size, tuple(settings)) for _, size, settings in model.calls} == {(7, ("prompt_name",))}
    expected = codec.encode(vectors(20_000)[:9000])
    there = qinco.Codes.load(tmp_path / "codes")
    np.testing.assert_array_equal(there.codes, expected.codes)
    if kind == "ivf":
        np.testing.assert_array_equal(np.ravel(there.lists), expected.lists)


def test_an_interruption_is_continued(tmp_path):
    codec, model = trained("plain"), Model()
    model.stops_after = 6000
    with pytest.raises(KeyboardInterrupt):
        encode_to(model, TEXTS, tmp_path / "codes", codec)
    again = Model()
    result = encode_to(again, TEXTS, tmp_path / "codes", codec, resume=True)
    assert result.complete and result.num_done < 9000
    np.testing.assert_array_equal(
        qinco.Codes.load(tmp_path / "codes").codes, codec.encode(vectors(20_000)[:9000]).codes
    )


def test_columns_of_tables_are_texts(tmp_path):
    column = pandas.Series(TEXTS[:20], index=range(100, 120))
    encode_to(Model(), column, tmp_path / "codes.npy", trained("plain"))
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), trained("plain").encode(vectors(20_000)[:20]).codes)


def test_what_does_not_fit_is_refused(tmp_path):
    codec, x = trained("plain"), vectors(5)
    with pytest.raises(ConfigError, match="codec="):
        semantic_search_qinco(x, x)
    with pytest.raises(ConfigError, match="either"):
        semantic_search_qinco(x)
    with pytest.raises(ConfigError, match="either"):
        semantic_search_qinco(x, x, built())
    with pytest.raises(DataError, match=rf"\(20, {DIM}\), for the codec, not \(20, 3\)"):
        encode_to(Model(3), TEXTS[:20], tmp_path / "codes", codec)
    for texts in ("text", iter(TEXTS)):
        with pytest.raises(ConfigError, match="sequence"):
            encode_to(Model(), texts, tmp_path / "codes", codec)
    assert not (tmp_path / "codes").exists()
