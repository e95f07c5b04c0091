"""A file on a server, opened at an offset over HTTPS, HTTP or FTP, through the proxies that the environment names.

Certificates are always verified, and no redirect leads from HTTPS to anything else.
"""

import ftplib
import re
import ssl
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from qinco.errors import DataError
from qinco.version import __version__

TIMEOUT = 30.0
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_ERRORS = (HTTPException, ValueError, *ftplib.all_errors)  # ValueError: a redirect to what is no address
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")


class BrokenOff(Exception):
    """The connection failed in a way that may pass, so that it is worth another attempt."""


@dataclass
class Reply:
    """A server's answer, from which the content of a file is read. To be closed.

    start:   the first byte that it sends: the one that was asked for, or 0
    length:  of the whole file in bytes; None where the server does not tell
    version: changes when the file does (ETag, Last-Modified, or FTP's time of change); None where there is none
    """

    address: str
    start: int
    length: int | None
    version: str | None
    _read: Callable[[int], bytes]
    close: Callable[[], None]

    def read(self, size: int) -> bytes:
        """The next bytes, `size` of them at most and one at least; none at the end. Raises BrokenOff."""
        try:
            return self._read(size)
        except _ERRORS as error:
            raise _failure(self.address, error) from error


def open_remote(
    address: str, start: int = 0, version: str | None = None, length: int | None = None, timeout: float = TIMEOUT
) -> Reply:
    """Open the file at `address` from byte `start` on.

    version, length: what the first `start` bytes belong to; where the file is another one now, or where the server
                     cannot begin in its midst, the reply begins at 0
    timeout:         seconds without a byte until the connection counts as broken

    Raises BrokenOff for what may pass, and DataError for what will not: no such file, a certificate that is not
    trusted, an answer to another question.
    """
    parts = urlsplit(address)
    is_direct = not (urllib.request.getproxies().get("ftp") and not urllib.request.proxy_bypass(parts.hostname))
    try:
        if parts.scheme == "ftp" and is_direct:
            return _open_ftp(address, start, version, length, timeout)
        return _open_http(address, start, version, length, timeout)
    except DataError:
        raise
    except _ERRORS as error:
        raise _failure(address, error) from error


def refusal(address: str, reason: object) -> DataError:
    """The error that says that `address` cannot be fetched, and why."""
    return DataError(f"cannot fetch {address}: {reason}")


def _failure(address: str, error: BaseException) -> Exception:
    if isinstance(error, HTTPError):
        error.close()
        reason = f"the server answers {error.code} {error.reason}"
        return BrokenOff(reason) if error.code in _MAY_PASS else refusal(address, reason)
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return refusal(address, f"the server's certificate is not trusted ({cause.verify_message})")
    reason = getattr(cause, "strerror", None) or " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, ftplib.error_perm):
        return refusal(address, f"the server answers {reason}")
    return refusal(address, reason) if isinstance(cause, (InvalidURL, ValueError)) else BrokenOff(reason)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, new_address):
        response.close()  # or urllib reads its body, however long it is
        schemes = urlsplit(request.full_url).scheme, urlsplit(new_address).scheme
        if schemes[1] != "https" and schemes != ("http", "http"):
            raise refusal(request.full_url, f"it redirects to {new_address}, which is not secured as it is itself")
        return super().redirect_request(request, response, code, message, headers, new_address)


class _Https(urllib.request.AbstractHTTPHandler):
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def https_open(self, request):
        # The context verifies certificate and host; reading the trusted ones takes a while, which HTTP is spared.
        return self.do_open(HTTPSConnection, request, context=ssl.create_default_context())


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https alone: urllib's own opener would follow a redirect to a local file's address or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _open_http(address: str, start: int, version: str | None, length: int | None, timeout: float) -> Reply:
    headers = {"User-Agent": f"qinco/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version is not None:
            headers["If-Range"] = version
    try:
        response = _opener().open(urllib.request.Request(address, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()  # the file is shorter now than what is here of it
        return _open_http(address, 0, None, None, timeout)
    try:
        reply = _read_headers(address, response, start)
    except BaseException:
        response.close()
        raise
    if reply.start and (_differ(version, reply.version) or _differ(length, reply.length)):
        response.close()
        return _open_http(address, 0, None, None, timeout)
    if reply.start and reply.length is None:
        reply.length = length
    return reply


def _differ(known, found) -> bool:
    return None not in (known, found) and known != found


def _read_headers(address: str, response: HTTPResponse, start: int) -> Reply:
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity" and not urlsplit(address).path.endswith(".gz"):  # of .gz files some servers say so
        raise refusal(address, f"the server sends it in the encoding {encoding}, which was not asked for")
    tag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified") if tag.startswith("W/") else tag  # a weak tag does not vouch for bytes
    if response.status == 200:
        return Reply(address, 0, response.length, version, response.read1, response.close)
    if response.status != 206 or not start:
        raise refusal(address, f"the server answers {response.status} {response.reason}, which was not asked for")
    stated = headers.get("Content-Range", "")
    found = _RANGE.fullmatch(stated)
    if found is None or int(found[1]) != start:
        raise refusal(
            address, f"the server sends the wrong part, {stated or 'unnamed'}, where byte {start} was asked for"
        )
    length = None if found[2] == "*" else int(found[2])
    return Reply(address, start, length, version, response.read1, response.close)


def _open_ftp(address: str, start: int, version: str | None, length: int | None, timeout: float) -> Reply:
    parts = urlsplit(address)
    path = unquote(parts.path)
    connection = ftplib.FTP(timeout=timeout, encoding="latin-1")  # which reads any greeting
    try:
        connection.connect(parts.hostname, parts.port or ftplib.FTP_PORT)
        connection.login()
        connection.voidcmd("TYPE I")
        found_length, found_version = _ask_ftp(connection, f"SIZE {path}"), _ask_ftp(connection, f"MDTM {path}")
        found_length = int(found_length) if found_length and re.fullmatch("[0-9]{1,18}", found_length) else None
        if found_length is None or (found_version, found_length) != (version, length):
            start = 0
        try:
            content = connection.transfercmd(f"RETR {path}", start or None)
        except ftplib.error_perm:  # it cannot begin in the midst, or there is no such file, as a second error says
            start = 0
            content = connection.transfercmd(f"RETR {path}")
    except BaseException:
        connection.close()
        raise

    def read(size: int) -> bytes:
        block = content.recv(size)
        if not block and found_length is None:
            connection.voidresp()  # nothing else tells the end from a broken connection
        return block

    def close() -> None:
        content.close()
        connection.close()

    return Reply(address, start, found_length, found_version, read, close)


def _ask_ftp(connection: ftplib.FTP, command: str) -> str | None:
    """What the server answers, or None: not every server knows every command."""
    with suppress(ftplib.error_perm):
        return connection.sendcmd(command)[4:].strip()
