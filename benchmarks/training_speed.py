"""Measure the parts of a training step on this machine: a Markdown report on stdout.

    python benchmarks/training_speed.py [quick]

Models are QINCo2-S with M=8, at their start; batches have 1,024 random vectors. Takes about two minutes. Set
OMP_NUM_THREADS=1 and GOMP_SPINCOUNT=1000: torch's threads are set for each case, and spin while they wait. Each level
is measured in a process of its own, in which torch is limited to the same instructions.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from report import commit

from qinco.config import DEFAULT_ENCODE_OPTIONS, PRESETS, EncodeOptions, ModelConfig
from qinco.engines.tensors import pack
from qinco.machine import processor_name, set_num_threads, usable_cores
from qinco.model.qinco import Qinco
from qinco.native import library
from qinco.training.codebooks import CodewordUse, initialize_model
from qinco.training.gradients import NativeGradients, TorchGradients
from qinco.training.loop import Training
from qinco.training.optimizers import Optimizers
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.vectors.rows import as_source

BATCH, DIMS, PRECISIONS = 1024, (128, 384), {"avx2": "float32", "avx512_bf16": "bf16"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
OPTIMIZERS = "adamw", "muon"
OPERATIONS = "forward+backward, native"


def cases(dim: int, precision: str) -> dict[str, Callable]:
    """The parts of a step, each for a whole batch; the last ones are all of it."""
    config = ModelConfig(dim=dim, **PRESETS["qinco2-S"])
    vectors_ND = np.random.default_rng(0).standard_normal((8 * BATCH, dim)).astype(np.float32)
    source, options = as_source(vectors_ND), TrainOptions(precision=precision, batch_size=BATCH)
    model = Qinco.empty(config).to_empty(device="cpu")
    initialize_model(model, source, options, None)
    training = Training(
        model, source, source.window(0, BATCH), options, DEFAULT_ENCODE_OPTIONS, Processes(torch.device("cpu"))
    )
    x_ND = model.normalize(torch.from_numpy(vectors_ND[:BATCH]))
    start_ND, engine = model.initial_reconstruction(BATCH), pack(model, "native", precision)
    early, late = training.batch_options_shares()
    codes_NM, _ = engine.encode_tensors(x_ND, start_ND, late)
    kinds = {"native": NativeGradients(model, precision), "torch": TorchGradients(model, precision)}

    def gradients(kind: str) -> None:
        training.optimizers.clear()
        kinds[kind].add(x_ND, start_ND, codes_NM, CodewordUse(model), 1 / BATCH)

    optimizers = {name: Optimizers(model, replace(options, optimizer=name), 1e-6, precision) for name in OPTIMIZERS}

    def update(name: str) -> None:
        torch.nn.utils.clip_grad_value_(training.parameters, 0.1)
        optimizers[name].step(1e-6, 0.1, 0)

    def step(options: EncodeOptions, name: str) -> None:
        training.batch_encode_options, training.optimizers = options, optimizers[name]
        training.optimizer_step([vectors_ND[:BATCH]], 1e-6)

    return {
        "packing weights in float64": lambda: pack(model, "native", precision),
        "packing weights for one batch": lambda: pack(model, "native", precision, is_for_one_batch=True),
        "encoding, C=4 B=2": lambda: engine.encode_tensors(x_ND, start_ND, early),
        "encoding, C=16 B=4": lambda: engine.encode_tensors(x_ND, start_ND, late),
        "forward+backward, torch": lambda: gradients("torch"),
        OPERATIONS: lambda: gradients("native"),
        "AdamW": lambda: update("adamw"),
        "Muon and AdamW": lambda: update("muon"),
        "a whole step, C=4 B=2, AdamW": lambda: step(early, "adamw"),
        "a whole step, C=4 B=2": lambda: step(early, "muon"),
        "a whole step, C=16 B=4, AdamW": lambda: step(late, "adamw"),
        "a whole step, C=16 B=4": lambda: step(late, "muon"),
    }


def operations(dim: int) -> int:
    """Of the forward and backward pass of a vector, but for those of tables over codewords."""
    config = ModelConfig(dim=dim, **PRESETS["qinco2-S"])
    projections = config.projects + 1
    weights = config.embed_dim * (projections * dim + 2 * config.num_blocks * config.hidden_dim)
    return 6 * (config.num_steps - 1) * weights


def measure(parts: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Microseconds a vector in the fastest of interleaved rounds."""
    taken = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            begun = time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - begun) * 1e6 / BATCH)
    return {name: min(times) for name, times in taken.items()}


def main(words: list[str]) -> None:
    rounds = 2 if "quick" in words else 12
    if words and words[0] in PRECISIONS:
        for dim in DIMS:
            report(dim, words[0], rounds)
        return
    if words not in ([], ["quick"]):
        sys.exit("usage: python benchmarks/training_speed.py [quick]")
    if not library.is_available():
        sys.exit("this installation has no compiled kernels: install it where there is a C++ compiler")
    settings = [f"{name}={os.environ[name]} " for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT") if name in os.environ]
    print(
        f"""# Speed of training

Machine: {usable_cores()} cores of {processor_name()}; torch {torch.__version__}. Commit: {commit()}.
Command: `{"".join(settings)}python benchmarks/training_speed.py`.
Microseconds a vector, in batches of {BATCH:,}; the fastest of {rounds} rounds, interleaved. At level avx2 torch is
limited to it, too.""",
        flush=True,
    )
    best = library.LEVELS.index(library.level())
    for level in PRECISIONS:
        if library.LEVELS.index(level) <= best:
            environment = os.environ | {"QINCO_NATIVE_LEVEL": level} | (AVX2 if level == "avx2" else {})
            subprocess.run([sys.executable, __file__, level, *words], check=True, env=environment)


def report(dim: int, level: str, rounds: int) -> None:
    precision, us = PRECISIONS[level], {}
    parts = cases(dim, precision)
    for threads in (1, 2):
        set_num_threads(threads)
        us[threads] = measure(parts, rounds)
    print(f"\n## QINCo2-S D={dim} M=8, level {level}, {precision}\n")
    print("| part | 1 thread | 2 threads |\n| --- | --- | --- |")
    for name in parts:
        print(f"| {name} | {us[1][name]:.1f} | {us[2][name]:.1f} |")
    rates = (f"{operations(dim) / us[threads][OPERATIONS] / 1e3:.0f}" for threads in (1, 2))
    gains = (f"{us[threads]['forward+backward, torch'] / us[threads][OPERATIONS]:.1f}" for threads in (1, 2))
    print(f"| GFLOP/s of the native pass | {' | '.join(rates)} |\n| torch / native | {' | '.join(gains)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
