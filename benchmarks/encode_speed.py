"""Measure encoding and decoding on this machine, and the error that speed costs: a Markdown report on stdout.

    python benchmarks/encode_speed.py [model=PATH db=PATH] [count=N] [quick]

Models have random weights; a trained `model` is measured beside them, and its error on the first `count` (10,000)
vectors of `db`. Takes less than eight minutes on two cores; `quick` only checks that everything runs. Set
GOMP_SPINCOUNT=1000: torch's threads spin while they wait, which disturbs the case that follows.

Shape suffixes: N vectors, D dimension, M steps, A candidates of a hypothesis, C of a vector, B hypotheses, E stream.
"""

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from report import commit, without_folders
from torch import Tensor

from qinco.codec import Codec
from qinco.codec.evaluate import evaluate
from qinco.config import PAPER_ENCODE_OPTIONS, PRESETS, EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.engines.engine import candidate_precision
from qinco.engines.tensors import pack
from qinco.errors import ConfigError
from qinco.machine import processor_name, set_num_threads, usable_cores
from qinco.model.qinco import Qinco, random_model
from qinco.native import library
from qinco.vectors.rows import as_source

PAPER, MORE, PAIRS = "A=16 B=32", "A=32 B=32", ((64, 32), (64, 40), (16, 4))
PRESELECTED = {PAPER: PAPER_ENCODE_OPTIONS} | {
    f"C={C} B={B}": EncodeOptions(num_pairs=C, beam_width=B) for C, B in PAIRS
}
RULES = {True: PRESELECTED, False: {"all B=1": EncodeOptions()}}  # by has_preselector
SMALL = PRESETS["qinco2-S"]
CONFIGS = {f"QINCo2-S D={D} M={M}": ModelConfig(D, M, **SMALL) for D in (128, 768) for M in (8, 16)}
FIRST, *_ = CONFIGS
CONFIGS["QINCo1 L=2 D=128 M=8"] = ModelConfig(128, **PRESETS["qinco1"] | {"num_blocks": 2})
PRECISIONS = ("float32", "bf16")
FAST = candidate_precision("auto", "cpu", CONFIGS[FIRST])
ROWS, TRIAL_ROWS, REFERENCE_ROWS = 16_384, 16, 2000
PLAIN_CANDIDATES = 65_536  # per batch, as in the published code
PASS_US, MOST_US = 1.5e5, 8e6  # at least, per pass; at most, per case


@torch.no_grad()
def encode_plainly(model: Qinco, options: EncodeOptions, batch: int, x_ND: Tensor) -> Tensor:
    """Codes, int64 (N, M), by the papers' algorithm as written: the whole network for every candidate.

    In the dtype of model and vectors, on their device; distances are float32.
    """
    if len(x_ND) > batch:
        return torch.cat([encode_plainly(model, options, batch, part) for part in x_ND.split(batch)])
    reached_NBD = torch.zeros_like(x_ND)[:, None]
    codes_NBM = torch.empty(len(x_ND), 1, 0, dtype=torch.int64, device=x_ND.device)
    for step in model.steps:
        proposals = step.preselector if step.conditioned else step.codebook
        if proposals is None:
            every_K = torch.arange(model.config.codebook_size, device=x_ND.device)
            codes_NBA = every_K.expand(*reached_NBD.shape[:2], -1)
        else:
            count = options.num_candidates if step.conditioned else options.beam_width
            residual_NBD = (x_ND[:, None] - reached_NBD).float()
            codes_NBA = torch.cdist(residual_NBD, proposals.weight.float()).topk(count, largest=False).indices
        reached_NCD = reached_NBD.repeat_interleave(codes_NBA.shape[2], 1)
        f_NCD = c_NCD = step.codebook(codes_NBA.flatten(1))
        if step.conditioned:
            z_NCE = c_NCD if step.project_in is None else step.project_in(c_NCD)
            e_NCE = z_NCE + step.concat.outer(torch.cat([z_NCE, reached_NCD], 2))
            f_NCD = step.finish(step.refine(e_NCE), c_NCD)
        distances_NC = (x_ND[:, None] - reached_NCD - f_NCD).square().sum(2, dtype=torch.float32)
        winners_NB = distances_NC.topk(min(options.beam_width, distances_NC.shape[1]), largest=False).indices
        reached_NBD = (reached_NCD + f_NCD).take_along_dim(winners_NB[..., None], 1)
        kept_NBM = codes_NBM.take_along_dim(winners_NB[..., None] // codes_NBA.shape[2], 1)
        codes_NBM = torch.cat([kept_NBM, codes_NBA.flatten(1).gather(1, winners_NB)[..., None]], 2)
    return codes_NBM[:, 0]


class Case(NamedTuple):
    key: tuple
    threads: int
    least: int  # vectors per pass, or a small multiple
    work: Callable[[int], object]

    def time(self, count: int) -> float:
        """Microseconds of one pass of `count` vectors."""
        set_num_threads(self.threads)
        time.sleep(0.01)  # until the threads of another case have stopped spinning
        begun = time.perf_counter()
        self.work(count)
        return (time.perf_counter() - begun) * 1e6

    def count(self) -> int:
        """Number of vectors for a pass that takes long enough to time. Also warms up."""
        groups = PASS_US * TRIAL_ROWS / min(self.time(TRIAL_ROWS), self.time(TRIAL_ROWS)) / self.least
        return min(ROWS, max(1, round(groups)) * self.least)


def on_both(key: tuple, least: int, work: Callable, *arrays: Tensor) -> list[Case]:
    return [Case(key, threads, least, lambda n: work(*(array[:n] for array in arrays))) for threads in (1, 2)]


def native(key: tuple, model: Qinco, x_ND: Tensor, precision: str, rules: dict) -> Iterator[Case]:
    packed, start_ND = pack(model, "native", precision), torch.zeros_like(x_ND)
    # The engine tabulates the second step after some thousands of vectors; two steps are enough to trigger it.
    packed.encode_tensors(x_ND[:4096], start_ND[:4096], next(iter(rules.values())), 2)
    for rule, options in rules.items():
        # Enough groups of vectors that no thread waits long for the last one.
        yield from on_both((*key, rule), 128, partial(packed.encode_tensors, options=options), x_ND, start_ND)


def encoding(name: str, model: Qinco, x_ND: Tensor) -> Iterator[Case]:
    rules, start_ND = RULES[model.config.has_preselector], torch.zeros_like(x_ND)
    for number, (rule, options) in enumerate(rules.items()):
        each = options.num_pairs or options.beam_width * (options.num_candidates or model.config.codebook_size)
        tile, packed = torch_engine.TILE_CANDIDATES // each, pack(model, "torch", FAST)
        for engine, rows in {"plain": PLAIN_CANDIDATES // each, "plain in cache": tile}.items() if number == 0 else ():
            yield from on_both((name, engine, rule), rows, partial(encode_plainly, model, options, rows), x_ND)
        yield from on_both((name, "torch", rule), tile, partial(packed.encode_tensors, options=options), x_ND, start_ND)
    more = {MORE: EncodeOptions(num_candidates=32, beam_width=32)} if model.config.has_preselector else {}
    yield from native((name, "native"), model, x_ND, FAST, rules | more)
    for level in library.LEVELS if name == FIRST else ():
        # A level that the processor lacks raises ConfigError. Only the best one has bf16, so all use float32.
        with suppress(ConfigError), mock.patch.dict(os.environ, QINCO_NATIVE_LEVEL=level):
            yield from native((name, f"native float32 {level}"), model, x_ND, "float32", {PAPER: PAPER_ENCODE_OPTIONS})


def decoding(name: str, model: Qinco, start_ND: Tensor) -> Iterator[Case]:
    codes_NM = torch.randint(model.config.codebook_size, (len(start_ND), model.config.num_steps))
    for precision, engine in product(PRECISIONS, ("torch", "native")):
        decode = pack(model, engine, precision).decode_tensors
        yield from on_both((name, engine, precision), 256, decode, codes_NM, start_ND)


def products() -> Iterator[Case]:
    """Torch's matrix products at the sizes of the network, with few rows (in cache) and with many."""
    dtype = torch.bfloat16 if FAST == "bf16" else torch.float32
    for rows, (inner, outer) in product((256, 1024, 4096, 16_384), ((128, 256), (256, 128))):
        a, b = (torch.randn(shape).to(dtype) for shape in ((rows, inner), (outer, inner)))
        multiply = partial(torch.mm, a, b.T, out=torch.empty(rows, outer, dtype=dtype))
        yield Case((rows, inner, outer), 1, 1, lambda n, multiply=multiply: [multiply() for _ in range(n)])


def measure(cases: list[Case], quick: bool) -> dict[tuple, float]:
    """Median microseconds per vector of each case, {(*key, threads): us}; cases are interleaved."""
    counts, passes = [2 if quick else case.count() for case in cases], [[] for _ in cases]
    for number in range(1 if quick else 5):
        print(f"round {number + 1}: {len(cases)} cases", file=sys.stderr)
        for case, count, taken in zip(cases, counts, passes, strict=True):
            if sum(taken) < MOST_US:
                taken.append(case.time(count))
    rows = zip(cases, counts, passes, strict=True)
    return {(*case.key, case.threads): statistics.median(taken) / count for case, count, taken in rows}


def table(columns: str, rows: list[tuple]) -> None:
    cells = [columns.split(", "), ["---"] * (columns.count(", ") + 1), *rows]
    print("\n" + "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells) + "\n")


def report_times(us: dict[tuple, float], title: str, cases: list[Case], theirs: str) -> None:
    """A table of cases, each compared with the first case of the engine `theirs` for the same model."""
    rows = []
    for key in dict.fromkeys(case.key for case in cases):
        first = next(case.key for case in cases if case.key[:2] == (key[0], theirs))
        one, two, slow, slow_two = (us[*k, threads] for k in (key, first) for threads in (1, 2))
        ratios = f"{one / two:.2f}", f"{slow / one:.1f}", f"{slow_two / two:.1f}"
        rows.append((*key, f"{one:,.1f}", f"{two:,.1f}", *ratios))
    print(f"## {title}, us per vector")
    table(f"model, engine, what, 1 thread, 2 threads, 1 / 2, {theirs} / this: 1, {theirs} / this: 2 threads", rows)


def report_network(us: dict[tuple, float], products: list[Case]) -> None:
    # A candidate takes 2L - 1 products of E x H, since its first layer is tabulated. Additional candidates run the
    # network in every step except the first (no network) and the second (tabulated).
    rates = {case.key: 2e-3 * prod(case.key) / us[*case.key, 1] for case in products}
    rows, best = [], max(rates, key=rates.get)
    for name, config in CONFIGS.items():
        if config.has_preselector:
            operations = 2 * (2 * config.num_blocks - 1) * config.embed_dim * config.hidden_dim
            more_us = us[name, "native", MORE, 1] - us[name, "native", PAPER, 1]
            rate = 512 * (config.num_steps - 2) * operations / more_us / 1e3
            rows.append((name, f"{more_us:,.0f}", f"{rate:.0f}", f"{rates[best]:.0f}", f"{rate / rates[best]:.0%}"))
    print(f"## The network alone, compared with torch's matrix rate: {FAST}, one thread\n")
    print("Computed from the cost of 512 additional candidates per step, with selection and distances: a lower bound.")
    print(f"Torch: its best product of the network's sizes, ({best[0]}, {best[1]}) x ({best[1]}, {best[2]}).")
    table("model, 512 more us, network GFLOP/s, torch GFLOP/s, network / torch", rows)


def report_errors(codec: Codec, x_ND: np.ndarray) -> None:
    set_num_threads(usable_cores())
    few, rows = min(len(x_ND), REFERENCE_ROWS), []
    for rule, options in RULES[codec.config.has_preselector].items():
        exact = evaluate(codec, as_source(x_ND[:few]), options.override(precision="float32", engine="torch")).mse
        for precision in PRECISIONS:
            ours = options.override(precision=precision, engine="native")
            whole, same = (evaluate(codec, as_source(part), ours).mse for part in (x_ND, x_ND[:few]))
            means = f"{whole:.6g}", f"{same:.6g}", f"{exact:.6g}"
            rows.append((rule, precision, *means, f"{same / exact - 1:+.4%}"))
    table(f"rule, precision, MSE of {len(x_ND):,}, of the first {few:,}, by torch in float32, difference", rows)


def report_machine(words: list[str]) -> None:
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT") if name in os.environ]
    shown = without_folders(words)
    print(f"""# Speed of encoding and decoding

Machine: {usable_cores()} cores of {processor_name()}, native level {library.level()}; torch {torch.__version__}.
Commit: {commit()}. Command: `{shlex.join([*settings, "python", "benchmarks/encode_speed.py", *shown])}`.
Medians of up to five passes, cases interleaved. Weights are random except for a trained model. Native and torch
evaluate candidates in {FAST}; plain is the papers' algorithm as written, in float32 torch, with {PLAIN_CANDIDATES:,}
candidates per batch (in cache: {torch_engine.TILE_CANDIDATES:,}).
""")


def main(words: list[str]) -> None:
    given = dict(word.partition("=")[::2] for word in words)
    if set(given) - {"model", "db", "count", "quick"} or ("model" in given) != ("db" in given):
        sys.exit("usage: python benchmarks/encode_speed.py [model=PATH db=PATH] [count=N] [quick]")
    if not library.is_available():
        sys.exit("this installation has no compiled kernels: install it where there is a C++ compiler")
    report_machine(words)
    codec, random, quick = None, torch.Generator().manual_seed(0), "quick" in given
    rows = 256 if quick else ROWS
    subjects = [(name, random_model(c), torch.randn(rows, c.dim, generator=random)) for name, c in CONFIGS.items()]
    if "model" in given:
        codec = Codec.load(given["model"])
        vectors_ND = as_source(given["db"]).limit(int(given.get("count", 100 if quick else 10_000)))[:]
        x_ND = codec.models[0].normalize(torch.from_numpy(np.resize(vectors_ND, (rows, codec.dim))))
        subjects.append((Path(given["model"]).name, codec.models[0], x_ND))
    encodings, decodings = ([c for s in subjects for c in cases(*s)] for cases in (encoding, decoding))
    us = measure([*encodings, *decodings, *(multiplications := list(products()))], quick)
    report_times(us, "Encoding", encodings, "plain")
    report_times(us, "Decoding", decodings, "torch")
    report_network(us, multiplications)
    print("## Error of the native engine")
    report_errors(codec, vectors_ND) if codec else print("\nLeft out: it needs model= and db=.")


if __name__ == "__main__":
    main(sys.argv[1:])
