"""A file on a server, opened at an offset over HTTPS, HTTP or FTP.

Certificates are always verified, and no redirect leads from HTTPS to HTTP. HTTP uses the proxies of the environment.
"""

import ftplib
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from qinco.errors import DataError, QincoError
from qinco.vectors.block_rows import library
from qinco.version import __version__

TIMEOUT = 30.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18})")


class ConnectionBroken(Exception):
    """The connection failed in a way that may be temporary: another attempt is worthwhile."""


@dataclass
class Reply:
    """A server's answer: the content in `blocks`, from byte `start` (the one asked for, or 0) of `length` in all.

    `version` (ETag, Last-Modified or MDTM) changes when the file does. Both are None where the server does not tell.
    """

    start: int
    length: int | None
    version: str | None
    blocks: Iterator[bytes]


@contextmanager
def open_remote(address: str, start: int = 0, version: str | None = None, timeout: float = TIMEOUT) -> Iterator[Reply]:
    """Open the file at an address (https, http or ftp) at byte `start`, if it has still this `version`, or else at 0.

    After `timeout` seconds without a byte the connection counts as broken.

    Raises:
        ConnectionBroken: for failures that may be temporary, also while `blocks` are read.
        DataError: for others: no such file, an untrusted certificate, an unexpected answer.
        ConfigError: httpx is not installed.
    """
    with library("httpx", "download", "a download"):
        import httpx  # noqa: F401
    open_it = _open_ftp if address.startswith("ftp:") else _open_http
    with ExitStack() as stack:
        with _named_failures(address):
            reply = open_it(stack, address, start if version else 0, version, timeout)
        reply.blocks = _checked(address, reply.blocks)
        yield reply


def refusal(address: str, reason: object) -> DataError:
    """The error that says that `address` cannot be downloaded, and why."""
    return DataError(f"cannot download {address}: {reason}")


def _checked(address: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    with _named_failures(address):
        yield from blocks


@contextmanager
def _named_failures(address: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except (QincoError, ConnectionBroken):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        is_lasting = isinstance(error, ftplib.error_perm | httpx.UnsupportedProtocol) or "CERTIFICATE_VERIFY" in reason
        if not is_lasting and isinstance(error, (httpx.TransportError, *ftplib.all_errors)):
            raise ConnectionBroken(reason) from error
        raise refusal(address, reason) from error


def _open_http(stack: ExitStack, address: str, start: int, version: str | None, timeout: float) -> Reply:
    import httpx

    def check(request) -> None:
        if address.startswith("https:") and request.url.scheme != "https":
            raise refusal(address, f"it redirects to {request.url}, which is not encrypted")

    headers = {"User-Agent": f"qinco/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    context, hooks = ssl.create_default_context(), {"request": [check]}
    client = stack.enter_context(
        httpx.Client(verify=context, timeout=timeout, follow_redirects=True, max_redirects=10, event_hooks=hooks)
    )
    response = stack.enter_context(client.stream("GET", address, headers=headers))
    status, tag = response.status_code, response.headers.get("ETag", "W/")
    # A weak tag does not identify bytes.
    found_version = response.headers.get("Last-Modified") if tag.startswith("W/") else tag
    if start and status in (206, 416):
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found and status == 206 and found[1] == str(start) and found_version == version:
            return Reply(start, int(found[2]), version, response.iter_raw())
        if found and status == 416 and found[2] == str(start):  # nothing is missing
            return Reply(start, start, version, iter(()))
        return _open_http(stack, address, 0, None, timeout)
    if status != 200:
        answer = f"the server answers {status} {response.reason_phrase}"
        raise ConnectionBroken(answer) if status in _TRANSIENT else refusal(address, answer)
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
    if found_version != version or start > (length or 0):
        start = 0
    content = stack.enter_context(connection.transfercmd(f"RETR {path}", start or None))

    def blocks() -> Iterator[bytes]:
        while block := content.recv(1 << 16):
            yield block
        connection.voidresp()

    return Reply(start, length, found_version, blocks())
