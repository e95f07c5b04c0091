"""`qinco search`: recall over a decoded database, or recall and time of an index."""

import time
from pathlib import Path

import qinco
from qinco.cli import open as inputs
from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Key, Settings, key_of_field, task
from qinco.datasets.catalogue import DATASETS
from qinco.errors import ConfigError
from qinco.search.options import SearchOptions

_OF_VECTORS = ("A", "B", "C", "prefix", "trainset")
_OF_AN_INDEX = (
    "output", "plot", "search.nthreads", "search.batch_size", "search.nprobe", "search.nshort", "search.nmid_short",
    "search.quantizer_efSearch",
)  # fmt: skip


def _values(field: str, *default: int) -> Key:
    key = key_of_field(SearchOptions, field)
    return Key(f"search.{key.name}", "integers", default, key.help, minimum=key.minimum)


@task(
    "search",
    "recall@1/10/100 over the decoded database, or recall and time of an index (index=)",
    keys=[
        f"model index {TRAINSET} ds.db metric",
        Key("queries", "path", None, "query vectors"),
        Key("queries_gt", "path", None, "true neighbours of the queries"),
        "output overwrite resume",
        Key("plot", "path", None, "draw recall over time to a .png or .svg file"),
        f"{ENCODING} prefix decoder pairwise_decoder search.aq_training_samples",
        _values("nprobe", 4),
        _values("num_short", 4, 10),
        _values("num_mid", 1, 4),
        _values("ef_search", 4),
        Key("search.nthreads", "integer", 32, "threads that search an index, at most"),
        Key("search.batch_size", "integer", 12288, "queries at a time, at most"),
        f"{MACHINE} enc_max_bs seed",
    ],
    required=("model|index", "db|index", "queries|db", "queries_gt|db"),
    imports=("qinco.codec", "qinco.search.index"),
)
def search(settings, console) -> None:
    index, db = settings["index"], settings["db"]
    is_exhaustive = index is None or (db is not None and DATASETS.get(db) is None)
    if index is not None and is_exhaustive and settings["decoder"] == "neural":
        raise ConfigError(f"index={index} and db={db} are both to be searched: keep one of them, or give "
                          "decoder=lookup to decode the database by the tables of the index")  # fmt: skip
    for name in filter(settings.given, _OF_AN_INDEX if is_exhaustive else _OF_VECTORS):
        wanted = "the search of an index: give index= without db=" if is_exhaustive else "vectors that are encoded"
        raise ConfigError(f"{name}= is for {wanted}, or leave it out")
    (_search_decoded if is_exhaustive else _search_index)(settings, console)


def _search_decoded(settings: Settings, console) -> None:
    """Recall of the exact neighbours among decoded vectors, exhaustively."""
    from qinco.search.metric import choose_metric

    codec, source = inputs.open_codec(settings), inputs.open_database(settings)
    queries, truth = inputs.open_queries(settings)
    decoder, begun = inputs.open_decoder(settings, codec, console.progress), time.monotonic()
    found = qinco.exhaustive_recall(
        codec, source, queries, truth, decoder=decoder, options=inputs.encode_options(settings, codec),
        num_steps=settings["prefix"], precision=inputs.decode_precision(settings),
        device=inputs.find_device(settings), metric=settings["metric"], progress=console.progress,
    )  # fmt: skip
    metric = settings["metric"] or choose_metric(None, source, queries, truth)
    result = {
        "decoder": settings["decoder"],
        "metric": metric,
        "recall": found,
        "num_vectors": len(source),
        "num_queries": len(queries),
    }
    result |= {"seconds": time.monotonic() - begun}
    console.print_result(result | inputs.conditions(settings), settings["json"])


def _search_index(settings: Settings, console) -> None:
    from qinco.search.measure.sweep import open_searcher

    path, begun, threads = settings["index"], time.monotonic(), _threads(settings, console)
    codec = None if settings["model"] is None else inputs.open_codec(settings)
    index, files = open_searcher(path, codec, settings["pairwise_decoder"], str(inputs.find_device(settings)))
    if codec is None and index.codec is not None:
        index.codec = inputs.adjust_codec(settings, index.codec)
    queries, truth = inputs.open_queries(settings)
    result = qinco.sweep(
        index, queries, truth, nprobe=settings["search.nprobe"], ef_search=settings["search.quantizer_efSearch"],
        num_short=settings["search.nshort"], mid_factors=settings["search.nmid_short"], decoder=settings["decoder"],
        precision=settings["precision"], batch_size=settings["search.batch_size"], threads=threads,
        output=settings["output"], plot=settings["plot"], name=Path(path).name, resume=settings["resume"],
        overwrite=settings["overwrite"], inputs=inputs.files_read(settings), conditions=files,
        metric=settings["metric"], progress=console.progress,
    )  # fmt: skip
    others = ", the others cannot be the best for any time" if result.skipped else ""
    total = len(result.measured) + len(result.skipped)
    console.info(f"measured {len(result.measured)} of {total} settings{others}; the best (metric={index.metric}):")
    if not settings["json"]:
        return console.print_table(*result.front_table())
    report = {
        "settings": result.settings(),
        "metric": index.metric,
        "num_vectors": len(index),
        "num_queries": len(queries),
    }
    report |= {"seconds": time.monotonic() - begun, "threads": threads, "precision": settings["precision"]}
    console.print_result(report, True)


def _threads(settings: Settings, console) -> int:
    import torch

    from qinco.machine import usable_cores

    count, wanted, is_given = settings["threads"], settings["search.nthreads"], settings.given("search.nthreads")
    if count is None:
        count = min(wanted, usable_cores(), wanted if is_given else torch.get_num_threads())
        if wanted > count:
            console.info(f"searching with {count} threads, as many as there are processors (search.nthreads={wanted})")
    elif is_given and count != wanted:
        raise ConfigError(f"threads={count} and search.nthreads={wanted} mean the same: keep one of them")
    return count
