"""`qinco bench`: how fast this machine encodes and decodes, and which machine it is."""

import numpy as np
import torch

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.cli.training import run_settings
from qinco.codec.codec import Codec
from qinco.codec.evaluate import benchmark, default_options, default_precisions, default_threads
from qinco.codec.plan import plan_training
from qinco.config import EncodeOptions
from qinco.errors import ConfigError
from qinco.machine import processor_name, usable_cores
from qinco.model.random import random_model
from qinco.vectors.rows import as_source

_DIM = 128
_ARCHITECTURE = ("model_args", "qinco1_mode", "M", "K", "L", "de", "dh")


def bench(settings: Settings, console: Console) -> None:
    """Print microseconds a vector for each set of encode options, precision and number of threads."""
    name, codec = _codec(settings)
    own = inputs.encode_options(settings, codec).override(precision="auto", engine="auto")
    options = [own] if any(settings.given(key) for key in ("A", "C", "B")) else default_options(codec)
    threads = default_threads(codec) if settings["threads"] is None else [settings["threads"]]
    precisions = [settings["precision"]] if settings.given("precision") else default_precisions(codec)
    count = len(options) * len(threads) * len(precisions)
    console.info(f"measuring {name} on vectors of {codec.dim} dimensions, {count} times for about two seconds")
    found = benchmark(
        codec, threads=threads, precisions=precisions, options=options, engine=settings["engine"],
        progress=console.progress,
    )  # fmt: skip
    rows = [
        (name, _options_text(row.options), row.precision, row.threads, row.encode_us, 1e6 / row.encode_us,
         row.decode_us)
        for row in found
    ]  # fmt: skip
    _report(settings, console, rows)


def _codec(settings: Settings) -> tuple[str, Codec]:
    """The codec of `model=`, or one with random weights as `train` would make it of these settings; and its name."""
    given = [key for key in _ARCHITECTURE if settings.given(key)]
    if settings["model"] is not None:
        if given:
            raise ConfigError(f"the architecture is that of model={settings['model']}: leave out {', '.join(given)}")
        return settings["model"], inputs.open_codec(settings)
    chosen = run_settings(settings, _DIM)
    preset, recipe = chosen.pop("preset"), chosen.pop("recipe")
    run = plan_training(as_source(np.empty((1, _DIM), np.float32)), preset, chosen, recipe=recipe)
    sizes = [f"{key}={settings[key]}" for key in given if key != "model_args"]
    codec = Codec(random_model(run.model_config), run.encode_options).to(inputs.device_of(settings))
    return " ".join([*filter(None, [preset]), *sizes]), codec


def _options_text(options: EncodeOptions) -> str:
    sizes = {"A": options.num_candidates, "C": options.num_pairs, "B": options.beam_width}
    return " ".join(f"{letter}={size}" for letter, size in sizes.items() if size is not None)


def _report(settings: Settings, console: Console, rows: list[tuple]) -> None:
    device = inputs.device_of(settings)
    machine = {
        "processor": processor_name(),
        "cores": usable_cores(),
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "weights": "trained" if settings["model"] else "random, which take the same time as trained ones",
    }
    columns = ("model", "rule", "precision", "threads", "encode_us", "encode_vectors_per_second", "decode_us")
    if settings["json"]:
        console.print_result({"results": [dict(zip(columns, row, strict=True)) for row in rows]} | machine, True)
        return
    console.print_table(rows, ("model", "rule", "precision", "threads", "encode us", "encode vectors/s", "decode us"))
    console.print_result(machine, False)
