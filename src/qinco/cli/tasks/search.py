"""`qinco search`: recall over a decoded database, or recall and time of an index."""

import time

import qinco
from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Key, key_of_field, task
from qinco.cli.open import (
    conditions,
    decode_precision,
    encode_options,
    find_device,
    open_codec,
    open_database,
    open_decoder,
    open_queries,
)  # fmt: skip
from qinco.cli.search_index import search_index
from qinco.datasets.catalogue import find_dataset
from qinco.errors import ConfigError
from qinco.search.options import SearchOptions

_OF_VECTORS = ("A", "B", "C", "prefix", "trainset")
_OF_AN_INDEX = (
    "output", "plot", "search.nthreads", "search.batch_size", "search.nprobe", "search.nshort", "search.nmid_short",
    "search.quantizer_efSearch",
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
    (_search_decoded if is_exhaustive else search_index)(settings, console)


def _search_decoded(settings, console) -> None:
    """Recall of the exact neighbours among decoded vectors, exhaustively."""
    codec, source = open_codec(settings), open_database(settings)
    codec.check_dim(source)
    queries_QD, nearest_Q = open_queries(settings, codec.dim, len(source))
    decoder, begun = open_decoder(settings, codec, console.progress), time.monotonic()
    found = qinco.exhaustive_recall(
        codec, source, queries_QD, nearest_Q, decoder=decoder, options=encode_options(settings, codec),
        num_steps=settings["prefix"], precision=decode_precision(settings), device=find_device(settings),
        progress=console.progress,
    )  # fmt: skip
    result = {
        "decoder": settings["decoder"],
        "recall": {str(rank): share for rank, share in found.items()},
        "num_vectors": len(source),
        "num_queries": len(queries_QD),
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | conditions(settings), settings["json"])
