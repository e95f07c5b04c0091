"""The folder of a new collection: whole or not there, whatever ends its creation."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qinco.atomic import flush_folder, make_folder, replace_path
from qinco.collection.schema import FILE, LOCK, Database
from qinco.collection.segments import CODEC_NAME
from qinco.config import require_bool
from qinco.errors import ConfigError, DataError

_PARTS = rf"{LOCK}|{re.escape(FILE)}(-journal|-wal|-shm)?|\.?{CODEC_NAME}"


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield the folder to make a collection in, which is closed when the block ends.

    A collection that is there is replaced after that. What a kill left of one that was never completed is removed.
    """
    require_bool("overwrite", overwrite)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    replaces = bool(there) and not _is_cleared(folder, there)
    if replaces and FILE not in there:
        raise ConfigError(f"{folder} holds other files: give the name of a new folder")
    if replaces and not overwrite:
        raise ConfigError(f"{folder} holds a collection: use Collection.open, or give overwrite=True to replace it")
    place = _beside(folder) if replaces else folder
    make_folder(place)
    try:
        yield place
        if replaces:
            _replace(folder, place)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    flush_folder(folder.absolute().parent)


def _is_cleared(folder: Path, there: set[str]) -> bool:
    """Remove what there is, if it is of a collection that has no tables yet; whether it was."""
    if LOCK not in there or not all(re.fullmatch(_PARTS, name) for name in there):
        return False
    database = Database(folder, read_only=False)  # nobody is making it now
    try:
        if FILE in there and not database.is_empty():
            return False
        for name in sorted(there - {LOCK}, key=lambda name: name != FILE):
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
