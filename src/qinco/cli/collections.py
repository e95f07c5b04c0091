"""What the tasks of collections have in common: opening, ids and filters, and results as tables or lines of JSON."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import qinco
from qinco.cli.keys import Settings
from qinco.cli.open import find_device
from qinco.errors import ConfigError

_INTEGER = re.compile(r"-?[0-9]+")
_LONGEST_CELL = 80  # characters of a payload or vector in a table


def open_collection(settings: Settings, *, read_only: bool = False) -> Any:
    """The collection of `collection=`, a Collection or a NamedCollection."""
    from qinco.collection.opened import open_collection

    return open_collection(settings["collection"], read_only=read_only, device=str(find_device(settings)))


def create_collection(settings: Settings, console, folder, source, **options) -> Any:
    """The collection of a source, made as the settings say; of named vectors if `vector=` has names."""
    columns, model = columns_of(settings), settings["model"]
    options |= {"fields": fields_of(settings), "minutes": settings["minutes"], "progress": console.progress,
                "device": str(find_device(settings))}  # fmt: skip
    kind = {"metric": settings["metric"], "bytes": settings["bytes"]}
    if not isinstance(columns["vector"], dict):
        return qinco.Collection.create(folder, source, **columns, **kind, codec=model, **options)
    if model is not None:
        raise ConfigError(f"model={model} is one codec, and vectors of each name have one of their own: leave it out")
    kinds = dict.fromkeys(columns["vector"], kind)
    return qinco.NamedCollection.create(folder, kinds, source, **columns, **options)


def using_of(settings: Settings, docs: Any) -> dict[str, str]:
    """The argument that `using=` stands for; none where it is not given."""
    using = settings["using"]
    if using is not None and isinstance(docs, qinco.Collection):
        raise ConfigError(f"the vectors of {settings['collection']} have no names: leave using={using:.60} out")
    return {} if using is None else {"using": using}


def source_of(settings: Settings) -> str | list[str]:
    """The files of `source=`."""
    files = settings["source"]
    return files[0] if len(files) == 1 else list(files)


def columns_of(settings: Settings) -> dict[str, Any]:
    """The arguments of `Collection.upsert_from` that `id=`, `payload=` and `vector=` stand for."""
    from qinco.collection.columns import named_columns

    columns: dict[str, Any] = {"ids": settings["id"], "payload": settings["payload"], "vector": settings["vector"]}
    columns = {name: {"false": False, "true": True}.get(text, text) for name, text in columns.items()}
    if isinstance(columns["vector"], str):
        columns["vector"] = named_columns(columns["vector"])
    if isinstance(columns["payload"], str):
        columns["payload"] = columns["payload"].split(",")
    return columns


def fields_of(settings: Settings) -> dict[str, str]:
    """The kinds of fields by their paths, of `fields=year:integer,lang:keyword`."""
    found = {}
    for word in (settings["fields"] or "").split(","):
        path, colon, kind = word.rpartition(":")
        if not colon and word:
            raise ConfigError(f"fields must be paths with their kinds, such as year:integer,lang:keyword, not {word!r}")
        if word:
            found[path] = kind
    return found


def where_of(settings: Settings) -> dict | None:
    """The filter of `where=`."""
    text = settings["where"]
    if text is None:
        return None
    try:
        where = json.loads(text)
    except ValueError:
        where = None
    if not isinstance(where, dict):
        raise ConfigError('where must be a JSON object, quoted for the shell, such as \'{"year": {"gte": 2010}}\', '
                          f"not {text!r:.60}")  # fmt: skip
    return where


def ids_of(settings: Settings, key: str = "ids") -> list | None:
    """The ids of `ids=`: words between commas, of which digits are integers, or a JSON list or string."""
    text = settings[key]
    if text is None:
        return None
    if text[:1] in ("[", '"'):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{key}= is no JSON ({error}): write words, such as {key}=a,b, or a list, such as "
                              f'{key}=\'[7, "7"]\', not {text!r:.60}') from None  # fmt: skip
        return found if isinstance(found, list) else [found]
    return [int(word) if _INTEGER.fullmatch(word) else word for word in text.split(",")]


def prints_lines(settings: Settings) -> bool:
    """Whether results are lines of JSON, and no tables."""
    if settings["json"] and settings["format"] == "table":
        raise ConfigError("json=true contradicts format=table: keep one of them")
    if settings["format"] is None and not settings["json"]:
        return sys.stdout is None or not sys.stdout.isatty()
    return settings["json"] or settings["format"] == "jsonl"


def print_rows(settings: Settings, console, rows: Sequence[Mapping], headers: Sequence[str]) -> None:
    """Print a line of JSON for each row, or a table of all, with long texts cut."""
    if prints_lines(settings):
        return console.print_records(rows)
    console.print_table([[_cell(row[header], header) for header in headers] for row in rows], headers)


def _cell(value: Any, header: str):
    if header in ("id", "query"):
        return str(value)  # numbers of records have no commas
    if header == "vector" and isinstance(value, Mapping):
        return "; ".join(f"{name} {_cell(x_D, name)}" for name, x_D in value.items())
    if isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False)
    if hasattr(value, "ravel"):
        value = " ".join(f"{number:.4g}" for number in value.ravel())
    if isinstance(value, str) and len(value) > _LONGEST_CELL:
        return value[: _LONGEST_CELL - 3] + "..."
    return value
