"""Encoding and decoding on a GPU: speed, share of the GPU's peak, and error compared with the CPU.

Shape suffixes: N vectors, D dimension, M steps, B hypotheses, C candidates.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from gpu_device import brief, copy_rate, matrix_rate, pass_size, rates
from gpu_plain import half_encoder
from gpu_setting import Setting, report_kernels, table
from torch import Tensor

from qinco.codec import Codec
from qinco.config import DEFAULT_ENCODE_OPTIONS, PAPER_ENCODE_OPTIONS, EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.engines.engine import choose_engine
from qinco.engines.tensors import pack
from qinco.errors import ConfigError
from qinco.model.qinco import Qinco, random_model

PAPER = "A=16 B=32"
RULES = {PAPER: PAPER_ENCODE_OPTIONS} | {
    f"C={C} B={B}": EncodeOptions(num_pairs=C, beam_width=B) for C, B in ((64, 32), (64, 40), (128, 64))
}
PLAIN = ("plain float16", PAPER)
PRECISIONS = ("float32", "bf16")
ERROR_ROWS, REFERENCE_ROWS, SAME_ERROR = 10_000, 4000, 1e-3
WANTED = {"qinco2-S": (800_000, 10), "qinco2-L": (None, 5)}  # vectors per second, speedup over plain torch
WANTED_DECODED = {"on the device": 1e8, "to host memory": 2e7}
_BLOCK = 4096


class Subject(NamedTuple):
    """A model on the device, normalized vectors, float32 (N, D), and whether its weights are trained."""

    preset: str
    model: Qinco
    x_ND: Tensor
    is_trained: bool


def decode_by_torch(model: Qinco, codes_NM: Tensor, start_ND: Tensor, precision: str) -> Tensor:
    return torch_engine.pack_tensors(model, precision).decode_tensors(codes_NM, start_ND)


def most_vectors(setting: Setting, on_card: int) -> int:
    """Number of vectors of the largest pass."""
    return 256 if setting.quick else on_card if setting.device.type == "cuda" else 4096


def subjects(setting: Setting) -> Iterator[Subject]:
    rows = most_vectors(setting, 1 << 18)
    codec = setting.codec()
    if codec is not None:
        x_ND = torch.from_numpy(np.resize(setting.vectors("base").limit(rows)[:], (rows, codec.dim)))
        yield Subject("qinco2-S", codec.models[0], codec.models[0].normalize(x_ND.to(setting.device)), True)
    for preset in ("qinco2-L",) if codec is not None else WANTED:
        config = setting.config(preset)
        x_ND = torch.randn(rows, config.dim, generator=torch.Generator().manual_seed(0))
        yield Subject(
            preset, random_model(config).to(setting.device).requires_grad_(False), x_ND.to(setting.device), False
        )


def operations(config: ModelConfig, options: EncodeOptions) -> float:
    """FLOP per encoded vector with a factored first layer; matrix products only."""
    D, K, E, H = config.dim, config.codebook_size, config.embed_dim, config.hidden_dim
    B = min(options.beam_width, K)
    C = options.num_pairs or B * options.num_candidates
    project = E * D if config.projects else 0
    candidate = (2 * config.num_blocks - 1) * E * H + project
    hypothesis = K * D + D * E + E * H  # pre-selection, and the first layer's part per reconstruction
    return 2 * ((config.num_steps - 1) * (C * candidate + B * hypothesis) + K * D)


# Encoding


def encode(setting: Setting) -> None:
    """Figure 1: vectors per second, compared with the plain float16 module and with the GPU's peak."""
    size, num_bytes = (256, 1 << 20) if setting.device.type != "cuda" else (8192, 1 << 32)
    best = matrix_rate(setting.device, size)
    copied = copy_rate(setting.device, num_bytes)
    print(f"The card: a {size:,}^3 bf16 product at {best / 1e12:,.1f} TFLOP/s, copies at {copied / 1e12:,.2f} TB/s.\n")
    failures = []
    for number, subject in enumerate(subjects(setting)):
        try:
            _encode(setting, subject, best, setting.at(0.5 if number == 0 else 0.8))
        except Exception as error:  # still measure the other model
            print(f"**{subject.preset} failed: {brief(error)}**\n", flush=True)
            failures.append(error)
    if failures:
        raise failures[0]


def _encode(setting: Setting, subject: Subject, best: float, until: float) -> None:
    preset, model, x_ND, is_trained = subject
    weights = "trained" if is_trained else "random"
    print(f"### {preset}, D={model.config.dim}, M={model.config.num_steps}, {weights} weights\n")
    plain, encoders = half_encoder(model), engines(model)
    x_half_ND = x_ND.half()
    cases = {PLAIN: lambda n: plain(x_half_ND[:n])}
    cases |= {key: partial(_first, encode, x_ND) for key, encode in encoders.items()}
    found = rates(cases, len(x_ND), setting.device, until)
    errors = {}
    if is_trained:
        few_ND = x_ND[: min(len(setting.vectors("base")), ERROR_ROWS)]
        ran = {key: run for key, run in _codings(plain, encoders).items() if isinstance(found[key], float)}
        errors = {key: mse(model, few_ND, run) for key, run in ran.items()}
    rows = []
    for key, rate in found.items():
        if isinstance(rate, str):
            rows.append((*key, rate, *[None] * 6))
            continue
        flop = operations(model.config, RULES[key[1]])
        ratio = rate / found[PLAIN] if isinstance(found[PLAIN], float) else None
        error, speed = errors.get(key), rate * flop
        flops = (None, None, None) if key == PLAIN else (flop / 1e9, speed / 1e12, f"{speed / best:.1%}")
        relative = None if error is None else error / errors.get(("torch", PAPER), error)
        rows.append((*key, rate, ratio, error, relative, *flops))
    columns = "engine|rule|vectors/s|/ plain|MSE|/ MSE of A=16 B=32"
    table(f"{columns}|GFLOP per vector|TFLOP/s|of the matrix rate", rows)
    _verdict(setting, subject, cases, found, errors)


def _first(encode, x_ND: Tensor, count: int):
    return encode(x_ND[:count], torch.zeros_like(x_ND[:count]))


def _codings(plain: Callable, encoders: dict) -> dict[tuple, Callable[[Tensor], Tensor]]:
    codings = {key: lambda x, e=encode: e(x, torch.zeros_like(x))[0] for key, encode in encoders.items()}
    return {PLAIN: lambda x: plain(x.half())} | codings


def engines(model: Qinco) -> dict[tuple[str, str], object]:
    """Functions that encode, by engine and options, in bf16. Prints which engines cannot run here, and why."""
    print(f"engine=auto is {choose_engine('auto', model.config, str(model.device)).name} here.")
    found, reasons = {}, {}
    for engine, (rule, options) in product(("native", "torch"), RULES.items()):
        try:
            found[engine, rule] = partial(pack(model, engine, "bf16").encode_tensors, options=options)
        except ConfigError as error:
            reasons.setdefault(str(error), []).append(rule)
    for reason, rules in reasons.items():
        print(f"Left out: {', '.join(rules)}: {reason}.")
    return found


@torch.no_grad()
def mse(model: Qinco, x_ND: Tensor, code: Callable[[Tensor], Tensor]) -> float:
    """Mean squared error in data space of codes, decoded in float32."""
    total = torch.zeros((), dtype=torch.float64, device=x_ND.device)
    for part_ND in x_ND.split(_BLOCK):
        total += (model(code(part_ND), model.initial_reconstruction(len(part_ND))) - part_ND).square().sum()
    return float(total * model.scale.double() ** 2) / len(x_ND)


def _verdict(setting: Setting, subject: Subject, cases: dict, found: dict, errors: dict) -> None:
    """The fastest case with at most the error of A=16 B=32 (C=128 B=64 if errors are unknown), and its kernels."""
    exact = errors.get(("torch", PAPER))
    ours = {key: rate for key, rate in found.items() if key != PLAIN and isinstance(rate, float)}
    if exact is None:
        equal = {key: rate for key, rate in ours.items() if key[1] == "C=128 B=64"}
    else:
        equal = {key: rate for key, rate in ours.items() if errors[key] <= exact * (1 + SAME_ERROR)}
    if not equal:
        print("No case ran.")
        return
    key = max(equal, key=equal.get)
    rate, plain = equal[key], found[PLAIN]
    wanted, times = WANTED[subject.preset]
    goal = f"at least {times} x plain" + (f" and {wanted:,} vectors per second" if wanted else "")
    ratio = f"{rate / plain:.1f} x plain" if isinstance(plain, float) else "plain failed"
    judged = "within 0.1 % of the error of A=16 B=32" if exact else "errors unknown: C=128 B=64 taken as equal"
    print(f"**Figure 1, {subject.preset}: {' '.join(key)}, {rate:,.0f} vectors per second, {ratio}** ", end="")
    print(f"({judged}; wanted: {goal}).\n")
    if time.monotonic() < setting.until:
        count = pass_size(cases[key], len(subject.x_ND), setting.device)
        report_kernels(f"{count:,} vectors", partial(cases[key], count), setting.device)


# Decoding


def decode(setting: Setting) -> None:
    """Figure 2: vectors per second, kept on the device and copied to host memory."""
    codec = setting.codec()
    if codec is None:
        codec = Codec(random_model(setting.config("qinco2-S")).to(setting.device), DEFAULT_ENCODE_OPTIONS)
    model, most = codec.models[0], most_vectors(setting, 1 << 20)
    shape = (most, codec.num_codes)
    codes_NM = torch.randint(codec.config.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    host_codes, codes_NM = codes_NM.numpy().astype(np.uint8), codes_NM.to(setting.device)
    cases = {}
    for name in PRECISIONS:

        def on_device(count: int, name=name) -> Tensor:
            return model.denormalize(
                decode_by_torch(model, codes_NM[:count], model.initial_reconstruction(count), name)
            )

        cases["on the device", name] = on_device
        cases["to host memory", name] = lambda count, name=name: codec.decode(host_codes[:count], precision=name)
    found = rates(cases, most, setting.device, setting.at(0.7))
    table("decoded|precision|vectors/s|wanted", [(*key, rate, WANTED_DECODED[key[0]]) for key, rate in found.items()])
    report_kernels(f"{most:,} vectors in bf16", partial(cases["on the device", "bf16"], most), setting.device)


# Errors


@torch.no_grad()
def error(setting: Setting) -> None:
    """Figure 4: the device's error compared with float32 on the CPU, for the same vectors."""
    codec = setting.codec()
    if codec is None:
        print("Left out: it needs a trained codec (parts=train, or model=).")
        return
    model, here = codec.models[0], setting.codec("cpu").models[0]
    x_ND = here.normalize(torch.from_numpy(setting.vectors("base").limit(REFERENCE_ROWS)[:]))
    there_ND, start_ND, rows = x_ND.to(setting.device), model.initial_reconstruction(len(x_ND)), []
    for rule, options in RULES.items():
        if setting.left < 0:
            print(f"Not reached in time: {rule}.")
            continue
        exact = pack(here, "torch", "float32")
        codes_NM = exact.encode_tensors(x_ND, torch.zeros_like(x_ND), options)[0]
        reference = _data_mse(here, x_ND, here(codes_NM, here.initial_reconstruction(len(x_ND))))
        sent_NM = codes_NM.to(setting.device)
        for precision in PRECISIONS:
            packed = pack(model, "auto", precision)
            own_NM = packed.encode_tensors(there_ND, torch.zeros_like(there_ND), options)[0]
            decoded = {
                "encoded there": here(own_NM.cpu(), here.initial_reconstruction(len(x_ND))),
                "decoded there": decode_by_torch(model, sent_NM, start_ND, precision).cpu(),
                "both": decode_by_torch(model, own_NM, start_ND, precision).cpu(),
            }
            for what, reached_ND in decoded.items():
                found = _data_mse(here, x_ND, reached_ND)
                change = found / reference - 1
                flag = "**above 0.1 %**" if abs(change) > SAME_ERROR else ""
                rows.append((rule, what, precision, reference, found, f"{change:+.4%}", flag))
    print(f"The first {len(x_ND):,} base vectors; MSE by float32 torch on the processor, and by the device.")
    table("rule|what the device did|in|MSE, processor|MSE|difference|", rows)


def _data_mse(model: Qinco, x_ND: Tensor, reached_ND: Tensor) -> float:
    squares = (reached_ND - x_ND).double().square().sum(1).mean()
    return float(squares * model.scale.double() ** 2)
