"""Measure recall and time of searching an index on one thread, and of faiss's indexes of equal bytes: a Markdown report
on stdout.

    python benchmarks/search_speed.py model=PATH trainset=PATH db=PATH queries=PATH queries_gt=PATH
        [encoded_trainset=PATH] [encoded_db=PATH] [pairwise_decoder=PATH] [lsq=N] [faiss=FOLDER] [plot=PATH] [quick]

`model` is an IVF codec. Vectors are encoded unless their codes are given. Look-up tables and faiss's indexes are fitted
to the training set, LSQ to its first N vectors (20,000) because it is slow; `lsq=0` skips it. Filled indexes are kept
in the folder `faiss` for the next run. The plot shows all fronts.

Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

import os
import shlex
import sys
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from report import commit, microseconds, without_folders

from qinco.codec import Codec
from qinco.machine import processor_name, set_num_threads
from qinco.maths.metrics import recall
from qinco.search.build import fit_tables
from qinco.search.code_file import open_codes
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.fill import fill_lists
from qinco.search.index import Index
from qinco.search.measure.plot import plot_fronts
from qinco.search.measure.sweep import SweepResult, record_sweep
from qinco.search.measure.timing import measure
from qinco.search.metric import L2
from qinco.search.options import SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.sample import FitSample
from qinco.search.scan import Scanner
from qinco.store.codes import Codes
from qinco.store.decoder import load_pairwise
from qinco.vectors.formats import read_integers
from qinco.vectors.rows import VectorSource, open_vectors

NPROBES = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (0, 3, 5, 10, 20, 50, 100, 200)
MULTIPLES = (4, 10)  # of num_short: length of the shortlist before the pairwise stage
LIMITS = (50, 100, 200, 400, 1000, 2000, 5000, 10_000)  # microseconds per query
SETTINGS = (SearchOptions(16, 50, 0), SearchOptions(64, 200, 0))
FAISS = {"IVF-PQ": "IVF{V},PQ{M}x8", "IVF-RQ": "IVF{V},RQ{M}x8_Nqint8", "IVF-LSQ": "IVF{V},LSQ{M}x8_Nqint8"}
BATCH = 4096


def encoded(codec: Codec, source: VectorSource, path: str | None) -> Codes:
    """Codes of a source in memory; read from a file of codes if one is given."""
    return codec.encode(source) if path is None else open_codes(path, codec).codes[:]


def faiss_index(key: str, train_ND, base_ND, folder: str | None) -> faiss.Index:
    """A faiss index of the base vectors; read from the folder if an earlier run wrote it there."""
    path = None if folder is None else Path(folder) / f"{key}-{len(train_ND)}-{len(base_ND)}.faissindex"
    if path is not None and path.exists():
        return faiss.read_index(str(path))
    index = faiss.index_factory(base_ND.shape[1], key)
    index.train(train_ND)
    index.add(base_ND)
    if path is not None:
        faiss.write_index(index, str(path))
    return index


def faiss_points(index: faiss.Index, queries_QD, nearest_Q) -> list[tuple[float, float]]:
    """(microseconds, recall@1) of a faiss index at every nprobe."""
    points = []
    for nprobe in NPROBES:
        index.nprobe = nprobe
        us = microseconds(partial(index.search, queries_QD, 10), len(queries_QD))
        points.append((us, recall(index.search(queries_QD, 10)[1], nearest_Q)[1]))
    return points


def shortlists(scanner: Scanner, index: Index, queries_QD: np.ndarray, options: SearchOptions) -> None:
    probes_QP, bases_QP = scanner.probe(queries_QD, options.nprobe)
    scanner.scan(queries_QD, probes_QP, bases_QP, index.segments, options.num_short)


def our_points(index: Index, queries_QD, nearest_Q, multiples: tuple[int, ...]) -> SweepResult:
    """Recall and time of an index for settings that can lie on the front."""
    values = {"nprobe": NPROBES, "quantizer_efSearch": [16], "nshort": LENGTHS, "nmid_short": multiples}
    conditions = {"fingerprint": {}, "threads": 1, "machine": ""}
    return record_sweep(values, lambda options: measure(index, queries_QD, nearest_Q, options, BATCH), conditions)


def best_within(points: list[tuple[float, float]], limit: float) -> float | None:
    return max((share for us, share in points if us <= limit), default=None)


def shown(cell) -> str:
    if not isinstance(cell, float):
        return "–" if cell is None else str(cell)
    return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.4g}"


def table(columns: str, rows: list[tuple]) -> None:
    print(f"\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
    for row in rows:
        cells = [shown(cell) for cell in row]
        print(f"| {' | '.join(cells)} |", flush=True)


def report_machine(words: list[str]) -> None:
    print("# Searching\n")
    print(f"- {processor_name()}, one thread, torch {torch.__version__}, faiss {faiss.__version__}")
    print(f"- commit {commit()}, load {os.getloadavg()[0]:.2f} at the start")
    print(f"- `python benchmarks/search_speed.py {shlex.join(without_folders(words))}`", flush=True)


def report_pipeline(index: Index, decoded_ND, queries_QD, nearest_Q) -> None:
    """The pipeline beside an exhaustive search, and the seconds of its stages."""
    _, ids_QR = nearest_in_blocks(queries_QD, [(0, decoded_ND)], 100)
    best = recall(ids_QR, nearest_Q)
    rows = [("exhaustive, decoded vectors", best[1], best[10], best[100], 1.0, None, None, None)]
    for options in SETTINGS:
        found = measure(index, queries_QD, nearest_Q, options, BATCH)
        us = {name: seconds / found.num_queries * 1e6 for name, seconds in found.seconds_by_stage.items()}
        shares = [found.recall[rank] for rank in (1, 10, 100)]
        name = f"nprobe={options.nprobe} nshort={options.num_short}"
        rows.append((name, *shares, shares[0] / best[1], us["search"], us["decode"] + us["rerank"], us["total"]))
    table("search | R@1 | R@10 | R@100 | R@1 / exhaustive | look-up us | neural us | total us", rows)


def report_scan(index: Index, queries_QD) -> None:
    """The native scan beside the plain one of numpy, which computes the same."""
    tables = index.tables
    plain = Scanner(tables.centroids_VD, tables.lookup.tables_MKD, tables.levels, native=False)
    rows = []
    for options in SETTINGS:
        fast = microseconds(partial(shortlists, tables.scanner, index, queries_QD, options), len(queries_QD))
        slow = microseconds(partial(shortlists, plain, index, queries_QD[:100], options), 100)
        rows.append((f"nprobe={options.nprobe} nshort={options.num_short}", fast, slow, slow / fast))
    table("coarse search, tables, scan, shortlist | native us | numpy us | ratio", rows)


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    quick = "quick" in words
    set_num_threads(1)
    faiss.omp_set_num_threads(1)
    report_machine(words)
    codec = Codec.load(given["model"])
    train, base = open_vectors(given["trainset"]), open_vectors(given["db"])
    queries_QD = open_vectors(given["queries"])[:]
    nearest_Q = read_integers(given["queries_gt"])[:, 0]
    train_codes = encoded(codec, train, given.get("encoded_trainset"))
    codes = encoded(codec, base, given.get("encoded_db"))
    rows = np.arange(len(train_codes))
    sample = FitSample.of_vectors(train_codes, train, rows, holds_out=False)
    tables = fit_tables(sample, codec.config.codebook_size, codec.coarse_centroids, L2, adds_centroids=True)
    pairwise = load_pairwise(given["pairwise_decoder"]) if "pairwise_decoder" in given else None
    index = Index(codec, IndexParts(tables, [fill_lists(tables, codes, range(len(codes)))], pairwise))
    print(f"- {index!r}; {len(queries_QD):,} queries; tables fitted to {len(rows):,} training vectors")

    base_ND = base[:]
    decoded_ND = codec.decode(codes, precision="auto")
    report_pipeline(index, decoded_ND, queries_QD, nearest_Q)
    report_scan(index, queries_QD)

    ours = our_points(index, queries_QD, nearest_Q, (0,))
    fronts = {f"QINCo2, {codec.bytes_per_vector:g} bytes": ours.points()}
    if pairwise is not None:
        ours = our_points(index, queries_QD, nearest_Q, (0, *MULTIPLES))
        fronts["QINCo2 with the pairwise stage"] = ours.points()
    sizes = [("QINCo2", index.bytes_per_vector)]
    for name, key in FAISS.items():
        count = int(given.get("lsq", 20_000)) if name == "IVF-LSQ" else len(train)
        if not count or (quick and name != "IVF-PQ"):
            continue
        key = key.format(V=index.num_lists, M=codec.num_codes)
        theirs = faiss_index(key, train[:count], base_ND, given.get("faiss"))
        fronts[f"faiss {key}, {count:,} training vectors"] = faiss_points(theirs, queries_QD, nearest_Q)
        sizes.append((f"faiss {key}", theirs.code_size + 8.0))
    table(
        f"recall@1 within | {' | '.join(f'{limit:,} us' for limit in LIMITS)}",
        [(name, *(best_within(points, limit) for limit in LIMITS)) for name, points in fronts.items()],
    )
    table("index | bytes per vector, ids included", sizes)
    rows, columns = ours.front_table()
    table(" | ".join(columns), rows)
    if "plot" in given:
        plot_fronts(given["plot"], fronts, title="recall@1 on one thread")


if __name__ == "__main__":
    main(sys.argv[1:])
