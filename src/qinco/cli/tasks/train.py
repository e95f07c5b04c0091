"""`qinco train`: train a codec."""

from qinco.cli.keys import ENCODING, MACHINE, TRAINING, TRAINSET, Key, task


@task(
    "train",
    "train a codec",
    keys=[
        f"output {TRAINSET} model_args M K L de dh concat_rank qinco1_mode",
        Key("pq", "integer", None, "cut the vectors into so many parts, a codec for each (PQ-QINCo)"),
        Key("opq", "switch", False, "with pq=: rotate the vectors before they are cut"),
        f"ivf_centroids ivf_K model resume overwrite {ENCODING} recipe {TRAINING}",
        Key("tensorboard", "path", None, "folder for TensorBoard"),
        f"{MACHINE} enc_max_bs mse_scale",
    ],
    required=("output", "trainset|db"),
    imports=("qinco.codec",),
    is_distributed=True,
)
def train(settings, console) -> None:
    from qinco.cli import training

    training.train(settings, console)
