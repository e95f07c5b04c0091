"""What surrounds the measurements on a GPU: what is carried there, building this checkout and its tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from gpu_setting import ROOT, Setting, say

from qinco.search.exhaustive import exhaustive_search
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import open_vectors

TRAINING_ROWS, BASE_ROWS, NEIGHBOURS = 150_000, 50_000, 100
MOST_CARRIED = 64 << 20
WHEELS = ("safetensors", "rich", "markdown-it-py", "mdurl", "pygments")  # beside torch, which brings numpy's users
PYTHON = "3.12"  # of the machine


def carry(source: Path, target: Path) -> int:
    """Put a subset of a SIFT folder, its exact neighbours and the wheels that are needed into a folder."""
    if missing := [name for name in ("train", "base", "query") if not (source / f"{name}.bvecs").exists()]:
        print(f"{source} has no {missing[0]}.bvecs: give a folder of SIFT vectors", file=sys.stderr)
        return 2
    rows = {"train": TRAINING_ROWS, "base": BASE_ROWS, "query": BASE_ROWS}
    write(target, {name: open_vectors(source / f"{name}.bvecs").limit(count)[:] for name, count in rows.items()})
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    machine = ["--python-version", PYTHON, "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]
    subprocess.run([*command, *machine, "--dest", target / "wheels", *WHEELS], check=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 2**20:.1f} MiB")
    return int(size > MOST_CARRIED)


def drawn(target: Path) -> None:
    """Write drawn vectors in the place of a subset, to rehearse with."""
    generator = np.random.default_rng(0)
    centres = generator.integers(30, 200, (20, 32))
    rows = {"train": 1500, "base": 300, "query": 50}
    write(target, {name: _around(centres, count, generator) for name, count in rows.items()})


def _around(centres: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    noise = generator.normal(0, 15, (count, centres.shape[1]))
    return np.clip(centres[generator.integers(len(centres), size=count)] + noise, 0, 255).astype(np.uint8)


def write(target: Path, found: dict[str, np.ndarray]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, vectors_ND in found.items():
        write_vectors(target / f"{name}.bvecs", vectors_ND)
    nearest = exhaustive_search(found["query"], found["base"], min(NEIGHBOURS, len(found["base"])))[1]
    write_vectors(target / "gt.ivecs", nearest)


def build(setting: Setting) -> None:
    """Compile the native engine in place; without a compiler, torch is used on the CPU."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return say(build=f"there is no C++ compiler ({compiler}): torch is used on the processor")
    code = ended([sys.executable, "setup.py", "build_ext", "--inplace"], setting.output / "build.log", setting.left)
    ask = "from qinco.native import library as l; print(l.level() if l.is_available() else 'not built')"
    level = subprocess.check_output([sys.executable, "-c", ask], text=True).strip()
    say(build="did not end in time" if code is None else f"ended with {code}", native=level, log="build.log")


def run_tests(setting: Setting) -> None:
    """Run the GPU tests, without turning warnings into errors: libraries may be newer than the pinned ones."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "tests"]
    log = setting.output / "tests.log"
    code = ended(command, log, setting.left)
    lines = log.read_text(errors="replace").splitlines() or [""]
    failures = [line[:200] for line in lines if line.startswith(("FAILED", "ERROR"))]
    say(tests=lines[-1].strip(" ="), in_time=code is not None, failures=failures[:20], log="tests.log")
    if code not in (0, 5):
        raise RuntimeError("not all tests passed: see tests.log")


def ended(command: list[str], log: Path, seconds: float) -> int | None:
    """Run a command in the checkout, with its output in a file; returns its exit code, None if it took too long."""
    with log.open("w") as file:
        try:
            return subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=max(1, seconds)).returncode
        except subprocess.TimeoutExpired:
            return None
