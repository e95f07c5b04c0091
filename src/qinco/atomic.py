"""Outputs that are never left half written, and that are refused before the work begins rather than after."""

import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qinco.errors import ConfigError, ResourceError


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file's path whose content becomes `path` when the block ends without an exception.

    The temporary file lies in the folder of `path` (of its target, where `path` is a symbolic link), exists already
    and is empty, is hidden, keeps the suffix, and belongs to this call alone. It is written to disk before it takes
    its final name, and removed on any exception, Ctrl-C included; `path` is then as it was.

    Raises ResourceError for an OSError of the block or of our own (no space, no permission), and ConfigError where
    `path` is a folder or a device.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.stem[:40]}.{os.getpid()}-{secrets.token_hex(4)}{target.suffix}"
    try:
        _check_replaceable(path, target)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # the block may have replaced the file by one that only its owner can read
        write_to_disk(temporary)
        temporary.replace(target)
        with suppress(OSError):  # not every file system can flush a folder, and the file itself is safe
            write_to_disk(target.parent)
    except OSError as error:
        is_ours = error.filename in (None, str(temporary), temporary)
        raise ResourceError(f"cannot write {path}: {(error.strerror if is_ours else None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_output(
    path: str | os.PathLike, *, overwrite: bool = False, resume: bool | None = None, inputs: Iterable = ()
) -> Path:
    """Return `path` as a Path if a file can be written there; to be called before long work.

    Creates missing folders below the current directory, and leaves nothing else behind. Raises ConfigError where
    the file exists (unless `overwrite` or `resume` is given; `resume` is None for work that cannot be continued),
    where it is one of the files `inputs` (None among them is no file), where `path` is a folder or a device, where
    its folder is missing outside the current directory, and where nothing can be written in it.
    """
    try:
        target = Path(os.path.realpath(path))
        if os.fspath(path).endswith(os.sep):
            raise ConfigError(f"{path} names a folder: give the name of a file in it")
        _check_replaceable(path, target)
        if any(name is not None and Path(os.path.realpath(name)) == target for name in inputs):
            raise ConfigError(f"{path} is read and would be replaced: give output another name")
        if target.exists() and not (overwrite or resume):
            hint = "" if resume is None else " or resume=true to continue it"
            raise ConfigError(f"{path} exists: give overwrite=true to replace it{hint}")
        _require_folder(path, target.parent)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    return Path(path)


def _check_replaceable(path, target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"{Path(path)} is a folder: give the name of a file")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{path} is not a regular file and would be replaced: give another name")


def _require_folder(path, folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise ConfigError(f"cannot write {path}: {folder} is a file, not a folder")
    if not folder.is_relative_to(Path.cwd().resolve()):
        raise ConfigError(f"the folder {folder} of {path} does not exist: create it first")
    folder.mkdir(parents=True, exist_ok=True)


def write_to_disk(path: Path) -> None:
    """Wait until a file or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
