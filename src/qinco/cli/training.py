"""`task=train`: from keys to a training run."""

import time
from pathlib import Path

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.cli.resolved import RULE, SCHEDULES, SIZES, TRAINING, chosen_preset
from qinco.codec import Codec
from qinco.errors import ConfigError
from qinco.store.codec import CHECKPOINT_SUFFIX
from qinco.training.processes import Processes


def train(settings: Settings, console: Console) -> None:
    """Train a codec and write it, its state and its log."""
    source = inputs.open_trainset(settings)
    chosen = run_settings(settings, source.dim)
    output = Path(settings["output"])
    if output.suffix.lower() not in (".safetensors", CHECKPOINT_SUFFIX):
        raise ConfigError(f"output={output}: a codec is written to a .safetensors (ours) or .pt (the authors') file")
    check_output(output, overwrite=True, inputs=inputs.files_read(settings))
    is_main, begun = Processes.is_main_by_environment(), time.monotonic()
    if is_main and settings["ivf_K"] is not None and settings["ivf_centroids"] is None and settings["model"] is None:
        console.warn(
            f"ivf_K={settings['ivf_K']} has no effect without ivf_centroids=FILE, which task ivf_centroids writes: "
            "this codec will have no lists"
        )
    codec = Codec.fit(
        source,
        output=output,
        resume=settings["resume"],
        overwrite=settings["overwrite"],
        device=inputs.device_of(settings),
        tensorboard=settings["tensorboard"],
        mse_scale=inputs.mse_scale(settings),
        progress=console.progress,
        **chosen,
        **_sources(settings),
    )
    if not is_main:
        return
    result = {
        "output": str(output),
        "mse": codec.provenance["valid_mse"] * inputs.mse_scale(settings),
        "epoch": codec.provenance["epoch"],
        "num_vectors": codec.provenance["num_vectors"],
        "bytes_per_vector": codec.bytes_per_vector,
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def run_settings(settings: Settings, dim: int) -> dict:
    """The arguments of `fit` that the command line gives; what it leaves out is for preset and recipe to decide."""
    chosen = {name: settings[key] for key, name in (SIZES | RULE | TRAINING).items() if settings.given(key)}
    if settings.given("de") and settings["de"] is None:
        chosen["embed_dim"] = dim
    if "schedule" in chosen:
        chosen["schedule"] = {theirs: ours for ours, theirs in SCHEDULES.items()}[chosen["schedule"]]
    if settings["qinco1_mode"]:
        if settings["model_args"] not in (None, "qinco1"):
            raise ConfigError(f"qinco1_mode=true contradicts model_args={settings['model_args']}: keep one of them")
        chosen |= {"codeword_skip": False, "embed_dim": dim}
        if settings["A"] is None and settings["C"] is None:
            chosen["has_preselector"] = False
    preset = chosen_preset(settings.task, settings.given_values)
    return chosen | {"preset": preset, "recipe": settings["recipe"]}


def _sources(settings: Settings) -> dict:
    """What the run starts from: centroids, another codec, or the parts of a PQ-QINCo codec."""
    centroids, model = settings["ivf_centroids"], settings["model"]
    if settings["pq"] is None and settings["opq"]:
        raise ConfigError("opq=true needs pq=, the number of parts that the rotated vectors are cut into")
    if settings["pq"] is not None:
        if centroids is not None or model is not None:
            raise ConfigError("pq= trains a codec of several parts: leave out ivf_centroids= and model=")
        return {"num_parts": settings["pq"], "rotate": settings["opq"]}
    if model is not None and settings["model_args"] is not None:
        raise ConfigError(f"model={model} determines the architecture: leave out model_args")
    if centroids is not None and settings["ivf_K"] is not None:
        found = len(inputs.open_vectors(centroids))
        if found != settings["ivf_K"]:
            raise ConfigError(f"ivf_K={settings['ivf_K']}, but {centroids} holds {found} centroids")
    return {"coarse_centroids": centroids, "initial": None if model is None else Codec.load(model)}
