"""Codes of many vectors in a durable folder: shards that numpy can map.

Folders of format version 1, whose files carry no token, are read, and continued as version 2.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qinco.atomic import WRITER, exclusive, make_folder
from qinco.errors import ConfigError, DataError, differences
from qinco.packing import code_dtype
from qinco.store.folder import (
    LOCK,
    FolderWriter,
    begin,
    check_files,
    check_folder_output,
    folder_size,
    read_current,
    read_pending,
    remove_stale,
)
from qinco.store.manifest import HEADER, MANIFEST, PENDING, Manifest, is_kind, path_of, read_content, read_manifest
from qinco.vectors.block_rows import ConcatRows
from qinco.vectors.formats import open_array
from qinco.vectors.mapped import missing_file

KIND = "codes"
MAX_SHARDS = 1 << 17
_WANTED_SHARDS, _MIN_ROWS, _MAX_ROWS = 1024, 1 << 12, 1 << 20
_V1_SHARD = rf"\.?(codes|lists)-\d{{5,}}({WRITER})?\.npy"
_V1_NAMES = {"code_size": "num_codes", "search": "encode"}


@dataclass(frozen=True)
class CodePlan:
    """What a folder of codes holds, known before the first vector is encoded."""

    num_vectors: int
    num_codes: int  # columns of the code arrays
    codebook_size: int  # K, above all codes
    num_lists: int  # V, above all list numbers; 0 if there are none
    dim: int
    shard_rows: int  # vectors of a shard; the last has what is left
    codec: str  # fingerprint
    source: str  # fingerprint of the vectors
    encode: dict  # the fields of EncodeOptions

    @property
    def num_shards(self) -> int:
        return -(-self.num_vectors // self.shard_rows)

    def rows(self, shard: int) -> range:
        """The vectors of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_vectors))

    def layout(self, name: str) -> tuple[int, np.dtype]:
        """Columns and dtype of "codes" or "lists"."""
        if name == "lists":
            return 1, np.dtype(np.int32)
        return self.num_codes, np.dtype(code_dtype(self.codebook_size))

    def joined(self, name: str, file: Callable[[str, int], Any], where: str) -> ConcatRows:
        """All "codes" or "lists" at a place, of the files of their shards, which are opened when they are read."""
        starts = [self.rows(shard).start for shard in range(self.num_shards)]
        columns, dtype = self.layout(name)
        return ConcatRows(partial(self._load, name, file), [*starts, self.num_vectors], columns, dtype, where)

    def _load(self, name: str, file: Callable[[str, int], Any], shard: int):
        columns, dtype = self.layout(name)
        path, shape = file(name, shard), (len(self.rows(shard)), columns)
        rows = open_array(path)
        if tuple(rows.shape) != shape or rows.dtype != dtype:
            raise DataError(f"{path} is damaged: it is {rows.dtype} {tuple(rows.shape)}, not {dtype} {shape}")
        return rows

    def check_same(self, path, there: "CodePlan") -> None:
        """Raise ConfigError if a folder holds, or is to hold, other codes than these."""
        labels = {"codec": "another codec", "source": "other vectors"}
        old, new = ({**vars(plan), **plan.encode} | {"encode": None} for plan in (there, self))
        if found := differences(old, new, labels):
            remedy = "the same model, vectors and encoding options, or overwrite=true without resume, in one process"
            raise ConfigError(f"{path} holds codes of another run ({'; '.join(found):.500}): use {remedy}")


def default_shard_rows(num_vectors: int) -> int:
    """Vectors of a shard: about a thousand shards, none so large that an interruption costs much, none tiny."""
    wanted = -(-num_vectors // _WANTED_SHARDS)
    return min(max(_MIN_ROWS, 1 << (wanted - 1).bit_length()), _MAX_ROWS)


@dataclass(frozen=True)
class CodeFolder:
    """Codes in a folder: the complete generation, or one that is being written."""

    path: Path
    plan: CodePlan
    manifest: Manifest | None  # None for a folder of format version 1
    is_pending: bool  # shards may be missing still

    @classmethod
    def open(cls, path: str | os.PathLike) -> "CodeFolder":
        """The complete codes in a folder, all of whose shards are there; raises DataError for any other folder."""
        return read_current(lambda: cls.read(path), cls._checked)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "CodeFolder":
        """What is said of the complete codes in a folder, or of the pending ones if there are no others."""
        path = Path(path)
        is_pending = not os.path.lexists(path / MANIFEST) and (path / PENDING).exists()
        file = path / (PENDING if is_pending else MANIFEST)
        if not os.path.lexists(file):
            damage = DataError(f"{path} is not a folder of codes: it has no {MANIFEST}")
            raise damage if os.path.lexists(path) else missing_file(path)
        content = read_content(file, KIND)
        if is_pending or content["format_version"] > 1:
            manifest = read_manifest(path, KIND, file.name)
            return cls(path, plan_in(file, manifest.settings), manifest, is_pending)
        is_complete = content.pop("complete", None)
        if type(is_complete) is not bool:
            raise DataError(f"{file} is damaged: complete is {is_complete!r:.50}")
        values = {_V1_NAMES.get(name, name): value for name, value in content.items() if name not in HEADER}
        return cls(path, plan_in(file, values), None, not is_complete)

    @classmethod
    def find(cls, path: Path) -> tuple["CodeFolder | None", "CodeFolder | None"]:
        """The complete codes in a folder and the pending ones, or None; version 1 becomes 2. With the lock held."""
        complete = cls.read(path) if (path / MANIFEST).exists() else None
        pending, beside = read_pending(path, KIND), path.with_name(f"{path.name}.shards")
        # Version 1 made what was to replace a folder in one beside it.
        for old in (complete, cls.read(beside) if is_kind(beside, KIND) else None):
            if old is None or old.manifest is not None or not old.is_pending:
                continue
            if old is not complete and pending is not None and pending.settings != asdict(old.plan):
                continue
            pending = pending or begin(path, KIND, asdict(old.plan))
            new = cls(path, old.plan, pending, True)
            for shard in range(old.plan.num_shards):
                for name in ("lists", "codes"):  # a shard is there when its codes are
                    if old._path(name, shard).exists():
                        old._path(name, shard).rename(new._path(name, shard))
            (old.path / MANIFEST).unlink()
            if old is complete:
                complete = None
            else:
                remove_codes(old.path)
        if pending is None:
            return complete, None
        return complete, cls(path, plan_in(path / PENDING, pending.settings), pending, True)

    @classmethod
    def create(cls, path: Path, plan: CodePlan) -> "CodeFolder":
        """Begin codes beside the complete ones, in place of pending ones; with the lock held."""
        return cls(path, plan, begin(path, KIND, asdict(plan)), True)

    def has(self, shard: int) -> bool:
        """Whether a shard is there. Its codes are written last, so its lists are there, too."""
        return self._path("codes", shard).exists()

    def missing(self) -> list[int]:
        there = {file.name for file in self.path.iterdir()}
        return [shard for shard in range(self.plan.num_shards) if self._path("codes", shard).name not in there]

    def is_current(self) -> bool:
        """Whether these pending codes are still what is being written to the folder."""
        return read_pending(self.path, KIND) == self.manifest

    def write(self, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> None:
        """Write a shard of pending codes, whole or not at all; with the lock held."""
        writer = self._writer()
        if lists_N is not None:
            writer.add(f"lists_{shard:05}", lists_N.astype(np.int32)[:, None])
        writer.add(f"codes_{shard:05}", codes_NM.astype(code_dtype(self.plan.codebook_size), copy=False))

    def commit(self) -> None:
        """Replace the folder's complete codes by these, all of whose shards are there; with the lock held."""
        plan, writer = self.plan, self._writer()
        for shard in range(plan.num_shards):
            for name in ("codes", "lists") if plan.num_lists else ("codes",):
                columns, dtype = plan.layout(name)
                writer.expect(f"{name}_{shard:05}", dtype, (len(plan.rows(shard)), columns))
        writer.commit()
        self.tidy()

    def tidy(self) -> None:
        """Remove what killed processes and version 1 left beside codes of version 2; with the lock held."""
        if self.manifest is not None:
            remove_stale(self.path, KIND, _V1_SHARD)
        done = self.path.with_name(f".{self.path.name.removesuffix('.shards')}.shards.done")  # of version 1
        if done.is_dir() and not is_kind(done, KIND):
            remove_codes(done)

    @property
    def codes(self) -> ConcatRows:
        """All codes, uint8 or uint16 (N, M), mapped from their shards."""
        return self._joined("codes")

    @property
    def lists(self) -> ConcatRows | None:
        """All list numbers, int32 (N, 1); None if the codec has no lists."""
        return self._joined("lists") if self.plan.num_lists else None

    def _joined(self, name: str) -> ConcatRows:
        there = replace(self, path=self.path.absolute())  # for processes that work elsewhere
        return self.plan.joined(name, there._path, str(self.path))

    def _writer(self) -> FolderWriter:
        assert self.manifest is not None
        return FolderWriter(self.path, KIND, self.manifest.settings, self.manifest.token)

    def _path(self, name: str, shard: int) -> Path:
        if self.manifest is None:
            return self.path / f"{name}-{shard:05}.npy"
        return path_of(self.path, f"{name}_{shard:05}.npy", self.manifest.token)

    def _checked(self) -> "CodeFolder":
        """These codes, unless something is missing or damaged."""
        missing, count = self.missing(), self.plan.num_shards
        if self.is_pending:
            there = f"{count - len(missing)} of {count} shards are there"
            raise DataError(f"{self.path} is not complete: {there}; continue encoding it with resume=true")
        if missing:
            raise DataError(f"{self._path('codes', missing[0])} is missing: the folder is damaged")
        if self.manifest is not None:
            check_files(self.path, self.manifest)
        return self


def remove_codes(path: Path) -> None:
    """Remove all codes in a folder, and the folder unless it holds something else; with the lock held."""
    for name in (MANIFEST, PENDING):
        (path / name).unlink(missing_ok=True)
    remove_stale(path, KIND, _V1_SHARD)
    with suppress(OSError):  # something else is there
        path.rmdir()


def save_codes(path: Path, plan: CodePlan, codes, lists, overwrite: bool = False) -> None:
    """Write rows of codes (N, M) and of list numbers (N,), (N, 1) or None to a folder, whole or not at all."""
    check_folder_output(path, KIND)
    make_folder(path)
    with exclusive(path / LOCK):
        if any(CodeFolder.find(path)) and not overwrite:
            raise ConfigError(f"{path} holds codes: give overwrite=true to replace them")
        folder, dtype = CodeFolder.create(path, plan), code_dtype(plan.codebook_size)
        for shard in range(plan.num_shards):
            rows = slice(plan.rows(shard).start, plan.rows(shard).stop)
            lists_N = None if lists is None else np.asarray(lists[rows]).reshape(-1)
            folder.write(shard, np.asarray(codes[rows], dtype), lists_N)
        folder.commit()


def describe_codes(folder: Path) -> dict:
    """What a folder of codes holds, as JSON values; raises DataError."""
    found = CodeFolder.read(folder)
    plan, missing = found.plan, len(found.missing())
    return {
        "kind": "codes", **asdict(plan), "complete": not found.is_pending and not missing,
        "num_shards": plan.num_shards, "shards_there": plan.num_shards - missing,
        "bytes_per_vector": plan.num_codes * (plan.codebook_size.bit_length() - 1) / 8, "bytes": folder_size(folder),
    }  # fmt: skip


def plan_in(file: Path | str, values: dict) -> CodePlan:
    """The plan in a manifest; raises DataError where a value is missing, unknown or not possible."""
    types = {field.name: field.type for field in fields(CodePlan)}
    wrong = sorted(types.keys() ^ values.keys()) or [name for name in types if type(values[name]) is not types[name]]
    wrong = wrong or [name for name, value in values.items() if types[name] is int and not 0 <= value < 1 << 48]
    if wrong:
        raise DataError(f"{file} is damaged: {wrong!s:.100} are wrong, missing or unknown")
    plan = CodePlan(**values)
    if min(plan.num_codes, plan.codebook_size - 1, plan.shard_rows, plan.dim) < 1 or plan.num_shards > MAX_SHARDS:
        raise DataError(f"{file} is damaged: its sizes are not possible")
    return plan
