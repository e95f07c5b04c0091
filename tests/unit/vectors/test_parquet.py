import sys

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import open_array, read_integers
from qinco.vectors.rows import open_vectors

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
DATA = np.random.default_rng(0).standard_normal((57, 6)).astype(np.float16).astype(np.float32)
ROWS = [slice(None), slice(3, 9), slice(50, 2, -7), slice(9, 9), np.array([56, 0, 0, -1, 31]), np.array([], np.int64)]
KINDS = {
    "list": lambda value: pyarrow.list_(value),
    "large_list": lambda value: pyarrow.large_list(value),
    "fixed": lambda value: pyarrow.list_(value, 6),
    "never_null": lambda value: pyarrow.list_(pyarrow.field("element", value, nullable=False)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.parquet"


def save(path, rows=None, kind=None, row_group_size=20, **settings):
    rows = DATA.tolist() if rows is None else rows
    column = pyarrow.array(rows, kind or pyarrow.list_(pyarrow.float32()))
    table = pyarrow.table({"id": range(len(rows)), "text": ["a"] * len(rows), "emb": column})
    parquet.write_table(table, path, row_group_size=row_group_size, **settings)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0", "write_page_checksum": True},
        {"compression": "gzip", "use_dictionary": False, "column_encoding": {"emb.list.element": "BYTE_STREAM_SPLIT"}},
        {"row_group_size": 1000, "data_page_size": 100, "store_schema": False},
        {"row_group_size": 1, "write_statistics": False},
    ],
)
def test_what_pyarrow_writes_is_read(path, kind, settings):
    stored = open_array(save(path, kind=KINDS[kind](pyarrow.float32()), **settings))
    assert stored.shape == DATA.shape and stored.dtype == np.float32 and len(stored) == 57
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))
    np.testing.assert_array_equal(np.asarray(stored), DATA)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_type(path, kind, dtype):
    array = np.abs(DATA * 10).astype("i1").astype(dtype)
    stored = open_array(save(path, list(array), KINDS[kind](pyarrow.from_numpy_dtype(dtype))))
    assert stored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(stored[:], array)
    np.testing.assert_array_equal(open_vectors(path)[5:9], array[5:9].astype(np.float32))


def test_only_one_piece_is_unpacked_at_a_time(path, monkeypatch):
    monkeypatch.setattr("qinco.vectors.parquet._BATCH_BYTES", 7 * (6 * 4 + 4))  # seven rows
    stored = open_array(save(path))
    assert stored[3:4].shape == (1, 6) and len(stored._block) == 7
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))
    begun = []
    begin = type(stored)._begin
    monkeypatch.setattr(type(stored), "_begin", lambda self, group: (begun.append(group), begin(self, group)))
    for row in range(20, 40):
        np.testing.assert_array_equal(stored[row : row + 1], DATA[row : row + 1])
    assert begun == [1]  # reading on does not begin the row group again
    np.testing.assert_array_equal(stored[np.array([39, 20])], DATA[[39, 20]])
    assert begun == [1, 1]


def test_the_column_of_lists_is_found(path):
    np.testing.assert_array_equal(open_vectors(f"{save(path)}:emb"), DATA)
    for name in ("id", "text", "none"):
        with pytest.raises(DataError, match=f"holds no column '{name}' of lists of numbers, but 'emb'"):
            open_array(f"{path}:{name}")
    lists = pyarrow.array(DATA.tolist())
    table = {"a": lists, "b": lists, "train": lists, "words": pyarrow.array([["x"]] * 57), "c.d, ö": lists}
    parquet.write_table(pyarrow.table(table), path)
    assert open_array(path).shape == (57, 6)  # train
    np.testing.assert_array_equal(open_array(f"{path}:c.d, ö"), DATA)
    with pytest.raises(DataError, match=r"more than one column .*: name one of 'a', 'b', 'train', 'c\.d, ö'"):
        open_array(path, "test")
    nested = {"a": pyarrow.array([{"b": [1.0]}]), "a.b": pyarrow.array([[2.0]])}
    parquet.write_table(pyarrow.table(nested), path)
    with pytest.raises(DataError, match=r"more than one column of the name 'a\.b'"):
        open_array(path)


def test_a_ground_truth(path):
    truth = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(read_integers(save(path, truth.tolist(), pyarrow.list_(pyarrow.int32()))), truth)
    with pytest.raises(DataError, match=r"x\.parquet holds float32: integers"):
        read_integers(save(path))


def broken(row, value):
    rows = DATA.tolist()
    rows[row] = value
    return rows


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
@pytest.mark.parametrize(
    "rows, message",
    [
        (broken(0, None), "row 0 of .* is null"),
        (broken(33, None), "row 33 of .* is null: remove it"),
        (broken(33, [1, 2, None, 4, 5, 6]), "row 33 of .* holds a null in column 2"),
        (broken(33, [1, 2, np.nan, 4, 5, 6]), "row 33 of .* holds NaN in column 2"),
        (broken(33, [1, 2, np.inf, 4, 5, 6]), "row 33 of .* holds an infinite value"),
    ],
)
def test_rows_that_are_not_whole(path, kind, rows, message):
    save(path, rows, KINDS[kind](pyarrow.float32()))
    with pytest.raises(DataError, match=message):
        list(open_vectors(path).blocks(10))


@pytest.mark.parametrize(
    "rows, message",
    [
        (broken(0, []), "row 0 of .* has 0 values where 6 are expected"),
        (broken(33, []), "row 33 of .* has 0 values where 6 are expected"),
        (broken(56, [1] * 5), "row 56 of .* has 5 values where 6 are expected: the vectors of a file have one dim"),
        (broken(33, [1] * 12), "row 33 of .* has 12 values where 6 are expected"),
        (broken(7, [1] * 1200), "row 7 of .* has 1200 values where 6 are expected"),
        ([[1]] * 3 + [[1, 2, 3]] * 2, "row 3 of .* has 3 values where 1 are expected"),
    ],
)
def test_rows_of_other_lengths_are_found_when_the_file_is_opened(path, rows, message):
    with pytest.raises(DataError, match=message):
        open_vectors(save(path, rows))


def test_rows_whose_lengths_cancel_out_are_found_when_they_are_read(path):
    rows = DATA.tolist()
    rows[41], rows[42] = rows[41][:5], [*rows[42], 7]
    source = open_vectors(save(path, rows))
    np.testing.assert_array_equal(source[:40], DATA[:40])
    for _ in range(2):  # and again
        with pytest.raises(DataError, match=r"row 41 of .* has 5 values where 6 are expected"):
            source[45:]
    with pytest.raises(DataError, match=r"row 0 of .* has 0 values where 1 are expected"):
        open_vectors(save(path, [[]] * 3))[1]
    with pytest.raises(DataError, match=r"row 0 of .* is null"):
        open_vectors(save(path, [None] * 3))[1]


@pytest.mark.parametrize("kind", [None, pyarrow.list_(pyarrow.float32(), 5)])
def test_a_table_without_rows(path, kind):
    with pytest.raises(DataError, match="holds no rows"):
        open_array(save(path, [], kind))


@pytest.mark.parametrize("kind", [pyarrow.list_(pyarrow.list_(pyarrow.float32())), pyarrow.list_(pyarrow.bool_())])
def test_tables_without_vectors(path, kind):
    with pytest.raises(DataError, match=r"x\.parquet holds no column of lists of numbers"):
        open_array(save(path, [None, []], kind))


def test_a_dimension_beyond_all_reason(path):
    with pytest.raises(DataError, match="claims dimension 1000001"):
        open_array(save(path, [np.arange(1_000_001, dtype=np.float32)]))


def test_few_bytes_that_unpack_to_gigabytes(path):
    lengths = np.full(101, 100)
    lengths[50] = 20_000_000
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pyarrow.ListArray.from_arrays(offsets, np.zeros(offsets[-1], np.int8))
    parquet.write_table(pyarrow.table({"emb": lists}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"x\.parquet promises 20010000 values in \d+ bytes of row group 0"):
        open_array(path)


def test_files_that_are_no_parquet(path):
    whole = save(path).read_bytes()
    wrong_length = whole[:-8] + (2**31).to_bytes(4, "little") + b"PAR1"
    for content in (b"PAR1", b"x" * 50, whole[:-1], whole[:-4] + b"PARE", b"x" + whole[1:], wrong_length):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.parquet is not a Parquet file, or a truncated or encrypted one"):
            open_array(path)
    path.write_bytes(whole[:200] + bytes(100) + whole[300:])
    with pytest.raises(DataError, match=r"x\.parquet.* is damaged"):
        open_vectors(path)[:]


def test_rows_that_do_not_exist(path):
    stored = open_array(save(path))
    for row in (57, -58):
        with pytest.raises(IndexError):
            stored[np.array([0, row])]


def test_without_pyarrow(path, monkeypatch):
    save(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"x\.parquet needs the package pyarrow: pip install 'qinco\[parquet\]'"):
        open_array(path)
