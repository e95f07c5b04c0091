import numpy as np
import pytest

from qinco.decoders import pairwise
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import LIST_STREAMS, PairwiseDecoder, quantize_lists
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.native import tables

STEPS, SIZE, DIM = 3, 8, 6


def sample(count=4000, num_lists=5, interaction=1.0, seed=0):
    """Codes, lists (or None), centroids (or None) and vectors in which steps 0 and 2 interact."""
    generator = np.random.default_rng(1)
    tables_MKD = generator.standard_normal((STEPS, SIZE, DIM))
    joint_KKD = generator.standard_normal((SIZE, SIZE, DIM)) * interaction
    centroids_VD = (generator.standard_normal((num_lists, DIM)) * 9).astype(np.float32)
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, SIZE, (count, STEPS)).astype(np.uint8)
    x_ND = sum(tables_MKD[m][codes[:, m]] for m in range(STEPS)) + joint_KKD[codes[:, 0], codes[:, 2]]
    x_ND += generator.standard_normal((count, DIM)) * 0.3
    if not num_lists:
        return codes, None, None, x_ND.astype(np.float32)
    lists = generator.integers(0, num_lists, count)
    return codes, lists, centroids_VD, (x_ND + centroids_VD[lists]).astype(np.float32)


def fitted(codes, lists, centroids_VD, x_ND, **options):
    lookup = LookupDecoder.fit([(codes, lists, x_ND)], codes.shape[1], SIZE, centroids_VD)
    return lookup, PairwiseDecoder.fit(codes, lists, x_ND, lookup, **options)


def error(decoder, codes, lists, x_ND):
    return float(np.square(decoder.decode(codes, lists) - x_ND).sum(1).mean())


@pytest.mark.parametrize("num_lists", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_finds_what_codes_say_together(num_lists, dtype):
    lookup, decoder = fitted(*sample(num_lists=num_lists), dtype=dtype)
    assert (0, 2) in {tuple(sorted(pair)) for pair in decoder.pairs_P2.tolist()}
    codes, lists, _, x_ND = sample(1000, num_lists, seed=2)
    noise = DIM * 0.3**2
    assert error(lookup, codes, lists, x_ND) > 6 * noise
    assert error(decoder, codes, lists, x_ND) < 1.3 * noise
    assert decoder.tables_PJD.dtype == dtype and decoder.num_lists == num_lists
    size = decoder.num_pairs * SIZE**2 * DIM * np.dtype(dtype).itemsize
    assert decoder.tables_PJD.nbytes == size == decoder.num_pairs * SIZE**2 * DIM * np.dtype(dtype).itemsize


def test_a_decoded_vector_is_the_sum_of_its_rows():
    codes, lists, centroids_VD, x_ND = sample(2500)
    _, decoder = fitted(codes, lists, centroids_VD, x_ND, num_pairs=4)
    assert 1 <= decoder.num_pairs <= 4
    streams = np.concatenate([codes, decoder.list_codes_VI[lists]], 1).astype(np.int64)
    wanted = centroids_VD[lists] + sum(decoder.tables_MKD[m][codes[:, m]] for m in range(STEPS))
    for (a, b), table_JD in zip(decoder.pairs_P2, decoder.tables_PJD, strict=True):
        wanted += table_JD[streams[:, a] * SIZE + streams[:, b]] * decoder.scale
    np.testing.assert_allclose(decoder.decode(codes, lists), wanted, rtol=1e-5, atol=1e-5)
    assert decoder.decode(codes[:0], lists[:0]).shape == (0, DIM)


def test_where_codes_say_nothing_together_it_is_the_lookup_decoder():
    lookup, decoder = fitted(*sample(interaction=0.0))
    codes, lists, _, x_ND = sample(2000, interaction=0.0, seed=2)
    assert error(decoder, codes, lists, x_ND) <= 1.002 * error(lookup, codes, lists, x_ND)


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_few_vectors_add_no_noise(count):
    lookup, decoder = fitted(*sample(count))
    codes, lists, _, x_ND = sample(2000, seed=2)
    assert np.isfinite(decoder.decode(codes, lists)).all()
    assert error(decoder, codes, lists, x_ND) <= 1.02 * error(lookup, codes, lists, x_ND)


def test_a_single_code_has_no_pairs():
    codes, _, _, x_ND = sample(500, 0)
    lookup, decoder = fitted(codes[:, :1], None, None, x_ND)
    assert decoder.pairs_P2.shape == (0, 2) and decoder.tables_PJD.shape == (0, SIZE**2, DIM)
    np.testing.assert_array_equal(decoder.decode(codes[:, :1]), lookup.decode(codes[:, :1]))


@pytest.mark.parametrize("factor", [1e-30, 1e15])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_very_small_and_very_large_vectors(factor, dtype):
    codes, lists, centroids_VD, x_ND = sample(2500)
    factor = np.float32(factor)
    _, decoder = fitted(codes, lists, centroids_VD * factor, x_ND * factor, dtype=dtype)
    found = decoder.decode(codes, lists)
    assert np.square(found / factor - x_ND).sum(1).mean() < 1.3 * DIM * 0.3**2


def test_rounds_are_heard_and_lower_the_error():
    heard = []
    codes, lists, centroids_VD, x_ND = sample()
    fitted(
        codes, lists, centroids_VD, x_ND, num_pairs=3, progress=lambda *told, residual: heard.append((*told, residual))
    )
    assert [done for _, done, *_ in heard] == list(range(1, len(heard) + 1))
    assert {total for _, _, total, *_ in heard} == {3}
    errors = [residual for *_, residual in heard]
    assert errors == sorted(errors, reverse=True) and errors[-1] == pytest.approx(DIM * 0.3**2, rel=0.3)


def test_the_same_seed_gives_the_same_decoder_and_inputs_stay_as_they_are():
    inputs = sample(2500)
    before = [array.copy() for array in inputs]
    first, second = (fitted(*inputs, seed=3)[1] for _ in range(2))
    np.testing.assert_array_equal(first.tables_PJD, second.tables_PJD)
    np.testing.assert_array_equal(first.pairs_P2, second.pairs_P2)
    for array, old in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_numpy_alone_gives_the_same_decoder(monkeypatch):
    codes, lists, centroids_VD, x_ND = sample(2500)
    _, first = fitted(codes, lists, centroids_VD, x_ND)
    decoded = first.decode(codes, lists)
    monkeypatch.setattr(tables, "compiled", lambda: None)
    np.testing.assert_allclose(first.decode(codes, lists), decoded, rtol=1e-5)
    _, second = fitted(codes, lists, centroids_VD, x_ND)
    np.testing.assert_array_equal(first.pairs_P2, second.pairs_P2)
    np.testing.assert_allclose(second.decode(codes, lists), decoded, atol=1e-4)


def test_lists_have_streams_of_their_own():
    centroids_VD = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32) * 50 + 1000
    for size in (4, 32):
        codes_VI, books_IKD = quantize_lists(centroids_VD, size)
        assert codes_VI.shape == (20, LIST_STREAMS) and codes_VI.dtype == np.uint8 and codes_VI.max() < size
        sums_VD = sum(books_IKD[i][codes_VI[:, i]] for i in range(LIST_STREAMS))
        left = np.square(centroids_VD - centroids_VD.mean(0) - sums_VD).sum()
        assert left < 0.1 * np.square(centroids_VD - centroids_VD.mean(0)).sum()
    assert len(np.unique(codes_VI[:, 0])) == 20  # more codewords than lists: the first stream tells them apart


def test_large_codebooks_are_refused_with_the_reason():
    codes = np.zeros((10, 2), np.uint16)
    lookup = LookupDecoder(np.zeros((2, 512, 3), np.float32))
    with pytest.raises(ConfigError, match="K=512"):
        PairwiseDecoder.fit(codes, None, np.zeros((10, 3), np.float32), lookup)


def test_too_little_memory_is_told_before_the_work(monkeypatch):
    monkeypatch.setattr(pairwise, "free_memory", lambda: 1 << 20)
    codes, lists, centroids_VD, x_ND = sample(100)
    lookup = LookupDecoder(np.zeros((STEPS, SIZE, DIM), np.float32), centroids_VD)
    with pytest.raises(ResourceError, match="num_pairs=1000000"):
        PairwiseDecoder.fit(codes, lists, x_ND, lookup, num_pairs=1_000_000)
    monkeypatch.setattr(pairwise, "free_memory", lambda: 1 << 40)
    assert PairwiseDecoder.fit(codes, lists, x_ND, lookup, num_pairs=0).num_pairs == 0


def test_what_does_not_fit_is_refused():
    codes, lists, centroids_VD, x_ND = sample(2500)
    lookup, decoder = fitted(codes, lists, centroids_VD, x_ND)
    with pytest.raises(DataError, match="lists"):
        decoder.decode(codes)
    with pytest.raises(DataError, match="row 0 is 5"):
        decoder.decode(codes[:1], np.array([5]))
    with pytest.raises(DataError, match="0 to 7"):
        decoder.decode(codes[:1] + 8, lists[:1])
    with pytest.raises(DataError, match=r"shape \(2500, 6\).* not \(2500, 5\)"):
        PairwiseDecoder.fit(codes, lists, x_ND[:, :5], lookup)
    with pytest.raises(DataError, match="not finite"):
        PairwiseDecoder.fit(codes, lists, np.where(x_ND > 3, np.nan, x_ND), lookup)
