"""Train a QINCo2 codec on real vectors and compare it with PQ and RQ at the same 8 bytes per vector.

    python examples/demo/demo.py [--threads 2]

The vectors are SIFT descriptors of photographs (see README.md in this folder). Nothing is written to disk; progress
goes to stderr, the table to stdout. It takes less than five minutes, three of them training: a slower machine trains
for fewer steps.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Threads that spin while they wait slow a computation down several times if other programs use the same cores. torch
# and faiss read this variable when they are imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import faiss
import numpy as np
import torch

import qinco
from qinco.maths.metrics import RANKS, recall

FOLDER = Path(__file__).resolve().parent
NUM_BYTES = 8
PREFIXES = (2, 4, 6)
MINUTES = 3
HEADINGS = ("method", "bytes", "MSE", *(f"recall@{rank}" for rank in RANKS), "encode µs", "decode µs")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a QINCo2 codec and compare it with PQ and RQ.")
    parser.add_argument("--threads", type=int, default=2, help="threads of every method (2)")
    threads = parser.parse_args().threads
    qinco.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    begun = time.monotonic()

    # A file of vectors is opened, not read: a slice of it is a float32 array.
    train, base, queries = (qinco.open_vectors(FOLDER / f"{name}.bvecs") for name in ("train", "base", "query"))
    report = Report(base[:], queries[:])
    rows = [report.row("float32", 4 * base.dim, report.base)]

    # Product quantization cuts the vector into 8 parts; residual quantization adds 8 codewords. Both are faiss's.
    product = faiss.IndexPQ(base.dim, NUM_BYTES, 8)
    residual = faiss.IndexResidualQuantizer(base.dim, NUM_BYTES, 8)
    residual.rq.max_beam_size = 5
    for name, index in (("PQ", product), ("RQ", residual)):
        say(f"{name}: training on {len(train):,} vectors")
        index.train(train[:])
        codes, encode_us = report.timed(index.sa_encode, report.base)
        decoded, decode_us = report.timed(index.sa_decode, codes)
        rows.append(report.row(name, NUM_BYTES, decoded, encode_us, decode_us))

    # QINCo2: 8 steps of one byte. A network adapts the codebook of each step to what the steps before have left.
    codec = qinco.Codec.fit(
        train, num_steps=NUM_BYTES, minutes=MINUTES, num_valid=1000,
        device="cpu", on_report=say_epoch,
    )  # fmt: skip
    say(f"QINCo2: encoding {len(base):,} vectors")
    codes, encode_us = report.timed(codec.encode, base)
    for count in (NUM_BYTES, *PREFIXES):
        # The first columns of a code are a code of their own, shorter and coarser.
        decoded, decode_us = report.timed(codec.decode, codes[:, :count])
        name = "QINCo2" if count == NUM_BYTES else f"QINCo2, first {count} of the {NUM_BYTES}"
        rows.append(report.row(name, count, decoded, encode_us, decode_us))

    print_table(rows)
    print(
        f"\n{len(train):,} training vectors, {len(base):,} base vectors, {len(queries):,} queries of {base.dim} "
        f"dimensions.\nPQ and RQ are those of faiss {faiss.__version__}; RQ encodes with a beam of 5, QINCo2 with "
        f"B={codec.encode_options.beam_width} C={codec.encode_options.num_pairs} after {MINUTES} minutes.\n"
        f"µs per vector: median of 3 runs, {threads} threads for every method; {processor_name()}, "
        f"torch {torch.__version__}.\n{time.monotonic() - begun:.0f} s in all."
    )


class Report:
    """Measures a method on base vectors and queries, float32 (N, D) each."""

    def __init__(self, base: np.ndarray, queries: np.ndarray):
        self.base, self.queries = base, queries
        # What a perfect search finds: the nearest base vector of each query.
        self.nearest = faiss.knn(queries, base, 1)[1][:, 0]

    def row(self, name: str, num_bytes: int, decoded: np.ndarray, encode_us=None, decode_us=None) -> list[str]:
        """A line of the table: error, and how often the nearest base vector is among the first found in `decoded`."""
        mse = np.square(decoded - self.base).sum(1).mean()
        _, found = qinco.exhaustive_search(self.queries, decoded, max(RANKS))
        shares = [f"{share:.3f}" for share in recall(found, self.nearest).values()]
        times = ["" if us is None else f"{us:,.{1 if us >= 1 else 2}f}" for us in (encode_us, decode_us)]
        return [name, f"{num_bytes}", f"{mse:,.0f}", *shares, *times]

    def timed(self, work: Callable, argument) -> tuple[np.ndarray, float]:
        """What `work(argument)` returns, and its median time of three, in µs per base vector."""
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            result = work(argument)
            seconds.append(time.perf_counter() - begun)
        return result, statistics.median(seconds) / len(self.base) * 1e6


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def say_epoch(report) -> None:
    """Called by `Codec.fit`: with an estimate before training, then after every step and every epoch."""
    if hasattr(report, "mse"):
        say(f"QINCo2: epoch {report.epoch} of {report.epochs}, MSE {report.mse:,.0f}, {report.seconds:.0f} s")
    elif hasattr(report, "num_parameters"):
        steps = report.total_epochs * report.steps_per_epoch
        say(
            f"QINCo2: training {report.num_parameters:,} parameters in {steps:,} steps of {report.batch_size:,} vectors"
        )


def print_table(rows: list[list[str]]) -> None:
    """Print rows of text under HEADINGS, as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (HEADINGS, rule, *rows):
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
