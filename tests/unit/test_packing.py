import faiss
import numpy as np
import pytest

from qinco.errors import DataError
from qinco.packing import check_codes, check_lists, code_dtype, pack_codes, packed_size, unpack_codes


def test_the_smallest_type_that_holds_the_codes():
    assert [code_dtype(size) for size in (2, 256, 512, 65536)] == [np.uint8, np.uint8, np.uint16, np.uint16]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_codes_of_any_integer_type_pass(dtype):
    codes = np.array([[0, 3], [2, 1]], dtype)
    assert check_codes(codes, 3, 4) is codes


def test_no_codes_and_prefixes_pass():
    assert check_codes(np.empty((0, 2), np.uint8), 2, 4).shape == (0, 2)
    assert check_codes([[1]], 8, 4).shape == (1, 1)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [2, 4]], "row 1, column 1 is 4"),
        ([[0, 1], [-1, 0]], "row 1, column 0 is -1"),
        (np.array([[2**63]], np.uint64), "row 0, column 0 is 9223372036854775808"),
        ([[0, 0, 0, 0]], "columns.* not 4"),
        (np.empty((5, 0), np.uint8), "columns.* not 0"),
        ([0, 1], r"2-D integer array \(N, M\), not int64 of shape \(2,\)"),
        ([[0.0, 1.0]], "not float64"),
        ([[True]], "not bool"),
    ],
)
def test_wrong_codes_are_named(codes, message):
    with pytest.raises(DataError, match=message):
        check_codes(codes, 3, 4)


def test_lists_pass():
    assert check_lists([0, 4], 2, 5).tolist() == [0, 4]
    assert check_lists(np.empty(0, np.int32), 0, 5).shape == (0,)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([0, 5], "range 0 to 4.* row 1 is 5"),
        ([-1, 0], "row 0 is -1"),
        ([0], "must be 2 integers, one for each code"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([0.0, 1.0], "not float64"),
    ],
)
def test_wrong_lists_are_named(lists, message):
    with pytest.raises(DataError, match=message):
        check_lists(lists, 2, 5)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("num_steps", [1, 3, 8])
@pytest.mark.parametrize("num_vectors", [0, 1, 37])
def test_packed_codes_are_unpacked_to_themselves(bits, num_steps, num_vectors):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (num_vectors, num_steps)).astype(code_dtype(1 << bits))
    packed = pack_codes(codes, bits)
    assert (packed.dtype, packed.shape) == (np.uint8, (num_vectors, packed_size(num_steps, bits)))
    unpacked = unpack_codes(packed, num_steps, bits)
    assert unpacked.dtype == codes.dtype
    assert np.array_equal(unpacked, codes)
    if num_vectors:
        assert np.array_equal(packed, faiss.pack_bitstrings(codes.astype(np.int32), bits))
        assert np.array_equal(unpacked, faiss.unpack_bitstrings(packed, num_steps, bits))


@pytest.mark.parametrize("bits", [1, 5, 8, 10, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, ">u2"])
def test_codes_of_any_type_and_order_are_packed_alike(bits, dtype):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (9, 5))
    expected = pack_codes(codes.astype(np.uint16), bits)
    assert np.array_equal(pack_codes(codes.astype(dtype), bits), expected)
    assert np.array_equal(pack_codes(np.asfortranarray(codes.astype(dtype)), bits), expected)
    assert np.array_equal(pack_codes(codes.astype(dtype)[::-1], bits), expected[::-1])


def test_the_first_code_lies_in_the_lowest_bits():
    assert pack_codes(np.array([[1, 0, 3]]), 5).tolist() == [[1, 3 << 2]]
    assert pack_codes(np.array([[0x0102, 0xFF00]]), 16).tolist() == [[2, 1, 0, 255]]
    # the bits beyond the last code are nobody's
    assert unpack_codes(np.array([[1, 0x80 | 3 << 2]], np.uint8), 3, 5).tolist() == [[1, 0, 3]]
