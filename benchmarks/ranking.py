"""Measure what calibrated ranking finds and costs on one thread: a Markdown report on stdout.

    python benchmarks/ranking.py model=PATH db=PATH queries=PATH lists=N nprobe=N nshort=N [metrics=l2,inner_product]
        [C=N B=N]

For each metric the database is encoded (with C and B, if given) and indexed once; the same index is searched by both
rankings, in its lists and exhaustively. Ground truth is computed.

Shape suffixes: Q queries, D dimension, R results.
"""

import os
import shlex
import sys
import time

import numpy as np
from report import commit, without_folders

from qinco.codec import Codec
from qinco.config import RANKINGS
from qinco.machine import processor_name, set_num_threads
from qinco.maths.metrics import recall
from qinco.native.library import level
from qinco.search.exhaustive import exhaustive_search
from qinco.search.index import Index
from qinco.search.measure.timing import measure
from qinco.search.options import SearchOptions
from qinco.vectors.rows import open_vectors

K = 10
RANKS = 1, 10


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    set_num_threads(1)
    codec, base, source = Codec.load(given["model"]), open_vectors(given["db"]), open_vectors(given["queries"])
    effort = {"num_pairs": int(given["C"]), "beam_width": int(given["B"])} if "C" in given else {}
    codec = codec.with_options(codec.encode_options.override(**effort))
    queries_QD = source[:]
    report_machine()
    print(f"\n{len(base):,} vectors, {len(queries_QD):,} queries, {codec.num_codes} bytes a code, "
          f"{given['lists']} lists, nprobe {given['nprobe']}, nshort {given['nshort']}, k = {K}\n")  # fmt: skip
    print("| metric | search | ranking | R@1 | R@10 | µs a query | mean error of the ten distances | bytes a vector |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    codes = codec.encode(base) if given.get("metrics", "l2") != "cosine" else None
    for metric in given.get("metrics", "l2,inner_product").split(","):
        _, nearest_QR = exhaustive_search(queries_QD, base, 1, metric=metric)
        index = Index.build(
            codec, base, int(given["lists"]), metric=metric, codes=None if metric == "cosine" else codes
        )
        report_index(index, base, queries_QD, nearest_QR[:, 0], int(given["nprobe"]), int(given["nshort"]))


def report_index(index: Index, base, queries_QD, nearest_Q, nprobe: int, num_short: int) -> None:
    prepared_QD = index.tables.metric.prepare(queries_QD)
    for ranking in RANKINGS[::-1]:
        for name, length in (("index", num_short), ("look-up only", 0)):
            options = SearchOptions(nprobe, length)
            found = measure(index, prepared_QD, nearest_Q, options, rank=K, ranking=ranking)
            values_QR, ids_QR = index.search(queries_QD, K, nprobe, length, ranking=ranking)
            report_row(index, base, name, ranking, ids_QR, values_QR, queries_QD, nearest_Q, found.microseconds)
        begun = time.perf_counter()
        values_QR, ids_QR = exhaustive_search(queries_QD, index, K, ranking=ranking)
        seconds = time.perf_counter() - begun
        each = seconds / len(queries_QD) * 1e6
        report_row(index, base, "exhaustive", ranking, ids_QR, values_QR, queries_QD, nearest_Q, each)


def report_row(
    index: Index, base, name: str, ranking: str, ids_QR, values_QR, queries_QD, nearest_Q, microseconds
) -> None:
    shares, x_ND = recall(ids_QR, nearest_Q, RANKS), base[ids_QR.ravel()]
    true_QR = similarities(index.metric, np.repeat(queries_QD, K, 0), x_ND).reshape(ids_QR.shape)
    bias = float(np.mean(values_QR - true_QR, dtype=np.float64))
    print(f"| {index.metric} | {name} | {ranking} | {shares[1]:.4f} | {shares[10]:.4f} | {microseconds:.1f} | "
          f"{bias:.4g} | {index.bytes_per_vector:.2f} |", flush=True)  # fmt: skip


def similarities(metric: str, a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """The true distance or similarity of each pair."""
    if metric == "l2":
        return np.square(a_ND - b_ND).sum(1)
    lengths_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1) if metric == "cosine" else 1
    return (a_ND * b_ND).sum(1) / lengths_N


def report_machine() -> None:
    print(f"{processor_name()}, level {level()}, one thread, load {os.getloadavg()[0]:.2f} at the start")
    print(f"Commit {commit()}: `python benchmarks/ranking.py {shlex.join(without_folders(sys.argv[1:]))}`")


if __name__ == "__main__":
    main()
