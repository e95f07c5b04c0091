"""`qinco train_pairwise_decoder`: a pairwise additive decoder of encoded vectors."""

from qinco.cli.keys import MACHINE, TRAINSET, Key, task


@task(
    "train_pairwise_decoder",
    "pairwise additive decoder of encoded vectors",
    keys=[
        f"encoded_trainset {TRAINSET} output overwrite model ivf_centroids M K",
        Key("n_pairwise_codebooks", "positive", 2.0, "pairs of codes, in multiples of M, at most"),
        Key("tables", "choice", "float32", "data type of the pair tables", choices=("float32", "float16")),
        f"search.aq_training_samples mse_scale seed {MACHINE} enc_max_bs",
    ],
    required=("encoded_trainset", "trainset|db", "output"),
    imports=("qinco.codec", "qinco.search.index"),
)
def train_pairwise_decoder(settings, console) -> None:
    from qinco.cli import indexing

    indexing.train_pairwise_decoder(settings, console)
