from pathlib import Path

import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import choose_table, list_names, reason, split_table
from qinco.vectors.formats import open_array


@pytest.mark.parametrize(
    "path, file, name",
    [
        ("x.hdf5:train", "x.hdf5", "train"),
        ("a:b/x.h5:group/train", "a:b/x.h5", "group/train"),
        ("X.HDF5:a:b", "X.HDF5", "a:b"),
        ("x.parquet:a column, ö", "x.parquet", "a column, ö"),
        ("x.parquet:x.parquet:y", "x.parquet", "x.parquet:y"),
        ("x.parquet", "x.parquet", None),
        ("x.parquet:", "x.parquet:", None),
        ("x.npy:train", "x.npy:train", None),
        ("x.h5.npy", "x.h5.npy", None),
        ("nul\0.h5:x", "nul\0.h5", "x"),
        (Path("x.h5:train"), "x.h5", "train"),
    ],
)
def test_a_path_may_name_a_matrix(path, file, name):
    assert split_table(path) == (Path(file), name)


def test_the_whole_name_of_a_file_is_never_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.h5:train").touch()
    assert split_table("x.h5:train") == (Path("x.h5:train"), None)
    assert split_table("x.h5:test") == (Path("x.h5"), "test")
    Path("x.h5:y.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.h5:y\.npy holds no vectors: the file is empty"):
        open_array("x.h5:y.npy")
    with pytest.raises(ConfigError, match=r"the suffix '\.h5:train', which names no known format"):
        open_array("x.h5:train")
    with pytest.raises(DataError, match=r"y\.h5 does not exist"):
        open_array("y.h5:train")


def test_the_part_or_the_only_matrix_is_chosen():
    assert choose_table(Path("x.h5"), ["test", "train"], "train", "matrix") == "train"
    assert choose_table(Path("x.h5"), {"vectors": 1}, "train", "matrix") == "vectors"
    with pytest.raises(DataError, match=r"x\.h5 holds no matrix"):
        choose_table(Path("x.h5"), [], "train", "matrix")
    with pytest.raises(DataError, match=r"more than one matrix: name one of 'a', 'b', as in x\.h5:NAME"):
        choose_table(Path("x.h5"), ["a", "b"], "train", "matrix")


def test_names_out_of_a_file_are_quoted_and_cut():
    assert list_names(["a\x1b[31m", "b" * 1000]) == f"'a\\x1b[31m', '{'b' * 40}'"
    assert list_names([str(number) for number in range(1000)]).endswith(", '11', ...")
    assert list_names([]) == "nothing"


def test_what_a_library_says_is_one_line():
    assert reason(OSError("Invalid data\nat \x1b[31mbyte 7 \n")) == "Invalid data at [31mbyte 7"
    assert reason(KeyError()) == "KeyError" and len(reason(OSError("x" * 10_000))) == 200
