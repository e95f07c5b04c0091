"""`qinco train`: train a codec."""

import time

import qinco
from qinco.cli.keys import ENCODING, MACHINE, TRAINING, TRAINSET, Key, Settings, chosen_preset, task
from qinco.cli.open import check_num_centroids, conditions, files_read, find_device, mse_scale, open_trainset
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, needs_extra
from qinco.training.options import TrainOptions


@task(
    "train",
    "train a codec",
    keys=[
        f"output {TRAINSET} model_args M K L de dh concat_rank qinco1_mode",
        Key("pq", "integer", None, "cut the vectors into so many parts, a codec for each (PQ-QINCo)"),
        Key("opq", "switch", False, "with pq=: rotate the vectors before they are cut"),
        "ivf_centroids ivf_K",
        Key("model", "path", None, "codec to train on from, in place of a new one; epochs counts from its beginning"),
        f"resume overwrite {ENCODING} recipe {TRAINING}",
        Key("tensorboard", "path", None, "folder for TensorBoard"),
        f"{MACHINE} enc_max_bs mse_scale",
    ],
    required=("output", "trainset|db"),
    imports=("qinco.codec",),
    is_distributed=True,
)
def train(settings, console) -> None:
    from qinco.training.processes import Processes

    with needs_extra("training", "torch", "train"):
        from qinco.codec.plan import begun_with

    begun = begun_with(settings["output"]) if settings["resume"] else {}
    source = open_trainset(settings, begun.get("rows_shuffled", settings["recipe"] == "paper"))
    arguments = fit_arguments(settings, source.dim) | _start(settings)
    is_main, begun = Processes.is_main_by_environment(), time.monotonic()
    if is_main and settings["ivf_K"] is not None and settings["ivf_centroids"] is None and settings["model"] is None:
        console.warn(
            f"ivf_K={settings['ivf_K']} has no effect without ivf_centroids=FILE, which task ivf_centroids writes: "
            "this codec will have no lists"
        )
    codec = qinco.Codec.fit(
        source,
        output=settings["output"],
        resume=settings["resume"],
        overwrite=settings["overwrite"],
        device=find_device(settings),
        tensorboard=settings["tensorboard"],
        mse_scale=mse_scale(settings),
        inputs=files_read(settings),
        progress=console.progress,
        **arguments,
    )
    if not is_main:
        return
    result = {
        "output": settings["output"],
        "mse": codec.provenance["valid_mse"] * mse_scale(settings),
        "epoch": codec.provenance["epoch"],
        "num_vectors": codec.provenance["num_vectors"],
        "bytes_per_vector": codec.bytes_per_vector,
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | conditions(settings), settings["json"])


def fit_arguments(settings: Settings, dim: int) -> dict:
    """The given arguments of `Codec.fit`; the others are for the preset and the recipe to decide."""
    given = settings.fields(ModelConfig, EncodeOptions, TrainOptions)
    given.pop("engine", None)
    if settings["minutes"] is None and settings.task == "train":
        given["epochs"] = settings["epochs"]
    if settings["trainset"] is None:  # that of a data set, whose rows are in random order
        given["rows_shuffled"] = True
    if settings["qinco1_mode"]:
        if settings["model_args"] not in (None, "qinco1"):
            raise ConfigError(f"qinco1_mode=true contradicts model_args={settings['model_args']}: keep one of them")
        given |= {"codeword_skip": False, "embed_dim": dim}
        if settings["A"] is None and settings["C"] is None:
            given["has_preselector"] = False
    return given | {"preset": chosen_preset(settings.given_values), "recipe": settings["recipe"]}


def _start(settings: Settings) -> dict:
    """What the run starts from, and the parts of a PQ-QINCo codec."""
    model, parts = settings["model"], settings["pq"]
    if model is not None and settings["model_args"] is not None:
        raise ConfigError(f"model={model} determines the architecture: leave out model_args")
    check_num_centroids(settings)
    return {
        "coarse_centroids": settings["ivf_centroids"],
        "initial": None if model is None else qinco.Codec.load(model),
        "num_parts": 1 if parts is None else parts,
        "rotate": settings["opq"],
    }
