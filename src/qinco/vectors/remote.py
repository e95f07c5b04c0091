"""Files in buckets (`s3://…`, `gs://…`) and other stores, by pyarrow's file systems, or fsspec's.

Credentials, endpoints and regions are those that these find: environment, profiles, instance roles; or an endpoint in
the query of an address, as in `s3://bucket/x.npy?endpoint_override=localhost:9000&scheme=http`.
"""

import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np

from qinco.errors import ConfigError, DataError, ResourceError, needs_extra
from qinco.vectors.mapped import StoredRows

_SCHEME = re.compile(r"(?!file:)[a-zA-Z][a-zA-Z0-9+.-]+://")
_MAGIC = re.compile(r"[*[]")  # a question mark begins a query
_GAP_BYTES, _READ_BYTES = 1 << 18, 1 << 26  # rows this near are read together, so much at a time


class RemotePath:
    """The address of a file, where a `pathlib.Path` is that of one on this machine."""

    def __init__(self, url: str):
        self.url = url

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemotePath({self.url!r})"

    def __eq__(self, other) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name

    suffix = property(lambda self: PurePosixPath(self.name).suffix)
    stem = property(lambda self: PurePosixPath(self.name).stem)

    def absolute(self) -> "RemotePath":
        return self

    def with_suffix(self, suffix: str) -> "RemotePath":
        """For reading roles in names."""
        address, _, query = self.url.partition("?")
        return RemotePath(address.removesuffix(self.suffix) + suffix + (f"?{query}" if query else ""))

    def is_file(self) -> bool:
        return _information(self.url)[1].is_file

    def stat(self) -> SimpleNamespace:
        """As `Path.stat`: size, time of the last change, and that it is a file; FileNotFoundError, OSError."""
        _, found = _information(self.url)
        if not found.is_file:
            raise FileNotFoundError(self.url)
        kind = stat.S_IFREG
        return SimpleNamespace(st_size=int(found.size), st_mtime_ns=int(found.mtime_ns or 0), st_mode=kind)

    def open(self, mode: str = "rb") -> Any:
        """A binary file that can be read anywhere; OSError."""
        assert mode == "rb"
        system, path = _system(self.url)
        return system.open_input_file(path)

    def write_bytes(self, content: bytes) -> None:
        """Write the file, whole or not at all, in place of one that is there; ResourceError."""
        system, path = _system(self.url)
        try:
            with system.open_output_stream(path) as file:
                file.write(content)
        except OSError as error:
            raise ResourceError(f"cannot write {self.url}: {_reason(error)}") from error

    def unlink(self) -> None:
        """Remove the file, if it is there; ResourceError."""
        system, path = _system(self.url)
        try:
            if system.get_file_info(path).is_file:
                system.delete_file(path)
        except OSError as error:
            raise ResourceError(f"cannot remove {self.url}: {_reason(error)}") from error

    def map(self, dtype: np.dtype, shape: tuple, offset: int, order: str) -> "RemoteRows":
        """The rows of an array in the file, as `mapped.map_file` gives them."""
        if order != "C":
            raise DataError(f"{self.url} is stored by columns, which cannot be read by rows: write it by rows")
        return RemoteRows(self, dtype, shape, offset)


class RemoteRows(StoredRows):
    """The rows of an array in a remote file, each of which is as many bytes; only what is asked for is read."""

    def __init__(self, path: RemotePath, dtype: np.dtype, shape: tuple, offset: int):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._path, self._offset, self._file = path, offset, None
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            wanted = range(len(self))[key]
            if wanted.step == 1:
                return self._read(wanted.start, len(wanted))
            key = np.arange(wanted.start, wanted.stop, wanted.step)
        rows_N = np.asarray(key, np.int64)
        if ((rows_N < -len(self)) | (rows_N >= len(self))).any():
            raise IndexError(f"rows of {self._path} are chosen beyond its {len(self)}")
        rows_N = np.where(rows_N < 0, rows_N + len(self), rows_N)
        found = np.empty((len(rows_N), *self.shape[1:]), self.dtype)
        for places, first, count in self._runs(rows_N):
            found[places] = self._read(first, count)[rows_N[places] - first]
        return found

    def _runs(self, rows_N: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
        """Places of rows that are read together, the first row and the number of rows to read."""
        order_N = np.argsort(rows_N, kind="stable")
        sorted_N = rows_N[order_N]
        gap, most = max(1, _GAP_BYTES // self._row_bytes), max(1, _READ_BYTES // self._row_bytes)
        begin = 0
        while begin < len(order_N):
            ends = np.flatnonzero(np.diff(sorted_N[begin:]) > gap)
            end = begin + 1 + int(ends[0]) if len(ends) else len(order_N)
            end = min(end, begin + int(np.searchsorted(sorted_N[begin:end], sorted_N[begin] + most)))
            yield order_N[begin:end], int(sorted_N[begin]), int(sorted_N[end - 1] - sorted_N[begin]) + 1
            begin = end

    def _read(self, first: int, count: int) -> np.ndarray:
        size, place = count * self._row_bytes, self._offset + first * self._row_bytes
        try:
            if self._file is None:
                self._file = self._path.open()
            content = self._file.read_at(size, place)
        except OSError as error:
            raise DataError(f"cannot read {self._path}: {_reason(error)}") from error
        if len(content) != size:
            raise DataError(f"{self._path} is truncated, or has changed: it ends before row {first + count - 1}")
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def is_remote(path) -> bool:
    """Whether a path is an address such as s3://bucket/x.npy."""
    return isinstance(path, RemotePath) or (isinstance(path, str) and _SCHEME.match(path) is not None)


def listed(url: str) -> list[RemotePath] | None:
    """The files of an address with a pattern (`s3://bucket/part-*.parquet`) or of a folder; None for that of a file."""
    address, _, query = url.partition("?")
    if (magic := _MAGIC.search(address)) is None:
        _, found = _information(url)
        if found.is_file:
            return None
        if not address.endswith("/") and not _is_folder(found):
            raise DataError(f"No such file: {url}")
        base, pattern = address.rstrip("/"), None
    else:
        base = address[: address.rindex("/", 0, magic.start())]
        pattern = re.compile(_as_expression(address[len(base) + 1 :]))
    names = _names(base, query)
    return [_at(base, name, query) for name in names if pattern is None or pattern.fullmatch(name)]


def files_in(url: str) -> list[RemotePath]:
    """The files of a folder, not of those below it; its address is no pattern. Of no folder there are none."""
    address, _, query = url.partition("?")
    base = address.rstrip("/")
    return [_at(base, name, query) for name in _names(base, query, is_deep=False)]


def _names(base: str, query: str, is_deep: bool = True) -> list[str]:
    """The names of the files of a folder within it, and of those below it; none if it is not there."""
    system, folder = _system(url := _with(base, query))
    import pyarrow.fs

    try:
        entries = system.get_file_info(pyarrow.fs.FileSelector(folder, recursive=is_deep, allow_not_found=True))
    except OSError as error:
        raise DataError(f"cannot list {url}: {_reason(error)}") from error
    above = len(folder.strip("/"))  # fsspec's paths may begin with a slash
    return [entry.path.lstrip("/")[above:].lstrip("/") for entry in entries if entry.is_file]


def _at(base: str, name: str, query: str) -> RemotePath:
    return RemotePath(_with(f"{base}/{name}", query))


def _with(address: str, query: str) -> str:
    return f"{address}?{query}" if query else address


def _as_expression(pattern: str) -> str:
    """A regular expression for a pattern of names, in which ** stands for any folders."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    words = re.split(r"(\*\*/|\*\*|\*|\[[^]]+\])", pattern)
    return "".join(pieces.get(word, word if word.startswith("[") else re.escape(word)) for word in words)


def _is_folder(found) -> bool:
    return str(found.type).endswith("Directory")


def _information(url: str) -> tuple[Any, Any]:
    system, path = _system(url)
    try:
        return system, system.get_file_info(path)
    except OSError as error:
        raise DataError(f"cannot read {url}: {_reason(error)}") from error


def _system(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    with needs_extra(url, "pyarrow", "parquet"):
        pass
    scheme, _, rest = url.partition("://")
    query = url.partition("?")[2]
    path = rest.partition("?")[0]
    return _connected(scheme, path.partition("/")[0], query), path


@lru_cache(32)
def _connected(scheme: str, bucket: str, query: str) -> Any:
    import pyarrow.fs

    address = f"{scheme}://{bucket}{f'?{query}' if query else ''}"
    # One request for a small file, in place of three.
    options = "&".join(filter(None, (query, "allow_delayed_open=true" if scheme == "s3" else "")))
    try:
        return pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}{f'?{options}' if options else ''}")[0]
    except OSError as error:
        raise DataError(f"cannot read {address}: {_reason(error)}") from error
    except (ValueError, NotImplementedError) as error:  # not one of pyarrow's
        reason = _reason(error)
    try:
        import fsspec

        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except ImportError:
        raise ConfigError(f"{address} cannot be read by pyarrow ({reason}): install fsspec and its package for "
                          f"{scheme}") from None  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"{address} cannot be read: {reason}; fsspec: {error}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
