"""`qinco query`, `stats`, `verify`, `export` and `page`: what reads collections. Others may write them meanwhile."""

import time
from typing import Any

from qinco.cli import collections
from qinco.cli.keys import Key, Settings, task
from qinco.errors import ConfigError, DataError

_IMPORTS = ("qinco.collection.opened",)
_MACHINE = "device cpu threads format"
_OF_NAMES = "vectors", "fresh", "compressed", "dim", "metric", "bytes_per_vector", "error", "drift", "segments"
_OPTIONS = "exact", "with_payload", "with_vectors", "score_limit", "candidates", "precision"


@task(
    "query",
    "the records of a collection nearest to queries, or to records: qinco query docs.qinco queries=q.fvecs",
    keys=[
        "collection queries ids using",
        Key("k", "integer", 10, "records for each query"),
        "where",
        Key("filter", "text", None, "ids of records that may be found, besides where="),
        Key("exact", "switch", False, "compare with all vectors, as they are decoded"),
        Key("score_limit", "signed", None, "lowest similarity, or with metric l2 largest distance, of what is found"),
        Key("diversity", "number", 0.0, "from 0 to 1: above 0, choose records that differ from each other"),
        Key("candidates", "integer", None, "records that these are chosen from; null: 5 k"),
        Key("with_payload", "switch", True, "payloads, too"),
        f"with_vectors search.nprobe search.nshort precision {_MACHINE}",
    ],
    required=("collection", "queries|ids"),
    positional="collection",
    imports=_IMPORTS,
)
def query(settings, console) -> None:
    collections.prints_lines(settings)  # a contradiction is told before any work
    ids, queries, where = collections.ids_of(settings), settings["queries"], collections.where_of(settings)
    if ids is not None and queries is not None:
        raise ConfigError(f"queries={queries} and ids={settings['ids']} are both to be searched for: keep one of them")
    options: dict[str, Any] = {name: settings[name] for name in _OPTIONS} | {
        "filter": collections.ids_of(settings, "filter")
    }
    options |= {"nprobe": _single(settings, "search.nprobe"), "num_short": _single(settings, "search.nshort")}
    if settings["diversity"]:  # records of several vectors have none
        options["diversity"] = settings["diversity"]
    with collections.open_collection(settings, read_only=True) as docs:
        search, wanted = (docs.search, queries) if ids is None else (docs.search_by_id, ids)
        options |= collections.using_of(settings, docs)
        found = search(wanted, settings["k"], where, **options)
    asked = [name for name, key in (("payload", "with_payload"), ("vector", "with_vectors")) if settings[key]]
    rows = [
        {"query": number if ids is None else ids[number], "id": hit.id, "score": hit.score}
        | {name: getattr(hit, name) for name in asked}
        for number, hits in enumerate(found)
        for hit in hits
    ]
    collections.print_rows(settings, console, rows, ["query", "id", "score", *asked])


def _single(settings: Settings, key: str) -> int | None:
    """The number of a key of lists; None unless it is given."""
    if not settings.given(key):
        return None
    if len(settings[key]) != 1:
        raise ConfigError(f"{key} is one number in this task, not {list(settings[key])}")
    return settings[key][0]


@task(
    "stats",
    "numbers of records, vectors and bytes of a collection, error and recall of compressed ones, and warnings",
    keys=[f"collection {_MACHINE}"],
    required=("collection",),
    positional="collection",
    imports=_IMPORTS,
)
def stats(settings, console) -> None:
    as_lines = collections.prints_lines(settings)
    with collections.open_collection(settings, read_only=True) as docs:
        found = docs.stats()
    if as_lines:
        return console.print_result(found, True)
    warnings, named = found.pop("warnings"), found["vectors"] if isinstance(found["vectors"], dict) else {}
    for one in named.values():
        one["segments"] = len(one["segments"])
    if named:
        rows = [[name, *(one[header] for header in _OF_NAMES)] for name, one in found.pop("vectors").items()]
        console.print_result(found, False)
        console.print_table(rows, ["name", *_OF_NAMES])
    else:
        segments = found.pop("segments")
        console.print_result(found | {"segments": len(segments)}, False)
        if segments:
            console.print_table([list(one.values()) for one in segments], list(segments[0]))
    for warning in warnings:
        console.warn(warning)


@task(
    "verify",
    "read all of a collection, and compare checksums and counts",
    keys=[f"collection {_MACHINE}"],
    required=("collection",),
    positional="collection",
    imports=_IMPORTS,
)
def verify(settings, console) -> None:
    as_lines = collections.prints_lines(settings)
    with collections.open_collection(settings, read_only=True) as docs:
        faults = docs.verify()
    console.print_result({"is_sound": not faults} | ({"faults": faults} if as_lines else {}), as_lines)
    if faults:
        for fault in faults[1:]:
            console.warn(fault)
        raise DataError(f"{settings['collection']} is damaged: {faults[0]}")


@task(
    "export",
    "write the records of a collection to a Parquet file: qinco export docs.qinco output=docs.parquet",
    keys=[f"collection output overwrite with_vectors {_MACHINE}"],
    required=("collection", "output"),
    positional="collection",
    imports=_IMPORTS,
)
def export(settings, console) -> None:
    as_lines, begun = collections.prints_lines(settings), time.monotonic()
    options = {"with_vectors": settings["with_vectors"], "overwrite": settings["overwrite"]}
    with collections.open_collection(settings, read_only=True) as docs:
        number = docs.export(settings["output"], **options)
    result = {"output": settings["output"], "records": number, "seconds": time.monotonic() - begun}
    console.print_result(result, as_lines)


@task(
    "page",
    "write a page about a collection as one HTML file: qinco page docs.qinco output=docs.html",
    keys=[f"collection output overwrite {_MACHINE}"],
    required=("collection", "output"),
    positional="collection",
    imports=("qinco.page.html",),
)
def page(settings, console) -> None:
    from qinco.page import write_page

    as_lines = collections.prints_lines(settings)
    with collections.open_collection(settings, read_only=True) as docs:
        path = write_page(docs, settings["output"], overwrite=settings["overwrite"])
    console.print_result({"output": str(path), "bytes": path.stat().st_size}, as_lines)
