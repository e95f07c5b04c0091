"""A file on a server, opened at an offset over HTTPS, HTTP or FTP.

Certificates are always verified, and no redirect leads from HTTPS to HTTP. HTTP uses the proxies of the environment.
"""

import ftplib
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from qinco.errors import DataError, QincoError
from qinco.vectors.block_rows import library
from qinco.version import __version__

TIMEOUT = 30.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18})")


class ConnectionBroken(DataError):
    """The connection failed in a way that may be temporary."""


class Reply(NamedTuple):
    """A server's answer: the content in `blocks` from byte `start` on; length and version of the file, where known."""

    start: int
    length: int | None
    version: str | None
    blocks: Iterator[bytes]


@contextmanager
def open_remote(address: str, start: int = 0, version: str | None = None, timeout: float = TIMEOUT) -> Iterator[Reply]:
    """Open the file at an address (https, http or ftp) at byte `start`, if it has still this `version`, or else at 0.

    Raises ConnectionBroken for failures that may be temporary, also while `blocks` are read, and DataError for others.
    """
    require_httpx()
    open_it = _open_ftp if address.startswith("ftp:") else _open_http
    with ExitStack() as stack:
        with _named_failures(address):
            reply = open_it(stack, address, start if version else 0, version, timeout)
        yield reply._replace(blocks=_checked(address, reply.blocks))


def require_httpx() -> None:
    """Raise ConfigError where the package that downloads is missing."""
    with library("httpx", "download", "a download"):
        import httpx  # noqa: F401


def refusal(address: str, reason: str, kind=DataError) -> DataError:
    return kind(f"cannot download {address}: {reason}")


def _checked(address: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    with _named_failures(address):
        yield from blocks


@contextmanager
def _named_failures(address: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except QincoError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        is_lasting = isinstance(error, ftplib.error_perm | httpx.UnsupportedProtocol) or "CERTIFICATE_VERIFY" in reason
        is_broken = not is_lasting and isinstance(error, (httpx.TransportError, *ftplib.all_errors))
        raise refusal(address, reason, ConnectionBroken if is_broken else DataError) from error


def _open_http(stack: ExitStack, address: str, start: int, version: str | None, timeout: float) -> Reply:
    import httpx

    def check(request) -> None:
        if address.startswith("https:") and request.url.scheme != "https":
            raise refusal(address, f"it redirects to {request.url}, which is not encrypted")

    headers = {"User-Agent": f"qinco/{__version__}", "Accept-Encoding": "identity"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    context, hooks = ssl.create_default_context(), {"request": [check]}
    client = httpx.Client(verify=context, timeout=timeout, follow_redirects=True, max_redirects=10, event_hooks=hooks)
    response = stack.enter_context(stack.enter_context(client).stream("GET", address, headers=headers))
    status, tag = response.status_code, response.headers.get("ETag", "W/")  # a weak tag does not identify bytes
    found_version = response.headers.get("Last-Modified") if tag.startswith("W/") else tag
    if start and status in (206, 416):
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found and status == 206 and found[1] == str(start) and found_version == version:
            return Reply(start, int(found[2]), version, response.iter_raw())
        if found and status == 416 and found[2] == str(start):  # nothing is missing
            return Reply(start, start, version, iter(()))
        return _open_http(stack, address, 0, None, timeout)
    if status != 200:
        kind = ConnectionBroken if status in _TRANSIENT else DataError
        raise refusal(address, f"the server answers {status} {response.reason_phrase}", kind)
    length = response.headers.get("Content-Length")
    return Reply(0, None if length is None else int(length), found_version, response.iter_raw())


def _open_ftp(stack: ExitStack, address: str, start: int, version: str | None, timeout: float) -> Reply:
    parts = urlsplit(address)
    path, length, found_version = unquote(parts.path), None, None
    connection = ftplib.FTP(timeout=timeout, encoding="latin-1")  # which decodes any greeting
    stack.callback(connection.close)
    connection.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
    connection.login()
    connection.voidcmd("TYPE I")
    with suppress(ftplib.error_perm):  # not every server knows these commands
        length = connection.size(path)
        found_version = f"{connection.sendcmd(f'MDTM {path}')[4:].strip()} {length}"
    start = start if found_version == version and start <= (length or 0) else 0
    if start and start == length:  # nothing is missing
        return Reply(start, length, version, iter(()))
    content = stack.enter_context(connection.transfercmd(f"RETR {path}", start or None))

    def blocks() -> Iterator[bytes]:
        while block := content.recv(1 << 16):
            yield block
        if length is None:
            connection.voidresp()  # nothing else tells the end from a broken connection

    return Reply(start, length, found_version, blocks())
