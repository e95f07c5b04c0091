"""Who may do what: keys in headers, one for everything and one for reading alone."""

import base64
import binascii
import re
from hmac import compare_digest

from starlette.types import ASGIApp, Receive, Scope, Send

from qinco.server.envelope import refusal
from qinco.server.settings import ServerSettings

OPEN = frozenset({"/healthz", "/livez", "/readyz"})  # for whoever watches whether the server lives
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="qinco"'}  # alone, as Chromium takes a line for one challenge
# What reads though it is sent by POST. Everything else that is not GET changes something.
_READING = re.compile(
    r"/collections/[^/]+/(points|points/(query|query/batch|query/groups|scroll|count)|facet)"
    r"|/v1/[^/]+/(search|encode|decode)"
    r"|/page/neighbours"
)


def reads(method: str, path: str) -> bool:
    """Whether a request changes nothing."""
    return method in ("GET", "HEAD", "OPTIONS") or (method == "POST" and _READING.fullmatch(path) is not None)


class KeyCheck:
    """ASGI middleware that lets requests pass whose key allows what they do.

    A key comes in the header `api-key` or as `Authorization: Bearer`; for reading also as the password of
    `Authorization: Basic`, which browsers ask their user for. They send that along with requests of any web page, so it
    is not enough for changes.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self.app, self._read_only = app, settings.read_only
        self._keys = [None if key is None else key.encode() for key in (settings.api_key, settings.read_only_api_key)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and (answer := self._refused(scope)) is not None:
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refused(self, scope: Scope):
        """The answer to a request that must not pass."""
        is_read = reads(scope["method"], scope["path"])
        full, reading = self._keys
        if full is not None:
            key, is_basic = _sent_key(scope["headers"])
            if key is None:
                return refusal(401, "a key is needed: send it in the header api-key, or as Authorization: Bearer",
                               _CHALLENGE)  # fmt: skip
            is_full = compare_digest(key, full)
            if not is_full and (reading is None or not compare_digest(key, reading)):
                return refusal(401, "the key is not one of this server: see QINCO_API_KEY where it runs", _CHALLENGE)
            if not is_read and (is_basic or not is_full):
                hint = "send it in the header api-key" if is_full else "send the key for everything"
                return refusal(403, f"the key allows reading alone: {hint}")
        if self._read_only and not is_read:
            return refusal(403, "the server was started with read_only=true, and changes nothing")
        return None


def _sent_key(headers: list[tuple[bytes, bytes]]) -> tuple[bytes | None, bool]:
    """The key of a request, and whether it came as a browser's password."""
    found = {name: value for name, value in reversed(headers) if name in (b"api-key", b"authorization")}
    if b"api-key" in found:
        return found[b"api-key"], False
    scheme, _, value = found.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip(), False
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2], True
        except (binascii.Error, ValueError):
            return b"", True
    return None, False
