"""Rows that are read a block at a time, and the names of matrices in files that hold several."""

from pathlib import Path

import numpy as np
import pytest

from qinco.errors import ConfigError
from qinco.vectors.block_rows import ConcatRows
from qinco.vectors.formats import open_array, split_part

PIECES = [np.arange(6), np.empty(0, int), np.arange(6, 8), np.arange(8, 18)]
WHOLE = np.arange(18, dtype=np.uint8).reshape(9, 2)


@pytest.fixture
def joined():
    loads = []

    def load(number):
        loads.append(number)
        return PIECES[number].astype(np.uint8).reshape(-1, 2)

    rows = ConcatRows(load, [0, 3, 3, 4, 9], 2, np.uint8, "the rows")
    rows.loads = loads
    return rows


@pytest.mark.parametrize("start", [None, *range(-10, 11)])
def test_slices_are_those_of_the_whole(joined, start):
    for stop in (None, *range(-10, 11)):
        for step in (None, 1, 2, -1, -3):
            assert np.array_equal(joined[start:stop:step], WHOLE[start:stop:step])
            assert joined[start:stop:step].dtype == np.uint8


@pytest.mark.parametrize("rows", [[], [0], [8, 0, 3, 3, 4, -8], list(range(9))])
def test_rows_are_chosen_in_any_order(joined, rows):
    assert np.array_equal(joined[rows], WHOLE[np.array(rows, int)])


@pytest.mark.parametrize("rows", [[-10], [9], [0, 1 << 40]])
def test_rows_that_do_not_exist(joined, rows):
    with pytest.raises(IndexError):
        joined[rows]


def test_sequential_reads_load_each_block_once(joined):
    for start in range(9):
        joined[start : start + 1]
    assert joined.loads == [0, 2, 3]
    assert np.array_equal(np.asarray(joined), WHOLE) and np.asarray(joined, np.int64).dtype == np.int64


@pytest.mark.parametrize(
    "path, file, name",
    [
        ("x.hdf5:train", "x.hdf5", "train"),
        ("a:b/x.h5:group/train", "a:b/x.h5", "group/train"),
        ("X.HDF5:a:b", "X.HDF5", "a:b"),
        ("x.parquet:a column, ö", "x.parquet", "a column, ö"),
        ("x.parquet:", "x.parquet:", None),
        ("x.npy:train", "x.npy:train", None),
        ("nul\0.h5:x", "nul\0.h5", "x"),
        (Path("x.h5:train"), "x.h5", "train"),
    ],
)
def test_a_path_may_name_a_matrix(path, file, name):
    assert split_part(path) == (Path(file), name)


def test_the_name_of_an_existing_file_is_never_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.h5:train").touch()
    assert split_part("x.h5:train") == (Path("x.h5:train"), None)
    assert split_part("x.h5:test") == (Path("x.h5"), "test")
    with pytest.raises(ConfigError, match=r"\.h5:train"):
        open_array("x.h5:train")
