"""`QincoANN`: a collection as a vector index of txtai."""

# pyright: reportMissingImports=false
import os
import secrets
import tempfile
from pathlib import Path

import numpy as np

from qinco.atomic import replace_path
from qinco.codec.given import as_codec
from qinco.collection.collection import Collection
from qinco.config import EXACT_BELOW, suggest
from qinco.errors import ConfigError, needs_extra

with needs_extra("qinco.integrations.txtai", "txtai", "txtai"):
    from txtai.ann import ANN

_SETTINGS = ("bytes", "codec", "device", "exact_below", "minutes", "nprobe", "num_short")


class QincoANN(ANN):
    """A dense index of txtai, whose vectors are kept exactly at first, and as codes from `exact_below` vectors on.

    txtai makes it where the configuration names it. Its settings stand under the same name:

        bytes: of the codes of a vector, for a codec that is trained; 8.
        codec: path of a codec, which encodes all vectors from the first on.
        exact_below: without a codec, that many vectors are kept exactly; 20,000.
        minutes: of training, as of `Collection.optimize`.
        nprobe, num_short: of searches, as of `Collection.search`.
        device: where the codec computes.

    Ids and scores are txtai's: positions from 0 on, and cosine similarities. Changes are on disk when `save` returns,
    which replaces what is at the path.

    Example:
        >>> name = "qinco.integrations.txtai.QincoANN"
        >>> embeddings = txtai.Embeddings({"path": "sentence-transformers/all-MiniLM-L6-v2", "content": True,
        ...                                "backend": name, name: {"bytes": 16}})
    """

    def index(self, embeddings) -> None:
        """Make the index of vectors (N, D), whose ids are 0 to N − 1."""
        self._check(embeddings)
        codec = self.setting("codec")
        create = {"metric": "cosine", "payload": False, "bytes": self.setting("bytes", 8), "device": self._device(),
                  "codec": None if codec is None else as_codec(codec), "dim": embeddings.shape[1],
                  "exact_below": self.setting("exact_below", EXACT_BELOW)}  # fmt: skip
        if len(embeddings):
            create |= {"source": embeddings, "minutes": self.setting("minutes"), "progress": False}
        self.close()
        self._place = tempfile.TemporaryDirectory(prefix="qinco-")
        self.backend = Collection.create(Path(self._place.name, "index.qinco"), **create)
        self.config["offset"] = len(embeddings)
        self.metadata({"bytes": create["bytes"] if codec is None else create["codec"].bytes_per_vector})

    def append(self, embeddings) -> None:
        """Add vectors, with the ids that follow."""
        self._check(embeddings)
        first = self.config["offset"]
        self.backend.upsert(np.arange(first, first + len(embeddings)), embeddings)
        self.backend.optimize(minutes=self.setting("minutes"), progress=False)
        self.config["offset"] = first + len(embeddings)
        self.metadata()

    def delete(self, ids) -> None:
        """Delete vectors; unknown ids are passed over."""
        self.backend.delete([int(id) for id in ids])

    def search(self, queries, limit: int) -> list[list[tuple[int, float]]]:
        """The `limit` nearest of each query (Q, D), fewer where there are fewer: pairs of id and similarity."""
        limit = min(limit, self.count())
        if limit < 1:
            return [[] for _ in queries]
        options = {"nprobe": self.setting("nprobe"), "num_short": self.setting("num_short"), "with_payload": False}
        found = self.backend.search(np.asarray(queries), limit, **options)
        return [[(hit.id, hit.score) for hit in hits] for hits in found]

    def count(self) -> int:
        """The number of vectors."""
        return len(self.backend)

    def save(self, path) -> None:
        """Write the index to a folder; what is there, a folder or a file, is replaced by it whole or not at all."""
        path = Path(os.path.abspath(path))  # noqa: PTH100 (without a trailing slash, and of links as they are)
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self.backend.snapshot(new)
        replace_path(path, new)

    def load(self, path) -> None:
        """Read what `save` wrote, and leave it as it is."""
        self.close()
        self._place = tempfile.TemporaryDirectory(prefix="qinco-")
        copy = Path(self._place.name, "index.qinco")
        with Collection.open(path, read_only=True) as saved:
            saved.snapshot(copy)
        self.backend = Collection.open(copy, device=self._device())

    def close(self) -> None:
        """Close the index, and remove what was not saved."""
        if self.backend is not None:
            self.backend.close()
            self._place.cleanup()
        super().close()

    def _check(self, embeddings) -> None:
        name = self.config["backend"]
        for given in self.config.get(name) or {}:
            if given not in _SETTINGS:
                raise ConfigError(f"{name} has no setting {given!r}. {suggest(given, _SETTINGS, 0.6)}"
                                  f"There are {', '.join(_SETTINGS)}")  # fmt: skip
        if getattr(embeddings, "dtype", None) == np.uint8:
            raise ConfigError("quantize= makes bits of vectors, which no codec compresses: leave it out")

    def _device(self) -> str:
        return self.setting("device", "cpu")
