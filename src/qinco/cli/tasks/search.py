"""`qinco search`: the neighbours of queries, recall over a decoded database, or recall and time of an index."""

from pathlib import Path

import qinco
from qinco.cli import open as inputs
from qinco.cli.console import result_line
from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Key, Settings, task, values_of_field
from qinco.cli.recall import measure_decoded, measure_index
from qinco.config import RANKINGS
from qinco.datasets.catalogue import DATASETS
from qinco.errors import ConfigError
from qinco.search.options import SearchOptions

_OF_VECTORS = ("A", "B", "C", "prefix", "trainset")
_OF_A_SWEEP = ("plot", "resume", "search.nthreads", "search.batch_size")
_OF_AN_INDEX = ("search.nprobe", "search.nshort", "search.nmid_short", "search.quantizer_efSearch")
_OF_REFINEMENT = ("refine", "num_refine")
_RANKING = "ranking"


@task(
    "search",
    "the nearest neighbours of queries; with queries_gt=, recall and time of an index, or recall over decoded vectors",
    keys=[
        f"model index {TRAINSET} ds.db metric queries",
        Key("queries_gt", "path", None, "true neighbours of the queries: measure recall"),
        Key("k", "integer", 10, "neighbours to find; with queries_gt=: instead of measuring many settings"),
        "output overwrite resume",
        Key("distances", "path", None, "file to write the neighbours' distances to: .npy, .fvecs or .fbin"),
        Key("refine", "path", None, "the vectors that an index was built of: rank the first results by them"),
        Key("num_refine", "integer", None, "results that refine= ranks; null: 100, or k"),
        Key(
            _RANKING,
            "choice",
            None,
            "calibrated by what an index knows of vectors besides their codes, or decoded as in "
            "the papers, which settings are measured by unless it is given",
            choices=RANKINGS,
        ),
        Key("plot", "path", None, "draw recall over time to a .png or .svg file"),
        f"{ENCODING} prefix decoder pairwise_decoder search.aq_training_samples",
        "search.nprobe search.nshort",
        values_of_field("num_mid", 1, 4),
        values_of_field("ef_search", 4),
        Key("search.nthreads", "integer", 32, "threads that search an index, at most"),
        Key("search.batch_size", "integer", 12288, "queries at a time, at most"),
        f"{MACHINE} enc_max_bs seed",
    ],
    required=("model|index", "db|index", "queries|db"),
    imports=("qinco.codec", "qinco.search.index"),
)
def search(settings, console) -> None:
    from qinco.search.measure.neighbors import NEIGHBOR_SUFFIXES

    index, db = settings["index"], settings["db"]
    is_exhaustive = index is None or (db is not None and DATASETS.get(db) is None)
    if index is not None and is_exhaustive and settings["decoder"] == "neural":
        raise ConfigError(f"index={index} and db={db} are both to be searched: keep one of them, or give "
                          "decoder=lookup to decode the database by the tables of the index")  # fmt: skip
    queries, truth = inputs.open_queries(settings)
    is_answer = truth is None or any(map(settings.given, ("k", "distances")))
    is_answer |= Path(settings["output"] or "").suffix.lower() in NEIGHBOR_SUFFIXES
    barred = _OF_VECTORS * (not is_exhaustive) + (*_OF_AN_INDEX, *_OF_REFINEMENT, _RANKING) * is_exhaustive
    barred += _OF_REFINEMENT * (not is_answer and not is_exhaustive)
    barred += _OF_A_SWEEP * (is_answer or is_exhaustive) + ("output",) * (is_exhaustive and not is_answer)
    for name in filter(settings.given, barred):
        wanted = "the search of an index: give index= without db=, or leave it out"
        if name in _OF_VECTORS:
            wanted = "vectors that are encoded, and an index holds codes: leave it out"
        elif name in _OF_REFINEMENT and not is_exhaustive:
            wanted = "finding neighbours with one setting: give k=, too"
        elif is_answer and name in _OF_A_SWEEP:
            wanted = "measuring many settings: give queries_gt= without k=, and output= with the suffix .json"
        raise ConfigError(f"{name}= is for {wanted}")
    if is_answer:
        return _answer(settings, console, queries, truth, is_exhaustive)
    (measure_decoded if is_exhaustive else measure_index)(settings, console, queries, truth)


def _answer(settings: Settings, console, queries, truth, is_exhaustive: bool) -> None:
    """Find neighbours, and write or print them."""
    if not is_exhaustive:
        index = inputs.open_index(settings)[0]
        options = _one_setting(settings, index.options) | {"precision": settings["precision"]}
        options |= {name: settings[name] for name in _OF_REFINEMENT}
        options |= {_RANKING: settings[_RANKING]} if settings.given(_RANKING) else {}
    elif settings["decoder"] == "neural":
        codec = inputs.open_codec(settings)
        index = codec.with_options(inputs.encode_options(settings, codec)), inputs.open_database(settings)
        options = {"num_steps": settings["prefix"], "device": str(codec.device)}
    else:
        raise ConfigError(f"decoder={settings['decoder']} is measured with queries_gt=: leave k= and output= out")
    found = qinco.find_neighbors(
        index, queries, settings["k"], ground_truth=truth, output=settings["output"],
        distances_output=settings["distances"], overwrite=settings["overwrite"], inputs=inputs.files_read(settings),
        metric=settings["metric"], progress=console.progress, **options,
    )  # fmt: skip
    result = {"k": settings["k"], "metric": found.metric, "num_queries": len(queries), "seconds": found.seconds}
    result |= {"recall": found.recall} if found.recall else {}
    result |= {name: settings[name] for name in ("output", "distances") if settings[name] is not None}
    if settings["output"] is None:
        if not settings["json"]:
            if found.recall:
                console.info(result_line("recall", found.recall))
            return console.print_records(found.records())
        ids = found.ids if found.names is None else found.names[found.ids].tolist()
        result |= {"ids": ids, "distances": found.distances}
    console.print_result(result | inputs.conditions(settings), settings["json"])


def _one_setting(settings: Settings, options: SearchOptions) -> dict:
    """The options of one search: the given ones, which count pairs in multiples of nshort, and the index's own."""
    given = {}
    for name in filter(settings.given, _OF_AN_INDEX):
        if len(settings[name]) != 1:
            raise ConfigError(f"{name}={list(settings[name])}: give one value, or queries_gt= to measure several")
        given[name.removeprefix("search.")] = settings[name][0]
    nshort, multiple = given.get("nshort"), given.get("nmid_short")
    num_mid = None if multiple is None else multiple * (nshort or options.num_short) * (multiple > 1)
    if settings["decoder"] != "neural":
        nshort, num_mid = 0, 0 if settings["decoder"] == "lookup" else num_mid
    return {"nprobe": given.get("nprobe"), "ef_search": given.get("quantizer_efSearch"), "num_short": nshort,
            "num_mid": num_mid}  # fmt: skip
