"""Shared by the parts of the GPU benchmark: data, codec, time limit, and what they say."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from gpu_device import brief, card, copy_rate, kernels, matrix_rate, seconds_of

from qinco.codec import Codec
from qinco.config import PRESETS, ModelConfig
from qinco.machine import processor_name, usable_cores
from qinco.native import library
from qinco.vectors.rows import VectorSource, open_vectors

ROOT = Path(__file__).parent.parent
TRAINED = ("s8", "trained")  # codecs written by earlier parts, the best first
_TINY = {"codebook_size": 64, "num_blocks": 1, "embed_dim": 32, "hidden_dim": 32}
_TINY_STEPS = {8: 2, 16: 3}
_TINY_ROWS = {"train": 1500, "base": 300, "query": 50}


@dataclass(frozen=True)
class Setting:
    """Arguments of a part; `until` is the monotonic time at which it must end."""

    data: Path
    output: Path
    device: torch.device
    until: float
    quick: bool
    model: str | None
    epochs: int | None
    mse: float | None = None  # that the processor reached in its quarter of an hour

    @property
    def left(self) -> float:
        """Seconds until the part must end; negative after that."""
        return self.until - time.monotonic()

    def at(self, share: float) -> float:
        """The monotonic time after a share of the remaining time."""
        return time.monotonic() + share * self.left

    def vectors(self, name: str) -> VectorSource:
        """`train`, `base` or `query`; memory-mapped."""
        source = open_vectors(self.data / f"{name}.bvecs")
        return source.limit(_TINY_ROWS[name]) if self.quick else source

    def sizes(self, num_steps: int) -> dict:
        """Fields of ModelConfig in addition to a preset's."""
        return {"num_steps": _TINY_STEPS[num_steps], **_TINY} if self.quick else {"num_steps": num_steps}

    def config(self, preset: str) -> ModelConfig:
        """The architecture at 8 bytes."""
        return ModelConfig(self.vectors("base").dim, **PRESETS[preset] | self.sizes(8))

    def codec(self, device: torch.device | str | None = None) -> Codec | None:
        """The trained QINCo2-S: `model`, or the one written by an earlier part; None if there is none."""
        paths = [self.output / f"{name}.safetensors" for name in TRAINED]
        path = self.model or next((path for path in paths if path.exists()), None)
        return None if path is None else Codec.load(path, device or self.device)


def say(**values) -> None:
    """Print a line of JSON: the script adds it to its results."""
    print(json.dumps(values, default=str), flush=True)


def table(columns: str, rows: list[tuple], what: str = "") -> None:
    """Say rows, each as an object; `columns` are separated by `|`."""
    for row in rows:
        named = {"table": what} | dict(zip(columns.split("|"), row, strict=True))
        say(**{name or "note": cell for name, cell in named.items() if cell is not None and cell != ""})


def report_kernels(what: str, work: Callable[[], object], device: torch.device) -> None:
    """Say the slowest kernels of `work` and their share of its time without the profiler."""
    try:
        work()
        seconds, found = seconds_of(work, device), kernels(work, device)
    except Exception as error:  # continue without a profiler
        say(profile=what, failed=brief(error))
        return
    busy, rest = sum(row[2] for row in found), found[12:]
    say(profile=what, milliseconds=seconds * 1e3, in_kernels=busy * 1e3)
    rows = [(name[:90], calls, took * 1e3, took / max(busy, 1e-12)) for name, calls, took in found[:12]]
    rows.append((f"{len(rest)} others", sum(row[1] for row in rest), sum(row[2] for row in rest) * 1e3, None))
    table("kernel|calls|ms|share of all kernels", rows, what)


def report_machine(setting: Setting, words: list[str], commit: str | None) -> None:
    """Say what it is run on and how."""
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    shown_words = [f"{key}{equals}{Path(value).name}" for key, equals, value in (word.partition("=") for word in words)]
    say(
        card=card(setting.device), cores=usable_cores(), processor=processor_name(),
        native=library.level() if library.is_available() else "not built", cuda=torch.version.cuda,
        **{name: version(name) for name in ("torch", "numpy", "triton", "faiss")}, commit=commit or _commit(),
        time=time.strftime("%Y-%m-%d %H:%M"),
        command=shlex.join([*settings, "python", "benchmarks/gpu.py", *shown_words]), quick=setting.quick,
    )  # fmt: skip
    size, num_bytes = (256, 1 << 20) if setting.device.type != "cuda" else (8192, 1 << 32)
    say(matrix_rate=matrix_rate(setting.device, size), copy_rate=copy_rate(setting.device, num_bytes), size=size)


def version(module: str) -> str:
    """The version of a package, or "not installed"."""
    try:
        return import_module(module).__version__
    except ImportError:
        return "not installed"


def _commit() -> str:
    def git(*command: str) -> str:
        return subprocess.check_output(["git", *command], cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()

    with suppress(OSError, subprocess.SubprocessError):
        return git("rev-parse", "--short", "HEAD") + (" and changes since" if git("status", "--porcelain") else "")
    return "unknown"
