"""The opening of remote files; downloads that go on with them are tested in test_fetch.py."""

import shutil
import subprocess

import pytest
from published_server import Misbehaviour, ftp_server, http_server

from qinco.datasets.remote import ConnectionBroken, open_remote
from qinco.errors import DataError
from qinco.version import __version__

pytest.importorskip("httpx")
CONTENT = bytes(range(256)) * 40
PATHS = ("/folder/file.bvecs", "/folder/file.bvecs.gz")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def http():
    with http_server() as server:
        server.files |= dict.fromkeys(PATHS, CONTENT)
        yield server


@pytest.fixture
def ftp():
    with ftp_server() as server:
        server.files[PATHS[0]] = CONTENT
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a self-signed certificate for 127.0.0.1 and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, which makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=published.invalid",
         "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


def read(address: str, *arguments, **options) -> tuple:
    """start, length and version of the reply, and all that can be read."""
    with open_remote(address, *arguments, **options) as reply:
        return reply.start, reply.length, reply.version, b"".join(reply.blocks)


def test_a_whole_file_and_the_rest_of_it_over_http(http):
    start, length, version, content = read(http.address + PATHS[0])
    assert (start, length, content) == (0, len(CONTENT), CONTENT) and version.startswith('"')
    assert read(http.address + PATHS[0], 1000, version) == (1000, length, version, CONTENT[1000:])
    (_, first), (_, second) = (
        (path, {name.lower(): value for name, value in headers.items()}) for path, headers in http.requests
    )
    assert first["user-agent"] == f"qinco/{__version__}" and first["accept-encoding"] == "identity"
    assert "range" not in first and (second["range"], second["if-range"]) == ("bytes=1000-", version)


@pytest.mark.parametrize(
    "start, version, plan",
    [
        (1000, '"another"', Misbehaviour()),  # If-Range
        (1000, '"a"', Misbehaviour(headers={"ETag": '"b"'})),  # a server that ignores If-Range
        (1000, '"a"', Misbehaviour(ignore_range=True)),
        (1000, '"a"', Misbehaviour(headers={"Content-Range": "bytes 0-9/10240"})),
        (1000, '"a"', Misbehaviour(headers={"Content-Range": None})),
        (len(CONTENT) + 5, '"a"', Misbehaviour()),
        (1000, None, Misbehaviour()),
    ],
)
def test_a_file_that_has_changed_or_cannot_be_continued_begins_anew(http, start, version, plan):
    http.tags[PATHS[0]] = '"a"'
    http.plans.append(plan)
    found, length, _, content = read(http.address + PATHS[0], start, version)
    assert (found, length, content) == (0, len(CONTENT), CONTENT)


def test_nothing_is_missing_of_a_complete_file(http, ftp):
    for server in (http, ftp):
        _, length, version, _ = read(server.address + PATHS[0])
        assert read(server.address + PATHS[0], length, version) == (length, length, version, b"")


def test_a_weak_tag_does_not_identify_bytes(http):
    http.tags[PATHS[0]] = 'W/"weak"'
    assert read(http.address + PATHS[0])[2] is None
    http.plans.append(Misbehaviour(headers={"Last-Modified": "Tue, 01 Jul 2025 00:00:00 GMT"}))
    assert read(http.address + PATHS[0])[2] == "Tue, 01 Jul 2025 00:00:00 GMT"


@pytest.mark.parametrize(
    "status, error", [(204, DataError), (206, DataError), (404, DataError), (503, ConnectionBroken)]
)
def test_failures_are_refused_or_worth_another_attempt(http, status, error):
    http.plans.append(Misbehaviour(status=status))
    with pytest.raises(error, match=str(status)):
        read(http.address + PATHS[0])


def test_servers_that_are_silent_or_not_there(http):
    with http_server() as gone:
        pass
    with pytest.raises(ConnectionBroken):
        read(gone.address + PATHS[0])
    http.plans.append(Misbehaviour(send=100, stall=True))
    with pytest.raises(ConnectionBroken, match="timed out"):
        read(http.address + PATHS[0], timeout=0.5)


def test_redirects_are_followed_with_the_range(http):
    http.tags[PATHS[1]] = '"a"'
    http.plans.append(Misbehaviour(status=302, headers={"Location": PATHS[1]}))
    assert read(http.address + PATHS[0], 1000, '"a"')[::3] == (1000, CONTENT[1000:])


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", PATHS[0]])
def test_redirects_elsewhere_and_in_a_circle_are_refused(http, place):
    http.plans += [Misbehaviour(status=302, headers={"Location": place})] * 20
    with pytest.raises(DataError, match=http.address):
        read(http.address + PATHS[0])


def test_certificates_are_verified(certificate, monkeypatch):
    with http_server(*certificate) as server:
        server.files[PATHS[0]] = CONTENT
        with pytest.raises(DataError, match="CERTIFICATE_VERIFY_FAILED"):
            read(server.address + PATHS[0])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert server.requests == [] and read(server.address + PATHS[0])[3] == CONTENT
        with pytest.raises(DataError, match="CERTIFICATE_VERIFY_FAILED"):
            read(server.address.replace("127.0.0.1", "localhost") + PATHS[0])


def test_https_does_not_redirect_to_http_but_http_to_https(certificate, http, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with http_server(*certificate) as secure:
        secure.files[PATHS[0]] = CONTENT
        secure.plans.append(Misbehaviour(status=301, headers={"Location": http.address + PATHS[0]}))
        with pytest.raises(DataError, match=http.address):
            read(secure.address + PATHS[0])
        assert http.requests == []
        http.plans.append(Misbehaviour(status=301, headers={"Location": secure.address + PATHS[0]}))
        assert read(http.address + PATHS[0])[3] == CONTENT


def test_a_file_over_ftp(ftp):
    start, length, version, content = read(ftp.address + PATHS[0])
    assert (start, length, content) == (0, len(CONTENT), CONTENT) and version is not None
    assert ("USER", "anonymous") in ftp.requests and ("TYPE", "I") in ftp.requests
    assert read(ftp.address + PATHS[0], 1000, version) == (1000, length, version, CONTENT[1000:])
    assert read(ftp.address + PATHS[0], 1000, "20190101000000 10240")[::3] == (0, CONTENT)


def test_an_ftp_server_that_knows_few_commands(ftp):
    ftp.tags |= {"SIZE": None, "MDTM": None}
    assert read(ftp.address + PATHS[0], 1000) == (0, None, None, CONTENT)
    ftp.plans.append(Misbehaviour(send=500))
    with pytest.raises(ConnectionBroken, match="426"):
        read(ftp.address + PATHS[0])
    with pytest.raises(DataError, match="550"):
        read(f"{ftp.address}/elsewhere")
