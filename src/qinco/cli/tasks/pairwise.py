"""`qinco train_pairwise_decoder`: a pairwise additive decoder of encoded vectors."""

import time
from pathlib import Path

import qinco
from qinco.cli.keys import MACHINE, TRAINSET, Key, task
from qinco.cli.open import conditions, files_read, mse_scale, open_codec, open_codes, open_trainset


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
    output = Path(settings["output"])
    codec = None if settings["model"] is None else open_codec(settings)
    begun, scale = time.monotonic(), mse_scale(settings)
    fitted = qinco.fit_pairwise_decoder(
        open_trainset(settings), open_codes(settings, "encoded_trainset", codec).limit(settings["ds.trainset"]),
        codec=codec, centroids=settings["ivf_centroids"], pairs_per_code=settings["n_pairwise_codebooks"],
        dtype=settings["tables"], num_training=settings["search.aq_training_samples"], seed=settings["seed"],
        output=output, overwrite=settings["overwrite"], inputs=files_read(settings), progress=console.progress,
    )  # fmt: skip
    console.info(
        "the errors below are of held-out training vectors; if the codec was trained on these, all are too low: "
        f"measure with qinco eval model=CODEC db=OTHER_VECTORS decoder=pairwise pairwise_decoder={output}"
    )
    result = {"output": str(output), "bytes": output.stat().st_size, "num_pairs": fitted.decoder.num_pairs}
    result |= {"num_vectors": fitted.num_vectors, "mse_lookup": fitted.mse_lookup * scale}
    result |= {"mse_pairwise": fitted.mse * scale}
    result |= {} if fitted.mse_neural is None else {"mse_neural": fitted.mse_neural * scale}
    result |= {"seconds": time.monotonic() - begun}
    console.print_result(result | conditions(settings), settings["json"])
