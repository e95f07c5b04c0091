"""Encoding and decoding on a GPU: speed, share of the GPU's peak, and error compared with the CPU.

Shape suffixes: N vectors, D dimension, M steps, B hypotheses, C candidates.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from gpu_device import brief, matrix_rate, pass_size, rates
from gpu_plain import half_encoder
from gpu_setting import Setting, report_kernels, say, table
from torch import Tensor

from qinco.codec import Codec
from qinco.config import DEFAULT_ENCODE_OPTIONS, PAPER_ENCODE_OPTIONS, EncodeOptions, ModelConfig
from qinco.engines.engine import choose_engine
from qinco.engines.tensors import pack
from qinco.errors import ConfigError
from qinco.model.qinco import Qinco, random_model

PAPER = "A=16 B=32"
PAIRS = "C=64 B=32"
RULES = {
    PAIRS: EncodeOptions(num_pairs=64, beam_width=32), PAPER: PAPER_ENCODE_OPTIONS,
    "C=80 B=40": DEFAULT_ENCODE_OPTIONS,
}  # fmt: skip
TINY_RULES = {
    PAIRS: EncodeOptions(num_pairs=8, beam_width=2), PAPER: EncodeOptions(num_candidates=2, beam_width=2),
}  # fmt: skip
PLAIN = ("plain float16", PAPER)
PRECISIONS = ("float32", "bf16")
ERROR_ROWS, REFERENCE_ROWS, SAME_ERROR = 10_000, 4000, 1e-3
WANTED = {"qinco2-S": 800_000, "qinco2-M": None, "qinco2-L": None}  # vectors per second
WANTED_DECODED = {"on the device": 1e8, "to host memory": 2e7}
_BLOCK = 4096


class Subject(NamedTuple):
    """A model on the device, normalized vectors, float32 (N, D), and whether its weights are trained."""

    preset: str
    model: Qinco
    x_ND: Tensor
    is_trained: bool


def decode_by(engine: str, model: Qinco, codes_NM: Tensor, start_ND: Tensor, precision: str) -> Tensor:
    return pack(model, engine, precision).decode_tensors(codes_NM, start_ND)


def most_vectors(setting: Setting, on_card: int) -> int:
    """Number of vectors of the largest pass."""
    return 4 if setting.quick else on_card if setting.device.type == "cuda" else 4096


def subjects(setting: Setting) -> Iterator[Subject]:
    rows = most_vectors(setting, 1 << 18)
    codec = setting.codec()
    if codec is not None:
        x_ND = torch.from_numpy(np.resize(setting.vectors("base").limit(rows)[:], (rows, codec.dim)))
        yield Subject("qinco2-S", codec.models[0], codec.models[0].normalize(x_ND.to(setting.device)), True)
    for preset in ("qinco2-M", "qinco2-L") if codec is not None else list(WANTED)[: 1 if setting.quick else None]:
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


def rules(setting: Setting) -> dict[str, EncodeOptions]:
    return TINY_RULES if setting.quick else RULES


# Encoding


def encode(setting: Setting) -> None:
    """Figure 1: vectors per second by each engine, beside plain float16 torch and the GPU's peak."""
    best = matrix_rate(setting.device, 256 if setting.device.type != "cuda" else 8192)
    failures = []
    for number, subject in enumerate(subjects(setting)):
        try:
            _encode(setting, subject, best, setting.at((0.5, 0.6, 0.8)[number]))
        except Exception as error:  # still measure the other models
            say(encode=subject.preset, failed=brief(error))
            failures.append(error)
    if failures:
        raise failures[0]


def _encode(setting: Setting, subject: Subject, best: float, until: float) -> None:
    preset, model, x_ND, is_trained = subject
    plain, encoders = half_encoder(model), engines(setting, model)
    x_half_ND = x_ND.half()
    cases: dict = {key: partial(_first, encode, x_ND) for key, encode in encoders.items()}
    if not setting.quick:
        cases[PLAIN] = lambda n: plain(x_half_ND[:n])
    found = rates(cases, len(x_ND), setting.device, until)
    errors = {}
    if is_trained:
        few_ND = x_ND[: most_vectors(setting, ERROR_ROWS)]
        errors = {key: mse(model, few_ND, run) for key, run in _codings(plain, encoders).items() if key in found}
    for (engine, rule), rate in found.items():
        if isinstance(rate, str):
            say(encode=preset, engine=engine, rule=rule, failed=rate)
            continue
        flop, plainly, torchs = operations(model.config, rules(setting)[rule]), found.get(PLAIN), found["torch", rule]
        say(
            encode=preset, engine=engine, rule=rule, trained=is_trained, vectors_per_second=rate,
            times_plain=rate / plainly if isinstance(plainly, float) else None,
            times_torch=rate / torchs if isinstance(torchs, float) else None, mse=errors.get((engine, rule)),
            gflop_a_vector=flop / 1e9, share_of_the_matrix_rate=None if engine == PLAIN[0] else rate * flop / best,
            wanted=WANTED[preset] if (engine, rule) == ("triton", PAIRS) else None,
        )  # fmt: skip
    key = next((key for key in (("triton", PAIRS), ("torch", PAIRS)) if isinstance(found.get(key), float)), None)
    if key is not None and time.monotonic() < setting.until:
        count = pass_size(cases[key], len(x_ND), setting.device)
        report_kernels(f"{preset}, {' '.join(key)}, {count:,} vectors", partial(cases[key], count), setting.device)


def _first(encode, x_ND: Tensor, count: int):
    return encode(x_ND[:count], torch.zeros_like(x_ND[:count]))


def _codings(plain: Callable, encoders: dict) -> dict[tuple, Callable[[Tensor], Tensor]]:
    codings = {key: lambda x, e=encode: e(x, torch.zeros_like(x))[0] for key, encode in encoders.items()}
    return {PLAIN: lambda x: plain(x.half())} | codings


def engines(setting: Setting, model: Qinco) -> dict[tuple[str, str], Callable]:
    """Functions that encode, by engine and options, in bf16. Says which engines cannot run here, and why."""
    say(engine_auto=choose_engine("auto", model.config, str(model.device)).name)
    found, reasons = {}, {}
    for engine, (rule, options) in product(("triton", "torch"), rules(setting).items()):
        try:
            packed = pack(model, engine, "bf16")
            found[engine, rule] = partial(packed.encode_tensors, options=options)
            if verdict := getattr(packed, "verdict", None):
                judged = verdict(options)
                say(engine=engine, rule=rule, way=judged.way and judged.way.name, fault=judged.fault)
        except ConfigError as error:
            reasons.setdefault(str(error), []).append(rule)
    for reason, left_out in reasons.items():
        say(left_out=left_out, reason=reason)
    return found


@torch.no_grad()
def mse(model: Qinco, x_ND: Tensor, code: Callable[[Tensor], Tensor]) -> float:
    """Mean squared error in data space of codes, decoded in float32."""
    total = torch.zeros((), dtype=torch.float64, device=x_ND.device)
    for part_ND in x_ND.split(_BLOCK):
        total += (model(code(part_ND), model.initial_reconstruction(len(part_ND))) - part_ND).square().sum()
    return float(total * model.scale.double() ** 2) / len(x_ND)


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
    for engine, precision in product(("triton", "torch"), PRECISIONS):
        with suppress(ConfigError):  # the encoding says why
            packed = pack(model, engine, precision)

            def on_device(count: int, packed=packed) -> Tensor:
                start_ND = model.initial_reconstruction(count)
                return model.denormalize(packed.decode_tensors(codes_NM[:count], start_ND))

            cases["on the device", engine, precision] = on_device
    for precision in PRECISIONS:
        cases["to host memory", "auto", precision] = lambda count, precision=precision: codec.decode(
            host_codes[:count], precision=precision
        )
    found = rates(cases, most, setting.device, setting.at(0.7))
    table(
        "decoded|engine|precision|vectors/s|wanted",
        [(*key, rate, WANTED_DECODED[key[0]]) for key, rate in found.items()],
    )
    key = next(key for key in cases if key[2] == "bf16")
    report_kernels(f"{most:,} vectors, {' '.join(key)}", partial(cases[key], most), setting.device)


# Errors


@torch.no_grad()
def error(setting: Setting) -> None:
    """Figure 4: the device's error compared with float32 on the CPU, for the same vectors."""
    codec = setting.codec()
    if codec is None:
        return say(left_out="errors", reason="they need a trained codec (parts=train, or model=)")
    model, here = codec.models[0], setting.codec("cpu").models[0]
    x_ND = here.normalize(torch.from_numpy(setting.vectors("base").limit(most_vectors(setting, REFERENCE_ROWS))[:]))
    there_ND, start_ND, rows = x_ND.to(setting.device), model.initial_reconstruction(len(x_ND)), []
    for rule, options in rules(setting).items():
        if setting.left < 0:
            say(error=rule, failed="not reached in time")
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
                "decoded there": decode_by("auto", model, sent_NM, start_ND, precision).cpu(),
                "both": decode_by("auto", model, own_NM, start_ND, precision).cpu(),
            }
            for what, reached_ND in decoded.items():
                found = _data_mse(here, x_ND, reached_ND)
                change = found / reference - 1
                rows.append((rule, what, precision, reference, found, change, abs(change) <= SAME_ERROR))
    columns = "rule|what the device did|precision|MSE, processor|MSE|difference|within 0.1 %"
    table(columns, rows, f"the first {len(x_ND):,} base vectors")


def _data_mse(model: Qinco, x_ND: Tensor, reached_ND: Tensor) -> float:
    squares = (reached_ND - x_ND).double().square().sum(1).mean()
    return float(squares * model.scale.double() ** 2)
