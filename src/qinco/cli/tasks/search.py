"""`qinco search`: recall over a decoded database, or recall and time of an index."""

from qinco.cli.keys import ENCODING, MACHINE, TRAINSET, Key, key_of_field, task
from qinco.search.options import SearchOptions


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
    from qinco.cli import searching

    searching.search(settings, console)
