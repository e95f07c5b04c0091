"""The folder of a new `NamedCollection`."""

from collections.abc import Mapping
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


def make_folder_of_names(
    folder: Path, vectors: Mapping[str, Mapping[str, Any]], fields: Mapping[str, str], exact_below: int,
    overwrite: bool, device: str,
) -> None:  # fmt: skip
    """What `NamedCollection.create` does before it opens the folder."""
    for path, kind in fields.items():
        index_sql(path, kind)
    if not vectors or len(vectors) > MAX_NAMES or not all(isinstance(name, str) and name for name in vectors):
        raise ConfigError(f"vectors must have from 1 to {MAX_NAMES} names, not {list(vectors)!r:.100}")
    chosen = {name: _settings(name, given, device) for name, given in vectors.items()}
    numbers = {name: number for number, name in enumerate(chosen, 1)}

    def prepare(connection) -> None:
        for path, kind in fields.items():
            changes.add_field(connection, path, kind)
        for name, (meta, codec) in chosen.items():
            fingerprint = None if codec is None else codec.fingerprint()
            create_space(connection, numbers[name], meta | {"exact_below": exact_below, "codec": fingerprint})

    meta = _meta(None, "cosine", 8) | {"exact_below": exact_below, "codec": None, NAMES: numbers}
    with new_folder(folder, overwrite) as place:
        database = Database(place, read_only=False)
        try:
            for name, (_, codec) in chosen.items():
                part = place / FOLDER / str(numbers[name])
                part.mkdir(parents=True)
                if codec is not None:
                    codec.save(codec_path(part, codec.fingerprint()))
            database.create(meta, prepare)
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
