import numpy as np
import pytest

from qinco.vectors.concat_rows import JoinedRows

PIECES = [
    np.arange(6).reshape(3, 2),
    np.empty((0, 2), int),
    np.arange(6, 8).reshape(1, 2),
    np.arange(8, 18).reshape(5, 2),
]
WHOLE = np.concatenate(PIECES).astype(np.uint8)


@pytest.fixture
def joined():
    loads = []

    def load(number):
        loads.append(number)
        return PIECES[number].astype(np.uint8)

    rows = JoinedRows(load, [0, 3, 3, 4, 9], 2, np.uint8, "the rows")
    rows.loads = loads
    return rows


def test_it_has_the_shape_of_the_whole(joined):
    assert (joined.shape, joined.dtype, len(joined)) == ((9, 2), np.uint8, 9)
    assert joined.loads == []


@pytest.mark.parametrize("start", [None, *range(-10, 11)])
@pytest.mark.parametrize("stop", [None, *range(-10, 11)])
def test_slices_are_those_of_the_whole(joined, start, stop):
    for step in (None, 1, 2, -1, -3):
        assert np.array_equal(joined[start:stop:step], WHOLE[start:stop:step])
        assert joined[start:stop:step].dtype == np.uint8


@pytest.mark.parametrize("rows", [[], [0], [8, 0, 3, 3, 4, 8], list(range(9))])
def test_rows_are_chosen_in_any_order(joined, rows):
    assert np.array_equal(joined[rows], WHOLE[np.array(rows, int)])
    assert np.array_equal(joined[np.array(rows, np.uint32)], WHOLE[np.array(rows, int)])


@pytest.mark.parametrize("rows", [[-1], [9], [0, 1 << 40], [0.5], [True, False], 3, [[1]]])
def test_other_keys_are_refused(joined, rows):
    with pytest.raises(IndexError, match="of the rows"):
        joined[rows]


def test_it_becomes_an_array(joined):
    assert np.array_equal(np.asarray(joined), WHOLE)
    assert np.asarray(joined, np.int64).dtype == np.int64
    assert np.asarray(joined).flags.writeable


def test_an_array_is_loaded_once_for_consecutive_reads(joined):
    for start in range(9):
        joined[start : start + 1]
    assert joined.loads == [0, 2, 3]


def test_no_arrays_are_no_rows():
    rows = JoinedRows(lambda number: pytest.fail("there is nothing to load"), [0], 3, np.uint16, "nothing")
    assert (rows.shape, rows[:].shape, rows[:].dtype) == ((0, 3), (0, 3), np.uint16)
    assert rows[[]].shape == (0, 3)
