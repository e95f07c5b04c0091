from contextlib import suppress

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.errors import QincoError  # noqa: E402
from qinco.server.arrow_stream import BatchParser, table_bytes, tables  # noqa: E402

VECTORS = np.arange(60, dtype=np.float32).reshape(20, 3)


def stream(compression=None, rows=7, words=True):
    columns = {
        "id": pa.array([f"a{n}" for n in range(20)]),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), 3),
        "word": pa.array(["x", "y"] * 10).dictionary_encode() if words else pa.array(["x"] * 20),
    }
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes(), table


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_batches_come_out_of_pieces_of_any_size(size):
    body, table = stream()
    parser, found, seen = BatchParser(1 << 20), [], []
    for start in range(0, len(body), size):
        found += parser.feed(body[start : start + size])
        seen.append(len(found))
    parser.end()
    assert [len(one) for one in found] == [7, 7, 6] and pa.concat_tables(found).equals(table)
    assert size > 64 or seen[-len(seen) // 8] >= 1  # not only at the end
    assert table_bytes(table)[:4] == b"\xff" * 4 and pa.concat_tables(tables(table_bytes(table), 1 << 20)).equals(table)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_ones_are_refused(compression):
    with pytest.raises(QincoError, match="compress"):
        list(tables(stream(compression)[0], 1 << 20))


def test_what_is_cut_off_damaged_or_too_large_is_refused():
    body, _ = stream()
    for wrong in (
        b"",
        b"{}",
        b"x" * 100,
        body[:-9],
        body[:300],
        body[8:],
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        body[:8],
    ):
        with pytest.raises(QincoError):
            list(tables(wrong, 1 << 20))
    with pytest.raises(QincoError, match="bytes"):
        list(tables(body, 500))


def test_damaged_bytes_never_raise_anything_else():
    body, _ = stream(words=False)
    random = np.random.default_rng(0)
    for _ in range(300):
        wrong = bytearray(body)
        for place in random.integers(0, len(body), random.integers(1, 6)):
            wrong[place] = random.integers(256)
        with suppress(QincoError):
            list(tables(bytes(wrong), 1 << 20))
