"""Arrow's streaming format as it arrives: whole batches out of pieces of a body, in bounded memory.

The format is a sequence of messages: 0xFFFFFFFF, the size of the metadata, metadata (flatbuffers), and a body. Of the
metadata only the kind, the size of the body, and whether it is compressed are read here: pyarrow reads the rest.
"""

import struct
from collections.abc import Iterator
from typing import Any

from qinco.errors import DataError, needs_extra
from qinco.server.envelope import MalformedError, TooLargeError

TYPE = "application/vnd.apache.arrow.stream"
_MARK, _END = 0xFFFFFFFF, b"\xff\xff\xff\xff\0\0\0\0"
_MAX_METADATA = 1 << 20
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of messages


class BatchParser:
    """Makes record batches of pieces of a stream.

    Compressed ones are refused, for a small one may be of any size when it is read.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._head = bytearray()  # the schema and the dictionaries, without which no batch can be read
        self._has_schema = self._is_ended = False

    def feed(self, piece: bytes) -> Iterator[Any]:
        """The batches that a piece completes: pyarrow.Table each."""
        self._buffer += piece
        while not self._is_ended and (size := self._size_of_message()) is not None and len(self._buffer) >= size:
            message = bytes(self._buffer[:size])
            del self._buffer[:size]
            if (batch := self._take(message)) is not None:
                yield batch

    def end(self) -> None:
        """Raise MalformedError unless the stream is complete."""
        if not self._has_schema or (self._buffer and not self._is_ended):
            raise MalformedError("the Arrow stream ends within a message: send it again")

    def _size_of_message(self) -> int | None:
        """The size of the next message with its body; None where too little of it is there."""
        if len(self._buffer) < 8:
            return None
        mark, metadata = struct.unpack_from("<II", self._buffer)
        if mark != _MARK:
            raise MalformedError("the body is no Arrow stream: send what pyarrow.ipc.new_stream writes")
        if metadata > _MAX_METADATA:
            raise TooLargeError(f"the metadata of a batch may have {_MAX_METADATA:,} bytes: send fewer columns")
        if len(self._buffer) < 8 + metadata:
            return None
        size = 8 + metadata + (_body_size(self._buffer) if metadata else 0)
        if size + len(self._head) > self._max_bytes:
            raise TooLargeError(
                f"a batch may have {self._max_bytes:,} bytes: send smaller ones, of 1,000 to 10,000 rows"
            )
        return size

    def _take(self, message: bytes) -> Any:
        if len(message) == 8:
            self._is_ended = True
            return None
        kind = _kind(message)
        if kind == _SCHEMA and not self._has_schema:
            self._has_schema = True
        elif not self._has_schema or kind not in (_DICTIONARY, _BATCH):
            raise MalformedError("the Arrow stream holds something else than a schema and then batches: send it again")
        if kind != _BATCH:
            self._head += message
            return None
        return _read(bytes(self._head) + message + _END)


def tables(body: bytes, max_bytes: int) -> Iterator[Any]:
    """The batches of a whole stream."""
    parser = BatchParser(max_bytes)
    yield from parser.feed(body)
    parser.end()


def table_bytes(table: Any) -> bytes:
    """A pyarrow.Table as a stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _read(stream: bytes) -> Any:
    with needs_extra("Arrow", "pyarrow", "server"):
        import pyarrow as pa

    try:
        table = pa.ipc.open_stream(stream).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MalformedError(f"the Arrow stream is damaged ({error!s:.80}): send it again") from None
    return table


def _kind(message: bytes | bytearray) -> int:
    """The kind of a message; DataError if it is compressed."""
    try:
        table = _table(message, 8)
        kind = message[_field(message, table, 1)]
        if kind in (_DICTIONARY, _BATCH):
            content = _table(message, _field(message, table, 2))
            if kind == _DICTIONARY:
                content = _table(message, _field(message, content, 1))
            if _field(message, content, 3):
                raise DataError("the Arrow stream is compressed: write it without compression")
        return kind
    except (struct.error, IndexError):
        raise MalformedError("the Arrow stream is damaged: send it again") from None


def _body_size(message: bytearray) -> int:
    try:
        place = _field(message, _table(message, 8), 3)
        size = struct.unpack_from("<q", message, place)[0] if place else 0
    except (struct.error, IndexError):
        size = -1
    if size < 0:
        raise MalformedError("the Arrow stream is damaged: send it again")
    return size


def _table(message: bytes | bytearray, place: int) -> int:
    """Where the table lies that an offset at this place points to."""
    return place + struct.unpack_from("<I", message, place)[0]


def _field(message: bytes | bytearray, table: int, number: int) -> int:
    """Where a field of a table lies; 0 where it has its default."""
    names = table - struct.unpack_from("<i", message, table)[0]
    if names < 0:
        raise IndexError
    slot = 4 + 2 * number
    if slot + 2 > struct.unpack_from("<H", message, names)[0]:
        return 0
    offset = struct.unpack_from("<H", message, names + slot)[0]
    return table + offset if offset else 0
