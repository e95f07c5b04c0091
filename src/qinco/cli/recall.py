"""What `qinco search queries_gt=` measures: recall over decoded vectors, or recall and time of an index."""

import time
from pathlib import Path

import qinco
from qinco.cli import open as inputs
from qinco.cli.keys import Settings
from qinco.errors import ConfigError


def measure_decoded(settings: Settings, console, queries, truth) -> None:
    """Recall of the exact neighbours among decoded vectors, exhaustively."""
    from qinco.search.metric import choose_metric

    codec, source = inputs.open_codec(settings), inputs.open_database(settings)
    metric = settings["metric"] or choose_metric(None, source, queries, truth, compared=source)
    decoder, begun = inputs.open_decoder(settings, codec, console.progress), time.monotonic()
    found = qinco.exhaustive_recall(
        codec, source, queries, truth, decoder=decoder, options=inputs.encode_options(settings, codec),
        num_steps=settings["prefix"], precision=inputs.decode_precision(settings),
        device=inputs.find_device(settings), metric=metric, progress=console.progress,
    )  # fmt: skip
    result = {"decoder": settings["decoder"], "metric": metric, "recall": found, "num_vectors": len(source)}
    result |= {"num_queries": len(queries), "seconds": time.monotonic() - begun}
    console.print_result(result | inputs.conditions(settings), settings["json"])


def measure_index(settings: Settings, console, queries, truth) -> None:
    """Recall and time of many settings of an index."""
    path, begun = settings["index"], time.monotonic()
    index, files = inputs.open_index(settings)
    threads = _threads(settings, console)
    result = qinco.sweep(
        index, queries, truth, nprobe=settings["search.nprobe"], ef_search=settings["search.quantizer_efSearch"],
        num_short=settings["search.nshort"], mid_factors=settings["search.nmid_short"], decoder=settings["decoder"],
        precision=settings["precision"], ranking=settings["ranking"] or "decoded",
        batch_size=settings["search.batch_size"], threads=threads,
        output=settings["output"], plot=settings["plot"], name=Path(path).name, resume=settings["resume"],
        overwrite=settings["overwrite"], inputs=inputs.files_read(settings), conditions=files,
        metric=settings["metric"], progress=console.progress,
    )  # fmt: skip
    others = ", the others cannot be the best for any time" if result.skipped else ""
    total = len(result.measured) + len(result.skipped)
    console.info(f"measured {len(result.measured)} of {total} settings{others}; the best (metric={index.metric}):")
    if not settings["json"]:
        return console.print_table(*result.front_table())
    report = {"settings": result.settings(), "metric": index.metric, "num_vectors": len(index)}
    report |= {"num_queries": len(queries), "seconds": time.monotonic() - begun, "threads": threads}
    report |= {"precision": settings["precision"]}
    console.print_result(report, True)


def _threads(settings: Settings, console) -> int:
    from qinco.machine import num_threads, usable_cores

    count, wanted, is_given = settings["threads"], settings["search.nthreads"], settings.given("search.nthreads")
    if count is None:
        count = min(wanted, usable_cores(), wanted if is_given else num_threads())
        if is_given and wanted > count:
            console.info(f"search.nthreads={wanted} is more than the processors: threads: {count}")
    elif is_given and count != wanted:
        raise ConfigError(f"threads={count} and search.nthreads={wanted} mean the same: keep one of them")
    return count
