"""What `qinco search queries_gt=` measures: recall over decoded vectors, or recall and time of an index."""

import time
from pathlib import Path

import qinco
from qinco.cli import open as inputs
from qinco.cli.keys import Settings
from qinco.errors import ConfigError


def measure_decoded(settings: Settings, console, queries, truth) -> None:
    """Recall of the exact neighbours among decoded vectors, exhaustively."""
    codec, source = inputs.open_codec(settings), inputs.open_database(settings)
    decoder, begun = inputs.open_decoder(settings, codec, console.progress), time.monotonic()
    found = qinco.exhaustive_recall(
        codec, source, queries, truth, decoder=decoder, options=inputs.encode_options(settings, codec),
        num_steps=settings["prefix"], precision=inputs.decode_precision(settings),
        device=inputs.find_device(settings), progress=console.progress,
    )  # fmt: skip
    result = {"decoder": settings["decoder"], "recall": found, "num_vectors": len(source), "num_queries": len(queries)}
    result |= {"seconds": time.monotonic() - begun}
    console.print_result(result | inputs.conditions(settings), settings["json"])


def measure_index(settings: Settings, console, queries, truth) -> None:
    """Recall and time of many settings of an index."""
    path, begun, threads = settings["index"], time.monotonic(), _threads(settings, console)
    index, files = inputs.open_index(settings)
    result = qinco.sweep(
        index, queries, truth, nprobe=settings["search.nprobe"], ef_search=settings["search.quantizer_efSearch"],
        num_short=settings["search.nshort"], mid_factors=settings["search.nmid_short"], decoder=settings["decoder"],
        precision=settings["precision"], batch_size=settings["search.batch_size"], threads=threads,
        output=settings["output"], plot=settings["plot"], name=Path(path).name, resume=settings["resume"],
        overwrite=settings["overwrite"], inputs=inputs.files_read(settings), conditions=files,
        progress=console.progress,
    )  # fmt: skip
    others = ", the others cannot be the best for any time" if result.skipped else ""
    total = len(result.measured) + len(result.skipped)
    console.info(f"measured {len(result.measured)} of {total} settings{others}; the best:")
    if not settings["json"]:
        return console.print_table(*result.front_table())
    report = {"settings": result.settings(), "num_vectors": len(index), "num_queries": len(queries)}
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
