"""`qinco build_index`: look-up tables and an index of encoded vectors."""

import time
from dataclasses import asdict

import qinco
from qinco.cli.keys import CLUSTER, MACHINE, TRAINSET, Key, task
from qinco.cli.open import (
    check_num_centroids,
    conditions,
    executor_of,
    mse_scale,
    open_codec,
    open_codes,
    open_trainset,
)


@task(
    "build_index",
    "look-up tables and an index of encoded vectors",
    keys=[
        "encoded_trainset",
        Key("encoded_db", "path", None, "codes of the database"),
        f"{TRAINSET} output overwrite model ivf_centroids ivf_K M K ds.db pairwise_decoder metric",
        Key("vectors", "path", None, "the database's vectors: distances are calibrated for them, in the same bytes"),
        Key("ids", "path", None, "ids: a column of Parquet or Arrow files (emb/*.parquet:id), or of those of vectors="),
        Key("search.index_key", "text", "IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8", "kind of a .faissindex file",
            open_references=("ivf_K", "M", "K")),
        Key("num_shards", "integer", None, "write the lists in so many shards, for qinco.distributed.ShardedIndex"),
        f"search.aq_training_samples mse_scale seed resume {CLUSTER} {MACHINE} enc_max_bs",
    ],
    required=("encoded_db", "output"),
    imports=("qinco.codec", "qinco.search.index"),
)  # fmt: skip
def build_index(settings, console) -> None:
    codec = None if settings["model"] is None else open_codec(settings)
    check_num_centroids(settings)
    num_lists = settings["ivf_K"] if settings["ivf_centroids"] is None else None
    train_codes = train_vectors = None
    if settings["encoded_trainset"] is not None:  # else tables are fitted to some of the database
        train_codes = open_codes(settings, "encoded_trainset", codec).limit(settings["ds.trainset"])
    if settings["trainset"] is not None or (train_codes is not None and settings["db"] is not None):
        train_vectors = open_trainset(settings)
    begun = time.monotonic()
    done = qinco.build_index(
        open_codes(settings, "encoded_db", codec).limit(settings["ds.db"]), settings["output"], codec=codec,
        train_codes=train_codes, train_vectors=train_vectors, vectors=settings["vectors"], ids=settings["ids"],
        centroids=settings["ivf_centroids"], num_lists=num_lists, metric=settings["metric"],
        pairwise=settings["pairwise_decoder"], num_training=settings["search.aq_training_samples"],
        index_key=settings["search.index_key"] if settings.given("search.index_key") else None,
        num_shards=settings["num_shards"], executor=executor_of(settings), resume=settings["resume"],
        overwrite=settings["overwrite"], seed=settings["seed"], progress=console.progress,
    )  # fmt: skip
    mse = None if done.mse_lookup is None else done.mse_lookup * mse_scale(settings)
    result = asdict(done) | {"mse_lookup": mse, "seconds": time.monotonic() - begun}
    console.print_result(result | conditions(settings), settings["json"])
