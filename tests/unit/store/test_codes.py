"""One value for codes: what arrays can do, and list numbers that go along."""

import copy

import numpy as np
import pytest
import torch
from small_indexes import trained, vectors

from qinco.errors import ConfigError, DataError
from qinco.store.codes import Codes

ARRAY = np.arange(24, dtype=np.uint8).reshape(6, 4)
LISTS = np.arange(6, dtype=np.int32)


class OnDisk:
    """Rows that are read when they are asked for."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, key):
        self.read.append(key)
        return self.array[key]


@pytest.fixture(params=["memory", "disk"])
def codes(request):
    if request.param == "memory":
        return Codes(ARRAY, LISTS)
    return Codes(OnDisk(ARRAY), OnDisk(LISTS[:, None]))


def test_they_are_an_array(codes):
    assert np.array_equal(np.asarray(codes), ARRAY) and np.asarray(codes, np.int64).dtype == np.int64
    assert (codes.shape, codes.dtype, codes.ndim, len(codes)) == ((6, 4), np.uint8, 2, 6)
    assert (codes == ARRAY).all() and not (codes == ARRAY + 1).any()
    assert np.array_equal(codes[2], ARRAY[2]) and np.array_equal(codes[-1, :2], ARRAY[-1, :2])


def test_unpacking():
    codes, lists = Codes(ARRAY, LISTS)
    assert np.array_equal(codes, ARRAY) and np.array_equal(lists, LISTS)
    assert [row.tolist() for row in Codes(ARRAY)] == ARRAY.tolist()


@pytest.mark.parametrize("key", [slice(1, 4), slice(None, None, 2), [4, 0], np.array([True, False] * 3)])
def test_rows_take_their_lists_along(codes, key):
    some = codes[key]
    assert np.array_equal(some.codes, ARRAY[key]) and np.array_equal(some.lists, LISTS[key])


def test_columns(codes):
    prefix = codes[:, :2]
    assert np.array_equal(prefix.codes, ARRAY[:, :2]) and np.array_equal(prefix.lists, LISTS)
    assert np.array_equal(codes[1:3, 0], ARRAY[1:3, 0])


def test_blocks(codes):
    blocks = list(codes.blocks(4, 1))
    assert [first for first, _ in blocks] == [1, 5]
    assert np.array_equal(Codes.concatenate([block for _, block in blocks]).codes, ARRAY[1:])
    assert np.array_equal(Codes.concatenate([block for _, block in blocks]).lists, LISTS[1:])


def test_limits_read_nothing():
    rows = OnDisk(ARRAY)
    first = Codes(rows).limit(4)
    assert first.shape == (4, 4) and not rows.read and len(Codes(rows).limit(9)) == 6
    assert np.array_equal(first.codes, ARRAY[:4]) and np.array_equal(first[2:9].codes, ARRAY[2:4])
    assert [(key.start, key.stop) for key in rows.read] == [(0, 4), (2, 4)]


def test_what_does_not_belong_together():
    with pytest.raises(DataError, match="6 integers"):
        Codes(ARRAY, LISTS[:5])
    with pytest.raises(DataError, match="list numbers"):
        Codes.concatenate([Codes(ARRAY), Codes(ARRAY, LISTS)])


@pytest.mark.parametrize("form", [np.asarray, np.ndarray.tolist, torch.from_numpy, Codes])
def test_codes_are_made_of_what_there_is(form):
    lists = LISTS if form is Codes else form(LISTS)
    for codes in (Codes.of(form(ARRAY), lists), Codes.of((form(ARRAY), lists))):
        assert np.array_equal(codes.codes, ARRAY) and np.array_equal(codes.lists, LISTS)
    assert not Codes.of(form(ARRAY)).has_lists
    codes = Codes(ARRAY, LISTS)
    assert Codes.of(codes) is codes
    for wrong in (ARRAY[0], [[1, 2], [3]], 3):
        with pytest.raises((DataError, ValueError)):
            Codes.of(wrong)


def test_operators_functions_and_methods_are_the_arrays(codes):
    assert (codes != ARRAY).sum() == 0 and (codes < 4).sum() == (ARRAY < 4).sum()
    assert np.array_equal(codes + 1, ARRAY + 1) and np.array_equal(1 + codes, ARRAY + 1)
    assert (codes == codes).all() and codes.max() == ARRAY.max()
    assert codes.astype(np.int64).dtype == np.int64 and codes.tolist() == ARRAY.tolist()
    assert np.concatenate([codes, ARRAY]).shape == (12, 4)
    with pytest.raises(AttributeError):
        codes.nothing  # noqa: B018
    assert np.array_equal(copy.copy(codes).codes, ARRAY)


@pytest.mark.parametrize("bits", [5, 8])
def test_packed_codes_come_back(bits):
    codes = Codes(ARRAY & ((1 << bits) - 1), LISTS)
    packed = codes.pack(bits)
    assert packed.shape == (6, (4 * bits + 7) // 8)
    again = Codes.unpack(packed, 4, bits, LISTS)
    assert np.array_equal(again.codes, codes.codes) and np.array_equal(again.lists, LISTS)


@pytest.mark.parametrize("wrong", [[1, 2], 5, np.zeros((2, 3, 4))])
def test_codes_have_two_axes(wrong):
    with pytest.raises(DataError, match="2-D"):
        Codes(wrong)


def test_codes_of_another_type_are_saved_as_the_codec_has_them(tmp_path):
    codec, path = trained("ivf"), tmp_path / "folder"
    codes = codec.encode(vectors(50))
    Codes(codes.codes.astype(np.int64), codes.lists.astype(np.int64)).save(path, codec)
    loaded = Codes.load(path, codec)
    assert loaded.dtype == np.uint8 and np.array_equal(loaded, codes) and np.array_equal(loaded.lists, codes.lists)
    with pytest.raises(DataError):
        Codes(codes.codes.astype(np.int64) + 200, codes.lists).save(path, codec, overwrite=True)
    assert np.array_equal(Codes.load(path, codec), codes)


def test_in_place_operators_are_those_of_the_array():
    codes = Codes(np.zeros((2, 3), np.uint8))
    np.add(codes, 1, out=codes)
    codes += 1
    assert np.array_equal(codes, np.full((2, 3), 2))


@pytest.mark.parametrize("key", [
    ([0, 1], [0, 1]), (slice(1, 3), [0, 2]), None, (..., 0), [0.5], (0, 1, 2), [True, False], [], (2, slice(1, 3)), (),
    ARRAY > 5, [[0, 1], [2, 3]], -7,
])  # fmt: skip
def test_keys_give_what_an_array_gives(codes, key):
    try:
        wanted = ARRAY[key]
    except IndexError:
        with pytest.raises(IndexError):
            codes[key]
    else:
        assert np.array_equal(codes[key], wanted)


def test_codes_in_memory_are_changed_in_place():
    own = codes = Codes(ARRAY.copy(), LISTS)
    codes += 1
    assert codes is own and np.array_equal(codes.codes, ARRAY + 1) and np.add(codes, 1, out=codes) is codes
    codes[0], codes[:, 1] = 5, 6
    assert codes.codes[:2].tolist() == [[5, 6, 5, 5], [6, 6, 8, 9]] and codes.has_lists
    on_disk = Codes(OnDisk(ARRAY))
    for change in (lambda: on_disk.__setitem__(0, 1), lambda: np.add(on_disk, 1, out=on_disk)):
        with pytest.raises(ValueError, match="on disk"):
            change()


@pytest.mark.filterwarnings("error")
def test_torch_takes_them_as_an_array(codes):
    assert torch.equal(torch.as_tensor(codes), torch.from_numpy(ARRAY))


def test_what_does_not_fit_into_bits_is_not_packed():
    packed = Codes(ARRAY).pack(5)
    for wrong in (lambda: Codes(ARRAY).pack(4), lambda: Codes.unpack(packed, 9, 5), lambda: Codes(ARRAY).pack(0)):
        with pytest.raises((ConfigError, DataError)):
            wrong()
    with pytest.raises(DataError, match=r"Codes\.load"):
        Codes("codes.npy")
