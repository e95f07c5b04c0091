import struct

import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import VectorWriter, open_array, write_vectors

FLOATS = np.array([[1.5, -2, 3], [4, 5e30, 6]], np.float32)


def test_bytes_are_as_documented(tmp_path):
    for suffix, dtype, code in (
        (".fbin", np.float32, "f"),
        (".u8bin", np.uint8, "B"),
        (".i8bin", np.int8, "b"),
        (".ibin", np.int32, "i"),
    ):
        array = np.arange(6, dtype=dtype).reshape(2, 3)
        write_vectors(tmp_path / f"x{suffix}", array)
        assert (tmp_path / f"x{suffix}").read_bytes() == struct.pack(f"<2I6{code}", 2, 3, *array.ravel())
        assert open_array(tmp_path / f"x{suffix}").dtype == dtype


@pytest.mark.parametrize("dim", [0, 1_000_001, 2**31, 2**32 - 1])
def test_an_absurd_dimension_is_refused(tmp_path, dim):
    path = tmp_path / "x.fbin"
    path.write_bytes(struct.pack("<II", 7, dim) + bytes(60))
    message = rf"x\.fbin is not a \.fbin file: its header claims 7 rows of dimension {dim}"
    with pytest.raises(DataError, match=message):
        open_array(path)


def test_a_bin_file_that_was_cropped_keeps_the_header_of_the_whole(tmp_path):
    path = tmp_path / "x.u8bin"
    path.write_bytes(struct.pack("<II", 10**9, 4) + bytes(4 * 3))
    message = (
        r"x\.u8bin is truncated: its header promises 1000000000 rows of dimension 4, 4000000008 bytes, and 20 bytes"
    )
    with pytest.raises(DataError, match=rf"{message} \(3 rows\) are there: fetch the rest, or"):
        open_array(path)
    path.write_bytes(struct.pack("<II", 3, 4) + bytes(4 * 3))  # as the message says
    assert open_array(path).shape == (3, 4)
    path.write_bytes(struct.pack("<II", 3, 4) + bytes(4 * 3 + 1))
    with pytest.raises(DataError, match=r"x\.u8bin is damaged: it has 21 bytes, its header .* needs 20"):
        open_array(path)
    path.write_bytes(bytes(7))
    with pytest.raises(DataError, match="its 7 bytes are less than the header"):
        open_array(path)


def test_a_bin_file_of_more_rows_than_its_header_can_count(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"number of rows of .*x\.fbin must be between 0 and 4294967295"):
        VectorWriter(tmp_path / "x.fbin", 3, num_rows=2**32)
    monkeypatch.setattr("qinco.vectors.formats.MAX_BIN_ROWS", 3)
    with pytest.raises(DataError, match="cannot hold more than 3 rows"), VectorWriter(tmp_path / "x.fbin", 3) as writer:
        writer.append(FLOATS)
        writer.append(FLOATS)
    assert list(tmp_path.iterdir()) == []


def test_opening_maps_and_does_not_read(tmp_path):
    path = tmp_path / "sparse.fbin"
    with path.open("wb") as file:
        file.write(struct.pack("<II", 10**9, 100))
        file.truncate(8 + 400 * 10**9)
    assert open_array(path).shape == (10**9, 100)
    assert (open_array(path)[-1:] == 0).all()
    with path.open("wb") as file:
        file.write(struct.pack("<II", 2**32 - 1, 1_000_000))  # more bytes than 64 bits of a C program count
    with pytest.raises(
        DataError, match=rf"promises {2**32 - 1} rows of dimension 1000000, {8 + (2**32 - 1) * 4 * 10**6}"
    ):
        open_array(path)
