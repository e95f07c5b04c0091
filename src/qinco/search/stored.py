"""Indexes on disk: `StoredIndex` has the methods of `Index` that save, load and reload, and the original vectors."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from zipfile import is_zipfile

from qinco.atomic import user_path, write_content
from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.errors import ConfigError
from qinco.hub.pretrained import Pretrained
from qinco.search.edit import EditableIndex
from qinco.search.index_file import from_bytes, holds_newer, load_parts, save_parts, to_bytes
from qinco.search.parts import IndexParts
from qinco.search.refine import Originals, opened_originals
from qinco.vectors.rows import VectorSource, as_source

log = logging.getLogger(__name__)


class StoredIndex(EditableIndex, Pretrained):
    """An index, the folder that it was loaded from or saved to, and where the vectors lie that it was built of."""

    _hub_kind, _hub_content = "index", "index"

    def __init__(self, codec: Codec | None, parts: IndexParts):
        super().__init__(codec, parts)
        self._originals: Originals | None = None

    @property
    def refine(self) -> VectorSource | None:
        """The original vectors that rank what searches find, where they lie on disk, or None; see `search`.

        Set it to an array, path or VectorSource whose row numbers are the ids. It is not saved.
        """
        return None if self._originals is None else self._originals.source

    @refine.setter
    def refine(self, vectors) -> None:
        self._originals = opened_originals(vectors, self.parts) or None

    def save(self, folder, *, overwrite: bool = False) -> None:
        """Write the index to a folder, whole or not at all; an index that is there is replaced.

        Instead of a folder, a binary file object is written to.

        A folder that this index was loaded from or saved to, and that has been saved by another process or Index since,
        is left alone (ConfigError) unless `overwrite` is given: `reload` and repeat the changes.
        """
        if hasattr(folder, "write"):
            return write_content(folder, self.to_bytes())
        with self._changing:
            self.parts = save_parts(self.codec, self.parts, folder, overwrite)
            self._saved = self.parts.segments

    @classmethod
    def load(
        cls, folder, mmap: bool = True, *, codec: CodecLike | None = None, device: str = "cpu", refine=None
    ) -> Self:  # fmt: skip
        """Read what `save` or `build_index` wrote, or a faiss file (.faissindex); executes no code.

        Args:
            folder: the folder or file; or a binary file object, or bytes, that hold one.
            mmap: leave the vectors on disk until they are searched.
            codec: for an index that was written without its codec, the one that made its codes, or its path.
            device: where the codec of the folder is loaded.
            refine: the original vectors, which then rank what searches find: see the attribute `refine`.
        """
        vectors = None if refine is None or refine is False else as_source(refine, "refine")
        index = cls._loaded(folder, mmap, codec, device)
        index.refine = vectors
        return index

    @classmethod
    def _loaded(cls, folder, mmap: bool, codec, device: str) -> Self:
        codec = None if codec is None else as_codec(codec)
        if hasattr(folder, "read") or isinstance(folder, bytes | bytearray | memoryview):
            return cls.from_bytes(folder, codec=codec, device=device)
        if not isinstance(folder, str | os.PathLike):
            raise ConfigError(f"an index is named by its folder or file, not {folder!r:.100}")
        if (path := Path(user_path(folder))).suffix.lower() == ".faissindex" and not path.is_dir():
            from qinco.search.faiss_index import from_faiss

            return cls(codec, from_faiss(path, codec))
        if path.is_file() and is_zipfile(path):  # what `save` wrote to a file object
            return cls.from_bytes(path.read_bytes(), codec=codec, device=device)
        return cls(*load_parts(path, mmap, codec, device))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        """Changes are only saved by `save`."""

    @property
    def is_current(self) -> bool:
        """Whether the folder that the index was loaded from, or last saved to, holds nothing newer: see `reload`."""
        return not holds_newer(self.parts)

    def reload(self, mmap: bool = True) -> bool:
        """Read again the folder that the index was loaded from or last saved to; returns whether it held a newer index.

        Changes that were not saved are dropped, with a warning: repeat them, or save to another folder beforehand.
        """
        with self._changing:
            if not self.parts.generations:
                raise ConfigError("the index comes from no folder that could be read again: save it, or use Index.load")
            was_current, folder = self.is_current, next(reversed(self.parts.generations))
            codec, parts = load_parts(folder, mmap, self.codec, "cpu")
            if self.parts.segments is not self._saved:
                log.warning("%s is read again: changes that were not saved are dropped", folder)
            generations = self.parts.stored(folder, parts.generations[folder]).generations
            self.codec, self.parts, self._saved = codec, replace(parts, generations=generations), parts.segments
            return not was_current

    def to_bytes(self) -> bytes:
        """The index as bytes, those of a zip file of the folder that `save` writes; see `from_bytes`."""
        return to_bytes(self.codec, self.parts)

    @classmethod
    def from_bytes(cls, content, *, codec: CodecLike | None = None, device: str = "cpu") -> Self:
        """Read what `to_bytes` returned: bytes, an array of them or a file object; arguments as of `load`."""
        return cls(*from_bytes(content, None if codec is None else as_codec(codec), device))

    def _hub_config(self: Any) -> tuple[dict, dict]:
        names = ("dim", "metric", "num_lists", "bytes_per_vector")
        return {"num_vectors": len(self), **{name: getattr(self, name) for name in names},
                "codec": self.codec_fingerprint}, {}  # fmt: skip

    def _hub_write(self, place: Path) -> None:
        save_parts(self.codec, self.parts, place, True)  # this is still the index of its own folder

    @classmethod
    def _hub_read(cls, place: Path, device: str) -> Self:
        return cls.load(place, device=device)
