"""`qinco bench`: encoding and decoding speed of this machine."""

import qinco
from qinco.cli.keys import ENCODING, MACHINE, Settings, task
from qinco.cli.open import encode_options, find_device, open_codec
from qinco.cli.tasks.train import fit_arguments
from qinco.config import AUTO_PRESET, EncodeOptions, field_keys
from qinco.errors import ConfigError

_DIM = 128
_ARCHITECTURE = ("model_args", "qinco1_mode", "M", "K", "L", "de", "dh")


@task(
    "bench",
    "encoding and decoding speed of this machine",
    keys=[f"model model_args M K L de dh qinco1_mode {ENCODING} {MACHINE}"],
    imports=("qinco.codec",),
)
def bench(settings, console) -> None:
    from qinco.machine import processor_name, usable_cores
    from qinco.maths.devices import device_name

    name, codec = _codec(settings)
    own = encode_options(settings, codec).override(precision="auto", engine="auto")
    cases = {
        "threads": None if settings["threads"] is None else [settings["threads"]],
        "precisions": [settings["precision"]] if settings.given("precision") else None,
        "options": [own] if any(settings.given(key) for key in ("A", "C", "B")) else None,
    }
    console.info(f"measuring {name} on vectors of dimension {codec.dim}, each combination for about two seconds")
    measured = qinco.benchmark(codec, **cases, engine=settings["engine"], progress=console.progress)
    keys = field_keys(EncodeOptions)
    rows = [
        {
            "model": name,
            "rule": " ".join(f"{keys[field]}={value}" for field, value in speed.options.to_dict().items() if value),
            "precision": speed.precision, "threads": speed.threads,
            "encode_us": speed.encode_us, "encode_vectors_per_second": 1e6 / speed.encode_us,
            "decode_us": speed.decode_us,
        }
        for speed in measured
    ]  # fmt: skip
    machine = {
        "processor": processor_name(), "cores": usable_cores(), "device": device_name(codec.device),
        "weights": "trained" if settings["model"] else "random, as fast as trained ones",
    }  # fmt: skip
    if settings["json"]:
        console.print_result({"results": rows} | machine, True)
        return
    columns = ("model", "options", "precision", "threads", "encode us", "encode vectors/s", "decode us")
    console.print_table([list(row.values()) for row in rows], columns)
    console.print_result(machine, False)


def _codec(settings: Settings) -> "tuple[str, qinco.Codec]":
    """The codec of `model=`, or one with random weights as `train` would make it of these settings; and its name."""
    given = [key for key in _ARCHITECTURE if settings.given(key)]
    if settings["model"] is not None:
        if given:
            raise ConfigError(f"model={settings['model']} determines the architecture: leave out {', '.join(given)}")
        return settings["model"], open_codec(settings)
    import numpy as np

    from qinco.codec.plan import plan_training
    from qinco.model.weights import random_weights
    from qinco.vectors.rows import as_source

    arguments = fit_arguments(settings, _DIM)
    preset, recipe = arguments.pop("preset"), arguments.pop("recipe")
    preset = "qinco2-S" if preset == AUTO_PRESET else preset
    plan = plan_training(as_source(np.empty((1, _DIM), np.float32)), preset, arguments, recipe=recipe)
    sizes = [f"{key}={settings[key]}" for key in given if key != "model_args"]
    codec = qinco.Codec(random_weights(plan.model_config), plan.encode_options).to(find_device(settings))
    is_whole = {"L", "de", "dh"}.issubset(given)  # nothing is left of the preset
    return " ".join([*([] if preset is None or is_whole else [preset]), *sizes]), codec
