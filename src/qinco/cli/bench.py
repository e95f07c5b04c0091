"""`qinco bench`: how fast this machine encodes and decodes, and which machine it is."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.overrides import Settings
from qinco.cli.training import run_settings
from qinco.codec.codec import Codec
from qinco.codec.evaluate import median_us
from qinco.codec.plan import plan_training
from qinco.codec.product import ProductCodec
from qinco.config import DEFAULT_SEARCH, PAPER_SEARCH, EncodeOptions
from qinco.engines.engine import candidate_dtype
from qinco.errors import ConfigError
from qinco.machine import processor_name, usable_cores
from qinco.model.random import random_model
from qinco.vectors.rows import as_source

_DIM = 128
_RULES = (PAPER_SEARCH, DEFAULT_SEARCH, EncodeOptions(num_pairs=16, beam_width=4))
_ARCHITECTURE = ("model_args", "qinco1_mode", "M", "K", "L", "de", "dh")
_PASS_US = 400_000  # three passes of this length are a second or so, and noise of a millisecond does not show
_MOST_VECTORS = 32_768
_MOST_BYTES = 1 << 26


def bench(settings: Settings, console: Console) -> None:
    """Print microseconds a vector for each search rule, precision and number of threads."""
    name, codec = _codec(settings)
    cases = list(product(_thread_counts(settings), _precisions(settings, codec), _rules(settings, codec)))
    console.info(f"measuring {name} on vectors of {codec.dim} dimensions, {len(cases)} times for about two seconds")
    encode, decode = _workloads(codec)
    most = _most_vectors(codec.dim)
    rows, decode_us = [], {}
    threads_before = torch.get_num_threads()
    try:
        with console.progress(len(cases), "measurement", "measuring") as progress:
            for threads, precision, rule in cases:
                torch.set_num_threads(threads)
                decoder = threads, "bf16" if precision == "bf16" else "float32"
                if decoder not in decode_us:
                    decode_us[decoder] = _microseconds(partial(decode, decoder[1]), most)
                options = rule.override(precision=precision, engine=settings["engine"])
                encode_us = _microseconds(partial(encode, options), most)
                rows.append(
                    (name, _rule_text(rule), precision, threads, encode_us, 1e6 / encode_us, decode_us[decoder])
                )
                progress.update(len(rows))
    finally:
        torch.set_num_threads(threads_before)
    _report(settings, console, rows)


# What is measured


def _codec(settings: Settings) -> tuple[str, Codec | ProductCodec]:
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


def _rules(settings: Settings, codec: Codec | ProductCodec) -> list[EncodeOptions]:
    """The rule that the command line asks for, or the usual ones and the codec's own."""
    own = inputs.encode_options(settings, codec).override(precision="auto", engine="auto")
    if any(settings.given(key) for key in ("A", "C", "B")):
        return [own]
    return list(dict.fromkeys((*_RULES, own) if codec.config.has_preselector else (EncodeOptions(), own)))


def _thread_counts(settings: Settings) -> list[int]:
    if settings["threads"] is not None:
        return [settings["threads"]]
    every = torch.get_num_threads()
    return sorted({1, every}) if inputs.device_of(settings).type == "cpu" else [every]


def _precisions(settings: Settings, codec: Codec | ProductCodec) -> list[str]:
    if settings.given("precision"):
        return [settings["precision"]]
    is_bf16 = candidate_dtype("auto", inputs.device_of(settings), codec.config) is torch.bfloat16
    return ["float32", "auto"] if is_bf16 else ["float32"]


def _workloads(codec: Codec | ProductCodec) -> tuple[Callable, Callable]:
    """`encode(options, n)` and `decode(precision, n)`: work on the first n of the same random vectors and codes."""
    count, config = _most_vectors(codec.dim), codec.config
    random = np.random.default_rng(0)
    vectors = as_source(random.standard_normal((count, codec.dim), np.float32))
    codes = random.integers(config.codebook_size, size=(count, codec.code_size))
    lists = random.integers(config.num_lists, size=count) if codec.is_ivf else None

    def encode(options: EncodeOptions, n: int) -> None:
        for _ in codec.encode_blocks(vectors.limit(n), options):
            pass

    def decode(precision: str, n: int) -> None:
        codec.decode(codes[:n], None if lists is None else lists[:n], precision=precision)

    return encode, decode


def _most_vectors(dim: int) -> int:
    return max(1, min(_MOST_VECTORS, _MOST_BYTES // (4 * dim)))


def _microseconds(work: Callable[[int], None], most: int) -> float:
    """Microseconds a vector of `work(n)`: the median of three passes over so many vectors that one takes a while."""
    count = 1
    while True:
        taken = median_us(partial(work, count), count)
        if count == most or count * taken >= _PASS_US / 2:
            return taken
        count = min(most, max(2 * count, round(_PASS_US / taken)))


def _rule_text(rule: EncodeOptions) -> str:
    sizes = {"A": rule.num_candidates, "C": rule.num_pairs, "B": rule.beam_width}
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
