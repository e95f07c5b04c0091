"""The authors' encoded sets, as numpy writes them and as we do."""

from pathlib import Path

import numpy as np
import pytest

from qinco.compat.encoded_sets import describe_encoded_set, npz_part, open_npz, read_npz_sizes, write_npz
from qinco.errors import DataError

UPSTREAM = Path(__file__).parents[2] / "data" / "upstream"


def write_as_authors_do(path, parts, codebook_size, code_size, save=np.savez_compressed):
    """Each part is a transposed array: numpy keeps that order, Fortran's."""
    save(path, n_parts=len(parts), K=codebook_size, M=code_size, D=32)
    for number, part in enumerate(parts):
        save(npz_part(path, number), codes=part.T.copy().T)


def random_parts(sizes, columns, codebook_size, dtype=np.int64):
    generator = np.random.default_rng(0)
    return [generator.integers(0, codebook_size, (size, columns)).astype(dtype) for size in sizes]


def test_reads_what_the_authors_code_wrote():
    with np.load(UPSTREAM / "enc_db.part_0.npz") as part:
        expected = part["codes"]
    sizes = {"n_parts": 1, "K": 256, "M": 4, "D": 32}
    assert read_npz_sizes(UPSTREAM / "enc_db.npz") == (sizes, [3000], True)
    codes, lists = open_npz(UPSTREAM / "enc_db.npz", 4, 256)
    assert (codes.shape, codes.dtype) == ((3000, 4), np.uint8)
    assert (lists.shape, lists.dtype) == ((3000, 1), np.int32)
    assert np.array_equal(codes[:], expected[:, 1:])
    assert np.array_equal(lists[:], expected[:, :1])
    assert np.array_equal(codes[1000:1010], expected[1000:1010, 1:])
    with pytest.raises(DataError, match="M is 4"):
        open_npz(UPSTREAM / "enc_db.npz", 5, 256)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, ">i8", np.uint64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("sizes", [(10,), (9, 0, 1, 6), (0,), (1,)])
def test_parts_of_any_size_type_and_order(tmp_path, dtype, save, columns, sizes):
    parts = random_parts(sizes, columns, 1000, dtype)
    expected = np.concatenate(parts).astype(np.int64)
    write_as_authors_do(tmp_path / "fortran.npz", parts, 1024, 3, save)
    save(tmp_path / "c.npz", n_parts=len(parts), K=1024, M=3, D=32)
    for number, part in enumerate(parts):
        save(npz_part(tmp_path / "c.npz", number), codes=part)
    for name in ("fortran.npz", "c.npz"):
        codes, lists = open_npz(tmp_path / name, 3, 1024)
        assert codes.dtype == np.uint16
        assert np.array_equal(codes[:], expected[:, columns - 3 :])
        if columns == 4:
            assert np.array_equal(lists[:], expected[:, :1])
        else:
            assert lists is None


@pytest.mark.parametrize("num_vectors", [0, 1, 7, 8, 20])
@pytest.mark.parametrize("has_lists", [False, True])
def test_numpy_reads_what_we_write(tmp_path, num_vectors, has_lists):
    codes = random_parts([num_vectors], 3, 256, np.uint8)[0]
    lists = random_parts([num_vectors], 1, 1 << 31, np.int32)[0] if has_lists else None
    written = write_npz(tmp_path / "x.npz", codes, lists, 256, 32, part_rows=7, block_rows=4)
    count = max(1, -(-num_vectors // 7))
    assert written == [*(tmp_path / f"x.part_{number}.npz" for number in range(count)), tmp_path / "x.npz"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    again = write_npz(tmp_path / "y.npz", codes, lists, 256, 32, part_rows=7, block_rows=20)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]
    *parts, index = (dict(np.load(path)) for path in written)
    assert index == {"n_parts": count, "K": 256, "M": 3, "D": 32}
    assert all(array.dtype == np.int64 for arrays in (index, *parts) for array in arrays.values())
    columns = codes if lists is None else np.concatenate([lists, codes], 1)
    assert np.array_equal(np.concatenate([part["codes"] for part in parts]), columns)


def test_sets_and_parts_are_described(tmp_path):
    assert describe_encoded_set(UPSTREAM / "enc_db.npz") == {
        "kind": "encoded set of QINCo2", "num_vectors": 3000, "num_parts": 1, "dim": 32, "codebook_size": 256,
        "num_codes": 4, "has_lists": True, "bytes_per_vector": 4,
    }  # fmt: skip
    described = describe_encoded_set(UPSTREAM / "enc_db.part_0.npz")
    assert (described["num_vectors"], described["columns"]) == (3000, 5)


def test_parts_of_an_earlier_set_are_removed(tmp_path):
    codes = random_parts([20], 3, 256, np.uint8)[0]
    (tmp_path / "y.part_0.npz").touch()
    write_npz(tmp_path / "x.npz", codes, None, 256, 32, part_rows=4)
    write_npz(tmp_path / "x.npz", codes[:6], None, 256, 32, part_rows=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz", "x.part_0.npz", "x.part_1.npz", "y.part_0.npz"]
    assert np.array_equal(open_npz(tmp_path / "x.npz", 3, 256)[0][:], codes[:6])


def test_a_part_is_read_once_for_codes_and_lists(tmp_path):
    write_as_authors_do(tmp_path / "x.npz", random_parts([9, 9], 4, 256), 256, 3)
    codes, lists = open_npz(tmp_path / "x.npz", 3, 256)
    assert codes[9:12].shape == (3, 3)
    npz_part(tmp_path / "x.npz", 1).unlink()
    assert lists[12:18].shape == (6, 1) and codes[17:18].shape == (1, 3)


def index_with(**changes):
    return {"n_parts": np.int64(1), "K": np.int64(256), "M": np.int64(3), "D": np.int64(8)} | changes


WRONG = {  # an index file, the codes of its part, and what messages hold
    "more parts than there are": (index_with(n_parts=2), 0, r"x\.part_1\.npz"),
    "parts beyond reason": (index_with(n_parts=1 << 60), 0, "n_parts"),
    "negative parts": (index_with(n_parts=-1), 0, "n_parts"),
    "parts as a list": (index_with(n_parts=[1]), 0, r"n_parts .*\(1,\)"),
    "true": (index_with(n_parts=True), 0, "bool"),
    "no codewords": (index_with(K=0), 0, "'K': 0"),
    "unsigned beyond int64": (index_with(D=np.uint64(2**64 - 1)), 0, "D"),
    "other K": (index_with(K=512), 0, "512"),
    "other M": (index_with(M=4), 0, r"\(4, 3\)"),
    "no D": ({name: value for name, value in index_with().items() if name != "D"}, 0, "D.npy"),
    "a pickle": (index_with(K=np.array(256, object)), 0, "object"),
    "one column too few": (index_with(), np.zeros((4, 2), int), r"\(4, 2\)"),
    "a vector": (index_with(), np.zeros(4, int), r"\(4,\)"),
    "floats": (index_with(), np.zeros((4, 3)), "float64"),
    "fields": (index_with(), np.zeros((4, 3), [("a", "<i4"), ("b", "<i4")]), "codes"),
    "objects": (index_with(), np.zeros((4, 3), object), "object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_index_files_and_parts_are_refused(tmp_path, name):
    index, codes, value = WRONG[name]
    np.savez(tmp_path / "x.npz", **index)
    np.savez(tmp_path / "x.part_0.npz", codes=codes if np.ndim(codes) else np.zeros((4, 3), int))
    with pytest.raises(DataError, match=value):
        open_npz(tmp_path / "x.npz", 3, 256)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("row", "column", "value"), [(0, 1, 256), (8, 3, -1), (5, 2, 1 << 60), (8, 0, 1 << 31), (0, 0, -1)]
)
def test_codes_out_of_range_are_refused_when_they_are_read(tmp_path, order, row, column, value):
    part = random_parts([9], 4, 256)[0]
    part[row, column] = value
    np.savez(tmp_path / "x.npz", **index_with())
    np.savez(tmp_path / "x.part_0.npz", codes=np.array(part, order=order))
    codes, _ = open_npz(tmp_path / "x.npz", 3, 256)
    with pytest.raises(DataError, match=rf"x\.part_0\.npz .*{value}.* {256 if column else 1 << 31}"):
        codes[:]


def test_parts_of_different_widths_and_parts_that_change_are_refused(tmp_path):
    write_as_authors_do(tmp_path / "x.npz", [np.zeros((4, 3), int), np.zeros((4, 4), int)], 256, 3)
    with pytest.raises(DataError, match=r"\[\(4, 3\), \(4, 4\)\]"):
        open_npz(tmp_path / "x.npz", 3, 256)
    write_npz(tmp_path / "x.npz", np.zeros((4, 3), np.uint8), None, 256, 8)
    codes, _ = open_npz(tmp_path / "x.npz", 3, 256)
    np.savez(tmp_path / "x.part_0.npz", codes=np.zeros((5, 3), int))
    with pytest.raises(DataError, match=r"\(5, 3\)"):
        codes[:]
