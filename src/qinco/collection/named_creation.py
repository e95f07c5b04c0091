"""The folder of a new `NamedCollection`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinco.codec.codec import Codec
from qinco.collection import changes
from qinco.collection.collection import check_codec
from qinco.collection.creation import new_folder
from qinco.collection.filter_sql import index_sql
from qinco.collection.schema import Database
from qinco.collection.segments import codec_path
from qinco.collection.spaces import FOLDER, MAX_NAMES, NAMES, create_space
from qinco.config import require_int, suggest
from qinco.errors import ConfigError
from qinco.search.metric import Metric

_SETTINGS = "dim", "metric", "bytes", "codec"


@dataclass(frozen=True)
class Names:
    """What a new collection is to have: settings and codecs by name, fields, and `exact_below`."""

    metas: dict[str, dict[str, Any]]
    codecs: dict[str, Codec]
    fields: dict[str, str]
    exact_below: int

    @classmethod
    def of(cls, vectors: Mapping[str, Mapping[str, Any]], fields, exact_below: int, device: str) -> "Names":
        """The arguments of `NamedCollection.create`, checked."""
        require_int("exact_below", exact_below, 0)
        fields = dict(fields or {})
        for path, kind in fields.items():
            index_sql(path, kind)
        if not vectors or len(vectors) > MAX_NAMES or not all(isinstance(name, str) and name for name in vectors):
            raise ConfigError(f"vectors must have from 1 to {MAX_NAMES} names, not {list(vectors)!r:.100}")
        chosen = {name: _settings(name, given, device) for name, given in vectors.items()}
        codecs = {name: codec for name, (_, codec) in chosen.items() if codec is not None}
        metas = {name: meta | {"codec": codecs[name].fingerprint() if name in codecs else None}
                 for name, (meta, _) in chosen.items()}  # fmt: skip
        return cls(metas, codecs, fields, exact_below)

    def settings(self) -> dict:
        """What must be the same where a source is gone on with."""
        each = {f"{name}.{setting}": meta[setting] for name, meta in self.metas.items() for setting in _SETTINGS}
        return each | {"fields": self.fields, "exact_below": self.exact_below}


def make_folder_of_names(folder: Path, names: Names, overwrite: bool, more: Mapping[str, Any]) -> None:
    """What `NamedCollection.create` does before it opens the folder; `more` are values of the table `meta`."""
    numbers = {name: number for number, name in enumerate(names.metas, 1)}

    def prepare(connection) -> None:
        for path, kind in names.fields.items():
            changes.add_field(connection, path, kind)
        for name, meta in names.metas.items():
            create_space(connection, numbers[name], meta | {"exact_below": names.exact_below})

    meta = _meta(None, "cosine", 8) | {"exact_below": names.exact_below, "codec": None, NAMES: numbers}
    with new_folder(folder, overwrite) as place:
        database = Database(place, read_only=False)
        try:
            for name, number in numbers.items():
                part = place / FOLDER / str(number)
                part.mkdir(parents=True)
                if name in names.codecs:
                    codec = names.codecs[name]
                    codec.save(codec_path(part, codec.fingerprint()))
            database.create(meta | dict(more), prepare)
        finally:
            database.close()


def _settings(name: str, given: Mapping[str, Any], device: str) -> tuple[dict[str, Any], Codec | None]:
    """What the database says of a name, and its codec, if there is one."""
    if wrong := [one for one in given if one not in _SETTINGS]:
        known = f"{suggest(str(wrong[0]), _SETTINGS, 0.6)}There are {', '.join(_SETTINGS)}"
        raise ConfigError(f"vectors[{name!r:.40}] has {wrong[0]!r:.40}. {known}")
    dim, bytes, codec = given.get("dim"), given.get("bytes", 8), given.get("codec")
    require_int("bytes", bytes, 1, 256)
    if dim is not None:
        require_int("dim", dim)
    if codec is not None:
        codec = codec if isinstance(codec, Codec) else Codec.load(codec, device)
        check_codec(codec, dim)
        dim, bytes = codec.dim, codec.num_codes
    return _meta(dim, Metric(given.get("metric") or "cosine").name, bytes), codec


def _meta(dim: int | None, metric: str, bytes: int) -> dict[str, Any]:
    return {"dim": dim, "metric": metric, "bytes": bytes, "has_points": True, "multi": False, "tables": None}
