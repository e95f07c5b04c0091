"""Any file either gives what was written into it or says, with an error of ours, that it does not."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from qinco.errors import DataError
from qinco.vectors.formats import VectorWriter, open_array, write_vectors
from qinco.vectors.rows import as_source, open_vectors

SHAPES = npst.array_shapes(min_dims=2, max_dims=2, max_side=9)
NUMBER_TYPES = st.one_of(
    npst.floating_dtypes(endianness="?"), npst.integer_dtypes(endianness="?"), npst.unsigned_integer_dtypes()
)
FRAMED = {".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32}
TYPED = {**FRAMED, ".fbin": np.float32, ".u8bin": np.uint8, ".i8bin": np.int8, ".ibin": np.int32}
SUFFIXES = [*TYPED, ".npy"]


@contextmanager
def new_path(suffix):
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"x{suffix}"


def same(a, b) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("suffix", TYPED)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_files_of_one_type_round_trip(suffix, data):
    array = data.draw(npst.arrays(TYPED[suffix], SHAPES))
    with new_path(suffix) as path:
        write_vectors(path, array)
        assert same(open_array(path)[:], array)
        with np.errstate(all="ignore"):
            assert same(open_vectors(path)[:], array.astype(np.float32))


@given(array=NUMBER_TYPES.flatmap(lambda dtype: npst.arrays(dtype, SHAPES)), is_fortran=st.booleans())
@settings(deadline=None, max_examples=60)
def test_npy_files_of_any_type_and_order_round_trip(array, is_fortran):
    with new_path(".npy") as path:
        write_vectors(path, array)
        assert np.load(path).dtype == array.dtype and same(np.load(path), array)
        np.save(path, np.asfortranarray(array) if is_fortran else array)
        assert open_array(path).dtype == array.dtype and same(open_array(path), array)
        with np.errstate(all="ignore"):
            assert same(open_vectors(path)[:], array.astype(np.float32))


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), data=st.data())
@settings(deadline=None, max_examples=20)
def test_a_stream_writes_what_one_piece_writes(suffix, cuts, data):
    array = data.draw(npst.arrays(TYPED.get(suffix, np.float32), (12, 3)))
    with new_path(suffix) as path:
        write_vectors(path, array)
        expected = path.read_bytes()
        with VectorWriter(path, 3) as writer:
            for block in np.split(array, sorted(cuts)):
                writer.append(block)
        assert path.read_bytes() == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_anywhere_is_refused_or_is_whole_rows(suffix):
    array = np.arange(12).reshape(4, 3).astype(TYPED.get(suffix, np.float32))
    with new_path(suffix) as path:
        write_vectors(path, array)
        content = path.read_bytes()
        row = len(content) // 4 if suffix in FRAMED else 0
        for length in range(len(content)):
            path.write_bytes(content[:length])
            if row and length and length % row == 0:
                np.testing.assert_array_equal(open_array(path), array[: length // row])
            else:
                with pytest.raises(DataError):
                    open_array(path)


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_hdf5_files_read_as_numpy_does(data):
    h5py = pytest.importorskip("h5py")
    array = data.draw(NUMBER_TYPES.flatmap(lambda dtype: npst.arrays(dtype, SHAPES)))
    chunks = data.draw(st.none() | st.tuples(*(st.integers(1, size) for size in array.shape)))
    packed = {"compression": data.draw(st.sampled_from([None, "gzip"])), "shuffle": data.draw(st.booleans())}
    with new_path(".h5") as path:
        with h5py.File(path, "w", libver=data.draw(st.sampled_from(["earliest", "latest"]))) as file:
            file.create_dataset("x", data=array, chunks=chunks, **packed if chunks else {})
        assert_reads_alike(open_array(path), array, data)


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_parquet_files_read_as_numpy_does(data):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    types = st.one_of(
        npst.floating_dtypes(endianness="<", sizes=(16, 32, 64)), npst.integer_dtypes(endianness="<"),
        npst.unsigned_integer_dtypes(endianness="<"),
    )  # fmt: skip
    array = data.draw(types.flatmap(lambda dtype: npst.arrays(dtype, SHAPES)))
    kind = pyarrow.list_(pyarrow.from_numpy_dtype(array.dtype), data.draw(st.sampled_from([-1, array.shape[1]])))
    with new_path(".parquet") as path:
        parquet.write_table(
            pyarrow.table({"x": pyarrow.array(list(array), kind)}),
            path,
            row_group_size=data.draw(st.integers(1, 9)),
            compression=data.draw(st.sampled_from(["none", "snappy", "zstd"])),
            data_page_version=data.draw(st.sampled_from(["1.0", "2.0"])),
        )
        assert_reads_alike(open_array(path), array, data)


def assert_reads_alike(stored, array, data):
    assert stored.shape == array.shape and stored.dtype == array.dtype
    for _ in range(3):
        rows = data.draw(st.slices(len(array)) | npst.arrays(np.int64, 5, elements=st.integers(0, len(array) - 1)))
        assert same(np.ascontiguousarray(stored[rows]), np.ascontiguousarray(array[rows]))


@given(array=npst.arrays(np.float32, (7, 2), elements=st.integers(0, 9)), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_window_reads_as_numpy_does(array, data):
    bounds = sorted(data.draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
    window, expected = as_source(array).window(*bounds), array[slice(*bounds)]
    key = data.draw(st.slices(10))
    np.testing.assert_array_equal(window[key], expected[key])
    if len(expected):
        rows = data.draw(npst.arrays(np.int64, 4, elements=st.integers(-len(expected), len(expected) - 1)))
        np.testing.assert_array_equal(window[rows], expected[rows])
