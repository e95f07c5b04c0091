import importlib.util

import numpy as np
import pytest
import torch

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import VectorSource, as_source, open_vectors, stratified_rows

DATA = np.random.default_rng(0).integers(0, 200, (11, 3)).astype(np.float32)


def sources(folder) -> dict[str, VectorSource]:
    made = {}
    for name, array in (
        ("f.fvecs", DATA),
        ("b.bvecs", DATA.astype(np.uint8)),
        ("i.ivecs", DATA.astype(np.int32)),
        ("n.npy", DATA),
        ("half.npy", DATA.astype(">f2")),
        ("x.fbin", DATA),
        ("x.u8bin", DATA.astype(np.uint8)),
    ):
        write_vectors(folder / name, array)
        made[name] = open_vectors(folder / name)
    np.save(folder / "fortran.npy", np.asfortranarray(DATA, np.float64))
    made["fortran.npy"] = open_vectors(folder / "fortran.npy")
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(folder / "x.hdf5", "w") as file:
            file["train"] = DATA
            file.create_dataset("packed", data=DATA.astype(">f8"), chunks=(4, 2), compression="gzip")
        made["x.hdf5"], made["packed"] = open_vectors(folder / "x.hdf5"), open_vectors(f"{folder}/x.hdf5:packed")
    if importlib.util.find_spec("pyarrow"):
        from pyarrow import array, parquet, table

        parquet.write_table(table({"x": array(DATA.tolist())}), folder / "x.parquet", row_group_size=4)
        made["x.parquet"] = as_source(folder / "x.parquet")
    made["array"] = as_source(DATA)
    made["strided"] = as_source(np.repeat(DATA.astype(np.uint16), 2, 1)[:, ::2])
    made["lists"] = as_source(DATA.tolist())
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.uint16):
        made[str(dtype)] = as_source(torch.from_numpy(DATA).to(dtype))
    made["window"] = as_source(np.concatenate([DATA + 1, DATA, DATA + 2])).window(11, 22)
    return made


KEYS = [
    slice(None), slice(2, 5), slice(-3, None), slice(0, 11, 3), slice(None, None, -1), slice(9, 1, -3), slice(5, 2),
    slice(100, 200), [3, 1, 1, -1], np.array([], int), [], np.array([10, -11], np.int8), np.array([2], np.uint64),
]  # fmt: skip


def test_slices_of_any_source_are_fresh_float32(tmp_path):
    for name, source in sources(tmp_path).items():
        assert source.shape == (11, 3) and source.dim == 3 and len(source) == 11, name
        for key in KEYS:
            expected = DATA[np.array(key, int) if isinstance(key, list) else key]
            block = source[key]
            assert block.dtype == np.float32 and type(block) is np.ndarray, name
            assert block.flags.c_contiguous and block.flags.writeable, (name, key)
            np.testing.assert_array_equal(block, expected, f"{name} {key}")
            block[:] = -1
        assert source[-2].shape == (3,) and source[-2].flags.writeable
        source[-2][:] = -1
        np.testing.assert_array_equal(source[-2], DATA[-2])
        np.testing.assert_array_equal(source, DATA, name)
        np.testing.assert_array_equal(list(source), DATA)


@pytest.mark.parametrize("key", [11, -12, [0, 11], [-12], np.array([2**63], np.uint64)])
def test_rows_that_do_not_exist(key):
    with pytest.raises(IndexError, match=r"row -?\d+ of vectors .*11"):
        as_source(DATA)[key]


@pytest.mark.parametrize("key", [1.0, "a", True, [True] * 11, [[1, 2]], (1, 2), (slice(2), 0), None])
def test_keys_of_another_kind(key):
    with pytest.raises(IndexError, match="chosen by an integer, a slice or an array of integers"):
        as_source(DATA)[key]


def test_windows_and_limits():
    source = as_source(DATA)
    np.testing.assert_array_equal(source.limit(4), DATA[:4])
    assert source.limit(0).shape == (0, 3) and source.limit(100).shape == (11, 3)
    inner = source.window(2, 9).window(1, 4)
    np.testing.assert_array_equal(inner, DATA[3:6])
    np.testing.assert_array_equal(inner[[-1, 0]], DATA[[5, 3]])
    np.testing.assert_array_equal(inner.limit(2), DATA[3:5])
    with pytest.raises(IndexError):
        inner[3]
    for bounds in ((-1, 3), (3, 2), (0, 12), (0.0, 2)):
        with pytest.raises(ConfigError):
            source.window(*bounds)
    with pytest.raises(ConfigError):
        source.limit(-1)


@pytest.mark.parametrize("size", [1, 4, 11, 100])
def test_blocks_cover_every_row_once(size):
    blocks = list(as_source(DATA).blocks(size))
    assert [start for start, _ in blocks] == list(range(0, 11, size))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), DATA)
    assert all(len(block) == size for _, block in blocks[:-1])
    assert list(as_source(np.empty((0, 3))).blocks(size)) == []
    with pytest.raises(ConfigError, match="block size"):
        next(as_source(DATA).blocks(0))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "an infinite value"), (-np.inf, "an infinite")])
def test_the_first_row_that_is_not_finite_is_named_absolutely(dtype, value, word):
    array = np.zeros((11, 3))
    array[7, 2] = array[9, 0] = value
    source = as_source(torch.from_numpy(array).to(dtype) if isinstance(dtype, torch.dtype) else array.astype(dtype))
    window = source.window(2, 11)
    with pytest.raises(DataError, match=f"row 7 of vectors holds {word}.* in column 2"):
        list(window.blocks(3))
    blocks = list(window.blocks(3, check=False))
    assert len(blocks) == 3 and not np.isfinite(blocks[1][1][2, 2])
    assert len(list(source.limit(7).blocks(3))) == 3


def test_mapped_vectors_are_computed_when_they_are_read():
    source = as_source(DATA).window(2, 9)
    doubled = source.map(lambda x_ND: 2 * x_ND[:, :2], dim=2)
    assert doubled.shape == (7, 2) and doubled.dtype == np.float32 and doubled.name == source.name
    np.testing.assert_array_equal(doubled, 2 * DATA[2:9, :2])
    np.testing.assert_array_equal(doubled[[6, -7]], 2 * DATA[[8, 2], :2])
    bad = DATA.copy()
    bad[5, 1] = np.nan
    with pytest.raises(DataError, match="row 5 of vectors holds NaN in column 1"):
        list(as_source(bad).window(2, 9).map(np.negative).blocks(3))


def test_taken_vectors_come_in_the_order_of_their_rows():
    taken = as_source(DATA).window(1, 11).take([8, 0, 0, 3])
    assert taken.shape == (4, 3)
    np.testing.assert_array_equal(taken, DATA[[9, 1, 1, 4]])
    np.testing.assert_array_equal(taken[1:3], DATA[[1, 1]])
    np.testing.assert_array_equal(taken[[-1, 0]], DATA[[4, 9]])


def test_files_without_rows_are_refused_and_arrays_without_rows_accepted(tmp_path):
    write_vectors(tmp_path / "x.npy", DATA[:0])
    for open_it in (open_vectors, as_source):
        with pytest.raises(DataError, match=r"x\.npy holds no vectors: its shape is \(0, 3\)"):
            open_it(tmp_path / "x.npy")
    for empty in (DATA[:0], torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bfloat16)):
        source = as_source(empty)
        assert source.shape == (0, 3) and source[:].shape == (0, 3) and np.asarray(source).dtype == np.float32


class Convertible:
    def __array__(self, dtype=None, copy=None):
        return DATA.astype(dtype or np.float64)


def test_what_can_be_a_source(tmp_path):
    write_vectors(tmp_path / "x.npy", DATA)
    source = as_source(tmp_path / "x.npy")
    assert as_source(source) is source
    mapped = np.memmap(tmp_path / "x.npy", np.float32, "r", 128, DATA.shape)
    parameter = torch.nn.Parameter(torch.from_numpy(DATA.copy()))
    strided = torch.from_numpy(DATA.T.copy()).T
    for x in (str(tmp_path / "x.npy"), mapped, Convertible(), parameter, strided, tuple(map(tuple, DATA.tolist()))):
        np.testing.assert_array_equal(as_source(x), DATA)
    assert isinstance(as_source(mapped)[:2], np.ndarray) and not isinstance(as_source(mapped)[:2], np.memmap)


class Sparse:
    def toarray(self):
        return DATA


@pytest.mark.parametrize(
    "x, message",
    [
        (DATA[0], r"\(3,\).* \(1, 3\)"),
        (torch.zeros(3), r"\(3,\).* \(1, 3\)"),
        (np.array(["a", "b"]), "must hold integers or floats, not <U1"),
        (torch.zeros(1, 2, 3), r"\(1, 2, 3\)"),
        (None, "not object"),
        (DATA[:, :0], "one column"),
        (DATA.astype(complex), "not complex128"),
        (DATA.astype(bool), "not bool"),
        (torch.zeros(2, 2, dtype=torch.bool), "not torch.bool"),
        (torch.zeros(2, 2).to_sparse(), "must be a dense"),
        (torch.zeros(2, 2, device="meta"), "with data"),
        (Sparse(), "toarray"),
        (np.ma.array(DATA, mask=DATA > 5), "masked"),
        ([[1, 2], [3]], "must be a matrix of numbers"),
        ([[2**70]], "not object"),
    ],
)
def test_what_cannot_be_a_source(x, message):
    with pytest.raises(DataError, match=f"queries.*{message}"):
        as_source(x, "queries")


def test_a_tensor_on_a_device_is_read_by_slices(device):
    source = as_source(torch.from_numpy(DATA).to(device))
    np.testing.assert_array_equal(source, DATA)
    np.testing.assert_array_equal(source[[3, -1]], DATA[[3, -1]])


def test_vectors_without_some_are_the_others():
    x_ND, rows = np.arange(40, dtype=np.float32).reshape(20, 2), np.array([0, 3, 4, 19])
    left, expected = as_source(x_ND).window(0, 20).without(rows), np.delete(x_ND, rows, 0)
    for key in (slice(None), slice(2, 7), slice(1, 3), slice(10, 2), slice(14, 2, -3), [5, 0, -1], np.array([2])):
        assert np.array_equal(left[key], expected[key])
    assert np.array_equal(np.concatenate([block for _, block in left.limit(9).blocks(4)]), expected[:9])
    x_ND[5, 1] = np.nan
    for source in (left, left.take(np.arange(16)), left.map(np.copy).window(1, 16)):
        with pytest.raises(DataError, match="row 5 of"):
            list(source.blocks(3))


@pytest.mark.parametrize(("num_rows", "count"), [(10, 10), (10, 11), (1000, 999), (1000, 1), (100_000, 65_000)])
def test_a_stratified_sample_is_spread_over_all_rows(num_rows, count):
    rows = stratified_rows(num_rows, count, 1)
    assert len(rows) == len(np.unique(rows)) == min(count, num_rows)
    assert (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < num_rows
    edges = np.linspace(0, num_rows, 5)
    counts = np.histogram(rows, edges)[0] if count >= 100 else [count / 4]
    assert np.allclose(counts, count / 4, rtol=0.01)
