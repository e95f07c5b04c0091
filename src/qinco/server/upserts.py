"""Streams of records: batches of Arrow that are written as they come, each acknowledged when it is on disk."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from qinco.collection.columns import named_columns
from qinco.collection.named import NamedCollection
from qinco.errors import DataError, QincoError
from qinco.server import arrow_stream
from qinco.server.catalog import Served
from qinco.server.envelope import refusal, status_of
from qinco.server.limits import Refused, linger
from qinco.server.qdrant_changes import check_payloads
from qinco.server.work import Unavailable

_ACKNOWLEDGED = "application/x-ndjson"


class Upserts(Response):
    """Reads batches, and sends a line for each that is on disk: `{"committed": rows up to here}`."""

    def __init__(self, state: Any, name: str, collection: Served, columns: dict[str, str | None]):
        super().__init__(media_type=_ACKNOWLEDGED)
        self._state, self._name, self._collection, self._columns = state, name, collection, columns
        self._parser = arrow_stream.BatchParser(state.settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        committed, is_begun = 0, False
        headers = [*self.raw_headers, (b"connection", b"close")]
        headers = [(name, value) for name, value in headers if name != b"content-length"]

        async def say(**fields) -> None:
            nonlocal is_begun
            if not is_begun:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            is_begun = True
            line = f"{json.dumps(fields)}\n".encode()
            await send({"type": "http.response.body", "body": line, "more_body": True})

        body = _Body(receive)
        try:
            async for piece in body.pieces():
                for table in self._parser.feed(piece):
                    if self._state.traffic.is_ending:
                        raise Unavailable("the server is ending: send the rest when it is back")
                    rows = await self._state.work.read(self._rows, table)
                    if rows is not None:
                        await self._state.work.write(self._name, self._collection.upsert, *rows)
                        committed += len(rows[0])
                    await say(committed=committed)
            self._parser.end()
        except ClientDisconnect:
            return
        except (QincoError, Unavailable, Refused) as error:
            status = error.status if isinstance(error, Refused) else status_of(error)
            if not is_begun:
                answered = refusal(status, str(error), {"Connection": "close"})
                await send({"type": "http.response.start", "status": status, "headers": answered.raw_headers})
                await send({"type": "http.response.body", "body": answered.body, "more_body": True})
            else:
                await say(error=str(error), status=status, committed=committed)
            if not body.is_whole:
                await linger(receive)
        else:
            if not committed:
                await say(committed=0)
        await send({"type": "http.response.body", "body": b""})

    def _rows(self, table: Any) -> tuple[Any, Any, Any] | None:
        """Ids, vectors and payloads of a batch; None if it is empty."""
        if not len(table):
            return None
        payload, vector = self._columns["payload"], self._columns["vector"]
        chosen = False if payload == "false" else payload.split(",") if payload else None
        columns: dict[str, Any] = {"ids": self._columns["id"], "payload": chosen, "vector": vector}
        if vector is not None and isinstance(self._collection, NamedCollection):
            columns["vector"] = named_columns(vector)
        rows = self._collection.rows_of(table, **columns)
        if rows.id_column is None:
            raise DataError("a batch must have a column of ids, different integers from 0 on or strings: call it id, "
                            "or give id=NAME")  # fmt: skip
        ids, vectors, payloads = next(iter(rows.blocks(rows=len(table))))
        if payloads is not None:
            check_payloads(list(ids), payloads, self._state.settings.max_payload_bytes)
        return ids, vectors, payloads


class _Body:
    """A body as it comes, and whether all of it has."""

    def __init__(self, receive: Receive):
        self._receive, self.is_whole = receive, False

    async def pieces(self) -> AsyncIterator[bytes]:
        while (message := await self._receive())["type"] == "http.request":
            self.is_whole = not message.get("more_body", False)
            yield message.get("body", b"")
            if self.is_whole:
                return
        raise ClientDisconnect
