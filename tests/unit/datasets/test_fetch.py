"""Files arrive whole under their names, whatever servers and connections do; until then nothing has the name."""

import errno
import gzip
import logging
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from published_server import Misbehaviour, ftp_server, http_server

import qinco
from qinco.datasets.catalogue import PublishedFile
from qinco.datasets.fetch import PAUSES, download, fetch, is_present
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.vectors.formats import write_vectors

pytest.importorskip("httpx")
ROWS = np.random.default_rng(3).integers(0, 256, (1500, 16), np.uint8)
TARGET, PART = Path("data/base.bvecs"), Path("data/base.bvecs.part")
fetch_now = partial(fetch, pauses=())
fetch_patiently = partial(fetch, pauses=(0, 0, 0))


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    """30,000 bytes: 1,500 rows of a bvecs file."""
    path = tmp_path_factory.mktemp("content") / "x.bvecs"
    write_vectors(path, ROWS)
    return path.read_bytes()


@pytest.fixture
def server(content):
    with http_server() as server:
        server.files["/base.bvecs"] = content
        server.files["/base.bvecs.gz"] = gzip.compress(content)
        yield server


@pytest.fixture
def file(server) -> PublishedFile:
    return PublishedFile(f"{server.address}/base.bvecs", str(TARGET))


@pytest.fixture
def packed(server) -> PublishedFile:
    return PublishedFile(f"{server.address}/base.bvecs.gz", str(TARGET))


def listing() -> list[str]:
    return sorted(path.relative_to(".").as_posix() for path in Path().rglob("*") if path.is_file())


def check_complete(content: bytes) -> None:
    assert TARGET.read_bytes() == content and listing() == [str(TARGET)]


def break_off(server, file, *sizes: int) -> None:
    """Download `file` without patience while the connection breaks after each of these numbers of bytes."""
    for size in sizes:
        server.plans.append(Misbehaviour(send=size))
        with pytest.raises(DataError, match=file.address):
            fetch_now(file, TARGET)


def test_a_file_arrives_under_its_name_and_alone(server, file, content):
    reports = []
    fetch_now(file, TARGET, lambda *arguments: reports.append(arguments))
    check_complete(content)
    assert server.ranges() == [None] and reports[-1] == (f"downloading {TARGET}", 30_000, 30_000, "byte")


def test_a_connection_that_breaks_is_continued_where_it_broke(server, file, content, caplog):
    server.plans += [Misbehaviour(send=size) for size in (1000, 1, 19_000)]
    fetch_patiently(file, TARGET)
    check_complete(content)
    assert server.ranges() == [None, "bytes=1000-", "bytes=1001-", "bytes=20001-"]
    assert sum("the next attempt" in message for message in caplog.messages) == 3


def test_pauses_begin_anew_when_bytes_arrive(server, file, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    busy = Misbehaviour(status=503)
    server.plans += [busy, busy, Misbehaviour(send=10), busy, Misbehaviour(send=0), busy]
    with pytest.raises(DataError, match=rf"{file.address}.* 503"):
        fetch(file, TARGET, pauses=(1, 2, 3))
    assert slept == [1, 2, 1, 2, 3] and listing() == [str(PART), f"{PART}.version"]
    assert list(PAUSES) == sorted(PAUSES) and 10 < sum(PAUSES) < 60


def test_the_next_call_continues_unless_told_otherwise(server, file, content):
    break_off(server, file, 10_000, 5000)
    assert PART.stat().st_size == 15_000 and not TARGET.exists()
    fetch_now(file, TARGET)
    check_complete(content)
    assert server.ranges() == [None, "bytes=10000-", "bytes=15000-"]
    break_off(server, file, 10_000)
    fetch_now(file, TARGET, resume=False)
    check_complete(content)
    assert server.ranges()[3:] == [None, None]


def test_a_killed_process_is_continued(server, file, content):
    """The process is killed while it waits for the rest, which never comes."""
    server.plans.append(Misbehaviour(send=20_000, stall=True))
    script = f"""
        from pathlib import Path
        from qinco.datasets.catalogue import PublishedFile
        from qinco.datasets.fetch import fetch
        fetch({file!r}, Path({str(TARGET)!r}), lambda stage, done, *_: print(done, flush=True))
    """.replace("\n        ", "\n")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 20_000:
            pass
        with pytest.raises(ConfigError, match=r"base\.bvecs\.part"):
            fetch_now(file, TARGET)
        process.send_signal(signal.SIGKILL)
    assert not TARGET.exists()
    left = PART.stat().st_size
    fetch_now(file, TARGET)
    check_complete(content)
    assert server.ranges()[-1] == (f"bytes={left}-" if left else None)


@pytest.mark.parametrize("tag", ['"first"', None])
def test_a_file_that_changes_between_attempts_is_not_mixed(server, file, content, tag):
    other = content[:20] * 2000

    def change():
        server.files["/base.bvecs"], server.tags["/base.bvecs"] = other, tag and '"second"'

    server.tags["/base.bvecs"] = tag
    server.plans += [Misbehaviour(send=10_000), Misbehaviour(change=change)]
    fetch_patiently(file, TARGET)
    check_complete(other)


@pytest.mark.parametrize("record", [None, b"", b"\xff", b"https://host/x\nversion"])
def test_bytes_of_unknown_origin_are_not_continued(server, file, content, record):
    Path("data").mkdir()
    PART.write_bytes(b"x" * 100)
    if record is not None:
        Path(f"{PART}.version").write_bytes(record)
    fetch_now(file, TARGET)
    check_complete(content)
    assert server.ranges() == [None]


def test_what_does_not_arrive_leaves_nothing(server, file):
    server.files["/x.pt"] = b""
    for path in ("/missing.bvecs", "/x.pt"):
        with pytest.raises(DataError, match=path):
            fetch_patiently(PublishedFile(server.address + path, str(TARGET)), TARGET)
    assert listing() == [] and len(server.requests) == 2


def test_a_page_instead_of_vectors_does_not_take_the_name(server, file):
    server.files["/base.bvecs"] = b"<html>Sign in, please</html>"
    Path("data").mkdir()
    TARGET.write_bytes(b"old")
    with pytest.raises(DataError, match=file.address):
        fetch_now(file, TARGET)
    check_complete(b"old")


def test_gzip_is_unpacked(server, packed, content):
    server.plans += [Misbehaviour(send=10_000)]
    stages = set()
    fetch_patiently(packed, TARGET, lambda stage, *_: stages.add(stage))
    check_complete(content)
    assert stages == {f"downloading {TARGET}", f"unpacking {TARGET}"}


def test_a_complete_part_is_not_downloaded_again(server, packed, content):
    def interrupt(stage, *_):
        if stage.startswith("unpacking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_now(packed, TARGET, interrupt)
    Path("data/.base.123-0123abcd.bvecs").write_bytes(b"x" * 100_000)  # as a killed process leaves it
    size = PART.stat().st_size
    assert size == len(server.files["/base.bvecs.gz"]) and not TARGET.exists()
    fetch_now(packed, TARGET)
    check_complete(content)
    assert server.ranges() == [None, f"bytes={size}-"]


def test_the_disk_is_checked_before_the_first_byte(file, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    with pytest.raises(ResourceError, match=r"data/base\.bvecs.* 30,000 .* 20,000"):
        fetch_now(file, TARGET)
    assert listing() == []


def test_a_full_disk_is_an_error_of_ours_and_keeps_what_arrived(file, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ResourceError, match=r"base\.bvecs: No space left on device"):
        fetch_now(file, TARGET)
    assert listing() == [str(PART), f"{PART}.version"]


def test_the_target_may_be_a_link(server, file, content):
    Path("disk").mkdir()
    Path("data").mkdir()
    TARGET.symlink_to("../disk/base.bvecs")
    fetch_now(file, TARGET)
    assert Path("disk/base.bvecs").read_bytes() == content and TARGET.is_symlink()
    assert listing() == ["data/base.bvecs", "disk/base.bvecs"]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_target_that_fits_is_present(server, content, packing):
    Path("data").mkdir()
    TARGET.write_bytes(content)
    file = PublishedFile(f"{server.address}/base.bvecs{packing}", str(TARGET))
    assert is_present(file, TARGET) and not is_present(file, TARGET, overwrite=True)


@pytest.mark.parametrize("change", [lambda c: c[:-20], lambda c: c + c[:20], lambda c: b"\xff" + c[1:]])
def test_another_length_or_content_is_refused_unless_it_is_to_be_replaced(file, content, change):
    Path("data").mkdir()
    TARGET.write_bytes(change(content))
    with pytest.raises(ConfigError, match=r"base\.bvecs .*overwrite=true"):
        is_present(file, TARGET)
    assert not is_present(file, TARGET, overwrite=True) and TARGET.read_bytes() == change(content)
    fetch_now(file, TARGET)
    check_complete(content)


def test_a_folder_in_the_way_is_refused(server, file):
    TARGET.mkdir(parents=True)
    for attempt in (is_present, fetch):
        with pytest.raises(ConfigError, match=r"data/base\.bvecs is a folder"):
            attempt(file, TARGET)
    assert server.requests == []


def test_over_ftp(content):
    with ftp_server() as server:
        server.files["/pub/base.bvecs.gz"] = gzip.compress(content)
        file = PublishedFile(f"{server.address}/pub/base.bvecs.gz", str(TARGET))
        server.plans += [Misbehaviour(send=10_000), Misbehaviour(send=100)]
        fetch_patiently(file, TARGET)
        check_complete(content)
        assert [argument for command, argument in server.requests if command == "REST"] == ["10000", "10100"]


def test_download_fills_a_folder_and_skips_what_is_there(server, tmp_path):
    server.files["/QINCo/models/bigann_8x8_L2.pt"] = b"weights"
    (tmp_path / "there").mkdir()
    for state in ("downloaded", "skipped"):
        (file,) = qinco.download("bigann_8x8_L2", tmp_path / "there", mirror=server.address)
        assert (file.path, file.bytes, file.state) == (str(tmp_path / "there/models/bigann_8x8_L2.pt"), 7, state)
    with pytest.raises(ConfigError, match="nowhere"):
        download(["bigann_8x8_L2"], "nowhere", mirror=server.address)


def test_ctrl_c_says_what_is_kept(server):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    server.files["/QINCo/models/bigann_8x8_L2.pt"] = b"weights"
    server.plans.append(Misbehaviour(send=5, stall=True))
    with pytest.raises(KeyboardInterrupt, match=r"models/bigann_8x8_L2\.pt\.part"):
        download("bigann_8x8_L2", mirror=server.address, progress=interrupt)
    assert Path("models/bigann_8x8_L2.pt.part").read_bytes() == b"weigh"


def test_without_httpx(file, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match=r"pip install 'qinco\[download\]'"):
        fetch_now(file, TARGET)
    with pytest.raises(ConfigError, match="httpx"):
        download("bigann1M", mirror="http://127.0.0.1:9")
    assert not caplog.records, "nothing is announced"
