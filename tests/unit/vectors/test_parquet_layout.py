"""Hand-made Thrift: what no library would write."""

import pytest

from qinco.errors import DataError
from qinco.vectors.parquet_layout import ColumnChunk, check_chunks, check_pages, read_layout


def varint(value: int) -> bytes:
    head = b""
    while value >= 128:
        head, value = head + bytes([value & 127 | 128]), value >> 7
    return head + bytes([value])


def integer(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def thrift(value) -> tuple[int, bytes]:
    """Kind and bytes of an integer, a string, a list or a struct (a dict from field numbers)."""
    if isinstance(value, int):
        return 6, integer(value)
    if isinstance(value, bytes):
        return 8, varint(len(value)) + value
    if isinstance(value, list):
        items = [thrift(item) for item in value]
        return 9, bytes([0xF0 | (items[0][0] if items else 12)]) + varint(len(items)) + b"".join(b for _, b in items)
    fields = {number: thrift(field) for number, field in value.items()}
    return 12, b"".join(bytes([kind]) + integer(number) + content for number, (kind, content) in fields.items()) + b"\0"


def column(num_values=6, start=4, size=50, **more) -> dict:
    return {3: {1: 4, 3: [b"emb"], 5: num_values, 7: size, 9: start} | more.get("metadata", {})}


def footer(columns=None, num_rows=2, total=2) -> dict:
    return {1: 2, 2: [{4: b"schema"}], 3: total, 4: [{1: columns or [column()], 3: num_rows}]}


def save(path, content, body=bytes(60)):
    footer_bytes = content if isinstance(content, bytes) else thrift(content)[1]
    path.write_bytes(b"PAR1" + body + footer_bytes + len(footer_bytes).to_bytes(4, "little") + b"PAR1")
    return path, path.stat().st_size


def test_chunks_are_found(tmp_path):
    content = footer([column(), column(7, 40, 9, metadata={11: 30}), column(2, metadata={11: 0})])
    layout = read_layout(*save(tmp_path / "x.parquet", content))
    assert layout == [[ColumnChunk(2, 6, 4, 50), ColumnChunk(2, 7, 30, 9), ColumnChunk(2, 2, 4, 50)]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        {},
        {3: 2, 4: 7},
        {3: b"two", 4: []},
        {3: 2, 4: [b"abc"]},
        {3: 2, 4: [{1: [{3: b"metadata"}], 3: 2}]},
        {3: 2, 4: [{1: [{}], 3: 2}]},
        footer([{3: {5: [1], 7: 50, 9: 4}}]),
        footer(total=3),
        b"\x36" + b"\xff" * 20,  # an integer without end
        b"\x38" + varint(2**40),  # a string longer than the file
        b"\x39\xfc" + varint(2**60),  # a list longer than the file
        b"\x3c" * 10_000,  # structs in structs
        b"\x39" + b"\x19" * 10_000,  # lists in lists
        b"\x3b\x00",  # a map, which a footer has not
        b"\x3e\x00",
    ],
)
def test_footers_that_are_absurd(tmp_path, content):
    with pytest.raises(DataError, match=r"x\.parquet is damaged: its footer cannot be read"):
        read_layout(*save(tmp_path / "x.parquet", content))


@pytest.mark.parametrize(
    "chunk",
    [
        ColumnChunk(-2, 6, 4, 50),
        ColumnChunk(7, 6, 4, 50),
        ColumnChunk(2**60, 6, 4, 50),
        ColumnChunk(0, -1, 4, 50),
        ColumnChunk(2, 2**60, 4, 50),
        ColumnChunk(2**60, 2**60, 4, 50),
        ColumnChunk(2, 6, 3, 50),
        ColumnChunk(2, 6, -(2**62), 50),
        ColumnChunk(2, 6, 2**62, 50),
        ColumnChunk(2, 6, 4, 97),
        ColumnChunk(2, 6, 4, -1),
        ColumnChunk(2, 6, 4, 2**62),
    ],
)
def test_chunks_that_are_absurd(tmp_path, chunk):
    check_chunks(tmp_path / "x.parquet", 100, [ColumnChunk(2, 6, 4, 96), ColumnChunk(0, 0, 0, 0)])
    with pytest.raises(DataError, match=r"x\.parquet (is damaged: row group 1|promises .* of row group 1)"):
        check_chunks(tmp_path / "x.parquet", 100, [ColumnChunk(2, 6, 4, 96), chunk])


def page(kind=0, unpacked=24, packed=24, values=6, field=5) -> bytes:
    return thrift({1: kind, 2: unpacked, 3: packed, field: {1: values}})[1] + bytes(max(0, min(packed, 100)))


def test_pages_that_keep_what_the_footer_promises(tmp_path):
    dictionary = page(2, 8, 8, 2, field=7)
    body = dictionary + page() + page(1, 5, 5, field=6) + page(3, 10, 10, 4, field=8)
    path, _ = save(tmp_path / "x.parquet", b"", body)
    check_pages(path, ColumnChunk(2, 10, 4, len(body)))
    with pytest.raises(DataError, match="10 values in its pages, 9 in the footer"):
        check_pages(path, ColumnChunk(2, 9, 4, len(body)))
    with pytest.raises(DataError, match=r"x\.parquet is damaged: a row group's pages cannot be read"):
        check_pages(path, ColumnChunk(2, 11, 4, len(body)))


@pytest.mark.parametrize(
    "header, message",
    [
        (page(packed=-1), "outside its row group"),
        (page(unpacked=-1), "outside its row group"),
        (page(unpacked=2**31), "a page unpacks 24 bytes to 2147483648"),
        (page(packed=2**17), "outside its row group"),
        (page(packed=2**68), "outside its row group"),
        (page(values=-5), "less than no values"),
        (page(values=2**31), "2147483648 values in its pages"),
        (page(2, 8, 8, 9, field=7), "more words than bytes"),
        (page(2, 8, 8, -1, field=7), "more words than bytes"),
        (page(3), "cannot be read"),
        (thrift({1: 0, 2: 24, 3: 24, 5: b"abc"})[1], "cannot be read"),
        (thrift({1: 0, 2: 24, 3: b"abc", 5: {1: 6}})[1], "cannot be read"),
        (b"\x00" * 30, "cannot be read"),
        (b"\x1c" * 2000, "too deeply nested"),
    ],
)
def test_pages_that_are_absurd(tmp_path, header, message):
    path, _ = save(tmp_path / "x.parquet", b"", header)
    with pytest.raises(DataError, match=message):
        check_pages(path, ColumnChunk(2, 6, 4, len(header)))
