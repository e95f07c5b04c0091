"""Parquet files as pyarrow writes them; damage is a DataError that names the file."""

import sys

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import open_array
from qinco.vectors.parquet import open_parquet
from qinco.vectors.rows import open_vectors

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
DATA = np.random.default_rng(0).standard_normal((57, 6)).astype(np.float16).astype(np.float32)
ROWS = [slice(None), slice(3, 9), slice(50, 2, -7), slice(9, 9), np.array([56, 0, 0, -1, 31]), np.array([], np.int64)]
KINDS = {
    "list": lambda value: pyarrow.list_(value),
    "large_list": lambda value: pyarrow.large_list(value),
    "fixed": lambda value: pyarrow.list_(value, 6),
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
    with pytest.raises(IndexError):
        stored[np.array([0, -58])]


def test_only_one_batch_is_decoded_at_a_time(path):
    stored = open_parquet(save(path), path.stat().st_size, None, "train", batch_bytes=7 * (6 * 4 + 4))  # seven rows
    assert stored[3:4].shape == (1, 6) and len(stored._block) == 7
    for rows in ROWS:
        np.testing.assert_array_equal(stored[rows], DATA[rows], str(rows))
    opened = []
    iter_batches = stored._file.iter_batches
    stored._file.iter_batches = lambda *arguments, **options: opened.append(1) or iter_batches(*arguments, **options)
    for row in range(20, 40):
        np.testing.assert_array_equal(stored[row : row + 1], DATA[row : row + 1])
    assert len(opened) == 1  # sequential reads do not begin the row group again


def test_the_column_of_lists_is_found(path):
    np.testing.assert_array_equal(open_vectors(f"{save(path)}:emb"), DATA)
    for name in ("id", "text", "none"):
        with pytest.raises(DataError, match=f"'{name}' of lists of numbers, but 'emb'"):
            open_array(f"{path}:{name}")
    lists = pyarrow.array(DATA.tolist())
    table = {"a": lists, "b": lists, "train": lists, "words": pyarrow.array([["x"]] * 57), "c.d, ö": lists}
    parquet.write_table(pyarrow.table(table), path)
    assert open_array(path).shape == (57, 6)  # train
    np.testing.assert_array_equal(open_array(f"{path}:c.d, ö"), DATA)
    with pytest.raises(DataError, match=r"'a', 'b', 'train', 'c\.d, ö'"):
        open_array(path, "test")
    nested = {"a": pyarrow.array([{"b": [1.0]}]), "a.b": pyarrow.array([[2.0]])}
    parquet.write_table(pyarrow.table(nested), path)
    with pytest.raises(DataError, match=r"a\.b"):
        open_array(path)


def broken(row, value):
    rows = DATA.tolist()
    rows[row] = value
    return rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value, message", [([1, 2, None, 4, 5, 6], "null in column 2"), ([1, 2, np.nan, 4, 5, 6], "NaN in column 2")]
)
def test_values_that_are_missing_name_their_row(path, kind, value, message):
    save(path, broken(33, value), KINDS[kind](pyarrow.float32()))
    with pytest.raises(DataError, match=rf"row 33 of .*x\.parquet.* {message}"):
        list(open_vectors(path).blocks(10))


@pytest.mark.parametrize("row, value", [(0, None), (0, []), (33, []), (56, [1] * 5), (33, [1] * 12), (7, [1] * 1200)])
def test_rows_of_other_lengths_are_found_when_the_file_is_opened(path, row, value):
    group = row // 20 * 20
    with pytest.raises(DataError, match=rf"x\.parquet:emb.* rows? {group}|row 0 of .*x\.parquet|rows 0 to 19"):
        open_vectors(save(path, broken(row, value)))


def test_rows_whose_lengths_cancel_out_are_found_when_they_are_read(path):
    rows = DATA.tolist()
    rows[41], rows[42] = rows[41][:5], [*rows[42], 7]
    source = open_vectors(save(path, rows))
    np.testing.assert_array_equal(source[:40], DATA[:40])
    for _ in range(2):  # and again
        with pytest.raises(DataError, match=r"row 41 of .* is 5, that of others 6"):
            source[45:]


@pytest.mark.parametrize("kind", [None, pyarrow.list_(pyarrow.float32(), 5), pyarrow.list_(pyarrow.bool_())])
def test_tables_without_vectors(path, kind):
    with pytest.raises(DataError, match=r"x\.parquet"):
        open_array(save(path, [], kind))


def test_damage_names_the_file(path):
    whole = save(path).read_bytes()
    wrong_length = whole[:-8] + (2**31).to_bytes(4, "little") + b"PAR1"
    for content in (b"PAR1", b"x" * 50, whole[:-1], whole[:-4] + b"PARE", wrong_length):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.parquet"):
            open_array(path)
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    with pytest.raises(DataError, match=r"x\.parquet"):
        open_vectors(path)[:]


def test_without_pyarrow(path, monkeypatch):
    save(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'qinco\[parquet\]'"):
        open_array(path)
