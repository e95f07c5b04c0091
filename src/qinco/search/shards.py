"""Indexes whose lists lie in shards, each of a range of rows, that any process fills.

The tables are fitted once, to a sample, so all shards have the same lists. One manifest names all shards, and they are
loaded as one index.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import escape
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np

from qinco.atomic import exclusive, make_folder, user_path
from qinco.codec.codec import Codec
from qinco.config import require_int
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, differences
from qinco.executors import Executor, in_this_process, run_parts
from qinco.maths.assignment import assigner
from qinco.progress import Progress, silent
from qinco.search.code_file import CodeFile
from qinco.search.fill import corrections_by, fill_lists
from qinco.search.ids import as_ids
from qinco.search.index_file import load_parts, put_parts, save_parts
from qinco.search.names import put_names
from qinco.search.parts import IndexParts
from qinco.search.sample import assign_decoded
from qinco.store.folder import LOCK, FolderWriter, begin, check_folder_output, read_pending
from qinco.store.manifest import MANIFEST, PENDING, is_kind, path_of, read_manifest, token_in
from qinco.vectors.id_columns import IdColumn
from qinco.vectors.rows import VectorSource

_COMPARED_CODES = 1000  # by which codes are told from others
KIND, MAX_SHARDS = "index", 100_000
_SHARD_ROWS = 1 << 22  # so many vectors are filled in memory
_ARRAYS = ("codes", "ids", "starts")  # in the order in which they are written: the last one says that all are there


@dataclass(frozen=True)
class ShardFiller:
    """Fills shards of an index, in any process and order.

    Attributes:
        folder, token: of the index that is being built.
        tables: the folder of an index without vectors that has its tables.
        database, vectors: what is indexed, and the vectors or None.
        ids: of the vectors; row numbers if None.
        edges: first rows of the shards, and N.
    """

    folder: Path
    token: str
    tables: Path
    database: CodeFile
    vectors: VectorSource | None
    ids: IdColumn | None
    edges: tuple[int, ...]

    def has(self, shard: int) -> bool:
        return path_of(self.folder, f"{_ARRAYS[-1]}_{shard:05}.npy", self.token).exists()

    def __call__(self, shard: int) -> None:
        if self.has(shard):
            return
        codec, parts, find = _loaded(str(self.tables), token_in(self.tables / MANIFEST, KIND))
        rows = range(*self.edges[shard : shard + 2])
        codes = self.database.rows(slice(rows.start, rows.stop), parts.tables.num_lists)
        if not codes.has_lists:
            codes = codes.with_lists(assign_decoded(codec, codes, parts.tables.centroids_VD, find=find))
        vectors = None if self.vectors is None else self.vectors.window(rows.start, rows.stop)
        ids = rows if self.ids is None else as_ids(self.ids[rows.start : rows.stop], len(rows))
        lists = fill_lists(parts.tables, codes, ids, corrections=corrections_by(parts.tables, codec, vectors))
        writer = FolderWriter(self.folder, KIND, {}, self.token)
        for name in _ARRAYS:
            writer.add(f"{name}_{shard:05}", getattr(lists, name))


@lru_cache(1)
def _loaded(folder: str, token: str) -> tuple[Codec | None, IndexParts, Callable]:
    """The codec and tables of one generation of a folder, and what finds the lists of vectors."""
    codec, parts = load_parts(Path(folder), True, None, "cpu")
    return codec, parts, assigner(parts.tables.centroids_VD)


def shard_edges(num_vectors: int, num_shards: int | None) -> tuple[int, ...]:
    """First rows of shards of about equal sizes, and N."""
    count = -(-num_vectors // _SHARD_ROWS) if num_shards is None else num_shards
    require_int("num_shards", count, 1, min(num_vectors, MAX_SHARDS))
    return tuple(num_vectors * number // count for number in range(count + 1))


def digest_of_pairwise(given: PairwiseDecoder | str | os.PathLike | None) -> str | None:
    """SHA-256 of a pairwise decoder or its file: a build is not resumed with another."""
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        with Path(user_path(given)).open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    arrays = vars(given).values()
    return sha256(b"".join(np.asarray(one).tobytes() for one in arrays if one is not None)).hexdigest()


def digest_of_codes(file: CodeFile) -> str:
    """SHA-256 of some codes and their lists."""
    some = file.codes[np.unique(np.linspace(0, len(file) - 1, _COMPARED_CODES).astype(np.int64))]
    lists = b"" if some.lists is None else np.asarray(some.lists, np.int64).tobytes()
    return sha256(np.ascontiguousarray(some.codes).tobytes() + lists).hexdigest()


@dataclass(frozen=True)
class ShardedBuild:
    """One index that is being built in shards.

    Attributes:
        folder: of the index.
        facts: what tells it from others, as JSON values: another build does not continue this one.
        num_shards: of the index.
    """

    folder: Path
    facts: dict
    num_shards: int

    def tables(self, token: str) -> Path:
        """Where the tables of a build lie until it is done: beside the index."""
        return self.folder.with_name(f"{self.folder.name}.{token}.tables")

    def is_done(self) -> bool:
        """Whether the folder holds this index already."""
        if not (self.folder / MANIFEST).exists():
            return False
        return read_manifest(self.folder, KIND).settings.get("built_of") == self.facts

    def begin(self, resume: bool, overwrite: bool) -> str:
        """The token of the build, which is begun, or goes on if it is to `resume` one; raises ConfigError."""
        check_folder_output(self.folder, KIND)
        make_folder(self.folder)
        with exclusive(self.folder / LOCK):
            pending = read_pending(self.folder, KIND)
            if pending is not None and resume:
                if found := differences(pending.settings, self.facts):
                    raise ConfigError(f"{self.folder} is being built of something else ({'; '.join(found):.500}): give "
                                      "overwrite=true without resume")  # fmt: skip
                return pending.token
            if (self.folder / MANIFEST).exists() and not overwrite:
                found = differences(read_manifest(self.folder, KIND).settings.get("built_of") or {}, self.facts)
                raise ConfigError(f"{self.folder} holds an index of something else ({'; '.join(found):.500}): give "
                                  "overwrite=true to replace it")  # fmt: skip
            self.remove_tables()
            return begin(self.folder, KIND, self.facts).token

    def fitted(self, fit: Callable[[], tuple[Codec | None, IndexParts]], token: str) -> Path:
        """The folder of tables of the build, which `fit` gives unless it has them: where workers find them."""
        tables = self.tables(token)
        if not is_kind(tables, KIND):
            save_parts(*fit(), tables, overwrite=True)
        return tables

    def remove_tables(self) -> None:
        """Remove the tables of builds that are done, or have been given up."""
        for folder in self.folder.parent.glob(f"{escape(self.folder.name)}.s*.tables"):
            with suppress(OSError):
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()

    def fill(self, filler: ShardFiller, executor: Executor | None, report: Progress = silent) -> None:
        """Fill the shards that are missing; raises DataError where some cannot be."""
        missing = [shard for shard in range(self.num_shards) if not filler.has(shard)]
        parts = [range(*filler.edges[shard : shard + 2]) for shard in range(self.num_shards)]
        run_parts(executor or in_this_process, filler, missing, parts, "filling lists", report)

    def commit(self, token: str, edges: tuple[int, ...], names: IdColumn | None, report: Progress = silent) -> None:
        """Make the shards, all of which are there, the index of the folder, with the strings of their rows if any."""
        codec, parts = load_parts(self.tables(token), True, None, "cpu")
        files = [path_of(self.folder, f"ids_{shard:05}.npy", token) for shard in range(self.num_shards)]
        ids = [np.load(file, mmap_mode="r") for file in files]
        parts = replace(parts, next_id=max(0, *(int(some.max()) + 1 for some in ids)))
        with exclusive(self.folder / LOCK):
            writer = FolderWriter(self.folder, KIND, {}, token)
            _remove_others(self.folder, token)
            put_parts(writer, codec, parts)
            if names is not None:
                put_names(writer, names, report)
            writer.settings["built_of"] = self.facts
            num_lists, width = parts.tables.num_lists, parts.tables.lookup.num_codes + 1
            for shard in range(self.num_shards):
                first, stop = edges[shard : shard + 2]
                writer.expect(f"starts_{shard:05}", np.int64, (num_lists + 1,))
                writer.expect(f"codes_{shard:05}", np.uint8, ((stop - first) * width,))
                writer.expect(f"ids_{shard:05}", ids[shard].dtype, (stop - first,))
            writer.commit()
            (self.folder / PENDING).unlink(missing_ok=True)


def _remove_others(folder: Path, token: str) -> None:
    """Remove what an interrupted `commit` has written, but the shards."""
    for file in folder.glob(f"*-{token}.*"):
        if not any(file.name.startswith(f"{name}_") for name in _ARRAYS):
            file.unlink()
