"""`qinco build_index`: look-up tables and an index of encoded vectors."""

from qinco.cli.keys import MACHINE, TRAINSET, Key, task


@task(
    "build_index",
    "look-up tables and an index of encoded vectors",
    keys=[
        "encoded_trainset",
        Key("encoded_db", "path", None, "codes of the database"),
        f"{TRAINSET} output overwrite model ivf_centroids ivf_K M K ds.db pairwise_decoder",
        Key("metric", "choice", "l2", "distance or similarity", choices=("l2", "inner_product", "cosine")),
        Key("search.index_key", "text", "IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8", "kind of a .faissindex file",
            open_references=("ivf_K", "M", "K")),
        f"search.aq_training_samples mse_scale seed {MACHINE} enc_max_bs",
    ],
    required=("encoded_trainset", "encoded_db", "trainset|db", "output"),
    imports=("qinco.codec", "qinco.search.index"),
)  # fmt: skip
def build_index(settings, console) -> None:
    from qinco.cli import indexing

    indexing.build_index(settings, console)
