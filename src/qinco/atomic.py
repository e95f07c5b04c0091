"""Files that are never left half written: atomic replacement, checks of output paths, locks and temporary names."""

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qinco.errors import ConfigError, DataError, QincoError, ResourceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    try:
        import msvcrt
    except ImportError:
        msvcrt = None

_LOCKED_BYTE = (1 << 31) - 2  # behind what is written: nobody could write a byte that is locked on Windows
OLD = ".old"  # ends the names of what `replace_path` is about to replace
WRITER = r"\.\d+-[0-9a-f]{8}"  # pattern of what `write_atomically` puts between the stem and the suffix


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file whose content becomes `path` when the block ends without an exception.

    The temporary file, empty and hidden, lies beside `path` (beside the target of a symbolic link), with its suffix. It
    is flushed to disk before it is renamed, and removed on any exception; `path` is then unchanged. An OSError is a
    ResourceError; a folder or a device as `path` is a ConfigError. For missing folders see `require_folder`.
    """
    target = Path(os.path.realpath(path := user_path(path)))
    temporary = target.parent / f".{target.stem[:40]}.{os.getpid()}-{secrets.token_hex(4)}{target.suffix}"
    try:
        _check_replaceable(path, target)
        require_folder(path, target.parent)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # the block may have replaced the file by one that only its owner can read
        write_to_disk(temporary)
        temporary.replace(target)
        flush_folder(target.parent)
    except OSError as error:
        is_ours = error.filename in (None, str(temporary), temporary)
        raise ResourceError(f"cannot write {path}: {reason_of(error) if is_ours else error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def user_path(path):
    """A path as shells read it: a leading ~/ is the user's folder. Anything else but open files comes back as it is."""
    if isinstance(path, bytes | bytearray | memoryview) or hasattr(path, "read") or hasattr(path, "write"):
        raise ConfigError(f"give the path of a file, not {path!r:.100}")
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if text.startswith("./~"):
        return os.path.abspath(text)  # noqa: PTH100 (as a Path it would lose its ./)
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else path  # noqa: PTH111 (keeps a last /)


@contextmanager
def readable(source, name: str) -> Iterator:
    """The path of a file to read: a given path, or a temporary file of given bytes or of what a file object holds."""
    if isinstance(source, str | os.PathLike):
        yield user_path(source)
        return
    content = read_content(source) if hasattr(source, "read") else source
    if not isinstance(content, bytes | bytearray | memoryview):
        kind = "a file opened as text" if isinstance(content, str) else type(source).__name__
        raise ConfigError(f"{name}: give a path, bytes or a file opened in binary mode, not {kind}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            yield path
        except QincoError as error:
            raise type(error)(str(error).replace(str(path), f"the given {name}")) from error


def read_content(file):
    """What is left to read of a file object."""
    try:
        content = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise DataError(f"cannot read {file!r:.100}: {error}") from error
    if not content:
        raise DataError(f"nothing is left to read of {file!r:.100}: call its seek(0) before")
    return content


def write_content(file, content: bytes) -> None:
    """Write all of some bytes to a file object, which may take only some of them at a time."""
    try:
        while isinstance(written := file.write(content), int) and 0 < written < len(content):
            content = content[written:]
    except (OSError, TypeError, ValueError) as error:
        if reason := getattr(error, "strerror", None):
            raise ResourceError(f"cannot write to {file!r:.100}: {reason}") from error
        raise ConfigError(f"cannot write to {file!r:.100}, it must be open in binary mode: {error}") from error


def remove_temporaries(path: str | os.PathLike) -> None:
    """Remove the temporary files that killed processes left when they wrote the file `path`."""
    target = Path(os.path.realpath(path))
    pattern = re.compile(rf"\.{re.escape(target.stem[:40])}{WRITER}{re.escape(target.suffix)}")
    for file in list(target.parent.iterdir()):
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)


def require_local(path: str | os.PathLike) -> None:
    """Raise ConfigError for an address such as s3://bucket/x, which as a path would be in a folder named s3:."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):  # a drive of Windows is one letter
        raise ConfigError(f"{path} is an address, and only codes are written to buckets, as in "
                          "output='s3://bucket/codes': give a path")  # fmt: skip


def check_apart(folder: Path, inputs: Iterable) -> None:
    """Raise ConfigError if a path that is read is a folder which is written to, or lies in it."""
    real = os.path.realpath(folder)
    for name in inputs:
        if name is not None and Path(os.path.realpath(name)).is_relative_to(real):
            raise ConfigError(f"{name} is read and lies in {folder}, which would be replaced: give another output")


def check_output(
    path: str | os.PathLike, *, suffixes: Collection[str] = (), overwrite: bool = False, resume: bool | None = None,
    inputs: Iterable = (),
) -> Path:  # fmt: skip
    """Return `path` if the file can be written, or raise ConfigError; missing folders below the current one are made.

    If there are `suffixes` it must have one of them. `overwrite` and `resume` (None if the work cannot be resumed)
    allow that it exists. Paths among `inputs` must not be replaced, nor folders among them be written to; what is no
    path is passed over.
    """
    if not isinstance(overwrite, bool):
        raise ConfigError(f"overwrite must be true or false, not {overwrite!r}")
    try:
        require_local(path := user_path(path))
        target = Path(os.path.realpath(path))
        if suffixes and Path(path).suffix.lower() not in suffixes:
            raise ConfigError(f"{path} has the suffix {Path(path).suffix!r}: use one of {', '.join(suffixes)}")
        if os.fspath(path).endswith(os.sep):
            raise ConfigError(f"{path} names a folder: give the name of a file in it")
        _check_replaceable(path, target)
        for name in (one for one in inputs if isinstance(one, str | os.PathLike)):
            read = Path(os.path.realpath(user_path(name)))
            if target.is_relative_to(read):
                where = "is read" if target == read else f"lies in {name}, which is read"
                raise ConfigError(f"{path} {where}: give output another name")
        if target.exists() and not (overwrite or resume):
            hint = "" if resume is None else " or resume=true to continue it"
            raise ConfigError(f"{path} exists: give overwrite=true to replace it{hint}")
        require_folder(path, target.parent)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot write {path}: {reason_of(error)}") from error
    return Path(path)


def reason_of(error: Exception) -> str:
    """Why something cannot be written, whose folder is there."""
    if isinstance(error, FileNotFoundError):  # in folders such as /proc
        return "that folder takes no files, give another name"
    return getattr(error, "strerror", None) or str(error)


def make_folder(path: Path) -> bool:
    """Make a folder for output, where `require_folder` allows it; whether it was missing. Raises ConfigError."""
    try:
        require_folder(path, Path(os.path.realpath(path)).parent)
        is_new = not path.exists()
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {reason_of(error)}") from error
    return is_new


def require_folder(path, folder: Path) -> None:
    """Create the folder of `path` if it is missing below the current directory; elsewhere raise ConfigError."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write {path}: {folder} is a file, not a folder")
    if not folder.is_dir() and not folder.is_relative_to(Path.cwd().resolve()):
        raise ConfigError(f"the folder {folder} of {path} does not exist: create it first")
    folder.mkdir(parents=True, exist_ok=True)


def replace_path(path: Path, new: Path) -> None:
    """Rename a file or folder `new` to `path`, beside it. What is there is removed then, and stays after an error.

    A kill between the two renames leaves it beside, with `OLD` at the end of its hidden name.
    """
    removed = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    old = removed.with_name(removed.name + OLD)
    try:
        try:
            with suppress(FileNotFoundError):
                path.rename(old)
            new.rename(path)
        except BaseException:
            if os.path.lexists(old) and not os.path.lexists(path):
                old.rename(path)
            raise
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        _remove(new)
    flush_folder(path.absolute().parent)
    with suppress(FileNotFoundError):
        old.rename(removed)  # what is half removed is nothing to bring back
    _remove(removed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Wait until the entries of a folder are on disk, on file systems that can do it."""
    with suppress(OSError):
        write_to_disk(path)


@contextmanager
def exclusive(lock: Path, busy: str | None = None) -> Iterator[None]:
    """Wait until no other process is in such a block with the file `lock`; without locks of files nobody waits.

    With a message `busy` there is no waiting, but a ConfigError.
    """
    try:
        file = lock_file(lock, wait=busy is None)
    except BlockingIOError:
        raise ConfigError(busy) from None
    except OSError as error:
        raise ResourceError(f"cannot write {lock}: {error.strerror}") from None
    try:
        yield
    finally:
        if _is_at(lock, file):
            with suppress(PermissionError):  # Windows keeps files that are open
                lock.unlink(missing_ok=True)
        os.close(file)


def lock_file(path: Path, *, wait: bool = True) -> int:
    """Lock a file, created if needed, until the descriptor that is returned (for reading and writing) is closed.

    Without `wait` a lock that another process holds is a BlockingIOError. The file is the one that is at `path` now,
    not one that has been removed or renamed meanwhile.
    """
    while True:
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        try:
            _lock(file, wait)
            if _is_at(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, wait: bool) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        while fcntl is None and msvcrt is not None:
            try:
                os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
                os.lseek(file, 0, os.SEEK_SET)
                break
            except PermissionError:
                if not wait:
                    raise BlockingIOError("another process has locked the file") from None
                time.sleep(0.1)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def _check_replaceable(path, target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"{Path(path)} is a folder: give the name of a file")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{path} is not a regular file and would be replaced: give another name")


def _is_at(path: Path, file: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
