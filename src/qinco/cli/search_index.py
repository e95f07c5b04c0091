"""The search of an index: a sweep over the settings of `qinco search index=...`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import qinco
from qinco.cli.keys import Settings
from qinco.cli.open import adjust_codec, conditions, files_read, find_device, open_codec, open_queries
from qinco.errors import ConfigError


def search_index(settings: Settings, console) -> None:
    """Measure recall and time of all combinations of settings that can be worth it; print the best ones."""
    _check_outputs(settings)
    with _threads(settings, console):
        _sweep(settings, console)


def _sweep(settings: Settings, console) -> None:
    from qinco.search.measure.plot import plot_fronts
    from qinco.search.measure.sweep import fingerprint_of_file, fingerprint_of_index, open_searcher

    path, output, begun = settings["index"], settings["output"], time.monotonic()
    codec = None if settings["model"] is None else open_codec(settings)
    index = open_searcher(path, codec, settings["pairwise_decoder"], find_device(settings))
    if codec is None and index.codec is not None:
        index = qinco.Index(adjust_codec(settings, index.codec), index.parts)
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
        count = conditions(settings)["threads"]
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
    """Raise ConfigError if a result cannot be written."""
    from qinco.atomic import check_output
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

    from qinco.machine import usable_cores
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
