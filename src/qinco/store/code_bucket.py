"""Codes in a bucket: the files of a folder of codes (`store.code_folder`), each written whole, and the manifest last.

A bucket has no locks and no names that change. The name of a shard follows from the vectors, the codec and the options,
so that whoever writes it again writes the same bytes.
"""

import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qinco.errors import ConfigError, DataError, ResourceError
from qinco.packing import code_dtype
from qinco.store.code_folder import KIND, CodePlan, plan_in
from qinco.store.folder import token_of
from qinco.store.manifest import MANIFEST, PENDING, TOKEN, Manifest, json_text, manifest_content, manifest_in
from qinco.vectors.binary import npy_header
from qinco.vectors.block_rows import ConcatRows
from qinco.vectors.remote import RemotePath, files_in

_SHARD = re.compile(rf"(?:codes|lists)_\d{{5,}}-({TOKEN})\.npy")
_READERS = 8  # files whose checksums are computed at the same time


@dataclass(frozen=True)
class CodeBucket:
    """Codes at an address such as s3://bucket/codes: complete ones, or such as are being written."""

    url: str
    plan: CodePlan
    token: str
    is_pending: bool

    @classmethod
    def find(cls, url: str) -> "tuple[CodeBucket | None, CodeBucket | None]":
        """The complete codes at an address and the pending ones, or None."""
        complete, pending = (_manifest(url, name) for name in (MANIFEST, PENDING))
        if complete is not None and pending is not None and complete.token == pending.token:
            pending = None  # a kill came before it was removed
        found = (complete, False), (pending, True)
        both = (
            None if one is None else cls(url, plan_in(url, one.settings), one.token, is_pending)
            for one, is_pending in found
        )
        return next(both), next(both)

    @classmethod
    def open(cls, url: str) -> "CodeBucket":
        """The complete codes at an address; DataError if there are none."""
        complete, pending = cls.find(url)
        if complete is not None:
            return complete
        if pending is None:
            raise DataError(f"{url} holds no codes: it has no {MANIFEST}")
        count = pending.plan.num_shards
        there = f"{count - len(pending.missing())} of {count} shards are there"
        raise DataError(f"{url} is not complete: {there}; continue encoding it with resume=true")

    @classmethod
    def create(cls, url: str, plan: CodePlan, current: str | None = None) -> "CodeBucket":
        """Begin codes beside the complete ones, whose token is `current`, in place of pending ones."""
        token = token_of(asdict(plan), current)
        _file(url, PENDING).write_bytes(json_text(manifest_content(KIND, token, asdict(plan), {})).encode())
        return cls(url, plan, token, True)

    def has(self, shard: int) -> bool:
        """Whether a shard is there. Its codes are written last, so its lists are there, too."""
        return self._shard_file("codes", shard).is_file()

    def missing(self) -> list[int]:
        """The shards that are not there."""
        there = {path.name for path in files_in(self.url)}
        return [shard for shard in range(self.plan.num_shards) if self._name("codes", shard) not in there]

    def write(self, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> None:
        """Write a shard; its codes last, so that its lists are there, too."""
        if lists_N is not None:
            self._put("lists", shard, lists_N.astype(np.int32)[:, None])
        self._put("codes", shard, codes_NM.astype(code_dtype(self.plan.codebook_size), copy=False))

    def is_current(self) -> bool:
        """Whether these codes are pending still, not complete; ConfigError if another run has taken their place."""
        complete, pending = (_manifest(self.url, name) for name in (MANIFEST, PENDING))
        if complete is not None and complete.token == self.token:
            return False
        if pending is None or pending.token != self.token:
            remedy = "give another output, or repeat it with overwrite=true when no other run writes there"
            raise ConfigError(f"another run has begun or ended in {self.url}, and its codes are kept: {remedy}")
        return True

    def commit(self) -> None:
        """Replace the complete codes by these, all of whose shards are there, unless it has been done.

        Shards of older runs are removed. ConfigError if another run has begun meanwhile, whose codes are then kept.
        """
        plan, token = self.plan, self.token
        kinds = ("codes", "lists") if plan.num_lists else ("codes",)
        wanted = [(kind, shard) for kind in kinds for shard in range(plan.num_shards)]
        with ThreadPoolExecutor(_READERS, "checksums") as pool:
            entries = dict(pool.map(self._entry, wanted))
        if not self.is_current():  # asked as late as can be, for there is no lock
            return
        text = json_text(manifest_content(KIND, token, asdict(plan), entries))
        _file(self.url, MANIFEST).write_bytes(text.encode())
        self._tidy()

    def _tidy(self) -> None:
        """Remove the shards of older runs, and what says that these codes are pending."""
        pending, kept = _manifest(self.url, PENDING), {self.token}
        if pending is not None and pending.token == self.token:
            _file(self.url, PENDING).unlink()
        elif pending is not None:  # a run that has begun since
            kept.add(pending.token)
        for path in files_in(self.url):
            if (match := _SHARD.fullmatch(path.name)) and match[1] not in kept:
                path.unlink()

    @property
    def codes(self) -> ConcatRows:
        """All codes, uint8 or uint16 (N, M), read when they are asked for."""
        return self.plan.joined("codes", self._shard_url, self.url)

    @property
    def lists(self) -> ConcatRows | None:
        """All list numbers, int32 (N, 1); None if the codec has no lists."""
        return self.plan.joined("lists", self._shard_url, self.url) if self.plan.num_lists else None

    def _name(self, kind: str, shard: int) -> str:
        return f"{kind}_{shard:05}-{self.token}.npy"

    def _shard_file(self, kind: str, shard: int) -> RemotePath:
        return _file(self.url, self._name(kind, shard))

    def _shard_url(self, kind: str, shard: int) -> str:
        return str(self._shard_file(kind, shard))

    def _put(self, kind: str, shard: int, array: np.ndarray) -> None:
        content = npy_header(array.shape, array.dtype) + np.ascontiguousarray(array).tobytes()
        self._shard_file(kind, shard).write_bytes(content)

    def _entry(self, wanted: tuple[str, int]) -> tuple[str, dict[str, Any]]:
        """What the manifest says of a file."""
        kind, shard = wanted
        path = self._shard_file(kind, shard)
        columns, dtype = self.plan.layout(kind)
        try:
            with path.open() as file:
                content = file.read()
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error}") from error
        shape = [len(self.plan.rows(shard)), columns]
        entry = {"dtype": dtype.str, "shape": shape, "bytes": len(content), "crc32": zlib.crc32(content)}
        return f"{kind}_{shard:05}.npy", entry


def _manifest(url: str, name: str) -> Manifest | None:
    file = _file(url, name)
    return manifest_in(file, KIND) if file.is_file() else None


def _file(url: str, name: str) -> RemotePath:
    address, mark, query = url.partition("?")
    return RemotePath(f"{address.rstrip('/')}/{name}{mark}{query}")
