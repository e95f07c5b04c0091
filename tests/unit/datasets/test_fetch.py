"""Files arrive whole under their names, whatever servers and connections do; until then nothing lies there."""

import errno
import gzip
import io
import json
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from published_server import Misbehaviour, ftp_server, http_server

from qinco.datasets import fetch as download
from qinco.datasets.catalogue import PublishedFile
from qinco.datasets.fetch import Notice, Progress, fetch, is_present, part_path
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.vectors.formats import open_array, write_vectors

ROWS = np.random.default_rng(3).integers(0, 256, (1500, 16), np.uint8)
NO_PAUSES = (0, 0, 0)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
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
    return PublishedFile(f"{server.address}/base.bvecs", "data/base.bvecs")


@pytest.fixture
def packed(server) -> PublishedFile:
    return PublishedFile(f"{server.address}/base.bvecs.gz", "data/base.bvecs")


def ignore(event):
    pass


def listing() -> list[str]:
    return sorted(path.relative_to(".").as_posix() for path in Path().rglob("*") if path.is_file())


def fetch_and_listen(file, **options) -> list:
    events = []
    fetch(file, events.append, pauses=NO_PAUSES, **options)
    return events


def notices(events) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


def break_off(server, file, *sizes: int) -> None:
    """Fetch `file` without patience while the connection breaks off after each of so many bytes."""
    for size in sizes:
        server.plans.append(Misbehaviour(send=size))
        with pytest.raises(DataError, match="the connection ended after"):
            fetch(file, ignore, pauses=())


def test_a_file_arrives_under_its_name_and_alone(server, file, content):
    events = fetch_and_listen(file)
    assert Path(file.target).read_bytes() == content and listing() == [file.target]
    assert server.ranges() == [None]
    assert events[-1] == Progress("fetching", file.target, 30_000, 30_000) and notices(events) == ""


def test_a_connection_that_breaks_off_is_continued_where_it_broke(server, file, content):
    server.plans += [Misbehaviour(send=size) for size in (1000, 1, 19_000)]
    events = fetch_and_listen(file)
    assert Path(file.target).read_bytes() == content and listing() == [file.target]
    assert server.ranges() == [None, "bytes=1000-", "bytes=1001-", "bytes=20001-"]
    assert "the connection ended after 1,001 of 30,000 bytes; the next attempt is in 0 s" in notices(events)


def test_pauses_grow_and_begin_anew_when_bytes_arrive(server, file, monkeypatch):
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    busy = Misbehaviour(status=503)
    server.plans += [busy, busy, Misbehaviour(send=10), busy, Misbehaviour(send=0), busy]
    with pytest.raises(
        DataError, match=rf"cannot fetch {file.address}: the server answers 503 .*; what has arrived is kept, "
    ):
        fetch(file, ignore, pauses=(1, 2, 3))
    assert slept == [1, 2, 1, 2, 3]
    assert listing() == ["data/base.bvecs.part", "data/base.bvecs.part.json"]


def test_no_attempt_lasts_for_ever(server, file):
    server.plans += [Misbehaviour(send=0)] * 100
    with pytest.raises(DataError, match=r"the connection ended after 0 of 30,000 bytes$"):
        fetch(file, ignore, pauses=NO_PAUSES)
    assert len(server.requests) == 4 and listing() == []


def test_the_default_pauses_grow():
    assert list(download.PAUSES) == sorted(download.PAUSES) and 10 < sum(download.PAUSES) < 60


def test_the_next_call_continues(server, file, content):
    break_off(server, file, 10_000, 5000)
    assert part_path(file).stat().st_size == 15_000 and not Path(file.target).exists()
    fetch(file, ignore)
    assert Path(file.target).read_bytes() == content and listing() == [file.target]
    assert server.ranges() == [None, "bytes=10000-", "bytes=15000-"]


def test_a_killed_process_is_continued(server, file, content):
    """The process is killed while it waits for the rest, which never comes."""
    server.plans.append(Misbehaviour(send=20_000, stall=True))
    script = f"""
        from qinco.datasets.catalogue import PublishedFile
        from qinco.datasets.fetch import fetch, Progress
        fetch({file!r}, lambda event: print(event.done, flush=True))
    """.replace("\n        ", "\n")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 20_000:
            pass
        with pytest.raises(ConfigError, match=r"base\.bvecs\.part is being written by another download"):
            fetch(file, ignore, pauses=())
        process.send_signal(signal.SIGKILL)
    assert not Path(file.target).exists()
    left = part_path(file).stat().st_size
    fetch(file, ignore)
    assert Path(file.target).read_bytes() == content and listing() == [file.target]
    assert server.ranges()[-1] == (f"bytes={left}-" if left else None)


@pytest.mark.parametrize("tag", ['"first"', None])
def test_a_file_that_changes_between_attempts_is_not_mixed(server, file, content, tag):
    other = content[:20] * 2000

    def change():
        server.files["/base.bvecs"], server.tags["/base.bvecs"] = other, tag and '"second"'

    server.tags["/base.bvecs"] = tag
    server.plans += [Misbehaviour(send=10_000), Misbehaviour(change=change)]
    events = fetch_and_listen(file)
    assert Path(file.target).read_bytes() == other
    assert "is another file now, or cannot be continued: starting anew" in notices(events)


def test_a_file_that_changes_between_calls_is_not_mixed(server, file, content):
    break_off(server, file, 10_000)
    server.files["/base.bvecs"] = content[::-1]
    server.plans.append(Misbehaviour(send=10_000))
    with pytest.raises(DataError):
        fetch(file, ignore, pauses=())
    assert part_path(file).read_bytes() == content[::-1][:10_000]


def test_what_arrived_from_another_address_is_not_continued(server, file, packed, content):
    break_off(server, packed, 5000)
    fetch(file, ignore)
    assert Path(file.target).read_bytes() == content and server.ranges() == [None, None]


@pytest.mark.parametrize(
    "record", [None, b"", b"\xff", b"[]", b"{}", b'{"address": 1, "version": 2, "length": 3}', b"[" * 10**5]
)
def test_bytes_of_unknown_origin_are_not_continued(server, file, content, record):
    Path("data").mkdir()
    part_path(file).write_bytes(b"x" * 100)
    if record is not None:
        Path(f"{part_path(file)}.json").write_bytes(record)
    fetch(file, ignore)
    assert Path(file.target).read_bytes() == content and server.ranges() == [None]


def test_a_part_longer_than_the_file_does_no_harm(server, file, content):
    break_off(server, file, 10_000)
    with part_path(file).open("ab") as part:
        part.write(content[10_000:] + b"more")
    fetch(file, ignore)
    assert Path(file.target).read_bytes() == content


def test_a_server_that_ignores_ranges_begins_anew(server, file, content):
    server.plans += [
        Misbehaviour(send=10_000),
        Misbehaviour(ignore_range=True, send=20_000),
        Misbehaviour(ignore_range=True),
    ]
    events = fetch_and_listen(file)
    assert Path(file.target).read_bytes() == content
    assert "starting anew" in notices(events)


def test_a_wrong_part_is_refused_and_changes_nothing(server, file, content):
    break_off(server, file, 10_000)
    server.plans.append(Misbehaviour(headers={"Content-Range": "bytes 0-29999/30000"}))
    with pytest.raises(DataError, match="the server sends the wrong part, bytes 0-29999/30000"):
        fetch(file, ignore, pauses=NO_PAUSES)
    assert part_path(file).read_bytes() == content[:10_000] and not Path(file.target).exists()


def test_a_length_that_is_too_great_is_refused(server, file):
    too_long = Misbehaviour(headers={"Content-Length": "30007"})
    too_long_range = Misbehaviour(headers={"Content-Range": "bytes 30000-30006/30007"}, send=0)
    server.plans += [too_long, *[too_long_range] * 3]
    with pytest.raises(DataError, match="the connection ended after 30,000 of 30,007 bytes"):
        fetch(file, ignore, pauses=())
    assert not Path(file.target).exists()


def test_a_length_that_is_too_small_makes_no_vectors(server, file):
    server.plans.append(Misbehaviour(headers={"Content-Length": "29990"}))
    with pytest.raises(
        DataError, match=r"is not what .*base\.bvecs should be, and was removed: .* not a whole number of rows"
    ):
        fetch(file, ignore)
    assert listing() == []


def test_an_unknown_length_is_said_to_be_unchecked(server, file, content):
    server.plans.append(Misbehaviour(headers={"Content-Length": None}))
    events = fetch_and_listen(file)
    assert "the server does not tell the length, so that it cannot be checked" in notices(events)
    assert Path(file.target).read_bytes() == content and events[0].total is None


def test_an_empty_file_is_refused(server):
    server.files["/x.pt"] = b""
    with pytest.raises(DataError, match=r"x\.pt should be, and was removed: it is empty"):
        fetch(PublishedFile(f"{server.address}/x.pt", "models/x.pt"), ignore)
    assert listing() == []


def test_no_such_file(server, file):
    missing = PublishedFile(f"{server.address}/missing.bvecs", file.target)
    with pytest.raises(DataError, match=rf"cannot fetch {missing.address}: the server answers 404 Not Found"):
        fetch(missing, ignore)
    assert listing() == [] and len(server.requests) == 1


def test_a_server_that_is_busy_for_a_while(server, file, content):
    server.plans += [Misbehaviour(status=503)] * 3
    assert "the server answers 503" in notices(fetch_and_listen(file))
    assert Path(file.target).read_bytes() == content


def test_a_silent_connection_is_continued(server, file, content):
    server.plans.append(Misbehaviour(send=12_345, stall=True))
    assert "timed out" in notices(fetch_and_listen(file, timeout=1))
    assert Path(file.target).read_bytes() == content and len(server.requests) == 2


def test_what_is_no_vectors_does_not_take_the_name(server, file):
    server.files["/base.bvecs"] = b"<html>Sign in, please</html>"
    Path("data").mkdir()
    Path(file.target).write_bytes(b"old")
    with pytest.raises(DataError, match=r"it is not a \.bvecs|is not a \.bvecs file|truncated or no \.bvecs file"):
        fetch(file, ignore)
    assert listing() == [file.target] and Path(file.target).read_bytes() == b"old"


def test_other_files_are_taken_as_they_are(server):
    server.files["/x.pt"] = b"weights"
    fetch(PublishedFile(f"{server.address}/x.pt", "models/x.pt"), ignore)
    assert Path("models/x.pt").read_bytes() == b"weights"


def test_gzip_is_unpacked(server, packed, content):
    server.plans += [Misbehaviour(send=10_000)]
    events = fetch_and_listen(packed)
    assert Path(packed.target).read_bytes() == content and listing() == [packed.target]
    assert {event.stage for event in events if isinstance(event, Progress)} == {"fetching", "unpacking"}


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c[:20_000], lambda c: c + b"x", lambda c: c[:-6] + b"ab" + c[-4:]]
)
def test_damaged_gzip_does_not_take_the_name(server, packed, change):
    server.files["/base.bvecs.gz"] = change(server.files["/base.bvecs.gz"])
    with pytest.raises(DataError, match=r"base\.bvecs should be, and was removed: the gzip file is damaged"):
        fetch(packed, ignore)
    assert listing() == []


def test_one_member_of_an_archive_takes_the_name(server, tmp_path):
    write_vectors("x.ivecs", np.arange(20, dtype=np.int32).reshape(4, 5))
    member, buffer = Path("x.ivecs").read_bytes(), io.BytesIO()
    Path("x.ivecs").unlink()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in (("../evil", b"evil"), ("gnd/idx_1M.ivecs", b"other"), ("gnd/idx_1000M.ivecs", member)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    server.files["/gnd.tar.gz"] = buffer.getvalue()
    fetch(PublishedFile(f"{server.address}/gnd.tar.gz", "data/gnd/idx.ivecs", "gnd/idx_1000M.ivecs"), ignore)
    assert Path("data/gnd/idx.ivecs").read_bytes() == member
    assert listing() == ["data/gnd/idx.ivecs"] and not (tmp_path.parent / "evil").exists()


def test_fbin_becomes_fvecs(server):
    rows = np.random.default_rng(4).standard_normal((100, 6), np.float32)
    server.files["/q.fbin"] = struct.pack("<II", 100, 6) + rows.tobytes()
    file = PublishedFile(f"{server.address}/q.fbin", "data/q.fvecs")
    fetch(file, ignore)
    np.testing.assert_array_equal(open_array(file.target)[:], rows)
    assert listing() == [file.target] and is_present(file, ignore)


def test_a_complete_part_is_not_fetched_again(server, packed, content, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "gunzip", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(packed, ignore)
    size = part_path(packed).stat().st_size
    assert size == len(server.files["/base.bvecs.gz"]) and not Path(packed.target).exists()
    fetch(packed, ignore)
    assert Path(packed.target).read_bytes() == content and listing() == [packed.target]
    assert server.ranges() == [None, f"bytes={size - 1}-"]


def test_what_a_killed_unpacking_left_is_removed(server, packed, content):
    Path("data").mkdir()
    for name in ("base.unpacked.bvecs", ".base.unpacked.123-abc.bvecs"):
        Path("data", name).write_bytes(b"x" * 100_000)
    fetch(packed, ignore)
    assert Path(packed.target).read_bytes() == content and listing() == [packed.target]


def test_ctrl_c_keeps_what_arrived(server, file, content):
    def interrupt(event):
        raise KeyboardInterrupt

    server.plans.append(Misbehaviour(send=10_000, stall=True))
    with pytest.raises(KeyboardInterrupt):
        fetch(file, interrupt)
    kept = part_path(file).read_bytes()
    assert kept and content.startswith(kept) and not Path(file.target).exists()


@pytest.mark.parametrize("packing, needed", [("", "30,000"), (".gz", "52,...")])
def test_the_disk_is_looked_at_before_the_first_byte(server, monkeypatch, packing, needed):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    file = PublishedFile(f"{server.address}/base.bvecs{packing}", "data/base.bvecs")
    with pytest.raises(
        ResourceError, match=rf"data/base\.bvecs needs {needed} bytes or more where 20,000 are free in "
    ):
        fetch(file, ignore)
    assert listing() == []


def test_a_full_disk_is_said_and_what_arrived_is_kept(file, monkeypatch):
    def fail(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download._Part, "flush", fail)
    with pytest.raises(ResourceError, match=r"cannot write .*base\.bvecs: No space left on device"):
        fetch(file, ignore)
    assert listing() == ["data/base.bvecs.part", "data/base.bvecs.part.json"]


def test_the_target_may_be_a_link(server, file, content):
    Path("disk").mkdir()
    Path("data").mkdir()
    Path(file.target).symlink_to("../disk/base.bvecs")
    fetch(file, ignore)
    assert Path("disk/base.bvecs").read_bytes() == content and Path(file.target).is_symlink()
    assert listing() == ["data/base.bvecs", "disk/base.bvecs"]


def test_a_missing_target_is_not_present(server, file):
    assert not is_present(file, ignore) and server.requests == []


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_the_right_length_is_present(server, content, packing):
    file = PublishedFile(f"{server.address}/base.bvecs{packing}", "data/base.bvecs")
    Path("data").mkdir()
    Path(file.target).write_bytes(content)
    events = []
    assert is_present(file, events.append) and not is_present(file, events.append, overwrite=True)
    assert events == []


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda c: c[:-20], "exists with 29,980 bytes, which is not the length of http"),
        (lambda c: c + c[:20], "exists with 30,020 bytes, which is not the length of http"),
        (lambda c: b"\xff" + c[1:], "exists with what cannot be read"),
    ],
)
def test_another_length_or_content_is_refused_unless_it_is_to_be_replaced(server, content, packing, change, reason):
    file = PublishedFile(f"{server.address}/base.bvecs{packing}", "data/base.bvecs")
    Path("data").mkdir()
    Path(file.target).write_bytes(change(content))
    with pytest.raises(
        ConfigError, match=f"base\\.bvecs {reason}.*: give overwrite=true to replace it, or move it away"
    ):
        is_present(file, ignore)
    assert not is_present(file, ignore, overwrite=True)
    assert Path(file.target).read_bytes() == change(content)
    fetch(file, ignore)
    assert Path(file.target).read_bytes() == content and listing() == [file.target]


@pytest.mark.parametrize(
    "path, plans",
    [
        ("/base.bvecs", [Misbehaviour(headers={"Content-Length": None})]),
        ("/base.bvecs.gz", [Misbehaviour(ignore_range=True)] * 2),
        ("/base.tar.gz", []),
    ],
)
def test_a_length_that_nothing_tells_is_believed_unless_it_is_to_be_replaced(server, content, path, plans):
    server.files["/base.tar.gz"] = b"whatever"
    file = PublishedFile(server.address + path, "data/base.bvecs")
    Path("data").mkdir()
    Path(file.target).write_bytes(content)
    events = []
    server.plans += plans
    assert is_present(file, events.append)
    assert "its length cannot be compared with http" in notices(events)
    server.plans[:] = plans
    assert not is_present(file, ignore, overwrite=True)


def test_asking_for_the_length_is_patient_too(server, file, content):
    Path("data").mkdir()
    Path(file.target).write_bytes(content)
    server.plans += [Misbehaviour(status=503)] * 2
    assert is_present(file, ignore, pauses=NO_PAUSES)
    server.plans += [Misbehaviour(status=503)] * 4
    with pytest.raises(DataError, match="the server answers 503"):
        is_present(file, ignore, pauses=NO_PAUSES)


def test_a_folder_in_the_place_of_the_target_is_refused(server, file):
    Path(file.target).mkdir(parents=True)
    for attempt in (is_present, fetch):
        with pytest.raises(ConfigError, match=r"data/base\.bvecs is a folder"):
            attempt(file, ignore)
    assert server.requests == []


def test_over_ftp(content):
    with ftp_server() as server:
        packed = gzip.compress(content)
        server.files["/pub/base.bvecs.gz"] = packed
        file = PublishedFile(f"{server.address}/pub/base.bvecs.gz", "data/base.bvecs")
        server.plans += [Misbehaviour(send=10_000), Misbehaviour(send=100)]
        events = fetch_and_listen(file)
        assert Path(file.target).read_bytes() == content and listing() == [file.target]
        assert [argument for command, argument in server.requests if command == "REST"] == ["10000", "10100"]
        assert f"the connection ended after 10,100 of {len(packed):,} bytes" in notices(events)
        assert is_present(file, ignore)
        Path(file.target).write_bytes(content[:-20])
        assert not is_present(file, ignore, overwrite=True)


def test_over_ftp_a_changed_file_is_not_mixed(content):
    with ftp_server() as server:
        server.files["/base.bvecs"] = content
        file = PublishedFile(f"{server.address}/base.bvecs", "data/base.bvecs")
        break_off(server, file, 10_000)
        server.files["/base.bvecs"] = content[:20] * 1500
        fetch(file, ignore)
        assert Path(file.target).read_bytes() == content[:20] * 1500


def test_the_record_names_what_the_part_is_of(server, file):
    break_off(server, file, 10_000)
    record = json.loads(Path(f"{part_path(file)}.json").read_text())
    assert record["address"] == file.address and record["length"] == 30_000 and record["version"].startswith('"')
