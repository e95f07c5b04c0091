"""Shared by the parts of the GPU benchmark: data, codec, time limit, and report."""

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
from gpu_device import brief, card, kernels, seconds_of

from qinco.codec import Codec
from qinco.config import PRESETS, ModelConfig
from qinco.machine import processor_name, usable_cores
from qinco.native import library
from qinco.vectors.rows import VectorSource, open_vectors

ROOT = Path(__file__).parent.parent
TRAINED = ("s8", "trained")  # codecs written by earlier parts, the best first
_TINY = {"codebook_size": 64, "num_blocks": 1, "embed_dim": 32, "hidden_dim": 32}
_TINY_STEPS = {8: 3, 16: 4}
_TINY_ROWS = {"train": 1500, "base": 500, "query": 50}


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


def table(columns: str, rows: list[tuple]) -> None:
    """Print a Markdown table; `columns` are separated by `|`."""
    lines = [columns, "|".join(["---"] * (columns.count("|") + 1)), *("|".join(map(shown, row)) for row in rows)]
    print("\n" + "\n".join(f"| {line.replace('|', ' | ')} |" for line in lines) + "\n")


def shown(cell) -> str:
    """A cell of a table: large numbers without decimals."""
    if not isinstance(cell, float):
        return "–" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"


def report_kernels(what: str, work: Callable[[], object], device: torch.device) -> None:
    """Print the slowest kernels of `work` and their share of its time without the profiler."""
    try:
        work()
        seconds, found = seconds_of(work, device), kernels(work, device)
    except Exception as error:  # continue without a profiler
        print(f"The profiler failed for {what}: {brief(error)}")
        return
    busy, rest = sum(row[2] for row in found), found[12:]
    print(f"Kernels: {what} take {seconds * 1e3:.4g} ms, of which kernels run for {busy * 1e3:.4g} ms ", end="")
    print(f"({busy / seconds:.0%}).")
    rows = [(name[:90].replace("|", "/"), calls, took * 1e3, f"{took / busy:.1%}") for name, calls, took in found[:12]]
    rows.append((f"{len(rest)} others", sum(row[1] for row in rest), sum(row[2] for row in rest) * 1e3, ""))
    table("kernel|calls|ms|share of all kernels", rows)


def report_machine(setting: Setting, words: list[str], commit: str | None) -> None:
    """Print the head of the report: device, versions, commit and command."""
    versions = [f"{name} {version(name)}" for name in ("torch", "numpy", "triton", "faiss")]
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    shown_words = [f"{key}{equals}{Path(value).name}" for key, equals, value in (word.partition("=") for word in words)]
    native = library.level() if library.is_available() else "not built"
    print(f"""# Training, encoding and decoding on one GPU

- {card(setting.device)}
- {usable_cores()} cores of {processor_name()}, native level: {native}
- {", ".join(versions)}; CUDA {torch.version.cuda}
- commit {commit or _commit()}; {time.strftime("%Y-%m-%d %H:%M")}
- `{shlex.join([*settings, "python", "benchmarks/gpu_speed.py", *shown_words])}`
""")
    if setting.quick:
        print("**`quick`: tiny models on few vectors. The figures below mean nothing.**\n")


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
