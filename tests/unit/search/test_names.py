"""Ids that are strings: kept by row, given back by searches of every kind, and refused where they cannot be."""

import json

import numpy as np
import pytest
from small_indexes import NUM_VECTORS, built, trained, vectors

import qinco
from qinco.cli.app import main
from qinco.errors import ConfigError, DataError
from qinco.search.index import Index
from qinco.store.manifest import MANIFEST

NAMES = np.array([f"doc-{number:x}-é" for number in range(NUM_VECTORS)], object)
NAMES[7] = ""
QUERIES_QD = vectors(20, 21)


@pytest.fixture(params=[None, 4], ids=["whole", "shards"])
def folder(tmp_path, request):
    qinco.build_index(
        trained("plain").encode(vectors()), tmp_path / "base.index", codec=trained("plain"), num_lists=12, ids=NAMES,
        num_shards=request.param,
    )  # fmt: skip
    return tmp_path / "base.index"


def test_rows_have_the_strings_that_were_given(folder, tmp_path):
    index = Index.load(folder)
    assert len(index.names) == NUM_VECTORS and index.names[7] == "" and index.names[-1] is None
    np.testing.assert_array_equal(index.names[:], NAMES)
    _, ids = index.search(QUERIES_QD, 5)
    assert (index.names[ids] == NAMES[ids]).all() and index.names[ids].shape == (20, 5)
    assert index.names[np.array([3, -1])].tolist() == [NAMES[3], None]
    with pytest.raises(DataError, match="1,500"):
        index.names[NUM_VECTORS]


def test_they_are_saved_with_the_index(folder, tmp_path):
    index = Index.load(folder)
    index.remove([3, NUM_VECTORS - 1])
    index.save(tmp_path / "copy")
    for found in (Index.load(tmp_path / "copy"), Index.from_bytes(index.to_bytes())):
        assert len(found) == NUM_VECTORS - 2
        np.testing.assert_array_equal(found.names[:], NAMES)
    assert built().names is None


def test_an_index_of_strings_takes_no_vectors_without(folder):
    index, other = Index.load(folder), built()
    changes = [
        lambda: index.add(vectors(2)), lambda: index.upsert(vectors(2), [1, 2]),
        lambda: index.merge_from(other, NUM_VECTORS), lambda: other.merge_from(index, NUM_VECTORS),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(ConfigError, match="string for each row"):
            change()
    index.reset()
    assert index.names is None and index.add(vectors(2)).tolist() == [0, 1]


@pytest.mark.parametrize("ids, message", [
    (["a", "b"] * (NUM_VECTORS // 2), "id [ab] is given twice, in row [01] and row 149[89]"),
    ([*map(str, range(NUM_VECTORS - 1)), 7], "row 1499 of ids holds 7"),
    ([*map(str, range(NUM_VECTORS - 1)), "\ud800"], "row 1499"), (["a"], "1 ids, and there are 1,500"),
])  # fmt: skip
def test_wrong_strings_are_refused(tmp_path, ids, message):
    codes = trained("plain").encode(vectors())
    with pytest.raises(DataError, match=message):
        qinco.build_index(codes, tmp_path / "ix", codec=trained("plain"), num_lists=4, ids=np.array(ids, object))
    assert not (tmp_path / "ix" / MANIFEST).exists()


def test_damaged_strings_are_noticed(folder):
    file = next(folder.glob("name_ends-*.npy"))
    np.save(file, np.load(file)[:-1])
    with pytest.raises(DataError, match="damaged"):
        Index.load(folder)


def test_the_command_line_and_files_show_them(folder, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = NAMES[Index.load(folder).search(QUERIES_QD, 3)[1]].tolist()
    np.save(tmp_path / "q.npy", QUERIES_QD)
    words = ["search", f"index={folder}", f"queries={tmp_path}/q.npy", "k=3"]
    assert main([*words, "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == expected
    assert main([*words, f"output={tmp_path}/found.parquet"]) == 0
    assert parquet.read_table(tmp_path / "found.parquet").column("ids").to_pylist() == expected
    assert main([*words, f"output={tmp_path}/found.jsonl"]) == 0
    assert [json.loads(line)["ids"] for line in (tmp_path / "found.jsonl").read_text().splitlines()] == expected


def test_a_column_of_strings_is_ids(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    emb = pyarrow.array(vectors().tolist(), pyarrow.list_(pyarrow.float32()))
    parquet.write_table(pyarrow.table({"key": NAMES.tolist(), "emb": emb}), tmp_path / "x.parquet", row_group_size=400)
    qinco.build_index(
        trained("plain").encode(vectors()), tmp_path / "ix", codec=trained("plain"), num_lists=12, ids="key",
        vectors=f"{tmp_path}/x.parquet:emb",
    )  # fmt: skip
    np.testing.assert_array_equal(Index.load(tmp_path / "ix").names[:], NAMES)
