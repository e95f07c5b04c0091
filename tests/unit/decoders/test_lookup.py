import numpy as np
import pytest

from qinco.decoders.lookup import LookupDecoder
from qinco.errors import DataError

STEPS, SIZE, DIM, LISTS = 3, 16, 4, 6


@pytest.fixture(scope="module")
def sample():
    """Codes, lists, centroids, and vectors that tables explain but for some noise."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, SIZE, (6000, STEPS)).astype(np.uint8)
    lists = generator.integers(0, LISTS, 6000).astype(np.int32)
    centroids_VD = (generator.standard_normal((LISTS, DIM)) * 20).astype(np.float32)
    tables_MKD = generator.standard_normal((STEPS, SIZE, DIM))
    x_ND = centroids_VD[lists] + sum(tables_MKD[m][codes[:, m]] for m in range(STEPS))
    x_ND += generator.standard_normal(x_ND.shape) * 0.1
    return codes, lists, centroids_VD, x_ND.astype(np.float32)


@pytest.fixture(scope="module")
def decoder(sample):
    codes, lists, centroids_VD, x_ND = sample
    blocks = [(codes[:2000], lists[:2000], x_ND[:2000]), (codes[2000:5000], lists[2000:5000], x_ND[2000:5000])]
    return LookupDecoder.fit(blocks, STEPS, SIZE, centroids_VD)


def test_it_decodes_vectors_that_it_has_not_seen(sample, decoder):
    codes, lists, _, x_ND = (array[5000:] if len(array) > LISTS else array for array in sample)
    found = decoder.decode(codes, lists)
    assert found.dtype == np.float32 and found.shape == x_ND.shape
    assert np.square(found - x_ND).sum(1).mean() < 1.1 * DIM * 0.1**2


def test_a_decoded_vector_is_its_centroid_and_its_rows(sample, decoder):
    codes, lists, centroids_VD, _ = sample
    wanted = centroids_VD[lists] + sum(decoder.tables_MKD[m][codes[:, m]] for m in range(STEPS))
    np.testing.assert_allclose(decoder.decode(codes, lists), wanted, rtol=1e-5, atol=1e-5)
    alone = LookupDecoder(decoder.tables_MKD)
    np.testing.assert_allclose(alone.decode(codes) + centroids_VD[lists], wanted, rtol=1e-5, atol=1e-5)
    assert (decoder.num_lists, alone.num_lists) == (LISTS, 0)
    assert (decoder.num_codes, decoder.codebook_size, decoder.dim) == (STEPS, SIZE, DIM)


def test_without_lists(sample):
    codes, _, _, x_ND = sample
    decoder = LookupDecoder.fit([(codes, None, x_ND)], STEPS, SIZE)
    assert decoder.centroids_VD is None
    assert np.square(decoder.decode(codes) - x_ND).sum() < np.square(x_ND - x_ND.mean(0)).sum()


def test_one_list_and_one_vector():
    x_ND = np.array([[1e4, -3]], np.float32)
    decoder = LookupDecoder.fit([(np.array([[1, 0]]), np.array([0]), x_ND)], 2, 2, np.array([[1e4, 0]], np.float32))
    np.testing.assert_allclose(decoder.decode(np.array([[1, 0], [0, 1]]), np.array([0, 0])), x_ND.repeat(2, 0))


def test_nothing_decodes_to_nothing(decoder):
    assert decoder.decode(np.zeros((0, STEPS), np.uint8), np.zeros(0, np.int64)).shape == (0, DIM)


def test_arrays_that_cannot_be_written_are_read(sample):
    arrays = [array.copy() for array in sample]
    for array in arrays:
        array.flags.writeable = False
    codes, lists, centroids_VD, x_ND = arrays
    decoder = LookupDecoder.fit([(codes, lists, x_ND)], STEPS, SIZE, centroids_VD)
    decoder.tables_MKD.flags.writeable = False
    assert decoder.decode(codes, lists).shape == x_ND.shape


def test_what_does_not_fit_is_refused(sample, decoder):
    codes, lists, centroids_VD, x_ND = sample
    with pytest.raises(DataError, match="list numbers"):
        decoder.decode(codes)
    with pytest.raises(DataError, match="row 0, column 1 is 16"):
        decoder.decode(np.array([[0, SIZE, 0]]), np.array([0]))
    with pytest.raises(DataError, match=r"range 0 to 5.* row 0 is 6"):
        decoder.decode(codes[:1], np.array([LISTS]))
    with pytest.raises(DataError, match="must be whole"):
        decoder.decode(codes[:, :2], lists)
    for blocks, message in [
        ([(codes, lists, x_ND[:-1])], "5999, not 6000"),
        ([], "no vectors"),
        ([(codes[:0], lists[:0], x_ND[:0])], "no vectors"),
        ([(codes, lists, np.full_like(x_ND, np.nan))], "not finite"),
    ]:
        with pytest.raises(DataError, match=message):
            LookupDecoder.fit(blocks, STEPS, SIZE, centroids_VD)
