"""`qinco index`, `upsert`, `delete`, `optimize` and `retrain`: what changes collections."""

import time
from dataclasses import replace

import qinco
from qinco.cli import collections
from qinco.cli.keys import SHARED, Key, task
from qinco.config import EXACT_BELOW

_IMPORTS = ("qinco.collection.opened",)
_MACHINE = "device cpu threads format"
MINUTES = replace(SHARED["minutes"], help="of training, if it is due; null: one for 10,000 vectors, ten at most")


BYTES = Key("bytes", "integer", 8, "of the codes of a vector")
FIELDS = Key("fields", "text", None, "fields of payloads that get an index, with kinds: year:integer,lang:keyword")


@task(
    "index",
    "make a searchable collection of records with vectors: qinco index text.parquet:embedding output=docs.qinco",
    keys=[
        "source output overwrite",
        BYTES,
        MINUTES,
        "metric id payload vector",
        FIELDS,
        "model",
        Key("exact_below", "integer", EXACT_BELOW, "with fewer vectors none is compressed, unless model= is given",
            minimum=0),
        _MACHINE,
    ],
    required=("source", "output"),
    positional="source",
    imports=_IMPORTS,
)  # fmt: skip
def index(settings, console) -> None:
    as_lines, begun = collections.prints_lines(settings), time.monotonic()
    options = {name: settings[name] for name in ("exact_below", "overwrite")}
    source = collections.source_of(settings)
    with collections.create_collection(settings, console, settings["output"], source, **options) as docs:
        stats = docs.stats()
    named = stats["vectors"] if isinstance(stats["vectors"], dict) else {}
    if not any(one["compressed"] for one in named.values() or [stats]):
        console.info(f"fewer than exact_below={settings['exact_below']:,} vectors are kept and searched exactly")
    result = {"output": settings["output"], "records": stats["records"]}
    result |= {name: _made(one) for name, one in named.items()} if named else _made(stats)
    result |= {"bytes": sum(stats["bytes"].values()), "seconds": time.monotonic() - begun}
    console.print_result(result, as_lines)


def _made(stats: dict) -> dict:
    """What is told of new vectors."""
    found = {name: stats[name] for name in ("dim", "metric", "compressed", "fresh", "bytes_per_vector")}
    return found | ({} if stats["recall"] is None else {"recall": {stats["recall"]["k"]: stats["recall"]["recall"]}})


@task(
    "upsert",
    "add and replace records of a collection: qinco upsert docs.qinco source=more.parquet:embedding",
    keys=[f"collection source id payload vector {_MACHINE}"],
    required=("collection", "source"),
    positional="collection",
    imports=_IMPORTS,
)
def upsert(settings, console) -> None:
    as_lines, begun = collections.prints_lines(settings), time.monotonic()
    with collections.open_collection(settings) as docs:
        number = docs.upsert_from(
            collections.source_of(settings), **collections.columns_of(settings), progress=console.progress
        )
        result = {"upserted": number, "records": docs.count(), "seconds": time.monotonic() - begun}
    console.print_result(result, as_lines)


@task(
    "delete",
    "delete records of a collection: qinco delete docs.qinco ids=a,b",
    keys=[f"collection ids where {_MACHINE}"],
    required=("collection", "ids|where"),
    positional="collection",
    imports=_IMPORTS,
)
def delete(settings, console) -> None:
    as_lines = collections.prints_lines(settings)
    chosen = {"ids": collections.ids_of(settings), "where": collections.where_of(settings)}
    with collections.open_collection(settings) as docs:
        result = {"deleted": docs.delete(**chosen), "records": docs.count()}
    console.print_result(result, as_lines)


@task(
    "optimize",
    "compress the new vectors of a collection, and merge its segments",
    keys=["collection", MINUTES, f"model_args {_MACHINE}"],
    required=("collection",),
    positional="collection",
    imports=_IMPORTS,
)
def optimize(settings, console) -> None:
    as_lines, begun = collections.prints_lines(settings), time.monotonic()
    training = {} if settings["model_args"] is None else {"preset": settings["model_args"]}
    with collections.open_collection(settings) as docs:
        done = docs.optimize(minutes=settings["minutes"], progress=console.progress, **training)
    console.print_result(done | {"seconds": time.monotonic() - begun}, as_lines)


@task(
    "retrain",
    "make another codec of a collection's original vectors: qinco retrain docs.qinco source=text.parquet:embedding",
    keys=["collection source id vector using", MINUTES, f"model_args {_MACHINE}"],
    required=("collection", "source"),
    positional="collection",
    imports=_IMPORTS,
)
def retrain(settings, console) -> None:
    as_lines, begun = collections.prints_lines(settings), time.monotonic()
    training = {} if settings["model_args"] is None else {"preset": settings["model_args"]}
    columns = {name: value for name, value in collections.columns_of(settings).items() if name != "payload"}
    with collections.open_collection(settings) as docs:
        columns |= collections.using_of(settings, docs)
        done = docs.retrain_from(collections.source_of(settings), **columns, minutes=settings["minutes"],
                                 progress=console.progress, **training)  # fmt: skip
        part = docs if isinstance(docs, qinco.Collection) else docs.part(settings["using"])
        if (found := part.stats()["recall"]) is not None and found["is_current"]:
            done["recall"] = {found["k"]: found["recall"]}
    console.print_result(done | {"seconds": time.monotonic() - begun}, as_lines)
