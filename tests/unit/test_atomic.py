import errno
import io
import os
import threading
from pathlib import Path

import pytest

import qinco
from qinco.atomic import (
    check_output,
    exclusive,
    lock_file,
    read_content,
    remove_temporaries,
    replace_path,
    write_atomically,
    write_content,
)  # fmt: skip
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.vectors.formats import write_vectors


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def listing(folder=".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_file_appears_complete_and_alone():
    with write_atomically("out.npy") as temporary:
        assert temporary.parent == Path.cwd() and temporary.name.startswith(".") and temporary.suffix == ".npy"
        temporary.write_bytes(b"new")
        assert not Path("out.npy").exists()
    assert Path("out.npy").read_bytes() == b"new"
    assert listing() == ["out.npy"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(error):
    Path("out").write_bytes(b"old")
    with pytest.raises(error), write_atomically("out") as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert Path("out").read_bytes() == b"old"
    assert listing() == ["out"]


def test_it_is_flushed_before_it_takes_its_name(monkeypatch):
    events = []
    flush, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), flush(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (events.append("replace"), replace(path, target)))
    with write_atomically("out"):
        pass
    assert events == ["flush", "replace", "flush"]


def test_a_full_disk_is_a_resource_error(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(ResourceError, match=r"cannot write out\.npy: No space left on device"),
        write_atomically("out.npy"),
    ):
        pass
    assert listing() == []


def test_a_missing_input_in_the_block_names_itself():
    with pytest.raises(ResourceError, match=r"cannot write out: .*No such file.*input"), write_atomically("out"):
        Path("input").read_bytes()


@pytest.mark.parametrize("path", ["folder", "/dev/null", "/"])
def test_folders_and_devices_are_never_replaced(path):
    Path("folder").mkdir()
    with pytest.raises(ConfigError), write_atomically(path):
        pass
    with pytest.raises(ConfigError):
        check_output(path, overwrite=True)
    assert listing() == ["folder"] and not Path(path).is_file()


def test_a_symbolic_link_stays_and_its_target_is_written():
    Path("disk").mkdir()
    Path("link").symlink_to("disk/target")
    check_output("link")
    with write_atomically("link") as temporary:
        assert temporary.parent.name == "disk"
        temporary.write_bytes(b"new")
    assert Path("link").is_symlink() and Path("disk/target").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["é" * 120, "n" * 250, "a=b,~ c"])
def test_any_name_that_the_file_system_takes_can_be_written(name):
    assert check_output(name) == Path(name)
    with write_atomically(name) as temporary:
        temporary.write_bytes(b"x")
    assert listing() == [name]


@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "link"])
def test_whole_folders_replace_what_is_there(kind):
    Path("other").mkdir()
    if kind == "file":
        Path("x").write_bytes(b"old")
    elif kind == "folder":
        Path("x").mkdir()
        Path("x/old").write_bytes(b"old")
    elif kind == "link":
        Path("x").symlink_to("other")
    Path("new").mkdir()
    Path("new/file").write_bytes(b"new")
    replace_path(Path("x"), Path("new"))
    assert listing() == ["other", "x"] and listing("x") == ["file"] and listing("other") == []
    with pytest.raises(ResourceError):
        replace_path(Path("x"), Path("missing"))
    assert listing() == ["other", "x"] and listing("x") == ["file"]


def test_an_output_that_is_an_input_is_refused_whatever_its_name():
    Path("in").write_bytes(b"old")
    Path("link").symlink_to("in")
    for name in ("in", "./in", "link"):
        with pytest.raises(ConfigError, match="is read"):
            check_output(name, overwrite=True, inputs=[None, Path("in")])
    check_output("out", inputs=[None, "in"])


def test_an_existing_output_is_refused_without_overwrite_or_resume():
    Path("out").write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"out exists: give overwrite=true to replace it$"):
        check_output("out")
    with pytest.raises(ConfigError, match="out exists: give overwrite=true to replace it or resume=true to continue"):
        check_output("out", resume=False)
    check_output("out", overwrite=True)
    check_output("out", resume=True)
    assert Path("out").read_bytes() == b"old" and listing() == ["out"]


def test_missing_folders_are_created_below_the_current_one():
    check_output("a/b/out")
    assert Path("a/b").is_dir() and listing("a/b") == []
    check_output(Path.cwd() / "c" / "out")
    assert Path("c").is_dir()


def test_missing_folders_elsewhere_are_an_error(tmp_path, monkeypatch):
    Path("here").mkdir()
    monkeypatch.chdir("here")
    for path in (tmp_path / "there" / "out", "../there/out"):
        with pytest.raises(ConfigError, match=r"folder .*there of .*out does not exist"):
            check_output(path)
    assert listing(tmp_path) == ["here"]


def test_a_file_where_a_folder_should_be():
    Path("file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        check_output("file/out")
    with pytest.raises(ConfigError, match="cannot write file/sub/out"):
        check_output("file/sub/out")


@pytest.mark.parametrize("path", ["folder/", "", ".", "bad\0name", b"bytes", None, 3, "n" * 300])
def test_names_that_no_file_can_have(path):
    with pytest.raises(ConfigError):
        check_output(path)
    assert listing() == []


def test_a_folder_that_takes_no_files_is_found_out_beforehand():
    with pytest.raises(ConfigError, match="cannot write /proc/out: "):  # not even root can
        check_output("/proc/out")


def test_what_a_killed_process_left_beside_a_file_is_removed(tmp_path):
    left = [".codes.v1.12-0123abcd.npy", ".codes.v1.7-ffffffff.npy"]
    others = ["codes.v1.npy", ".codes.v1.1.12-0123abcd.npy", ".codes.v1.12-0123abcd.npz", ".codesxv1.12-0123abcd.npy"]
    for name in [*left, *others]:
        (tmp_path / name).touch()
    remove_temporaries(tmp_path / "codes.v1.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_only_one_at_a_time_is_in_an_exclusive_block(tmp_path):
    inside, most, entered = 0, 0, 0

    def work():
        nonlocal inside, most, entered
        for _ in range(50):
            with exclusive(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                entered += 1
                (tmp_path / "work").write_text(str(entered))  # gives the other threads a chance
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 200)
    assert not (tmp_path / "lock").exists()


def test_an_exclusive_block_gives_its_lock_back_on_errors(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lock").touch()  # of a process that was killed
    with exclusive(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_no_lock_where_nothing_can_be_written(tmp_path):
    with (
        pytest.raises(ResourceError, match=r"cannot write .*nowhere/lock: No such file"),
        exclusive(tmp_path / "nowhere" / "lock"),
    ):
        pass


def test_a_lock_that_another_process_holds_is_waited_for_or_refused(tmp_path):
    file = lock_file(tmp_path / "part")
    with pytest.raises(BlockingIOError):
        lock_file(tmp_path / "part", wait=False)
    os.close(file)
    os.close(lock_file(tmp_path / "part", wait=False))


def test_missing_folders_are_made_below_the_current_one_only(tmp_path, monkeypatch):
    for write in (check_output, lambda path: write_vectors(path, [[1.0]])):
        write("a/b/x.npy")
        assert Path("a/b").is_dir()
        with monkeypatch.context() as patched:
            patched.chdir("a")
            with pytest.raises(ConfigError, match="create it first"):
                write(tmp_path / "elsewhere" / "x.npy")
        assert not Path("elsewhere").exists()


class Pipe(io.BytesIO):
    """A file object that takes a few bytes at a time, as pipes and sockets do."""

    def write(self, content):
        return super().write(content[:3])


def test_file_objects_get_all_bytes_or_an_error(tmp_path):
    write_content(pipe := Pipe(), b"12345678")
    assert pipe.getvalue() == b"12345678"
    closed = io.BytesIO()
    closed.close()
    (tmp_path / "x").write_bytes(b"")
    with (tmp_path / "x").open("rb") as readonly:
        for file in (closed, io.StringIO(), readonly):
            with pytest.raises(ConfigError, match="binary mode"):
                write_content(file, b"12345678")
    for file in (closed, pipe):
        with pytest.raises(DataError, match=r"closed|seek\(0\)"):
            read_content(file)


def test_an_open_file_is_no_path():
    for file in (io.BytesIO(b"x"), b"x", memoryview(b"x")):
        for call in (qinco.open_vectors, qinco.describe, qinco.Codes.load, lambda to: write_vectors(to, [[1.0]])):
            with pytest.raises(ConfigError):
                call(file)
