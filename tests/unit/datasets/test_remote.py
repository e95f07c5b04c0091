"""The opening of remote files; what is read from them, and gone on with, is tested in test_download.py."""

import shutil
import subprocess
from contextlib import closing

import pytest
from published_server import Misbehaviour, ftp_server, http_server

from qinco.datasets.remote import BrokenOff, open_remote
from qinco.errors import DataError
from qinco.version import __version__

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
        server.files["/folder/file.bvecs"] = CONTENT
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a self-signed certificate for 127.0.0.1 and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command, which makes the certificate, is not there")
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
    with closing(open_remote(address, *arguments, **options)) as reply:
        content = b""
        while len(content) < (reply.length or 10**9) - reply.start and (block := reply.read(1000)):
            assert len(block) <= 1000
            content += block
        return reply.start, reply.length, reply.version, content


def test_a_whole_file_over_http(http):
    start, length, version, content = read(http.address + PATHS[0])
    assert (start, length, content) == (0, len(CONTENT), CONTENT) and version.startswith('"')
    ((_, headers),) = http.requests
    assert headers["User-Agent"] == f"qinco/{__version__}" and headers["Accept-Encoding"] == "identity"
    assert "Range" not in headers


def test_the_rest_of_a_file_over_http(http):
    _, length, version, _ = read(http.address + PATHS[0])
    assert read(http.address + PATHS[0], 1000, version, length) == (1000, length, version, CONTENT[1000:])
    assert http.requests[1][1]["Range"] == "bytes=1000-" and http.requests[1][1]["If-Range"] == version


@pytest.mark.parametrize(
    "version, length, plan",
    [
        ('"another"', len(CONTENT), Misbehaviour()),  # If-Range
        (None, len(CONTENT) + 1, Misbehaviour()),
        ('"a"', len(CONTENT), Misbehaviour(headers={"ETag": '"b"'})),  # a server that ignores If-Range
    ],
)
def test_a_file_that_is_another_one_now_begins_anew(http, version, length, plan):
    if plan.headers:
        http.tags[PATHS[0]] = version
    http.plans.append(plan)
    start, length, _, content = read(http.address + PATHS[0], 1000, version, length)
    assert (start, length, content) == (0, len(CONTENT), CONTENT)


def test_a_file_that_is_shorter_now_begins_anew(http):
    start, *_, content = read(http.address + PATHS[0], len(CONTENT) + 5)
    assert (start, content) == (0, CONTENT) and http.ranges() == [f"bytes={len(CONTENT) + 5}-", None]


def test_a_server_that_ignores_ranges_begins_anew(http):
    http.plans.append(Misbehaviour(ignore_range=True))
    assert read(http.address + PATHS[0], 1000)[::3] == (0, CONTENT)


def test_a_weak_tag_does_not_vouch_for_bytes(http):
    http.tags[PATHS[0]] = 'W/"weak"'
    assert read(http.address + PATHS[0])[2] is None
    http.plans.append(Misbehaviour(headers={"Last-Modified": "Tue, 01 Jul 2025 00:00:00 GMT"}))
    assert read(http.address + PATHS[0])[2] == "Tue, 01 Jul 2025 00:00:00 GMT"


def test_an_unknown_total_is_the_known_length(http):
    http.plans.append(Misbehaviour(headers={"Content-Range": f"bytes 1000-{len(CONTENT) - 1}/*"}))
    assert read(http.address + PATHS[0], 1000, None, len(CONTENT))[:2] == (1000, len(CONTENT))


@pytest.mark.parametrize(
    "content_range",
    [None, "bytes 0-9/10240", "bytes 1001-10239/10240", "lines 1000-2000/10240", "bytes 1000-", "x" * 1000],
)
def test_a_wrong_part_is_refused(http, content_range):
    http.plans.append(Misbehaviour(headers={"Content-Range": content_range}))
    with pytest.raises(DataError, match=r"the server sends the wrong part, .*, where byte 1000 was asked for"):
        open_remote(http.address + PATHS[0], 1000)


@pytest.mark.parametrize("status", [204, 206])
def test_an_answer_to_another_question_is_refused(http, status):
    http.plans.append(Misbehaviour(status=status))
    with pytest.raises(DataError, match=f"the server answers {status} .*, which was not asked for"):
        open_remote(http.address + PATHS[0])


def test_content_in_another_encoding_is_refused_but_for_gz_files(http):
    encoded = Misbehaviour(headers={"Content-Encoding": "gzip"})
    http.plans += [encoded, encoded]
    with pytest.raises(DataError, match="in the encoding gzip, which was not asked for"):
        open_remote(http.address + PATHS[0])
    assert read(http.address + PATHS[1])[3] == CONTENT


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_will_not_pass_is_refused(http, status):
    http.plans.append(Misbehaviour(status=status))
    with pytest.raises(
        DataError, match=rf"cannot fetch {http.address}/folder/file\.bvecs: the server answers {status} "
    ):
        open_remote(http.address + PATHS[0])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_worth_another_attempt(http, status):
    http.plans.append(Misbehaviour(status=status))
    with pytest.raises(BrokenOff, match=f"the server answers {status} "):
        open_remote(http.address + PATHS[0])


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"", b"ff", b"ff\r\nhalf", b"no number\r\n"])
def test_the_end_of_chunks_is_told_from_a_broken_connection(http, end):
    http.files[PATHS[0]] = b"5\r\nhello\r\n" + end
    http.plans.append(Misbehaviour(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}))
    if end.startswith(b"0"):
        assert read(http.address + PATHS[0])[1::2] == (None, b"hello")
        return
    with pytest.raises(BrokenOff, match="IncompleteRead"):
        read(http.address + PATHS[0])


def test_nobody_listens(http):
    with http_server() as gone:
        pass
    with pytest.raises(BrokenOff, match="Connection refused"):
        open_remote(gone.address + PATHS[0])


def test_silence_ends_after_the_timeout(http):
    http.plans.append(Misbehaviour(send=100, stall=True))
    with closing(open_remote(http.address + PATHS[0], timeout=1)) as reply:
        assert reply.read(1000) == CONTENT[:100]
        with pytest.raises(BrokenOff, match="timed out"):
            reply.read(1000)


def test_redirects_are_followed_with_the_range(http):
    http.plans.append(Misbehaviour(status=302, headers={"Location": PATHS[1]}))
    assert read(http.address + PATHS[0], 1000)[::3] == (1000, CONTENT[1000:])
    assert [path for path, _ in http.requests] == [PATHS[0], PATHS[1]]


@pytest.mark.parametrize(
    "place", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "gopher://h", "http://[", "http://a..b/"]
)
def test_redirects_elsewhere_are_refused(http, place):
    http.plans.append(Misbehaviour(status=302, headers={"Location": place}))
    with pytest.raises(DataError, match=f"cannot fetch {http.address}"):
        open_remote(http.address + PATHS[0])


def test_redirects_in_a_circle_end(http):
    http.plans += [Misbehaviour(status=302, headers={"Location": PATHS[0]})] * 20
    with pytest.raises(DataError, match="the server answers 302"):
        open_remote(http.address + PATHS[0])


def test_an_untrusted_certificate_is_refused(certificate):
    with http_server(*certificate) as server:
        server.files[PATHS[0]] = CONTENT
        with pytest.raises(DataError, match="the server's certificate is not trusted"):
            open_remote(server.address + PATHS[0])
        assert server.requests == []


def test_a_trusted_certificate_is_for_its_own_host(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with http_server(*certificate) as server:
        server.files[PATHS[0]] = CONTENT
        assert read(server.address + PATHS[0])[3] == CONTENT
        with pytest.raises(DataError, match=r"the server's certificate is not trusted .*[Hh]ostname mismatch"):
            open_remote(server.address.replace("127.0.0.1", "localhost") + PATHS[0])


def test_https_does_not_redirect_to_http_but_http_to_https(certificate, http, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with http_server(*certificate) as secure:
        secure.files[PATHS[0]] = CONTENT
        secure.plans.append(Misbehaviour(status=301, headers={"Location": http.address + PATHS[0]}))
        with pytest.raises(DataError, match=f"it redirects to {http.address}.*, which is not secured as it is itself"):
            open_remote(secure.address + PATHS[0])
        assert http.requests == []
        http.plans.append(Misbehaviour(status=301, headers={"Location": secure.address + PATHS[0]}))
        assert read(http.address + PATHS[0])[3] == CONTENT


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_proxies_of_the_environment_are_used(http, monkeypatch, scheme):
    monkeypatch.setenv(f"{scheme}_proxy", http.address)
    address = f"{scheme}://published.invalid/x.bvecs"
    http.files[address] = CONTENT  # a proxy is asked for the whole address
    assert read(address, 1000)[::3] == (1000, CONTENT[1000:])


def test_a_whole_file_over_ftp(ftp):
    start, length, version, content = read(ftp.address + PATHS[0])
    assert (start, length, content) == (0, len(CONTENT), CONTENT) and version is not None
    assert ("USER", "anonymous") in ftp.requests and ("TYPE", "I") in ftp.requests


def test_the_rest_of_a_file_over_ftp(ftp):
    _, length, version, _ = read(ftp.address + PATHS[0])
    assert read(ftp.address + PATHS[0], 1000, version, length) == (1000, length, version, CONTENT[1000:])
    assert ("REST", "1000") in ftp.requests


def test_a_file_that_is_another_one_now_begins_anew_over_ftp(ftp):
    _, length, version, _ = read(ftp.address + PATHS[0])
    assert read(ftp.address + PATHS[0], 1000, version, length + 1)[::3] == (0, CONTENT)
    assert read(ftp.address + PATHS[0], 1000, "20190101000000", length)[::3] == (0, CONTENT)


def test_an_ftp_server_that_knows_few_commands(ftp):
    ftp.tags |= {"SIZE": None, "MDTM": None}
    assert read(ftp.address + PATHS[0], 1000, None, None) == (0, None, None, CONTENT)
    ftp.plans.append(Misbehaviour(send=500))
    with pytest.raises(BrokenOff, match="426 broken"):
        read(ftp.address + PATHS[0])


def test_an_ftp_server_without_the_file(ftp):
    with pytest.raises(DataError, match="the server answers 550 no"):
        open_remote(f"{ftp.address}/elsewhere")
    with pytest.raises(DataError, match="the server answers 550 no"):
        open_remote(f"{ftp.address}/elsewhere", 1000)
