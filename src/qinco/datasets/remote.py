"""A file on a server, opened at an offset over HTTPS, HTTP or FTP, through the proxies that the environment names.

Certificates are always verified, and no redirect leads from HTTPS to HTTP.
"""

import ftplib
import re
import ssl
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from qinco.errors import ConfigError, DataError, QincoError
from qinco.version import __version__

TIMEOUT = 30.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")


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
def open_remote(
    address: str, start: int = 0, version: str | None = None, length: int | None = None, timeout: float = TIMEOUT
) -> Iterator[Reply]:
    """Open the file at an address (https, http or ftp) from byte `start` on, if the server can do that.

    `version` and `length` are those of an earlier reply: the new one begins at 0 if the file has changed. After
    `timeout` seconds without a byte a connection counts as broken.

    Raises:
        ConnectionBroken: for failures that may be temporary, also while `blocks` are read.
        DataError: for others: no such file, an untrusted certificate, an unexpected answer.
        ConfigError: httpx is not installed.
    """
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get("ftp") if parts.scheme == "ftp" else None
    if proxy is not None and urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = None
    with ExitStack() as stack:
        with _named_failures(address):
            if parts.scheme == "ftp" and proxy is None:
                reply = _open_ftp(stack, address, start, version, length, timeout)
            else:
                reply = _open_http(stack, address, start, version, length, timeout, proxy)
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
    try:
        yield
    except (QincoError, ConnectionBroken):
        raise
    except Exception as error:
        raise _failure(address, error) from error


def _failure(address: str, error: BaseException) -> Exception:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return refusal(address, f"the server's certificate is not trusted ({cause.verify_message})")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ftplib.error_perm):
        return refusal(address, f"the server answers {reason}")
    if httpx := sys.modules.get("httpx"):
        is_broken = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    else:
        is_broken = False
    return ConnectionBroken(reason) if is_broken or isinstance(error, ftplib.all_errors) else refusal(address, reason)


def _open_http(stack: ExitStack, address: str, start: int, version, length, timeout: float, proxy=None) -> Reply:
    try:
        import httpx
    except ImportError as error:
        raise ConfigError("downloads need the package httpx: pip install 'qinco[download]'") from error
    headers = {"User-Agent": f"qinco/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({} if version is None else {"If-Range": version})
    is_secure = address.startswith("https:")

    def check(request) -> None:
        if is_secure and request.url.scheme != "https":
            raise refusal(address, f"it redirects to {request.url}, which is not encrypted")

    url, extensions = address, {}
    if proxy is not None:  # an FTP address through an HTTP proxy, which is asked for the whole address
        url, extensions = proxy, {"target": address.encode()}
        headers["Host"] = urlsplit(address).netloc
    client = httpx.Client(
        verify=ssl.create_default_context(), timeout=timeout, follow_redirects=True, max_redirects=10,
        event_hooks={"request": [check]}, trust_env=proxy is None,
    )  # fmt: skip
    stack.enter_context(client)
    response = stack.enter_context(client.stream("GET", url, headers=headers, extensions=extensions))
    if response.status_code == 416 and start:  # the file is shorter now
        return _open_http(stack, address, 0, None, None, timeout, proxy)
    reply = _read_headers(address, response, start)
    pairs = ((version, reply.version), (length, reply.length))
    if reply.start and any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return _open_http(stack, address, 0, None, None, timeout, proxy)
    if reply.start and reply.length is None:
        reply.length = length
    return reply


def _read_headers(address: str, response, start: int) -> Reply:
    headers, status = response.headers, response.status_code
    answer = f"the server answers {status} {response.reason_phrase}"
    if status in _TRANSIENT:
        raise ConnectionBroken(answer)
    if status != 200 and not (status == 206 and start):
        raise refusal(address, answer)
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity" and not urlsplit(address).path.endswith(".gz"):  # some servers declare .gz files so
        raise refusal(address, f"the server sends it in the encoding {encoding}, which was not asked for")
    tag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified") if tag.startswith("W/") else tag  # a weak tag does not identify bytes
    length = headers.get("Content-Length", "")
    if status == 200:
        return Reply(0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None, version, response.iter_raw())
    stated = headers.get("Content-Range", "")
    found = _RANGE.fullmatch(stated)
    if found is None or int(found[1]) != start:
        raise refusal(address, f"the server sends {stated or 'an unnamed range'} where byte {start} was asked for")
    return Reply(start, None if found[2] == "*" else int(found[2]), version, response.iter_raw())


def _open_ftp(stack: ExitStack, address: str, start: int, version, length, timeout: float) -> Reply:
    parts = urlsplit(address)
    path = unquote(parts.path)
    connection = ftplib.FTP(timeout=timeout, encoding="latin-1")  # which decodes any greeting
    stack.callback(connection.close)
    connection.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
    connection.login()
    connection.voidcmd("TYPE I")
    size, found_version = _ask_ftp(connection, f"SIZE {path}"), _ask_ftp(connection, f"MDTM {path}")
    found_length = int(size) if size and re.fullmatch("[0-9]{1,18}", size) else None
    if found_length is None or (found_version, found_length) != (version, length):
        start = 0
    try:
        content = connection.transfercmd(f"RETR {path}", start or None)
    except ftplib.error_perm:  # it cannot start there, or, as a second error says, there is no such file
        start = 0
        content = connection.transfercmd(f"RETR {path}")
    stack.callback(content.close)

    def blocks() -> Iterator[bytes]:
        while block := content.recv(1 << 16):
            yield block
        if found_length is None:
            connection.voidresp()  # nothing else tells the end from a broken connection

    return Reply(start, found_length, found_version, blocks())


def _ask_ftp(connection: ftplib.FTP, command: str) -> str | None:
    """What the server answers, or None: not every server knows every command."""
    with suppress(ftplib.error_perm):
        return connection.sendcmd(command)[4:].strip()
    return None
