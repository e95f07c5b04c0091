"""Any file either gives what was written into it or says, with an error of ours, that it does not."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from qinco.errors import DataError, QincoError
from qinco.vectors.formats import VectorWriter, open_array, write_vectors
from qinco.vectors.source import as_source, open_vectors

SHAPES = npst.array_shapes(min_dims=2, max_dims=2, max_side=9)
NUMBER_TYPES = st.one_of(
    npst.floating_dtypes(endianness="?"), npst.integer_dtypes(endianness="?"), npst.unsigned_integer_dtypes()
)
FRAMED = {".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32}
SUFFIXES = [*FRAMED, ".npy"]


@contextmanager
def new_path(suffix):
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"x{suffix}"


def same(a, b) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("suffix", FRAMED)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_framed_files_round_trip(suffix, data):
    array = data.draw(npst.arrays(FRAMED[suffix], SHAPES))
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
    array = data.draw(npst.arrays(FRAMED.get(suffix, np.float32), (12, 3)))
    with new_path(suffix) as path:
        write_vectors(path, array)
        expected = path.read_bytes()
        with VectorWriter(path, 3) as writer:
            for block in np.split(array, sorted(cuts)):
                writer.append(block)
        assert path.read_bytes() == expected


def headed_bytes(suffix):
    """Random bytes, some of which begin as a file of the format does."""
    starts = [b""]
    if suffix == ".npy":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
        starts += [b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x01\x00\x3c\x00" + header + b"\n"]
    else:
        starts += [bytes([dim, 0, 0, 0]) for dim in range(4)]
    return st.builds(lambda start, rest: start + rest, st.sampled_from(starts), st.binary(max_size=64))


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_random_bytes_open_or_are_refused(suffix, data):
    content = data.draw(headed_bytes(suffix))
    with new_path(suffix) as path:
        path.write_bytes(content)
        try:
            source = open_vectors(path)
            for start, block in source.blocks(2, check=False):
                assert block.dtype == np.float32 and start + len(block) <= len(source)
        except QincoError as error:
            assert str(path) in str(error)


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_damaged_npy_header_opens_or_is_refused(data):
    with new_path(".npy") as path:
        write_vectors(path, np.zeros((2, 3), np.float32))
        content = bytearray(path.read_bytes())
        for position in data.draw(st.lists(st.integers(0, 75), min_size=1, max_size=3)):
            content[position] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            open_array(path)
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_anywhere_is_refused_or_is_whole_rows(suffix):
    array = np.arange(12).reshape(4, 3).astype(FRAMED.get(suffix, np.float32))
    with new_path(suffix) as path:
        write_vectors(path, array)
        content = path.read_bytes()
        row = 0 if suffix == ".npy" else len(content) // 4
        for length in range(len(content)):
            path.write_bytes(content[:length])
            if row and length and length % row == 0:
                np.testing.assert_array_equal(open_array(path), array[: length // row])
            else:
                with pytest.raises(DataError):
                    open_array(path)


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
