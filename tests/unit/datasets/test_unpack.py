"""Packed files are unpacked as a stream and verified to their last byte; nothing else of them is written."""

import gzip
import io
import shutil
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qinco.datasets.catalogue import PublishedFile
from qinco.datasets.unpack import unpack
from qinco.errors import DataError, ResourceError
from qinco.vectors.formats import open_array

CONTENT = np.random.default_rng(1).integers(0, 9, 3_000_000, np.uint8).tobytes()
MEMBER = "gnd/idx_1000M.ivecs"
PACKED = gzip.compress(b"The quick brown fox jumps over the lazy dog")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ignore(done, total):
    pass


def gunzip(source, target, report=ignore):
    unpack(PublishedFile("http://x/x.gz", "x"), source, target, report)


def extract_member(source, member, target, report=ignore):
    unpack(PublishedFile("http://x/x.tar.gz", "x", member), source, target, report)


def convert_fbin(source, target, report=ignore):
    unpack(PublishedFile("http://x/x.fbin", "x"), source, target, report)


def write(content: bytes) -> Path:
    Path("x.part").write_bytes(content)
    return Path("x.part")


def archive(*members, **options) -> bytes:
    """A .tar.gz of (name, content) pairs and of TarInfo objects without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.fixture
def little_room(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))


def test_gunzip_reports_how_far_it_is():
    packed, reports = gzip.compress(CONTENT, 1), []
    gunzip(write(packed), Path("x"), lambda done, total: reports.append((done, total)))
    assert Path("x").read_bytes() == CONTENT
    assert reports == sorted(reports) and len(reports) >= 3 and reports[-1] == (len(packed), len(packed))


@pytest.mark.parametrize("position", [0, 1, 2, 12, 30, -8, -5, -4, -1])
def test_a_gzip_file_with_a_wrong_byte_is_refused(position):
    damaged = bytearray(PACKED)
    damaged[position] ^= 0x5A
    with pytest.raises(DataError):
        gunzip(write(bytes(damaged)), Path("x"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", [MEMBER, f"./{MEMBER}"])
def test_one_member_is_extracted_and_nothing_else(form, name):
    others = [("gnd/idx_1M.ivecs", b"other" * 1000), ("../evil", b"y"), special("gnd", tarfile.DIRTYPE)]
    packed, reports = archive(*others, (name, CONTENT), ("z", b"z"), format=form), []
    extract_member(write(packed), MEMBER, Path("out"), lambda *progress: reports.append(progress))
    assert Path("out").read_bytes() == CONTENT
    assert sorted(path.name for path in Path().iterdir()) == ["out", "x.part"]
    assert reports[-1] == (len(packed), len(packed))


@pytest.mark.parametrize("name", ["../gnd/idx_1000M.ivecs", "gnd/../gnd/idx_1000M.ivecs", "idx_1000M.ivecs"])
def test_a_member_elsewhere_is_not_the_one(name):
    with pytest.raises(DataError, match=MEMBER):
        extract_member(write(archive((name, b"evil"))), MEMBER, Path("out"))
    assert Path("out").read_bytes() == b"" and len(list(Path().iterdir())) == 2


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_a_device_in_its_place_is_refused(kind):
    with pytest.raises(DataError, match=MEMBER):
        extract_member(write(archive(special(MEMBER, kind, "/etc/passwd"))), MEMBER, Path("out"))
    assert Path("out").read_bytes() == b"" and not Path("out").is_symlink()


def test_damage_after_the_member_is_found_too():
    packed = bytearray(archive((MEMBER, CONTENT[:1000])))
    packed[-8] ^= 1
    with pytest.raises(DataError, match="CRC"):
        extract_member(write(bytes(packed)), MEMBER, Path("out"))
    with pytest.raises(DataError):
        extract_member(write(gzip.compress(CONTENT[:5000])), MEMBER, Path("out"))


@pytest.mark.parametrize("size", [8_000_000, 2**60])
def test_a_member_that_promises_much_is_refused(little_room, size):
    info = tarfile.TarInfo(MEMBER)
    info.size = size
    with pytest.raises(ResourceError, match=f"{size:,}"):
        extract_member(write(gzip.compress(info.tobuf(tarfile.GNU_FORMAT))), MEMBER, Path("out"))
    assert Path("out").read_bytes() == b""


def fbin(rows: np.ndarray) -> bytes:
    return struct.pack("<II", *rows.shape) + rows.astype("<f4").tobytes()


def test_fbin_becomes_fvecs():
    rows = np.random.default_rng(2).standard_normal((1000, 5), np.float32)
    rows[3, 1] = np.nan
    reports = []
    convert_fbin(write(fbin(rows)), Path("x.fvecs"), lambda *progress: reports.append(progress))
    np.testing.assert_array_equal(open_array("x.fvecs")[:], rows)
    assert reports[-1] == (20008, 20008)
