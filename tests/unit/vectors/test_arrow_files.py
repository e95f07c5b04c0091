"""Arrow's files and streams; damage is a DataError that names the file."""

import numpy as np
import pytest

import qinco
from qinco.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
DATA = np.random.default_rng(0).standard_normal((57, 6)).astype(np.float32)


def save(path, column, is_stream=False, chunk=20):
    table = pyarrow.table({"id": range(len(column)), "text": ["a"] * len(column), "emb": column})
    with (ipc.new_stream if is_stream else ipc.new_file)(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=chunk)
    return path


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
def test_what_pyarrow_writes_is_read(tmp_path, kind, suffix, is_stream):
    value = pyarrow.float32()
    types = {"list": pyarrow.list_(value), "large_list": pyarrow.large_list(value), "fixed": pyarrow.list_(value, 6)}
    path = save(tmp_path / f"x{suffix}", pyarrow.array(DATA.tolist(), types[kind]), is_stream)
    source = qinco.open_vectors(path)
    for rows in (slice(None), slice(3, 45), slice(50, 2, -7), np.array([56, 0, 0, 31])):
        np.testing.assert_array_equal(source[rows], DATA[rows])
    np.testing.assert_array_equal(qinco.open_vectors(f"{path}:emb")[:], DATA)
    assert qinco.describe(path)["num_vectors"] == 57


def test_what_is_damaged_or_no_matrix_is_named(tmp_path):
    rows = DATA.tolist()
    ragged, null = rows.copy(), rows.copy()
    ragged[30], null[41] = [1.0], None
    float_lists = pyarrow.list_(pyarrow.float32())
    for found, error in ((ragged, "row 30"), (null, "row 41")):
        path = save(tmp_path / "x.arrow", pyarrow.array(found, float_lists))
        with pytest.raises(DataError, match=error):
            qinco.open_vectors(path)[:]
    with pytest.raises(DataError, match="no column of lists of numbers"):
        qinco.open_vectors(save(tmp_path / "x.arrow", pyarrow.array(["a"])))
    with pytest.raises(DataError, match="no rows"):
        qinco.open_vectors(save(tmp_path / "x.arrow", pyarrow.array([], float_lists)))
    whole = save(tmp_path / "x.arrow", pyarrow.array(rows, float_lists)).read_bytes()
    for content in (whole[:100], b"ARROW1\0\0" + bytes(300), whole[: len(whole) // 2]):
        (tmp_path / "x.arrow").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.arrow"):
            qinco.open_vectors(tmp_path / "x.arrow")[:]
