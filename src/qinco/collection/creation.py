"""The folder of a new collection: whole or not there, whatever ends its creation.

What is not complete lies beside it in a hidden folder, whose lock file the process that works there holds. One that is
replaced is for a moment in another such folder, which ends in .old.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qinco import forking
from qinco.atomic import OLD, flush_folder, lock_file, make_folder, replace_path
from qinco.collection.schema import FILE, LOCK, OPTIMIZE_LOCK, Database
from qinco.collection.segments import CODEC_NAME, GRACE_SECONDS
from qinco.collection.spaces import FOLDER
from qinco.config import require_bool
from qinco.errors import ConfigError, DataError

_PARTS = rf"{LOCK}|{FOLDER}|{re.escape(FILE)}(-journal|-wal|-shm)?|\.?{CODEC_NAME}"


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield the folder to make a collection in, which is closed when the block ends.

    A collection that is there is replaced after that. What a kill left of one that was never completed is removed.
    """
    require_bool("overwrite", overwrite)
    clear_leftovers(folder)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    replaces = bool(there) and not _is_cleared(folder, there)
    if replaces and FILE not in there:
        raise ConfigError(f"{folder} holds other files: give the name of a new folder")
    if replaces and not overwrite:
        raise ConfigError(
            f"{folder} holds a collection: give another name, overwrite=true to replace it, or upsert into it"
        )
    if replaces:
        folder = folder.resolve()  # of a symbolic link the collection is replaced
        with hidden_folder(folder) as place:
            yield place
            _replace(folder, place)
    else:
        make_folder(folder)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    flush_folder(folder.absolute().parent)


@contextmanager
def hidden_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside another, to be renamed within the block; else it is removed."""
    while True:
        place = _beside(folder)
        make_folder(place)
        with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
            lock = lock_file(place / OPTIMIZE_LOCK)
            break
    forking.keep_from_children(lock)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        forking.release(lock)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left beside a collection; one that was about to be replaced is there again."""
    folder = folder.resolve()
    name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}({re.escape(OLD)})?")
    with suppress(OSError):
        for path in [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]:
            with _abandoned(path) as is_abandoned:
                if is_abandoned and path.suffix == OLD and not folder.exists():
                    os.rename(path, folder)  # noqa: PTH104 (also of folders with a trailing slash)
                elif is_abandoned:
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether no living process works in a hidden folder, nor can begin to before the block ends."""
    lock = path / OPTIMIZE_LOCK
    if not lock.exists():  # its process may be about to lock it
        yield time.time() - path.stat().st_mtime > GRACE_SECONDS
        return
    try:
        file = lock_file(lock, wait=False)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(file)


def _is_cleared(folder: Path, there: set[str]) -> bool:
    """Remove what there is, if it is of a collection that has no tables yet; whether it was."""
    if LOCK not in there or not all(re.fullmatch(_PARTS, name) for name in there):
        return False
    database = Database(folder, read_only=False)  # nobody is making it now
    try:
        if FILE in there and not database.is_empty():
            return False
        for name in sorted(there - {LOCK}, key=lambda name: name != FILE):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except DataError:  # it is damaged
        return False
    finally:
        database.close()
    return True


def _replace(folder: Path, new: Path) -> None:
    database = Database(folder, read_only=False)  # nobody else is writing
    try:
        with database.optimizing():
            replace_path(folder, new)
    finally:
        database.close()


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
