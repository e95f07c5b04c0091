"""`task=search`: a sweep over the settings of an index's pipeline, or recall over decoded vectors without an index.

Shape suffixes: Q queries, D dimension, M codes of a vector.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from qinco.atomic import check_output
from qinco.cli import inputs, measuring
from qinco.cli.console import Console
from qinco.cli.decoding import lookup_of, open_index, open_pairwise_of_index
from qinco.cli.overrides import Settings
from qinco.codec import Codec
from qinco.compat.faiss_files import FaissIndex
from qinco.datasets.catalogue import find_dataset
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.machine import processor_name, usable_cores
from qinco.maths.clustering import faiss_threads
from qinco.search.index import Index
from qinco.search.measure.plot import check_plot_path, plot_fronts
from qinco.search.measure.sweep import Conditions, Setting, SweepResult, combinations, sweep
from qinco.search.measure.tune import measure
from qinco.search.metric import Metric
from qinco.search.options import SearchOptions
from qinco.search.pipeline import Stages, network_decoder
from qinco.search.scan import Shortlist
from qinco.store.code_files import is_directory
from qinco.store.manifest import read_manifest

_OF_VECTORS = ("A", "B", "C", "prefix", "trainset")
_OF_AN_INDEX = ("output", "plot", *(f"search.{name}" for name in ("nthreads", "batch_size", *Setting._fields)))
_FINGERPRINT_BLOCKS, _FINGERPRINT_BYTES = 256, 1 << 12


def search(settings: Settings, console: Console) -> None:
    """Search an index with many settings, or all decoded vectors of a database."""
    is_exhaustive = settings["index"] is None or (settings["db"] is not None and find_dataset(settings["db"]) is None)
    wrong = [name for name in (_OF_AN_INDEX if is_exhaustive else _OF_VECTORS) if settings.given(name)]
    if settings["index"] is not None and is_exhaustive and settings["decoder"] == "neural":
        raise ConfigError(
            f"index={settings['index']} and db={settings['db']} are both to be searched: keep one of them, or give "
            "decoder=lookup to decode the database by the tables of the index"
        )
    if wrong and is_exhaustive:
        raise ConfigError(f"{wrong[0]}= is for the search of an index: give index= without db=, or leave it out")
    if wrong:
        raise ConfigError(f"{wrong[0]}= is for vectors that are encoded, and an index holds codes: leave it out")
    if is_exhaustive:
        measuring.search(settings, console)
    else:
        search_index(settings, console)


@dataclass(frozen=True)
class _Searched:
    """An index of either kind, and what searches it.

    ids: gives all ids, in blocks, where they are not the numbers from 0; None where they are
    """

    index: Index | FaissIndex
    codec: Codec | None
    pairwise: PairwiseDecoder | None
    metric: Metric
    has_graph: bool
    ids: Callable[[], Iterator[np.ndarray]] | None
    stages: Stages


def search_index(settings: Settings, console: Console) -> None:
    """Measure recall and time of all combinations of settings that can be worth it; print the best ones."""
    _check_places(settings)
    with _threads(settings) as threads:
        searched = _open(settings)
        queries_QD, nearest_Q = inputs.open_queries(settings, searched.index.dim, None)
        _check_ground_truth(settings, searched, nearest_Q)
        values = _values(settings, console, searched)
        prepared_QD = searched.metric.prepare(queries_QD)
        conditions = _conditions(settings, searched, queries_QD, nearest_Q, threads)
        if settings["threads"] is None and settings["search.nthreads"] > threads:
            console.info(
                f"searching with {threads} threads, as many as there are processors "
                f"(search.nthreads={settings['search.nthreads']})"
            )
        batch_size, begun = settings["search.batch_size"], time.monotonic()

        def measured(options: SearchOptions):
            return measure(searched.stages, prepared_QD, nearest_Q, options, batch_size)

        with console.progress(len(combinations(values)), "setting", "measuring") as progress:
            try:
                result = sweep(values, measured, conditions, settings["output"], settings["resume"], progress.update)
            except KeyboardInterrupt:
                if settings["output"] is None or not Path(settings["output"]).exists():
                    raise
                raise KeyboardInterrupt(
                    f"what is measured is in {settings['output']}; the same command with resume=true continues"
                ) from None
        report = {
            "settings": result.settings(),
            "num_vectors": len(searched.index),
            "num_queries": len(queries_QD),
            "seconds": time.monotonic() - begun,
        }
        _report(settings, console, result, report | inputs.machine(settings))


def _report(settings: Settings, console: Console, result: SweepResult, report: dict) -> None:
    if settings["plot"] is not None:
        count = report["threads"]
        title = f"{report['num_queries']:,} queries, {count} thread{'s' if count > 1 else ''}"
        plot_fronts(settings["plot"], {Path(settings["index"]).name: result.points()}, title)
    total = len(result.measured) + len(result.skipped)
    others = ", the others cannot be the best for any time" if result.skipped else ""
    console.info(f"measured {len(result.measured)} of {total} settings{others}; the best:")
    if settings["json"]:
        console.print_result(report, True)
    else:
        console.print_table(*result.front_table())


# What is given


def _check_places(settings: Settings) -> None:
    """Raise ConfigError where a result cannot be written."""
    output, plot, read = settings["output"], settings["plot"], inputs.files_read(settings)
    overwrite, resume = settings["overwrite"], settings["resume"]
    for name in (output, plot):
        if name is not None and Path(name).resolve().is_relative_to(Path(settings["index"]).resolve()):
            raise ConfigError(f"{name} lies in the index {settings['index']} that is searched: give it another place")
    if output is not None:
        if Path(output).suffix.lower() != ".json":
            raise ConfigError(f"output={output}: what a search measures is written to a .json file")
        check_output(output, overwrite=overwrite, resume=resume, inputs=read)
    if plot is not None:
        check_output(check_plot_path(plot), overwrite=overwrite or resume, inputs=read)


@contextmanager
def _threads(settings: Settings) -> Iterator[int]:
    """Search with `threads=` threads, or with `search.nthreads=`, as many as torch would use at most."""
    count, wanted = settings["threads"], settings["search.nthreads"]
    if count is not None and settings.given("search.nthreads") and count != wanted:
        raise ConfigError(f"threads={count} and search.nthreads={wanted} mean the same: keep one of them")
    if count is None:
        count = wanted if settings.given("search.nthreads") else min(wanted, torch.get_num_threads())
        count = min(count, usable_cores())
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with faiss_threads(count):
            yield count
    finally:
        torch.set_num_threads(before)


def _open(settings: Settings) -> _Searched:
    """The index, its codec and its decoders; raises where they do not belong together or one is missing."""
    path, last = settings["index"], settings["decoder"]
    codec = None if settings["model"] is None else inputs.open_codec(settings)
    index = open_index(path, codec, inputs.device_of(settings))
    if isinstance(index, Index) and codec is None and index.codec is not None:
        index.codec = inputs.adapted(settings, index.codec)
    codec = index.codec if isinstance(index, Index) else codec
    if codec is None and last == "neural":
        raise ConfigError(f"{path} holds no codec to decode with: give model=, or decoder=lookup")
    if not len(index):
        raise DataError(f"{path} holds no vectors")
    lookup = lookup_of(index)
    sizes = lookup.code_size, lookup.codebook_size, lookup.dim
    pairwise = open_pairwise_of_index(settings, sizes, codec, index)
    if pairwise is None and isinstance(index, Index):
        pairwise = index.pairwise
    if last == "lookup":
        pairwise = None
    if pairwise is None and last == "pairwise":
        raise ConfigError("decoder=pairwise needs pairwise_decoder=FILE, which task train_pairwise_decoder writes")
    if isinstance(index, Index):
        index.pairwise = pairwise
        ids = None if index.next_id == len(index) else lambda: (segment.ids for segment in index.segments)
        stages = index.stages(precision=settings["precision"], decoder=last)
        return _Searched(index, codec, pairwise, index.tables.metric, index.tables.coarse is not None, ids, stages)
    metric = Metric("inner_product" if index.inner_product else "l2")
    neural, on_device = network_decoder(codec, settings["precision"]) if last == "neural" else (None, False)
    pairs = None if pairwise is None else pairwise.decode
    stages = Stages(_shortlist_of(index), neural, pairs, metric, on_device)
    return _Searched(
        index, codec, pairwise, metric, index.has_graph, lambda: (ids for _, _, ids in index.blocks()), stages
    )


def _shortlist_of(index: FaissIndex):
    def shortlist(queries_QD: np.ndarray, num_short: int, options: SearchOptions):
        return Shortlist(*index.shortlist(queries_QD, min(num_short, len(index)), options.nprobe, options.ef_search))

    return shortlist


def _check_ground_truth(settings: Settings, searched: _Searched, nearest_Q: np.ndarray) -> None:
    """Raise DataError where a true neighbour is not in the index."""
    count = len(searched.index)
    missing = np.unique(nearest_Q[(nearest_Q < 0) | (nearest_Q >= count)])
    if searched.ids is not None and (missing.size or isinstance(searched.index, Index)):
        missing = np.unique(nearest_Q)
        for ids_N in searched.ids():
            missing = missing[~np.isin(missing, ids_N)]
    if missing.size:
        name = settings["queries_gt"] or find_dataset(settings["db"]).ground_truth
        raise DataError(
            f"{name} names vector {missing[0]}, which is not in {settings['index']}: the ground truth is of "
            "another database, or the index leaves vectors out"
        )


# What is measured


def _values(settings: Settings, console: Console, searched: _Searched) -> dict[str, list[int]]:
    """The lists of the sweep, without values that come to the same."""
    values = {name: sorted(set(settings[f"search.{name}"])) for name in Setting._fields}
    values["nprobe"] = sorted({min(nprobe, searched.index.num_lists) for nprobe in values["nprobe"]})
    if not searched.has_graph:
        if settings.given("search.quantizer_efSearch"):
            console.info(
                f"all {searched.index.num_lists:,} centroids are compared: search.quantizer_efSearch has no effect"
            )
        values["quantizer_efSearch"] = values["quantizer_efSearch"][:1]
    if searched.pairwise is None:
        values["nmid_short"] = [0]
    if settings["decoder"] == "lookup":  # the tables' order is the final one, whatever its length
        values["nshort"] = [0]
    return values


def _conditions(
    settings: Settings, searched: _Searched, queries_QD: np.ndarray, nearest_Q: np.ndarray, threads: int
) -> Conditions:
    """What results depend on beside the settings, for resume."""
    path = settings["index"]
    found = {
        "index": _fingerprint_of_index(path) if is_directory(path) else _fingerprint(path),
        "queries": sha256(queries_QD.tobytes() + nearest_Q.tobytes()).hexdigest(),
        "decoder": settings["decoder"],
        "batch size": str(settings["search.batch_size"]),
    }
    if searched.codec is not None and settings["decoder"] == "neural":
        found["model"] = searched.codec.fingerprint()
        found["precision, engine or device"] = " ".join(
            [settings["precision"], settings["engine"], inputs.device_of(settings).type]
        )
    if settings["pairwise_decoder"] is not None:
        found["pairwise decoder"] = _fingerprint(settings["pairwise_decoder"])
    return Conditions(found, threads, processor_name())


def _fingerprint_of_index(folder: str) -> str:
    """Of the content of an index, from the checksums of its manifest."""
    files = {name: stored.crc32 for name, stored in read_manifest(folder, "index").files.items()}
    return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: str) -> str:
    """Of a file's size and of blocks spread over it."""
    size = Path(path).stat().st_size
    digest = sha256(str(size).encode())
    with Path(path).open("rb") as file:
        for start in np.linspace(0, max(0, size - _FINGERPRINT_BYTES), _FINGERPRINT_BLOCKS).astype(np.int64):
            file.seek(start)
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()
