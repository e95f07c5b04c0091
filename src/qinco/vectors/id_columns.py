"""Ids of vectors, a column of Parquet or Arrow files or an array, read a part at a time."""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from qinco.errors import ConfigError, DataError
from qinco.progress import Progress, silent
from qinco.vectors.block_rows import library, list_names
from qinco.vectors.formats import find_files

_READ_ROWS = 1 << 16
_ARROW_SUFFIXES = (".arrow", ".feather")


class IdColumn:
    """The ids of N vectors, integers or strings; those of a range are read when they are asked for.

    A column of files is pickled as its name.

    Example:
        >>> ids = open_ids("emb/part-*.parquet:id", len(source))
        >>> ids[1000:1010]
        array([71, 72, 73, 74, 75, 76, 77, 78, 79, 80])
    """

    def __init__(self, name: str, starts: list[int], read: Callable[[int], np.ndarray]):
        self.name, self._starts, self._read = name, starts, read

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """int64 (n,), or an array of str objects; DataError for nulls and for -1, which stands for no vector."""
        start, stop, _ = rows.indices(len(self))
        found = []
        while start < stop:
            block = bisect_right(self._starts, start) - 1
            first, end = self._starts[block], min(self._starts[block + 1], stop)
            ids = self._checked(self._read(block)[start - first : end - first], start)
            found.append(ids)
            start = end
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @property
    def are_strings(self) -> bool:
        return self[:1].dtype == object

    def check_different(self, report: Progress = silent) -> str:
        """A digest of all ids; raises DataError where one is there twice. Takes 16 bytes of memory for each."""
        digest, values_N = sha256(), np.empty(len(self), np.int64)
        for first in range(0, len(self), _READ_ROWS):
            ids = self[first : first + _READ_ROWS]
            is_text = ids.dtype == object
            digest.update("\0".join(ids).encode() if is_text else ids.tobytes())
            values_N[first : first + len(ids)] = list(map(hash, ids)) if is_text else ids
            report("reading ids", first + len(ids), len(self), "id")
        sorted_N = np.sort(values_N)
        for value in np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]):
            rows = np.flatnonzero(values_N == value).tolist()
            same = Counter(self[row : row + 1][0] for row in rows)  # strings of one hash may differ
            id, count = same.most_common(1)[0]
            if count > 1:
                where = f"row {rows[0]} and row {rows[-1]} of {self.name}"
                raise DataError(f"id {id} is given twice, in {where}: each vector needs its own")
        return digest.hexdigest()

    def _checked(self, ids: np.ndarray, start: int) -> np.ndarray:
        if ids.dtype.kind not in "iu":
            ids = ids.astype(object)
            for row, id in enumerate(ids, start):
                _check_text(id, row, self.name)
            return ids
        is_wrong = (ids == -1) if ids.dtype.kind == "i" else (ids > np.iinfo(np.int64).max)
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise DataError(
                f"row {start + row} of {self.name} holds {ids[row]}: ids are other integers of 64 bits than -1"
            )
        return ids.astype(np.int64)


def _check_text(id, row: int, name: str) -> None:
    try:
        id.encode()
    except (AttributeError, UnicodeEncodeError):
        raise DataError(f"row {row} of {name} holds {id!r:.80}: ids are all integers, or all strings of Unicode"
                        ) from None  # fmt: skip


@dataclass
class _Mapped:
    """The ids in an .npy file, which is mapped by each process that reads them."""

    path: Path

    def __getstate__(self) -> dict:
        return {"path": self.path}

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __call__(self, block: int) -> np.ndarray:
        return self._ids


class _Files:
    """A column of several files: `read(i)` gives block i. The last file and block are kept."""

    def __init__(self, files: list[tuple[Any, str]]):
        self._files, self._kept = files, (-1, None)
        counts = (len(_sizes(path, name)) for path, name in files)
        self._blocks = [(number, block) for number, count in enumerate(counts) for block in range(count)]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": (-1, None)}

    def __call__(self, block: int) -> np.ndarray:
        last, values = self._kept
        if values is None or last != block:
            number, of_file = self._blocks[block]
            values = _block(*self._files[number], of_file)
            self._kept = block, values
        return values


def open_ids(ids, count: int, vectors=None) -> IdColumn:
    """The ids of `count` vectors.

    Args:
        ids: an array or list (N,); the path of an .npy file; a column of Parquet or Arrow files, as in
            `emb/*.parquet:id`; or the name of a column of the files that `vectors` are in.
        count: how many there must be; DataError for others.
        vectors: the path, pattern or list of paths of the vectors.
    """
    if isinstance(ids, IdColumn):
        found = ids
    elif not isinstance(ids, str | os.PathLike):
        array = np.asarray(ids)
        _check_array(array)
        found = IdColumn("ids", [0, len(array)], lambda block: array)
    else:
        found = _open_column(ids, vectors)
    if len(found) != count:
        raise DataError(f"{found.name} holds {len(found):,} ids, and there are {count:,} vectors")
    return found


def _check_array(ids: np.ndarray) -> None:
    if ids.ndim != 1 or ids.dtype.kind not in "iuUO":
        raise ConfigError(f"ids must be integers or strings (N,), not {ids.dtype} {ids.shape}")


def _open_column(ids, vectors) -> IdColumn:
    if Path(ids).suffix == ".npy" and Path(ids).is_file():
        array = np.load(ids, mmap_mode="r", allow_pickle=False)
        _check_array(array)
        return IdColumn(f"{ids}", [0, len(array)], _Mapped(Path(ids).absolute()))
    files = find_files(ids) if ":" in str(ids) or os.sep in str(ids) or vectors is None else None
    if files is None:
        if not isinstance(vectors, str | os.PathLike | list | tuple):
            raise ConfigError(f"ids={ids} is a column of files: give vectors= as their paths, or ids= as FILE:{ids}")
        files = [(file, str(ids)) for file, _ in find_files(vectors)]
    given = [(file.absolute(), name or "id") for file, name in files]  # for processes that work elsewhere
    sizes = [size for file, name in given for size in _sizes(file, name)]
    return IdColumn(f"{ids}", [0, *accumulate(sizes)], _Files(given))


def _sizes(path, name: str) -> list[int]:
    """Rows of each block of a file."""
    with library("pyarrow", "parquet", path):
        if path.suffix.lower() in _ARROW_SUFFIXES:
            return [batch.num_rows for batch in _batches(path)]
        file = _parquet(path)
        if name not in file.schema_arrow.names:
            raise DataError(f"{path} holds no column {name!r}, but {list_names(file.schema_arrow.names) or 'none'}")
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _block(path, name: str, number: int) -> np.ndarray:
    with library("pyarrow", "parquet", f"{path}:{name}"):
        if path.suffix.lower() in _ARROW_SUFFIXES:
            batch = _batches(path)[number]
            if name not in batch.schema.names:
                raise DataError(f"{path} holds no column {name!r}, but {list_names(batch.schema.names) or 'none'}")
            column = batch.column(name)
        else:
            column = _parquet(path).read_row_group(number, columns=[name]).column(name).combine_chunks()
        if column.null_count:
            raise DataError(f"{path}:{name} holds a null in block {number}: each vector needs an id")
        found = column.to_numpy(zero_copy_only=False)
        if found.dtype.kind not in "iuO":
            raise DataError(f"{path}:{name} holds {column.type}: ids are integers or strings")
        return found


@lru_cache(4)
def _parquet(path):
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path if isinstance(path, Path) else path.open())


@lru_cache(4)
def _batches(path) -> list:
    from pyarrow import ArrowInvalid, ipc, memory_map

    source = memory_map(str(path)) if isinstance(path, Path) else path.open()
    try:
        reader = ipc.open_file(source)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except ArrowInvalid:
        source.seek(0)
        return list(ipc.open_stream(source))
