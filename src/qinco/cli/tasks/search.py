"""`qinco search`: recall over a decoded database, or recall and time of an index."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import qinco
from qinco.atomic import check_output
from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Key, Settings, key_of_field, task
from qinco.cli.open import (
    adjust_codec,
    conditions,
    decode_precision,
    encode_options,
    files_read,
    find_device,
    num_steps,
    open_codec,
    open_database,
    open_decoder,
    open_queries,
)  # fmt: skip
from qinco.datasets.catalogue import find_dataset
from qinco.errors import ConfigError
from qinco.machine import usable_cores
from qinco.search.options import SearchOptions

_OF_VECTORS = ("A", "B", "C", "prefix", "trainset")
_OF_AN_INDEX = (
    "output", "plot", "search.nthreads", "search.batch_size", "search.nprobe", "search.quantizer_efSearch",
    "search.nshort", "search.nmid_short",
)  # fmt: skip


def _values(field: str, default: tuple[int, ...]) -> Key:
    key = key_of_field(SearchOptions, field, kind="integers", default=default, nullable=False)
    return Key(f"search.{key.name}", key.kind, key.default, key.help, minimum=key.minimum)


@task(
    "search",
    "recall@1/10/100 over the decoded database, or recall and time of an index (index=)",
    keys=[
        f"model index {TRAINSET} ds.db",
        Key("queries", "path", None, "query vectors"),
        Key("queries_gt", "path", None, "true neighbours of the queries"),
        "output overwrite resume",
        Key("plot", "path", None, "draw recall over time to a .png or .svg file"),
        f"{ENCODING} prefix decoder pairwise_decoder search.aq_training_samples",
        _values("nprobe", (4,)),
        _values("num_short", (4, 10)),
        _values("num_mid", (1, 4)),
        _values("ef_search", (4,)),
        Key("search.nthreads", "integer", 32, "threads that search an index, at most"),
        Key("search.batch_size", "integer", 12288, "queries at a time, at most"),
        f"{MACHINE} enc_max_bs seed",
    ],
    required=("model|index", "db|index", "queries|db", "queries_gt|db"),
    imports=("qinco.codec", "qinco.search.index"),
)
def search(settings, console) -> None:
    index, decoder = settings["index"], settings["decoder"]
    is_exhaustive = index is None or (settings["db"] is not None and find_dataset(settings["db"]) is None)
    wrong = [name for name in (_OF_AN_INDEX if is_exhaustive else _OF_VECTORS) if settings.given(name)]
    if index is not None and is_exhaustive and decoder == "neural":
        raise ConfigError(
            f"index={index} and db={settings['db']} are both to be searched: keep one of them, or give decoder=lookup "
            "to decode the database by the tables of the index"
        )
    if wrong and is_exhaustive:
        raise ConfigError(f"{wrong[0]}= is for the search of an index: give index= without db=, or leave it out")
    if wrong:
        raise ConfigError(f"{wrong[0]}= is for vectors that are encoded, and an index holds codes: leave it out")
    if is_exhaustive:
        _search_decoded(settings, console)
    else:
        with _threads(settings, console):
            _sweep(settings, console)


def _sweep(settings: Settings, console) -> None:
    """Measure recall and time of all combinations of settings that can be worth it; print the best ones."""
    import torch

    from qinco.search.index import Index
    from qinco.search.measure.plot import plot_fronts
    from qinco.search.measure.sweep import fingerprint_of_file, fingerprint_of_index, open_searcher

    path, output, begun = settings["index"], settings["output"], time.monotonic()
    _check_outputs(settings)
    codec = None if settings["model"] is None else open_codec(settings)
    index = open_searcher(path, codec, settings["pairwise_decoder"], find_device(settings))
    if codec is None and index.codec is not None:
        index = Index(adjust_codec(settings, index.codec), index.parts)
    queries, nearest_Q = open_queries(settings, index.dim, None)
    more = {"index": fingerprint_of_index(path)}
    if settings["pairwise_decoder"] is not None:
        more["pairwise decoder"] = fingerprint_of_file(settings["pairwise_decoder"])
    try:
        result = qinco.sweep(
            index, queries, nearest_Q, nprobe=settings["search.nprobe"],
            ef_search=settings["search.quantizer_efSearch"], num_short=settings["search.nshort"],
            mid_factors=settings["search.nmid_short"], decoder=settings["decoder"], precision=settings["precision"],
            batch_size=settings["search.batch_size"], output=output, resume=settings["resume"], conditions=more,
            progress=console.progress,
        )  # fmt: skip
    except KeyboardInterrupt:
        if output is None or not Path(output).exists():
            raise
        raise KeyboardInterrupt(
            f"what is measured is in {output}; the same command with resume=true continues"
        ) from None
    if settings["plot"] is not None:
        count = torch.get_num_threads()
        title = f"{len(queries):,} queries, {count} thread{'s' if count > 1 else ''}"
        plot_fronts(settings["plot"], {Path(path).name: result.points()}, title)
    others = ", the others cannot be the best for any time" if result.skipped else ""
    total = len(result.measured) + len(result.skipped)
    console.info(f"measured {len(result.measured)} of {total} settings{others}; the best:")
    if not settings["json"]:
        return console.print_table(*result.front_table())
    report = {"settings": result.settings(), "num_vectors": len(index), "num_queries": len(queries)}
    console.print_result(report | {"seconds": time.monotonic() - begun} | conditions(settings), True)


def _check_outputs(settings: Settings) -> None:
    """Raise ConfigError where a result cannot be written."""
    from qinco.search.measure.plot import check_plot_path

    output, plot, read = settings["output"], settings["plot"], files_read(settings)
    overwrite, resume = settings["overwrite"], settings["resume"]
    for name in (output, plot):
        if name is not None and Path(name).resolve().is_relative_to(Path(settings["index"]).resolve()):
            raise ConfigError(f"{name} is inside the index {settings['index']}: write it elsewhere")
    if output is not None:
        if Path(output).suffix.lower() != ".json":
            raise ConfigError(f"output={output}: the results of a search are written to a .json file")
        check_output(output, overwrite=overwrite, resume=resume, inputs=read)
    if plot is not None:
        check_output(check_plot_path(plot), overwrite=overwrite or resume, inputs=read)


@contextmanager
def _threads(settings: Settings, console) -> Iterator[None]:
    """Search with `threads=` threads, or with `search.nthreads=`, as many as torch would use at most."""
    import torch

    from qinco.maths.clustering import faiss_threads

    count, wanted, is_given = settings["threads"], settings["search.nthreads"], settings.given("search.nthreads")
    if count is not None and is_given and count != wanted:
        raise ConfigError(f"threads={count} and search.nthreads={wanted} mean the same: keep one of them")
    if count is None:
        count = min(wanted if is_given else min(wanted, torch.get_num_threads()), usable_cores())
        if wanted > count:
            console.info(f"searching with {count} threads, as many as there are processors (search.nthreads={wanted})")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with faiss_threads(count):
            yield
    finally:
        torch.set_num_threads(before)


def _search_decoded(settings: Settings, console) -> None:
    """Recall of the exact neighbours among decoded vectors, exhaustively."""
    codec = open_codec(settings)
    source = open_database(settings)
    codec.check_dim(source)
    queries_QD, nearest_Q = open_queries(settings, codec.dim, len(source))
    decoder, begun = open_decoder(settings, console, codec), time.monotonic()
    found = qinco.exhaustive_recall(
        codec, source, queries_QD, nearest_Q, decoder=decoder, options=encode_options(settings, codec),
        num_steps=num_steps(settings, codec), precision=decode_precision(settings),
        device=find_device(settings), progress=console.progress,
    )  # fmt: skip
    result = {
        "decoder": settings["decoder"],
        "recall": {str(rank): share for rank, share in found.items()},
        "num_vectors": len(source),
        "num_queries": len(queries_QD),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | conditions(settings), settings["json"])
