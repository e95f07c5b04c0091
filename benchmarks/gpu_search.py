"""Measure search and the assignment of vectors to very many centroids on one GPU: a line of JSON for each result.

    python benchmarks/gpu_search.py [device=cuda] [model=PATH] [data=PATH] [parts=assign,search]
    python benchmarks/gpu_search.py rehearse

`assign` compares 2^18 vectors with 2^20 centroids by split products and, a part of them, by float32 products. `search`
indexes a million vectors (of `data`, or drawn) by a codec (`model`, or one that is trained for a minute), and searches
for 10,000 at a time in 64 lists, by the tables alone and with the network, on the device and then on the processor.
Each line names the warnings of the package, such as that a kernel is not used. `rehearse` does the same with little on
the processor: its figures mean nothing.

Shape suffixes: N vectors, V centroids, D dimension, Q queries.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qinco.codec import Codec
from qinco.machine import num_threads, processor_name
from qinco.maths.devices import device_name, device_type
from qinco.maths.distances import closest
from qinco.maths.split_products import prepared
from qinco.search.index import Index
from qinco.vectors.rows import as_source

SIZES = {
    "centroids": 1 << 20, "assigned": 1 << 18, "by_float32": 1 << 14, "dim": 128, "vectors": 1_000_000,
    "queries": 10_000, "nprobe": 64, "training": 100_000,
}  # fmt: skip
TINY = {
    "centroids": 5000, "assigned": 300, "by_float32": 100, "dim": 8, "vectors": 1200, "queries": 20, "nprobe": 4,
    "training": 600,
}  # fmt: skip
PARTS, KEYS = ("assign", "search"), {"device", "model", "data", "parts"}
TRAINING = {"minutes": 1.0}
TINY_TRAINING = {"num_steps": 4, "codebook_size": 16, "hidden_dim": 16, "epochs": 1, "batch_size": 128}
ROUNDS = 3
WARNINGS: list[str] = []


def report(what: str, **facts) -> None:
    """Print one result, with the warnings since the one before."""
    print(json.dumps({"what": what, **facts, "warnings": WARNINGS}), flush=True)
    WARNINGS.clear()


def seconds_of(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """The least seconds of some rounds after a first one, and what it gives."""
    found, times = work(), []
    for _ in range(ROUNDS):
        if device_type(device) == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        found = work()
        if device_type(device) == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times), found


def drawn(count: int, dim: int, seed: int) -> np.ndarray:
    """Vectors around a thousand centres, float32 (count, dim)."""
    centres_VD = np.random.default_rng(0).standard_normal((1000, dim), np.float32)
    random = np.random.default_rng(seed)
    x_ND = random.standard_normal((count, dim), np.float32)
    x_ND *= 0.5
    x_ND += centres_VD[random.integers(0, 1000, count)]
    return x_ND


def assign(device: str, sizes: dict[str, int]) -> None:
    x_ND, c_VD = (torch.from_numpy(drawn(sizes[of], sizes["dim"], 1)).to(device) for of in ("assigned", "centroids"))
    x_ND += 0.1 * torch.randn(x_ND.shape, generator=torch.Generator(device).manual_seed(0), device=device)
    few_ND, ready = x_ND[: sizes["by_float32"]], prepared(c_VD)
    seconds, found = seconds_of(lambda: ready(x_ND), device)
    plain_seconds, wanted = seconds_of(lambda: closest(few_ND, c_VD), device)
    same = (found[0][: len(few_ND)] == wanted[0]).double().mean().item()
    further = (found[1][: len(few_ND)] > wanted[1] * (1 + 1e-5)).double().mean().item()
    report(
        "assign", vectors=len(x_ND), centroids=len(c_VD), dim=sizes["dim"], vectors_a_second=len(x_ND) / seconds,
        by_float32_a_second=len(few_ND) / plain_seconds, same_centroid=same, further_away=further,
    )  # fmt: skip


def search(device: str, sizes: dict[str, int], model: str | None, data: str | None, training: dict[str, Any]) -> None:
    count = sizes["vectors"]
    x_ND = drawn(count + sizes["queries"], sizes["dim"], 2) if data is None else as_source(data)
    x_ND = np.asarray(x_ND[: count + sizes["queries"]], np.float32)
    queries_QD, x_ND = x_ND[-sizes["queries"] :], x_ND[: -sizes["queries"]]
    if model is None:
        codec = Codec.fit(x_ND[: sizes["training"]], None, device=device, **training)
    else:
        codec = Codec.load(model, device)
    begun = time.perf_counter()
    index = Index.build(codec, x_ND)
    report("build", vectors=len(x_ND), lists=index.num_lists, seconds=time.perf_counter() - begun)
    found: dict[str, np.ndarray] = {}
    for where in dict.fromkeys((device, "cpu")):  # a codec is at one place
        index.codec = codec.to(where)
        for name, options in (("tables", {"num_short": 0}), ("network", {})):
            given = {"k": 10, "nprobe": sizes["nprobe"], "precision": "float32", **options}
            seconds, (_, ids_QR) = seconds_of(lambda given=given: index.search(queries_QD, **given), where)
            same = (ids_QR == found.setdefault(name, ids_QR)).mean().item()
            report(
                "search", where=where, by=name, nprobe=sizes["nprobe"], queries=len(queries_QD), threads=num_threads(),
                queries_a_second=len(queries_QD) / seconds, same_ids_as_on_device=same,
            )  # fmt: skip


def main(words: list[str]) -> None:
    is_rehearsed = "rehearse" in words
    given = dict(word.split("=", 1) for word in words if word != "rehearse" and "=" in word)
    if unknown := {*given} - KEYS or {word for word in words if word != "rehearse" and "=" not in word}:
        sys.exit(f"{', '.join(sorted(unknown))}: give KEY=VALUE, of {', '.join(sorted(KEYS))}, or rehearse")
    parts = given.get("parts", ",".join(PARTS)).split(",")
    if unknown := {*parts} - {*PARTS}:
        sys.exit(f"parts={','.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: WARNINGS.append(record.getMessage())
    logging.getLogger("qinco").addHandler(handler)
    device = "cpu" if is_rehearsed else given.get("device", "cuda")
    sizes = TINY if is_rehearsed else SIZES
    report("machine", device=device_name(device), processor=processor_name(), torch=torch.__version__)
    if "assign" in parts:
        assign(device, sizes)
    if "search" in parts:
        training = TINY_TRAINING if is_rehearsed else TRAINING
        search(device, sizes, given.get("model"), given.get("data"), training)


if __name__ == "__main__":
    main(sys.argv[1:])
