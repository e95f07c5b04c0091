"""Vectors in memory, as users have them: tables, columns, rows, nested lists, tensors, buffers, batches."""

import array
import io
from collections import deque
from decimal import Decimal
from itertools import repeat

import numpy as np
import pytest
import torch

from qinco.errors import DataError, ResourceError
from qinco.vectors import arrays
from qinco.vectors.rows import as_queries, as_source

X = np.random.default_rng(0).integers(0, 200, (11, 3)).astype(np.float32)


def objects(rows) -> np.ndarray:
    made = np.empty(len(rows), object)
    for number, row in enumerate(rows):
        made[number] = row
    return made


class OnlyDlpack:
    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return torch.from_numpy(self.x).__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


class Loader:
    def __iter__(self):
        return iter([torch.from_numpy(X[:4]), torch.from_numpy(X[4:])])

    def __len__(self):
        return 2


def reused(buffer=None):
    """An iterator that hands out the same memory again and again."""
    buffer = np.empty((4, 3), np.float32)
    for start in range(0, 11, 4):
        count = len(X[start : start + 4])
        buffer[:count] = X[start : start + 4]
        yield buffer[:count]


PLAIN = {
    "object array of arrays": objects(list(X)),
    "object array of lists": objects(X.tolist()),
    "object matrix of numbers": X.astype(object),
    "list of arrays": list(X),
    "list of lists": X.tolist(),
    "tuple of tuples": tuple(map(tuple, X.tolist())),
    "memoryview": memoryview(X),
    "list of memoryviews": [memoryview(row) for row in X],
    "list of array.array": [array.array("f", row) for row in X],
    "list of tensors": list(torch.from_numpy(X)),
    "list of bfloat16 tensors": list(torch.from_numpy(X).bfloat16()),
    "list of parameters": [torch.nn.Parameter(torch.from_numpy(row)) for row in X],
    "deque of rows": deque(X),
    "dlpack": OnlyDlpack(X),
    "mapping of one array": {"train": X},
    "list of batches": [X[:4], X[4:5].tolist(), torch.from_numpy(X[5:]).bfloat16()],
    "list of sources": [as_source(X[:4]), as_source(X[4:])],
    "generator of batches": lambda: (X[i : i + 4] for i in range(0, 11, 4)),
    "generator of rows": lambda: iter(X),
    "generator of lists": lambda: (row.tolist() for row in X),
    "map of tensors": lambda: map(torch.from_numpy, X),
    "an iterator that reuses its memory": reused,
    "loader": lambda: Loader(),
}


def tables() -> dict:
    made = {}
    try:
        import pyarrow as pa
    except ImportError:
        return made
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    ids = pa.array(range(11))
    made |= {
        "arrow fixed": fixed,
        "arrow slice": pa.concat_arrays([fixed, fixed])[11:],
        "arrow list": pa.array(X.tolist()),
        "arrow large list of halves": pa.array(list(X.astype(np.float16)), pa.large_list(pa.float16())),
        "arrow chunks": pa.chunked_array([fixed[:4], fixed[4:4], fixed[4:]]),
        "arrow tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(X),
        "arrow tensor": pa.Tensor.from_numpy(X),
        "arrow scalars": list(fixed),
        "arrow table": pa.table({"id": ids, "emb": fixed, "text": ["a"] * 11}),
        "arrow table of numbers": pa.table(list(X.T.copy()), names=list("abc")),
        "arrow batch": pa.record_batch({"emb": fixed}),
        "arrow batches": lambda: pa.table({"id": ids, "emb": fixed}).to_reader(4),
        "arrow list of columns": [fixed[:4], fixed[4:]],
        "arrow list of batches": pa.table({"id": ids, "emb": fixed}).to_batches(4),
    }
    return made


def frames() -> dict:
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    import pyarrow as pa

    made = {
        "pandas frame": pd.DataFrame(X),
        "pandas frame of nullable types": pd.DataFrame(X).convert_dtypes(),
        "pandas frame of two types": pd.DataFrame(X).astype({1: np.int64}),
        "pandas frame with an index": pd.DataFrame(X, index=range(50, 61)),
        "pandas series of arrays": pd.Series(list(X), index=range(50, 61)),
        "pandas series of lists": pd.Series(X.tolist()),
        "pandas arrow series": pd.Series(X.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32()))),
        "pandas extension array": pd.Series(X.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32(), 3))).array,
        "pandas table": pd.DataFrame({"id": range(11), "text": "a", "emb": list(X)}, index=range(7, 18)),
        "pandas list of columns": [pd.Series(list(X[:4])), pd.Series(list(X[4:]))],
        "polars list of columns": [pl.Series(X[:4]), pl.Series(X[4:])],
        "pandas rows": list(pd.DataFrame(X).itertuples(index=False)),
        "pandas chunks": lambda: (pd.DataFrame(X[i : i + 4]) for i in range(0, 11, 4)),
        "polars frame": pl.DataFrame(X),
        "polars list series": pl.Series(X.tolist()),
        "polars array series": pl.Series(X),
        "polars table": pl.DataFrame({"id": range(11), "emb": X}),
        "polars frame of one column": pl.DataFrame({"emb": X}),
        "polars rows": pl.DataFrame(X).rows(),
        "polars slices": lambda: pl.DataFrame({"id": range(11), "emb": X.tolist()}).iter_slices(4),
    }
    return made


def check(kinds):
    for name, made in kinds.items():
        source = as_source(made() if callable(made) else made)
        np.testing.assert_array_equal(source[:], X, name)
        np.testing.assert_array_equal(source[[10, 0, 5]], X[[10, 0, 5]], name)
        np.testing.assert_array_equal(source.window(2, 7)[::2], X[2:7:2], name)
        several, is_one = as_queries(made() if callable(made) else made)
        assert not is_one and several.shape == (11, 3), name


def test_kinds_of_plain_vectors():
    check(PLAIN)


def test_arrow_columns_and_tables():
    pytest.importorskip("pyarrow")
    check(tables())


def test_pandas_and_polars_columns_and_tables():
    check(frames())


def test_one_query_of_any_kind():
    pa, pd, pl = (pytest.importorskip(name) for name in ("pyarrow", "pandas", "polars"))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    for number, one in enumerate(
        [
            X[3], X[3].tolist(), tuple(X[3]), memoryview(X[3]), array.array("f", X[3]), objects(X[3]),
            torch.from_numpy(X[3]).bfloat16(), OnlyDlpack(X[3]), pd.DataFrame(X).iloc[3],
            pd.Series(X[3], index=list("abc")), pd.DataFrame(X).convert_dtypes().iloc[3], pl.Series(X[3]),
            pl.DataFrame(X).row(3), pa.array(X[3]), fixed[3],
            pa.chunked_array([X[3][:2], X[3][2:]]), pd.Series(list(X))[3], pl.Series(X.tolist())[3],
        ]
    ):  # fmt: skip
        source, is_one = as_queries(one)
        assert is_one and source[:].tolist() == X[3:4].tolist(), number
        np.testing.assert_array_equal(as_source([one] if isinstance(one, list | tuple) else [one, one])[0], X[3])
        if not isinstance(one, torch.Tensor | OnlyDlpack):
            with pytest.raises(DataError, match=r"\[None\]"):
                as_source(one)
            np.testing.assert_array_equal(as_source(np.asarray(one)[None]), X[3:4])  # the remedy


def refused_kinds() -> dict:
    pa, pd, pl = (pytest.importorskip(name) for name in ("pyarrow", "pandas", "polars"))
    ragged, gap, holes = [*X.tolist(), [1.0]], [*X.tolist(), None], [*X.tolist(), [1.0, None, 2.0]]
    two = {"id": range(11), "title_emb": X.tolist(), "body_emb": X.tolist()}
    text = {"a": X[:, 0], "name": ["x"] * 11}
    return {
        "row 11 .*1.*3": [ragged, objects(ragged), pd.Series(ragged), pl.Series(ragged), pa.array(ragged)],
        "row 11 .*(None|null|nan)": [gap, objects(gap), pd.Series(gap), pl.Series(gap), pa.array(gap)],
        "row 11 .*column 1": [holes, objects(holes), pd.Series(holes), pl.Series(holes), pa.array(holes),
                              pd.DataFrame(holes).convert_dtypes()],
        "'title_emb', 'body_emb'.*\\['title_emb'\\]": [pd.DataFrame(two), pl.DataFrame(two), pa.table(two)],
        "leave out 'name'": [pd.DataFrame(text), pl.DataFrame(text), pa.table(text)],
        "one value of the mapping, of 'a', 'b'": [{"a": X, "b": X}],
        "collect": [pl.DataFrame(X).lazy()],
        "set": [set(map(tuple, X.tolist()))],
        "must not be empty": [iter([]), iter(())],
        "dimension 3, .*4": [iter([X, np.ones((2, 4))]), [X, np.ones((2, 4))]],
        "item 1 of queries": [iter([X, None]), [X, X[0]]],
        "not object: give": [[[Decimal(1), 2]]],
        "open file": [io.BytesIO(X.tobytes())],
    }  # fmt: skip


def test_kinds_that_are_refused_say_what_to_give():
    for message, kinds in refused_kinds().items():
        for x in kinds:
            with pytest.raises(DataError, match=message):
                as_source(x, "queries")


def test_iterators_are_gathered_within_the_free_memory(monkeypatch):
    monkeypatch.setattr(arrays, "free_memory", lambda: 2 * X.nbytes)
    np.testing.assert_array_equal(as_source(iter([X])), X)
    with pytest.raises(ResourceError, match="file"):
        as_source(repeat(X))


class Lazy:
    """A matrix that gives slices only, as h5py, zarr and dask have it; it notes how much is read at a time."""

    shape, dtype, reads = X.shape, X.dtype, ()

    def __getitem__(self, key):
        assert isinstance(key, slice)
        self.reads = (*self.reads, len(X[key]))
        return X[key]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("all of it is read")


def test_a_lazy_matrix_is_read_by_blocks():
    lazy = Lazy()
    source = as_source(lazy)
    assert lazy.reads == ()
    np.testing.assert_array_equal(source[[4, 0]], X[[4, 0]])
    h5py = pytest.importorskip("h5py")
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        file["train"] = X
        np.testing.assert_array_equal(as_source(file["train"])[[4, 0, 4]], X[[4, 0, 4]])


def test_records_masked_arrays_and_tuples_of_batches():
    pd = pytest.importorskip("pandas")
    one = np.zeros(11, [("id", "i8"), ("emb", "f4", 3)])
    one["emb"] = X
    columns = np.rec.fromarrays(X.T, names="a,b,c")
    tensors = [torch.from_numpy(row) for row in X]
    check({
        "records of vectors": one, "recarray": one.view(np.recarray), "records of numbers": columns,
        "masked array without masked values": np.ma.array(X, mask=False), "tuple of batches": (X[:4], X[4:]),
        "chunks of a tensor": torch.from_numpy(X).chunk(3), "tuple of sources": (as_source(X[:4]), X[4:]),
        "frame with a column of tensors": pd.DataFrame({"id": range(11), "emb": tensors}),
    })  # fmt: skip


def test_paths_and_vectors_in_one_list(tmp_path):
    np.save(tmp_path / "x.npy", X[4:])
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        np.testing.assert_array_equal(as_source([X[:4], path])[:], X)
        np.testing.assert_array_equal(as_source((path, as_source(X[:4])))[:], np.concatenate([X[4:], X[:4]]))
        with pytest.raises(DataError, match="sorted"):
            as_source(iter([path]))


@pytest.mark.parametrize("x", [
    iter([1.0, 2.0, 3.0]), [b"abc", b"abd"],
    np.zeros(3, [("a", "f4", 2), ("b", "f4", 2)]), np.zeros(3, [("a", "f4"), ("b", "U2")]), np.array(["1", "2"]),
])  # fmt: skip
def test_what_is_nearly_vectors(x):
    with pytest.raises(DataError, match=r"give|index|leave out"):
        as_source(x)


@pytest.mark.filterwarnings("ignore")
def test_nested_tensors():
    with pytest.raises(DataError, match="dense"):
        as_source(torch.nested.nested_tensor([torch.zeros(3)]))
