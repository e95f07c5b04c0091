import hashlib

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from qinco.errors import ConfigError, DataError
from qinco.search.ids import admitted_ids, are_among, as_ids, check_new, next_ids

LAST = 2**63 - 1


@pytest.mark.parametrize(
    "ids",
    [
        [3, 0, LAST], (3, 0, LAST), np.array([3, 0, LAST]), np.array([3, 0, LAST], np.uint64),
        torch.tensor([3, 0, LAST]), iter([3, 0, LAST]), pa.array([3, 0, LAST]), [3, np.int8(0), LAST],
    ],
)  # fmt: skip
def test_integers_of_any_kind_are_ids(ids):
    found = as_ids(ids, 3)
    assert found.dtype == np.int64 and found.tolist() == [3, 0, LAST]


def test_small_types_hashes_repeated_ones_and_nothing_at_all():
    assert as_ids(np.array([1, 255], np.uint8), 2).tolist() == [1, 255]
    assert as_ids(range(4, 7), 3).tolist() == [4, 5, 6] and as_ids([-7, 5], 2).tolist() == [-7, 5]
    assert as_ids([7, 7], None).tolist() == [7, 7]
    assert as_ids([], 0).tolist() == [] and as_ids([], 0).dtype == np.int64


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.0, 2.0], "must be integers"), ([True, False], "must be integers"), (["a", "b"], "must be integers"),
        ([[1, 2], [3, 4]], "must be integers"), (5, "must be integers"), ({1, 2}, "must be integers"),
        ([[1], [2, 3]], "must be integers"), ([2**64, 1], "must be integers"), (None, "must be integers"),
        (np.zeros((2, 0), int), "must be integers"), ([1, -1], "not -1"),
        (np.array([1, 2**63], np.uint64), "not 9223372036854775808"), ([1], "vectors, 2, not 1"),
        ([7, 7], "id 7 is given twice"), ([[1], [2]], r"numpy\.ravel\(ids\)"),
    ],
)  # fmt: skip
def test_what_is_no_ids_is_refused(ids, message):
    with pytest.raises(DataError, match=message):
        as_ids(ids, 2)


def test_ids_follow_one_another_up_to_the_last():
    assert next_ids(5, 3).tolist() == [5, 6, 7] and next_ids(5, 0).tolist() == []
    assert next_ids(LAST - 1, 2).tolist() == [LAST - 1, LAST]
    assert next_ids(LAST + 1, 0).dtype == np.int64
    for first, count in ((LAST + 1, 1), (LAST, 2)):
        with pytest.raises(DataError, match=f"{first}"):
            next_ids(first, count)


def test_ids_that_are_there_are_told():
    known = [np.array([1, 2], np.uint32), np.array([2**40])]
    check_new(np.array([3, 2**40 + 1]), known, 2**40 + 2)
    check_new(np.array([], np.int64), known, 2**40 + 1)
    for ids, name in (([0, 2], "2"), ([2**40], "1099511627776")):
        with pytest.raises(DataError, match=f"id {name} "):
            check_new(np.array(ids), known, 2**40 + 1)


@pytest.mark.parametrize(
    "chosen",
    [[LAST, 0, 3, 3], np.array([3, LAST, 0]), {0, 3, LAST}, frozenset({0, 3, LAST}), torch.tensor([3, LAST, 0])],
)
def test_chosen_ids_ascend_and_differ(chosen):
    assert admitted_ids(chosen, []).tolist() == [0, 3, LAST]


def test_nothing_may_be_chosen():
    for chosen in ([], set(), np.array([]), range(0)):
        found = admitted_ids(chosen, [np.arange(3)])
        assert found.dtype == np.int64 and len(found) == 0


def test_selectors_are_asked_about_all_that_is_known():
    known = [np.array([2, 9], np.uint32), np.array([5, LAST])]
    for selector, expected in [
        (faiss.IDSelectorRange(3, 10), [5, 9]), (faiss.IDSelectorBatch([5, LAST, 77]), [5, LAST]),
        (faiss.IDSelectorNot(faiss.IDSelectorRange(3, 10)), [2, LAST]), (faiss.IDSelectorAll(), [2, 5, 9, LAST]),
    ]:  # fmt: skip
        assert admitted_ids(selector, known).tolist() == expected
    assert admitted_ids(faiss.IDSelectorAll(), []).tolist() == []


def test_remedies_for_ids_of_other_types_work():
    wide, words = np.array([5, 2**63 + 9], np.uint64), ["a", "b"]
    with pytest.raises(DataError, match="uint64"):
        as_ids([2**63, 0], 2)  # which numpy takes for floats
    for ids in (wide, wide.tolist(), words, np.array(words), pa.array(words), [0.0, 3.0], np.array([2**70, 1])):
        with pytest.raises(DataError):
            as_ids(ids, 2)
    assert as_ids(np.asarray(wide, np.uint64).view(np.int64), 2).tolist() == [5, 9 - 2**63]
    assert as_ids(np.asarray([0.0, 3.0], np.int64), 2).tolist() == [0, 3]
    hashes = [int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest(), "little", signed=True) for s in words]
    assert as_ids(hashes, 2).tolist() == hashes and as_ids(range(2), 2).tolist() == [0, 1]


def test_ranges_and_slices_are_not_written_out():
    known = [np.arange(50, 100, dtype=np.uint32), np.array([5, 120])]
    held = np.concatenate(known)
    for chosen, expected in [
        (ids, ids) for ids in (range(10**30), range(-(10**30), 60, 7), range(60, 50, -3), range(5, 6), range(-9, 9, 2))
    ] + [(slice(None), held), (slice(110, 90, -1), range(91, 111)), (slice(8, None, 50), range(8, 121, 50))]:
        found = admitted_ids(chosen, known)
        assert isinstance(found, range) and 0 <= found[0] <= found[-1] <= 120
        assert held[are_among(held, found)].tolist() == [i for i in held.tolist() if i in expected]
    far = [np.array([-(2**62), 7, 2**62])]
    assert admitted_ids(range(-(2**62), 2**62, 2), far).tolist() == [-(2**62)]
    for chosen in (slice(-3, None), slice(None, -2)):
        with pytest.raises(ConfigError, match=r"range\(0, 121\)"):
            admitted_ids(chosen, known)
    with pytest.raises(ConfigError, match=r"range\(-4611686018427387904, 4611686018427387905\)"):
        admitted_ids(slice(None), far)


@pytest.mark.parametrize(
    "mask",
    [
        np.array([0, 0, 1], np.uint8), [0, 1, 0], [1, 1], np.array([0, 1, 1], object), pa.array([0, 1, 0]),
        torch.tensor([1, 0, 0]), [True, False, True], np.array([True, False], object), pa.array([True]),
    ],
    ids=str,
)  # fmt: skip
def test_masks_are_refused_with_a_remedy_that_works(mask):
    for any_shape in (False, True):
        with pytest.raises(ConfigError, match=r"numpy\.flatnonzero\(mask\)"):
            admitted_ids(mask, [np.arange(3)], any_shape=any_shape)
    assert admitted_ids(np.flatnonzero(mask), []).tolist() == np.asarray(mask).nonzero()[0].tolist()
    assert admitted_ids([0, 1], []).tolist() == [0, 1] and admitted_ids(np.unique([1, 0, 1]), []).tolist() == [0, 1]


def test_what_a_search_returned_chooses_ids():
    found_QR = np.array([[1, 0, -1], [0, 1, -1]])
    for ids in (found_QR, found_QR.tolist(), torch.from_numpy(found_QR), found_QR[:, :2]):
        assert admitted_ids(ids, [], any_shape=True).tolist() == [0, 1]
    assert admitted_ids(found_QR[0], []).tolist() == [0, 1] and admitted_ids([-1], []).tolist() == []


def test_of_many_ids_only_known_ones_are_sorted():
    many = np.random.default_rng(0).permutation(1 << 17) - 100
    known = [np.array([3, 77], np.uint32)]
    assert admitted_ids(many, known).tolist() == [*range(78)] == admitted_ids(many.tolist(), known).tolist()
    assert admitted_ids(many, known, 100).tolist() == [*range(100)]


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        (np.ones(5, bool), ConfigError, "not by a mask: give numpy.flatnonzero"),
        (torch.ones(5, dtype=torch.bool), ConfigError, "not by a mask"), (lambda i: True, ConfigError, "by a function"),
        ("abc", ConfigError, "by a str"), ({"a": 1}, ConfigError, "by a dict"), ([1.5], DataError, "must be integers"),
        ([[1, 2]], DataError, "must be integers"), (5, DataError, "must be integers"),
        (None, DataError, "must be integers"),
        (faiss.IndexFlatL2(3), DataError, "IndexFlatL2"), ([1, None], DataError, "missing"),
        (np.array([1.0, np.nan]), DataError, "missing"),
    ],
)  # fmt: skip
def test_what_chooses_no_ids_is_refused(chosen, error, message):
    with pytest.raises(error, match=message):
        admitted_ids(chosen, [np.arange(10)])


def test_columns_of_masks():
    for mask in (np.array([0, 255, 255, 0], np.uint8), np.array([[0], [1], [1], [0]])):
        with pytest.raises(ConfigError, match="either a mask or ids"):
            admitted_ids(mask, [np.arange(300)], any_shape=True)
    assert admitted_ids([255, 255, 255, 255], [np.arange(300)]).tolist() == [255]
