"""A report of `qinco compare` as it could be, without running it: figures follow simple laws and are nobody's."""

import itertools
import math

FAMILIES = {  # bytes at which R@10 is half, slope, training seconds, encoding and decoding µs
    "qinco2-S": (3.4, 2.1, 600.0, 310.0, 21.0),
    "qinco2-fast": (4.2, 2.1, 300.0, 95.0, 4.5),
    "RQ": (5.5, 2.0, 144.0, 62.0, 1.2),
    "LSQ": (5.2, 2.0, 590.0, 480.0, 1.2),
    "PRQ": (5.9, 2.0, 60.0, 31.0, 1.2),
    "OPQ": (6.2, 1.9, 28.0, 54.0, 6.1),
    "PQ": (9.8, 1.9, 10.0, 20.0, 0.4),
    "PCA+TurboQuant": (9.0, 2.1, 0.3, 1.2, 2.0),
    "RaBitQ": (13.5, 2.0, 0.4, 4.7, 7.0),
    "signs": (14.0, 2.0, 0.1, 0.2, 0.3),
    "SQ": (21.0, 2.2, 0.2, 0.5, 0.3),
}
OURS = ("qinco2-S", "qinco2-fast")
SIZES = {"RaBitQ": (24, 32, 56), "signs": (16, 32, 48), "SQ": (24, 48, 96, 192), "PCA+TurboQuant": (10, 18, 26, 50)}
GROUPS = (("l2", "given"), ("inner_product", "given"), ("l2", "other"))
TARGETS = (0.9, 0.95, 0.99)


def share(num_bytes: float, half: float, slope: float) -> float:
    return 1 / (1 + (half / num_bytes) ** slope)


def estimate(value: float, queries: int = 2000) -> list[float]:
    return [round(value, 4), round(math.sqrt(value * (1 - value) / queries), 4)]


def result(num_bytes, half, slope, metric, queries) -> dict:
    harder = {"given": 1.0, "held out": 1.0, "other": 1.3}[queries] * {"l2": 1, "inner_product": 1.05}[metric]
    recall = {str(k): estimate(share(num_bytes, half * harder * scale, slope * 1.2))
              for k, scale in ((1, 2.4), (10, 0.9), (100, 0.4))}  # fmt: skip
    mse = round(math.exp(-num_bytes / half / 3), 4)
    return {"metric": metric, "queries": queries, "num_queries": 2000, "mse": mse, "mse_se": round(mse / 300, 6),
            "recall": recall, "overlap_10": estimate(share(num_bytes, half * 1.8, slope))}  # fmt: skip


def timed(family: str, num_bytes: int, target: float, nprobe: int | None) -> dict:
    """A row of an index, of a target that it reaches with so many lists, or does not."""
    row = {"method": family, "metric": "l2", "rows": 35614, "lists": 1024, "bytes": num_bytes + 5.2, "target": target,
           "status": "done", "reason": None, "nprobe": nprobe, "num_short": nprobe and 200, "recall_10": None,
           "query_us": None, "batch_us": None}  # fmt: skip
    if nprobe is None:
        return row | {"status": "out of reach", "reason": "R@10 is 0.962 at most on the tuning queries"}
    query_us = round(90 + 14 * nprobe + FAMILIES[family][4] * 12, 1)
    return row | {"recall_10": estimate(target - 0.002), "query_us": query_us, "batch_us": query_us * 0.7}


def cell(family: str, num_bytes: int, prefix_of: str | None = None) -> dict:
    half, slope, train, encode, decode = FAMILIES[family]
    scalars = {"RaBitQ": 8, "PCA+TurboQuant": 2}.get(family, 0)
    method = {"PCA+TurboQuant": f"PCA{8 * (num_bytes - 2)}+rotation+TurboQuant 1 bit"}.get(family, family)
    method += f", first {num_bytes} of {prefix_of.split('-')[-1]} codes" if prefix_of else ""
    index = [timed(family, num_bytes, target, nprobe) for target, nprobe in zip(TARGETS, (4, 16, None), strict=True)]
    return {
        "id": f"{family}-{num_bytes}" + (f"-of-{prefix_of}" if prefix_of else ""), "family": family,
        "ours": family in OURS, "method": method, "bytes": num_bytes, "code_bytes": num_bytes - scalars,
        "scalar_bytes": scalars, "prefix_of": prefix_of, "status": "done", "reason": None, "limit_seconds": 600.0,
        "trained_on": 80000, "settings": {"seed": 0}, "train_seconds": None if prefix_of else train,
        "encode_us": encode, "decode_us": decode, "model_bytes": int(2e5 * num_bytes),
        "peak_memory_bytes": 1_200_000_000,
        "results": [result(num_bytes, half * (1.06 if prefix_of else 1), slope, *group) for group in GROUPS],
        "index": index if family in (*OURS, "RQ", "PQ") and num_bytes == 16 and not prefix_of else [],
    }  # fmt: skip


def targets(cells: list[dict]) -> list[dict]:
    found = []
    for (metric, queries), family in itertools.product(GROUPS, FAMILIES):
        points = sorted((c["bytes"], r["recall"]["10"][0]) for c in cells for r in c["results"]
                        if c["family"] == family and (r["metric"], r["queries"]) == (metric, queries))  # fmt: skip
        names = {"metric": metric, "queries": queries, "family": family, "ours": family in OURS}
        found += [{**names, "target": target, **crossing(points, target)} for target in TARGETS]
    return found


def crossing(points, target) -> dict:
    for (low, below), (high, above) in itertools.pairwise(points):
        if below < target <= above:
            part = (target - below) / (above - below)
            return {"bytes": round(low * (high / low) ** part, 1), "between": [low, high]}
    return {"bytes": None, "between": None}


def report() -> dict:
    """As `report.json` would hold it: text embeddings, two metrics, queries of another distribution, two bad cells."""
    cells = [cell(family, size) for family in FAMILIES for size in SIZES.get(family, (8, 16, 24, 32, 48))]
    cells += [cell("qinco2-S", size, "qinco2-S-32") for size in (4, 8, 12, 16, 24)]
    slow = cell("LSQ", 64) | {"status": "time limit", "reason": "stopped in round 11 of 25", "results": []}
    failed = cell("PRQ", 64) | {"status": "failed", "reason": "faiss: nsplits must divide 384", "results": []}
    scaling = {
        "dimension": [point("dim", d, encode_us=1.1 * d, decode_us=0.06 * d) for d in (96, 384, 768, 1536)],
        "size": [point("rows", n, search_us=60 * math.log10(n)) for n in (10**4, 10**5, 10**6)]
        + [point("rows", 10**7) | {"status": "time limit", "reason": "it takes about 400 s, and 80 s are left"}],
        "steps": [point("steps", m, encode_us=38.0 * m, decode_us=2.6 * m) for m in (2, 4, 8, 16, 32, 64)],
    }
    break_even = {
        "assumptions": {"gigabytes_per_core": 8.0, "threads": 1},
        "vectors": [{"codec": "qinco2-S-16", "target": target, "against": "exact", "value": 4200.0, "sentence":
                     f"With fewer than about 4,200 vectors use an exact scan: qinco2-S-16 with R@10 of {target:g} is "
                     "faster only from there on."} for target in TARGETS],
        "memory": [{"codec": "qinco2-S-16", "target": None, "against": "hnsw", "value": 2100.0, "sentence":
                    "With fewer than about 2,100 vectors qinco2-S-16 and its tables weigh more than they save."}],
        "queries_per_second": [],
        "exact": {"codec": "qinco2-S-16", "target": 0.95, "vectors": 4200.0, "memory_bytes": 6.5e6, "text":
                  "With fewer than about 4,200 vectors use an exact scan: qinco2-S-16 with R@10 of 0.95 is "
                  "faster only from there on."},
        "hnsw": None, "sentences": ["A sentence on memory."],
    }  # fmt: skip
    return {
        "format": 1, "command": "qinco compare trainset=train.npy db=base.npy queries=query.npy bytes=[8,16,24,32,48] "
        "minutes=10 output=report/", "date": "2026-11-29", "qinco": "1.0.0", "commit": "0123abcd",
        "machine": {"processor": "AMD EPYC", "cores": 2, "memory_bytes": 24 * 2**30, "level": "avx512_bf16",
                    "threads_timed": 1, "python": "3.11.7", "faiss": "1.15.1"},
        "data": {"train": {"path": "train.npy", "rows": 80000, "dim": 384, "dtype": "float32"},
                 "db": {"path": "base.npy", "rows": 35614, "dim": 384, "dtype": "float32"},
                 "queries": {"path": "query.npy", "rows": 2000, "held_out": False},
                 "other_queries": {"path": "captions.npy", "rows": 2000}},
        "metrics": ["l2", "inner_product"], "minutes": 10, "bytes": [8, 16, 24, 32, 48], "price": None,
        "cells": [*cells, slow, failed], "targets": targets(cells),
        "exact": {"library": "faiss", "query_us": 4100.0, "batch_us": 900.0, "threads": 1, "bytes": 1536,
                  "recall_10": [1.0, 0.0]},
        "hnsw": [{"library": "faiss", "settings": {"links": 16}, "target": target, "ef_search": ef,
                  "recall_10": estimate(target + 0.004), "query_us": 40 + 3.0 * ef, "batch_us": 30 + 2.0 * ef,
                  "bytes": 1672, "build_seconds": 22.0, "status": "done", "reason": None}
                 for target, ef in zip(TARGETS, (16, 32, 128), strict=True)],
        "break_even": break_even, "scaling": scaling,
    }  # fmt: skip


def point(name: str, value: int, **times: float) -> dict:
    """A point of scaling."""
    found = {"dim": 128, "steps": 8, "rows": 100_000, "preset": "qinco2-S", "encode_us": None, "decode_us": None,
             "train_us": None, "search_us": None, "code_bytes": 8, "model_bytes": 900_000}  # fmt: skip
    return found | {name: value, **times, "status": "done", "reason": None}
