"""Where an encoding writes: a folder of shards that is the output itself, or lies beside what it becomes or replaces.

A complete folder of codes is replaced by one that is made beside it: the two exchange their names when that is whole.
"""

import ctypes
import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from qinco.atomic import check_output, write_to_disk
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.code_files import FILE_SUFFIXES, is_directory, is_folder
from qinco.store.code_store import LOCK, MANIFEST, Manifest, is_foreign, other_files, read_manifest

_RENAME_EXCHANGE, _FROM_CURRENT_FOLDER = 2, -100  # Linux's flag of renameat2, and AT_FDCWD


@dataclass(frozen=True)
class Place:
    """An output and what lies beside it until it is whole.

    output:  the file or folder
    is_file: which of the two it is
    """

    output: Path
    is_file: bool

    @classmethod
    def of(cls, output: str | os.PathLike) -> "Place":
        """The place that a name says; raises ConfigError where it says no form of codes."""
        path, is_file = Path(output), not is_folder(output)
        if path.name in ("", ".."):
            raise ConfigError(f"output={output}: give the name of a new folder or file")
        if is_file and path.suffix.lower() not in FILE_SUFFIXES:
            raise ConfigError(
                f"output={output}: codes are written to {', '.join(FILE_SUFFIXES)} files, or to a folder of shards "
                "(a name without suffix)"
            )
        real = Path(os.path.realpath(path))
        is_link = real != Path(os.path.realpath(path.parent)) / path.name
        return cls(real if is_link and not is_file else path, is_file)  # the folder is replaced, not a link to it

    @property
    def beside(self) -> Path:
        """The folder of shards that will become the file, or replace the folder."""
        return self.output.with_name(f"{self.output.name}.shards")

    @property
    def finished(self) -> Path:
        """What the folder beside is called when it is to be removed."""
        return self.beside.with_name(f".{self.beside.name}.done")

    @property
    def lock(self) -> Path:
        """Held whenever something of all this is changed. A folder that is replaced takes its lock with it."""
        return self.beside.with_name(f".{self.beside.name}{LOCK}") if self.is_file else self.output / LOCK

    def prepare(self, inputs) -> None:
        """Make an output folder; raises ConfigError where the output cannot be written, or would replace what is read.

        A folder that has no name, as a kill between two renames leaves it, gets its own again.
        """
        if not (self.is_file or os.path.lexists(self.output)) and _manifest_of(self.finished) is not None:
            self.finished.rename(self.output)
        try:
            check_output(self.output, overwrite=True)
        except ConfigError:
            if self.is_file or not is_directory(self.output):
                raise
        if not self.is_file:
            if self.output.is_file():
                raise ConfigError(
                    f"{self.output} is a file: give the name of a folder, or a file name that ends in .npy"
                )
            self.output.mkdir(exist_ok=True)
        for folder in (self.beside,) if self.is_file else (self.output, self.beside):
            real = os.path.realpath(folder)
            for name in inputs:
                if name is not None and Path(os.path.realpath(name)).is_relative_to(real):
                    raise ConfigError(
                        f"{name} is read and lies in {folder}, which would be replaced: give output another name"
                    )

    def settle(self) -> None:
        """Finish what a kill in `finish` has left; with the lock held."""
        self._remove_finished()
        there = None if self.is_file else _manifest_of(self.beside)
        if there is not None and there.complete and (self.beside / LOCK).exists():
            self._retire()  # it came here with its lock: it has been replaced

    def folder(self, manifest: Manifest, *, resume: bool, overwrite: bool) -> Path:
        """Where the shards go; with the lock held.

        A folder of codes is left as it is, and another is made beside it, where it is complete and is to be replaced,
        or where that has been begun.
        """
        if self.is_file:
            return self.beside
        there = _manifest_of(self.output)
        is_whole = there is not None and there.complete
        if self._is_begun(manifest) and (resume or not is_whole):
            goes_beside = True
        else:
            goes_beside = is_whole and overwrite and not (resume and _is_same(there, manifest))
        if goes_beside:
            if self.output.is_mount():
                raise ConfigError(
                    f"{self.output} is the root of a file system and cannot be replaced at once: give output a folder "
                    "in it, or remove the codes there first"
                )
            check_output(self.finished, overwrite=True)
        return self.beside if goes_beside else self.output

    def _is_begun(self, manifest: Manifest) -> bool:
        """Whether the folder beside is to replace the output, and not complete codes of somebody's own."""
        there = _manifest_of(self.beside)
        if there is None:
            return is_directory(self.beside) and not is_foreign(self.beside)
        return not there.complete or _is_same(there, manifest)

    def replace(self) -> None:
        """Put the folder beside, whose codes are complete, in the place of the output; with the lock held.

        At no instant is the output without complete codes, but for the moment between two renames on file systems
        that cannot exchange names (NFS). Raises ResourceError where the system refuses.
        """
        try:
            if _exchange(self.beside, self.output):
                write_to_disk(self.output.parent)
                self._retire()
            else:
                self.output.rename(self.finished)
                self.beside.rename(self.output)
                write_to_disk(self.output.parent)
                self._remove_finished()
        except OSError as error:
            raise ResourceError(
                f"{self.beside} is complete, but cannot take the place of {self.output} ({error.strerror}): "
                "resume=true tries again"
            ) from error

    def retire_shards(self) -> None:
        """Remove the shards that the output file has been made of."""
        self._retire()

    def _retire(self) -> None:
        self.beside.rename(self.finished)  # at once, for a folder that is partly removed would be resumed
        self._remove_finished()

    def _remove_finished(self) -> None:
        """Remove a folder that is done with; what is not of its codes moves to the new one."""
        if not is_directory(self.finished):
            return
        (self.finished / MANIFEST).unlink(missing_ok=True)  # at first, for what is partly removed is no set of codes
        if not self.is_file:
            for file in other_files(self.finished):
                target = self.output / file.name
                while os.path.lexists(target):
                    target = target.with_name(f"{target.name}.old")
                file.rename(target)
        shutil.rmtree(self.finished, ignore_errors=True)


def _manifest_of(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None


def _is_same(there: Manifest, here: Manifest) -> bool:
    return dataclasses.replace(there, complete=here.complete) == here


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders have each other's name, at once; whether the system and the file system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (_FROM_CURRENT_FOLDER, os.fsencode(one), _FROM_CURRENT_FOLDER, os.fsencode(other))
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0
