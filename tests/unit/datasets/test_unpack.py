import gzip
import io
import os
import shutil
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qinco.datasets.unpack import convert_fbin, extract_member, gunzip, named_as
from qinco.errors import DataError, ResourceError
from qinco.vectors.formats import open_array

CONTENT = np.random.default_rng(1).integers(0, 9, 3_000_000, np.uint8).tobytes()
MEMBER = "gnd/idx_1000M.ivecs"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ignore(done, total):
    pass


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


def test_gunzip_tells_how_far_it_is():
    packed = gzip.compress(CONTENT, 1)
    told = []
    gunzip(write(packed), Path("x"), lambda done, total: told.append((done, total)))
    assert Path("x").read_bytes() == CONTENT
    assert told == sorted(told) and len(told) >= 3 and told[-1] == (len(packed), len(packed))


def test_gunzip_takes_several_members_and_padding():
    gunzip(write(gzip.compress(b"abc") + gzip.compress(b"def") + bytes(100)), Path("x"), ignore)
    assert Path("x").read_bytes() == b"abcdef"


PACKED = gzip.compress(b"The quick brown fox jumps over the lazy dog")


@pytest.mark.parametrize("length", range(1, len(PACKED)))
def test_a_truncated_gzip_file_is_refused(length):
    with pytest.raises(DataError, match="the gzip file is damaged"):
        gunzip(write(PACKED[:length]), Path("x"), ignore)


@pytest.mark.parametrize("position", [0, 1, 2, 12, 30, -8, -5, -4, -1])
def test_a_gzip_file_with_a_wrong_byte_is_refused(position):
    damaged = bytearray(PACKED)
    damaged[position] ^= 0x5A
    with pytest.raises((DataError, ResourceError)):  # a length of gigabytes may be more than the disk has
        gunzip(write(bytes(damaged)), Path("x"), ignore)


@pytest.mark.parametrize("tail", [b"x", b"garbage" * 1000, b"\x1f\x8b"])
def test_garbage_behind_a_gzip_file_is_refused(tail):
    with pytest.raises(DataError, match="the gzip file is damaged"):
        gunzip(write(PACKED + tail), Path("x"), ignore)


def test_a_gzip_bomb_ends_at_the_free_space(little_room):
    bomb = gzip.compress(bytes(50_000_000), 1)
    with pytest.raises(ResourceError, match=r"x unpacks to 50,000,000 bytes or more where 1,000,000 are free"):
        gunzip(write(bomb), Path("x"), ignore)
    assert not Path("x").exists() or Path("x").stat().st_size == 0
    with pytest.raises(ResourceError, match=r"x unpacks to 1,048,576 bytes or more where 1,000,000 are free"):
        gunzip(write(bomb + gzip.compress(b"")), Path("x"), ignore)  # which claims to end with no content
    assert Path("x").stat().st_size <= 1_000_000


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", [MEMBER, f"./{MEMBER}"])
def test_one_member_is_extracted_and_nothing_else(form, name):
    others = [("gnd/idx_1M.ivecs", b"other" * 1000), ("gnd/" + "long" * 40, b"y")][
        : 1 if form == tarfile.USTAR_FORMAT else 2
    ]
    packed = archive(special("gnd", tarfile.DIRTYPE), *others, (name, CONTENT), ("z", b"z"), format=form)
    told = []
    extract_member(write(packed), MEMBER, Path("out"), lambda *progress: told.append(progress))
    assert Path("out").read_bytes() == CONTENT
    assert sorted(path.name for path in Path().iterdir()) == ["out", "x.part"]
    assert told[-1] == (len(packed), len(packed))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_members_of_every_length(size):
    extract_member(write(archive(("a", b"a" * size), (MEMBER, CONTENT[:size]), ("b", b"b"))), MEMBER, Path("x"), ignore)
    assert Path("x").read_bytes() == CONTENT[:size]


@pytest.mark.parametrize(
    "name", ["../gnd/idx_1000M.ivecs", "/gnd/idx_1000M.ivecs", "gnd/../gnd/idx_1000M.ivecs", "idx_1000M.ivecs"]
)
def test_a_member_elsewhere_is_not_the_one(name):
    with pytest.raises(DataError, match=f"the archive has no file {MEMBER}"):
        extract_member(write(archive((name, b"evil"))), MEMBER, Path("out"), ignore)
    assert [path.name for path in Path().iterdir()] == ["x.part"]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_a_link_or_a_device_in_its_place_is_refused(kind):
    with pytest.raises(DataError, match="is no regular file in the archive"):
        extract_member(write(archive(special(MEMBER, kind, "/etc/passwd"))), MEMBER, Path("out"), ignore)
    assert not Path("out").exists() and not Path("out").is_symlink()


@pytest.mark.parametrize("kept", [1, 300, 512, 1000, 1024, 2000])
def test_a_truncated_archive_is_refused(kept):
    whole = gzip.decompress(archive(("a", b"a" * 100), (MEMBER, CONTENT[:1000])))
    with pytest.raises(DataError, match="the tar archive is truncated"):
        extract_member(write(gzip.compress(whole[:kept])), MEMBER, Path("out"), ignore)


def test_the_crc_behind_the_member_counts():
    packed = bytearray(archive((MEMBER, CONTENT[:1000])))
    packed[-8] ^= 1
    with pytest.raises(DataError, match="the gzip file is damaged: CRC check failed"):
        extract_member(write(bytes(packed)), MEMBER, Path("out"), ignore)


def test_what_is_no_archive_is_refused():
    with pytest.raises(DataError, match="the tar archive is damaged"):
        extract_member(write(gzip.compress(CONTENT[:5000])), MEMBER, Path("out"), ignore)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_header_that_promises_much_is_not_believed(kind):
    with pytest.raises(DataError, match="the tar archive is truncated"):
        extract_member(write(gzip.compress(header("a", 2**62, kind))), MEMBER, Path("out"), ignore)


def test_a_member_that_promises_much_is_refused(little_room):
    with pytest.raises(ResourceError, match="out unpacks to 8,000,000 bytes or more where 1,000,000 are free"):
        extract_member(write(gzip.compress(header(MEMBER, 8_000_000))), MEMBER, Path("out"), ignore)
    assert not Path("out").exists()


def test_a_member_of_negative_length_is_refused():
    with pytest.raises(DataError, match="a member claims -512 bytes"):
        extract_member(write(gzip.compress(header("a", -512))), MEMBER, Path("out"), ignore)


def fbin(rows: np.ndarray) -> bytes:
    return struct.pack("<II", *rows.shape) + rows.astype("<f4").tobytes()


def test_fbin_becomes_fvecs(monkeypatch):
    monkeypatch.setattr("qinco.datasets.unpack.WRITE_ROWS", 400)
    rows = np.random.default_rng(2).standard_normal((1000, 5), np.float32)
    rows[3, 1] = np.nan
    told = []
    convert_fbin(write(fbin(rows)), Path("x.fvecs"), lambda *progress: told.append(progress))
    np.testing.assert_array_equal(open_array("x.fvecs")[:], rows)
    assert told == [(8003, 20008), (16006, 20008), (20008, 20008)]


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: c[:6], lambda c: b"\xff" * 8 + c[8:]]
)
def test_a_wrong_fbin_file_is_refused_by_its_own_name(change):
    with pytest.raises(DataError, match=r"x\.part"):
        convert_fbin(write(change(fbin(np.ones((10, 5))))), Path("x.fvecs"), ignore)
    assert [path.name for path in Path().iterdir()] == ["x.part"]


def test_a_borrowed_name_lasts_as_long_as_the_block():
    with named_as(write(b"content"), ".npy") as path:
        assert path.suffix == ".npy" and path.read_bytes() == b"content"
    assert not os.path.lexists(path) and Path("x.part").read_bytes() == b"content"
