"""Where the pages of a Parquet file lie and what they claim to hold, read from its footer and their headers.

pyarrow unpacks what a file claims without weighing it against the file's size, and ends the process over some damaged
footers. So the claims are read here first (Thrift's compact protocol), and refused where they are absurd.
"""

import operator
from dataclasses import dataclass
from pathlib import Path

from qinco.errors import DataError

_MAGIC = b"PAR1"
_MAX_DEPTH = 24
# What may be unpacked from few bytes. Vectors never are that dense.
_VALUES_PER_BYTE, _FREE_VALUES = 16, 1 << 22
_PAGE_RATIO, _FREE_PAGE_BYTES = 20, 1 << 26
_PAGE_HEADER_BYTES = 1 << 13  # enough for its statistics: two values
# Numbers of the fields that are kept, of a struct, of those in it, and so on.
_FOOTER_FIELDS = ({3, 4}, {1, 3}, {3}, {5, 7, 9, 11})
_PAGE_FIELDS = ({1, 2, 3, 5, 7, 8}, {1})
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3  # of the format's PageType

_UNEXPECTED = (ValueError, LookupError, TypeError, AttributeError)  # damage may put any value anywhere


@dataclass(frozen=True)
class ColumnChunk:
    """The values of one column in one row group: pages from byte `start` on."""

    num_rows: int
    num_values: int
    start: int
    size: int


def read_layout(path: Path, size: int) -> list[list[ColumnChunk]]:
    """The column chunks of each row group of a file of `size` bytes, in its order, unchecked."""
    trailer = _read_bytes(path, max(0, size - 8), 8)
    footer_start = size - 8 - int.from_bytes(trailer[:4], "little")
    if footer_start < 4 or trailer[4:] != _MAGIC or _read_bytes(path, 0, 4) != _MAGIC:
        raise DataError(f"{path} is not a Parquet file, or a truncated or encrypted one")
    try:
        footer, _ = _read_struct(_read_bytes(path, footer_start, size - 8 - footer_start), 0, _FOOTER_FIELDS)
        groups = [[_column_chunk(group[3], column[3]) for column in group[1]] for group in footer[4]]
        if sum(group[3] for group in footer[4]) != footer[3]:
            raise ValueError("its numbers of rows contradict each other")
    except _UNEXPECTED as error:
        raise DataError(f"{path} is damaged: its footer cannot be read ({error})") from error
    return groups


def check_chunks(path: Path, size: int, chunks: list[ColumnChunk]) -> None:
    """Raise DataError where a chunk of a file of `size` bytes is not in it, or promises more than that can hold."""
    for group, chunk in enumerate(chunks):
        if chunk.num_rows == chunk.num_values == 0:
            continue
        fits = chunk.size >= 0 and 4 <= chunk.start <= size - chunk.size
        if not (fits and 0 <= chunk.num_rows <= chunk.num_values):
            raise DataError(f"{path} is damaged: row group {group} lies outside it, or has fewer values than rows")
        if chunk.num_values > _VALUES_PER_BYTE * chunk.size + _FREE_VALUES:
            raise DataError(
                f"{path} promises {chunk.num_values} values in {chunk.size} bytes of row group {group}: it is damaged, "
                "or its vectors are nearly all the same and belong into smaller row groups"
            )


def check_pages(path: Path, chunk: ColumnChunk) -> None:
    """Raise DataError unless the headers of a chunk's pages are sound and promise what the footer does."""
    position, num_values = chunk.start, 0
    end = chunk.start + chunk.size + _PAGE_HEADER_BYTES  # old writers leave a header out of the size
    try:
        while num_values < chunk.num_values:
            header, length = _read_struct(_read_bytes(path, position, _PAGE_HEADER_BYTES), 0, _PAGE_FIELDS)
            unpacked, packed = header[2], header[3]
            position += length + packed
            if packed < 0 or unpacked < 0 or position > end:
                raise ValueError("a page lies outside its row group")
            if unpacked > max(_FREE_PAGE_BYTES, _PAGE_RATIO * packed):
                raise ValueError(f"a page unpacks {packed} bytes to {unpacked}")
            if header[1] == _DICTIONARY_PAGE and not 0 <= header[7][1] <= unpacked:
                raise ValueError("a dictionary has more words than bytes")
            if header[1] in (_DATA_PAGE, _DATA_PAGE_V2):
                count = header[5 if header[1] == _DATA_PAGE else 8][1]
                if count < 0:
                    raise ValueError("a page has less than no values")
                num_values += count
        if num_values != chunk.num_values:
            raise ValueError(f"{num_values} values in its pages, {chunk.num_values} in the footer")
    except _UNEXPECTED as error:
        raise DataError(f"{path} is damaged: a row group's pages cannot be read ({error})") from error


def _read_bytes(path: Path, start: int, size: int) -> memoryview:
    try:
        with path.open("rb") as file:  # not mapped: touching each page would count the whole file as memory
            file.seek(start)
            return memoryview(file.read(size))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _column_chunk(num_rows: int, metadata: dict) -> ColumnChunk:
    start = min(metadata[9], metadata.get(11) or metadata[9])  # the dictionary's page comes first where there is one
    return ColumnChunk(*map(operator.index, (num_rows, metadata[5], start, metadata[7])))


def _read_struct(view: memoryview, position: int, kept: tuple[set, ...], depth: int = 0) -> tuple[dict, int]:
    """A Thrift struct as {number of the field: value}, and the position after it.

    kept: numbers of the fields that are wanted, and of those in them, and so on: others are read over
    """
    if depth > _MAX_DEPTH:
        raise ValueError("too deeply nested")
    wanted, inner = (kept[0], kept[1:]) if kept else ((), ())
    fields, number = {}, 0
    while kind := view[position] & 15:
        step = view[position] >> 4
        position += 1
        if step:
            number += step
        else:
            number, position = _read_integer(view, position)
        if kind in (1, 2):  # the value is in the kind
            value = kind == 1
        else:
            value, position = _read_value(view, position, kind, inner if number in wanted else (), depth)
        if number in wanted:
            fields[number] = value
    return fields, position + 1


def _read_value(view: memoryview, position: int, kind: int, kept: tuple[set, ...], depth: int):
    if kind in (4, 5, 6):
        return _read_integer(view, position)
    if kind == 12:
        return _read_struct(view, position, kept, depth + 1)
    if kind == 8:  # a string, as long as it says
        length, position = _read_varint(view, position)
        if length > len(view) - position:
            raise ValueError("a string is longer than the file")
        return None, position + length
    if kind in (9, 10):
        return _read_list(view, position, kept, depth + 1)
    if kind == 7:
        return None, position + 8  # a float
    if kind in (1, 2, 3):
        return view[position], position + 1
    raise ValueError(f"unknown kind {kind} of value")


def _read_list(view: memoryview, position: int, kept: tuple[set, ...], depth: int) -> tuple[list, int]:
    if depth > _MAX_DEPTH:
        raise ValueError("too deeply nested")
    kind, length = view[position] & 15, view[position] >> 4
    position += 1
    if length == 15:
        length, position = _read_varint(view, position)
    if length > len(view) - position:  # each element takes a byte at least
        raise ValueError("a list is longer than the file")
    values = []
    for _ in range(length):
        value, position = _read_value(view, position, kind, kept, depth)
        if kept:
            values.append(value)
    return values, position


def _read_integer(view: memoryview, position: int) -> tuple[int, int]:
    value, position = _read_varint(view, position)
    return (value >> 1) ^ -(value & 1), position


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("an integer has more than 64 bits")
