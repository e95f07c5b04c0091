"""Train a codec for a time or so many epochs, and measure its error: a row of a Markdown table on stdout.

    python benchmarks/training_time.py train=PATH output=CODEC [valid=10000 M=8 preset=qinco2-S]
        [minutes=15 | epochs=N ...]

Other words are settings of `Codec.fit`. The error is that of the last `valid` vectors of the file. Older checkouts only
validate on them; newer ones train on them unless rows_shuffled=true is given, for which rows must be in random order.
With PYTHONPATH=CHECKOUT/src the qinco of another checkout is measured, also an older one. Run it with OMP_NUM_THREADS=1
for one thread: then the processor's time says how long training takes on a machine of its own, also where other
programs run.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import qinco

ROWS = 2000  # that are encoded at a time


def commit() -> str:
    """Of the qinco that is imported."""
    folder = Path(qinco.__file__).parent
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=folder, text=True).strip()


def value_of(text: str):
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def error(codec, vectors) -> float:
    total = 0.0
    for begin in range(0, len(vectors), ROWS):
        x_ND = np.asarray(vectors[begin : begin + ROWS], np.float32)
        total += float(np.square(codec.decode(codec.encode(x_ND)) - x_ND, dtype=np.float64).sum())
    return total / len(vectors)


def main() -> None:
    given = {name: value_of(text) for name, text in (word.split("=", 1) for word in sys.argv[1:])}
    vectors, count = qinco.open_vectors(given.pop("train")), given.pop("valid", 10_000)
    settings = {"preset": "qinco2-S", "num_steps": given.pop("M", 8), "num_valid": count} | given
    begun, used = time.monotonic(), time.process_time()

    def show(report) -> None:
        if (epoch := getattr(report, "epoch", None)) is not None and (mse := getattr(report, "mse", None)) is not None:
            seconds = time.monotonic() - begun
            print(f"{seconds:.0f} s: epoch {epoch}, validation error {mse:.6g}", file=sys.stderr, flush=True)

    codec = qinco.Codec.fit(vectors, on_report=show, **settings)
    seconds, processor_seconds = time.monotonic() - begun, time.process_time() - used
    mse = error(codec, vectors[len(vectors) - count : len(vectors)])
    words = " ".join(word for word in sys.argv[1:] if not word.startswith(("train=", "output=")))
    level = os.environ.get("QINCO_NATIVE_LEVEL", "")
    print(f"| {commit()} | {words} {level} | {seconds:.0f} | {processor_seconds:.0f} | {mse:.6g} |", flush=True)


if __name__ == "__main__":
    main()
