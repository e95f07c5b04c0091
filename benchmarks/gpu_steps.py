"""The Triton engine on a GPU: is it right, is it the same every time, and where does the time of a step go.

Shape suffixes: N vectors, D dimension.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from gpu_device import brief, matrix_rate, seconds_of
from gpu_setting import Setting, say

from qinco.config import EncodeOptions
from qinco.engines.tensors import pack
from qinco.engines.triton.packed import products
from qinco.maths.recording import record
from qinco.model.qinco import Qinco, random_model

PRESETS_HERE = ("qinco2-S", "qinco2-M", "qinco2-L")
REPEATS, ROUNDS = 5, 5


def pairs_rule(setting: Setting) -> EncodeOptions:
    return EncodeOptions(num_pairs=8, beam_width=2) if setting.quick else EncodeOptions(num_pairs=64, beam_width=32)


def check(setting: Setting) -> None:
    """What the engine's own check says of each model and precision, each way's time, and repeated encodings."""
    for preset in PRESETS_HERE[:1] if setting.quick else PRESETS_HERE:
        model = random_model(setting.config(preset)).to(setting.device).requires_grad_(False)
        for precision in ("bf16", "float32"):
            try:
                _check(setting, preset, model, precision)
            except Exception as error:  # the others are still of interest
                say(check=preset, precision=precision, failed=brief(error))


def _check(setting: Setting, preset: str, model: Qinco, precision: str) -> None:
    packed, options = pack(model, "triton", precision), pairs_rule(setting)
    for what, rule in (("encode", options), ("decode", None)):
        verdict = packed.verdict(rule)  # pyright: ignore[reportAttributeAccessIssue]
        way = verdict.way.name if verdict.way else "torch"
        say(
            check=preset, precision=precision, what=what, way=way, fault=verdict.fault, refused=verdict.refused,
            seconds_of_a_tile=verdict.seconds,
        )  # fmt: skip
    x_ND = torch.randn(_rows(setting), model.config.dim, generator=torch.Generator().manual_seed(2)).to(setting.device)
    start_ND = torch.zeros_like(x_ND)
    runs = [packed.encode_tensors(x_ND, start_ND, options)[0] for _ in range(2 if setting.quick else REPEATS)]
    same = all(torch.equal(runs[0], codes) for codes in runs)
    few, rest = packed.encode_tensors(x_ND[:2], start_ND[:2], options)[0], runs[0][:2]
    say(
        check=preset,
        precision=precision,
        repeats=len(runs),
        same_every_time=same,
        same_in_a_graph=torch.equal(few, rest),
    )


def _rows(setting: Setting) -> int:
    return 3 if setting.quick else 4224  # 33 tiles of 128 candidates for each of 132 multiprocessors, at C=64


def time_steps(setting: Setting) -> None:
    """One step by each way of computing it: what proposing, the network and choosing take, and the matrix rate."""
    best = matrix_rate(setting.device, 256 if setting.quick else 8192)
    for preset in PRESETS_HERE[:1] if setting.quick else PRESETS_HERE[:2]:
        model = random_model(setting.config(preset)).to(setting.device).requires_grad_(False)
        packed = pack(model, "triton", "bf16")
        for way in _ways(setting, packed):
            if setting.left < 0:
                say(step=preset, way=way.name, failed="not reached in time")
                continue
            try:
                _time_step(setting, preset, packed, way, best)
            except Exception as error:  # a way that does not fit this card is a result, too
                say(step=preset, way=way.name, failed=brief(error))


def _ways(setting: Setting, packed) -> list:
    """The engine's ways, and other cuts that may turn out to be faster."""
    launches, ways = packed.launches, packed.ways
    if setting.quick:
        return ways
    layers = launches.Plan(128, 128, 64, num_stages=3)
    by_layers = replace(ways[-1], name="layers", evaluate=launches.evaluate_by_layers, plan=layers)
    if packed.model.config.embed_dim <= 128:
        cuts = {"32 columns": launches.Plan(128, 128, 32), "small tiles": launches.Plan(64, 128, 64, num_warps=4)}
    else:
        fused = launches.Plan(128, 64, 32, THROUGH=True)
        cuts = {"fused": fused, "fused, small tiles": launches.Plan(64, 128, 32, THROUGH=True)}
    more = [
        replace(by_layers, name=name, evaluate=launches.evaluate_streamed, plan=plan) for name, plan in cuts.items()
    ]
    return [*ways, *([] if ways[-1].name == "layers" else [by_layers]), *more]


def _time_step(setting: Setting, preset: str, packed, way, best: float) -> None:
    launches, search, steps = packed.launches, packed.search, packed.steps
    config, options, device, rows = packed.model.config, pairs_rule(setting), setting.device, _rows(setting)
    x_ND = torch.randn(rows, config.dim, generator=torch.Generator().manual_seed(2)).to(device)
    beam, step, count = options.beam_width, steps[1], options.num_pairs or 1
    reached = torch.randn(rows * beam, config.dim, device=device)
    residual, own = launches.residuals(x_ND, reached)
    launches.SPILLED.clear()
    pairs, parts = launches.propose(step, residual, own, beam, count), launches.parts_of(step, reached)
    distances, streams = way.evaluate(step, way.plan, pairs, parts, residual)
    work = {
        "encode": lambda: search.encode(steps, way, options, x_ND, torch.zeros_like(x_ND)),
        "propose": lambda: launches.propose(step, residual, own, beam, count),
        "products": lambda: products(residual, step),
        "parts": lambda: launches.parts_of(step, reached),
        "evaluate": lambda: way.evaluate(step, way.plan, pairs, parts, residual),
        "choose": lambda: launches.choose(step, pairs, distances, streams, x_ND, reached, beam),
    }
    found = {name: _median(run, setting) for name, run in work.items()}
    flop = 2 * config.embed_dim * config.hidden_dim * (2 * config.num_blocks - 1) * pairs.numel()
    say(
        step=preset, way=way.name, spills=sorted(launches.SPILLED),
        microseconds_a_vector={name: 1e6 * seconds / rows for name, seconds in found.items()},
        network_flops=flop / found["evaluate"], share_of_the_matrix_rate=flop / found["evaluate"] / best,
    )  # fmt: skip
    if device.type == "cuda":
        _time_graph(preset, way, work["encode"], rows, device)


def _time_graph(preset: str, way, encode: Callable, rows: int, device: torch.device) -> None:
    """What a graph saves is what launching costs."""
    wanted, _ = encode()
    replay, (codes, _) = record(encode)
    replay()
    taken = statistics.median(seconds_of(replay, device) for _ in range(ROUNDS))
    say(step=preset, way=way.name, by_a_graph=1e6 * taken / rows, graph_is_the_same=torch.equal(codes, wanted))


def _median(run: Callable, setting: Setting) -> float:
    run()
    return statistics.median(seconds_of(partial(run), setting.device) for _ in range(1 if setting.quick else ROUNDS))
