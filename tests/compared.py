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


def cell(family: str, num_bytes: int, prefix_of: str | None = None) -> dict:
    half, slope, train, encode, decode = FAMILIES[family]
    scalars = {"RaBitQ": 8, "PCA+TurboQuant": 2}.get(family, 0)
    method = {"PCA+TurboQuant": f"PCA{8 * (num_bytes - 2)}+rotation+TurboQuant 1 bit"}.get(family, family)
    index = [{"metric": "l2", "lists": 1024, "nprobe": nprobe, "num_short": 200,
              "recall_10": estimate(share(num_bytes, half, slope) * share(nprobe, 2.5, 1.3)),
              "query_us": round(90 + 14 * nprobe + decode * 12, 1)} for nprobe in (4, 16, 64)]  # fmt: skip
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
    steps = [{"method": "qinco2-S", "steps": m, "train_seconds": 40.0 * m, "encode_us": 38.0 * m, "decode_us": 2.6 * m}
             for m in (2, 4, 8, 16, 32, 64)]  # fmt: skip
    size = [{"method": "qinco2-S", "rows": n, "build_seconds": n / 3000, "query_us": 60 * math.log10(n),
             "synthetic": n > 40000} for n in (10**4, 10**5, 10**6, 10**7)]  # fmt: skip
    dims = [{"method": "qinco2-S", "dim": d, "encode_us": 1.1 * d, "decode_us": 0.06 * d, "model_bytes": 9000 * d}
            for d in (96, 384, 768, 1536)]  # fmt: skip
    return {
        "format": 1, "command": "qinco compare trainset=train.npy db=base.npy queries=query.npy bytes=[8,16,24,32,48] "
        "minutes=10 output=report/", "date": "2026-11-29", "qinco": "0.1.0", "commit": "0123abcd",
        "machine": {"processor": "AMD EPYC", "cores": 2, "memory_bytes": 24 * 2**30, "level": "avx512_bf16",
                    "threads_timed": 1, "python": "3.11.7", "faiss": "1.15.1"},
        "data": {"train": {"path": "train.npy", "rows": 80000, "dim": 384, "dtype": "float32"},
                 "db": {"path": "base.npy", "rows": 35614, "dim": 384, "dtype": "float32"},
                 "queries": {"path": "query.npy", "rows": 2000, "held_out": False},
                 "other_queries": {"path": "captions.npy", "rows": 2000}},
        "metrics": ["l2", "inner_product"], "minutes": 10, "bytes": [8, 16, 24, 32, 48], "price": None,
        "cells": [*cells, slow, failed], "targets": targets(cells),
        "exact": {"query_us": 4100.0, "threads": 1, "bytes": 1536},
        "hnsw": [{"settings": {"M": 32, "efSearch": ef}, "recall_10": estimate(share(ef, 4, 1.1)),
                  "query_us": 40 + 3.0 * ef, "bytes": 1800, "build_seconds": 22.0} for ef in (16, 64, 256)],
        "break_even": {
            "exact": {"vectors": 4200, "memory_bytes": 6.5e6, "queries_a_second": 244.0,
                      "text": "Below 4,200 vectors an exact scan on one thread answers sooner than the index."},
            "hnsw": {"vectors": None, "memory_bytes": 1.8e9, "queries_a_second": 9000.0, "text": None}},
        "scaling": {"dimension": dims, "size": size, "steps": steps},
    }  # fmt: skip
