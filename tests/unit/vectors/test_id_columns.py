"""Ids in columns of files are read a part at a time, in the order of their vectors."""

import pickle

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.id_columns import open_ids

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IDS = np.random.default_rng(0).choice(10**6, 300, replace=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three Parquet files, the last of which is empty, and an Arrow file of all."""
    path = tmp_path_factory.mktemp("ids")
    names = [f"doc-{number}" for number in IDS]
    table = pyarrow.table({
        "id": pyarrow.array(IDS), "name": names, "half": [None, *names[1:]],
        "emb": pyarrow.array([[0.0, 1.0]] * 300, pyarrow.list_(pyarrow.float32())), "wrong": pyarrow.array(IDS / 2),
    })  # fmt: skip
    for number, (start, stop) in {1: (0, 120), 2: (120, 300), 10: (300, 300)}.items():
        parquet.write_table(table[start:stop], path / f"part-{number}.parquet", row_group_size=50)
    with pyarrow.ipc.new_file(str(path / "all.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=70)
    np.save(path / "ids.npy", IDS)
    return path


@pytest.mark.parametrize("name", ["part-*.parquet:id", "all.arrow:id", "part-*.parquet", "ids.npy"])
def test_parts_are_those_of_the_column(folder, name):
    ids = open_ids(f"{folder}/{name}", 300)
    for rows in (slice(0, 300), slice(40, 130), slice(119, 121), slice(299, 300), slice(5, 5), slice(290, 400)):
        found = ids[rows]
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, IDS[rows])
    if name != "ids.npy":
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(ids))[10:20], IDS[10:20])


def test_a_name_is_a_column_of_the_vectors_files(folder):
    np.testing.assert_array_equal(open_ids("id", 300, f"{folder}/part-*.parquet:emb")[:], IDS)
    assert open_ids("name", 300, f"{folder}/all.arrow:emb")[2:4].tolist() == [f"doc-{number}" for number in IDS[2:4]]
    assert open_ids(IDS, 300)[1:3].tolist() == IDS[1:3].tolist() and open_ids(["a", "b"], 2)[:].tolist() == ["a", "b"]


def test_what_are_no_ids_is_refused(folder):
    for ids, error in {
        "part-*.parquet:other": "no column 'other'", "part-*.parquet:half": "null", "part-*.parquet:wrong": "double",
        "none-*.parquet:id": "no file", "part-1.parquet:id": "120 ids, and there are 300",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=error):
            open_ids(f"{folder}/{ids}", 300)[:]
    with pytest.raises(DataError, match="row 1 of ids holds -1"):
        open_ids([3, -1], 2)[:]
    with pytest.raises(ConfigError, match="vectors="):
        open_ids("id", 300, np.zeros((300, 2)))
    with pytest.raises(ConfigError, match="integers or strings"):
        open_ids([0.5], 1)
