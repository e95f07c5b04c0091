"""Parts of gpu.py: the assignment of vectors to very many centroids, and searches of an index on the device.

Shape suffixes: N vectors, V centroids, D dimension, Q queries, R results.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_setting import Setting, say

from qinco.machine import num_threads
from qinco.maths.devices import device_type
from qinco.maths.distances import closest
from qinco.maths.split_products import prepared
from qinco.search.index import Index

CENTROIDS, ASSIGNED, BY_FLOAT32 = 1 << 20, 1 << 18, 1 << 14
INDEXED, QUERIES, NPROBE = 1_000_000, 10_000, 64
TINY = {CENTROIDS: 5000, ASSIGNED: 300, BY_FLOAT32: 100, INDEXED: 1200, QUERIES: 20, NPROBE: 4}
NOISE = 0.1  # of a copy of a vector, relative to the spread of all
ROUNDS = 3


def assign(setting: Setting) -> None:
    """Compare 2^18 vectors with 2^20 centroids by split products, and a part of them by float32 products."""
    _say_warnings()
    device, (assigned, centroids, few) = setting.device, _sizes(setting, ASSIGNED, CENTROIDS, BY_FLOAT32)
    x_ND, c_VD = (torch.from_numpy(_copies(setting, "train", of, seed)).to(device)
                  for seed, of in enumerate((assigned, centroids)))  # fmt: skip
    few_ND, ready = x_ND[:few], prepared(c_VD)
    seconds, found = _seconds_of(lambda: ready(x_ND), str(device))
    plain_seconds, wanted = _seconds_of(lambda: closest(few_ND, c_VD), str(device))
    say(
        assigned=len(x_ND), centroids=len(c_VD), assigned_per_second=len(x_ND) / seconds,
        by_float32_per_second=len(few_ND) / plain_seconds,
        same_centroid=(found[0][:few] == wanted[0]).double().mean().item(),
        further_away=(found[1][:few] > wanted[1] * (1 + 1e-5)).double().mean().item(),
    )  # fmt: skip


def search(setting: Setting) -> None:
    """Index a million vectors by the trained codec, and search for 10,000 at a time in 64 lists.

    By the tables alone and with the network, on the device and then on the processor.
    """
    _say_warnings()
    codec, device = setting.codec(), str(setting.device)
    if codec is None:
        raise SystemExit("no trained codec: give model=, or run the part train before")
    count, num_queries, nprobe = _sizes(setting, INDEXED, QUERIES, NPROBE)
    begun = time.perf_counter()
    index = Index.build(codec, _copies(setting, "base", count, 2))
    say(indexed=len(index), lists=index.num_lists, seconds=time.perf_counter() - begun)
    queries_QD, found = _copies(setting, "query", num_queries, 3), {}
    for where in dict.fromkeys((device, "cpu")):  # a codec is at one place
        index.codec = codec.to(where)
        for by, options in (("tables", {"num_short": 0}), ("network", {})):
            if setting.left < 0:
                return
            given: dict[str, Any] = {"k": 10, "nprobe": nprobe, "precision": "float32", **options}
            seconds, (_, ids_QR) = _seconds_of(lambda given=given: index.search(queries_QD, **given), where)
            same = (ids_QR == found.setdefault(by, ids_QR)).mean().item()
            say(
                searched_on=where, by=by, nprobe=nprobe, queries=len(queries_QD), threads=num_threads(),
                queries_per_second=len(queries_QD) / seconds, same_ids_as_on_device=same,
            )  # fmt: skip


def _sizes(setting: Setting, *sizes: int) -> tuple[int, ...]:
    return tuple(TINY[size] if setting.quick else size for size in sizes)


def _copies(setting: Setting, name: str, count: int, seed: int) -> np.ndarray:
    """So many vectors of a file, float32 (count, D): where it has fewer, moved copies of them, too."""
    source = setting.vectors(name)
    x_ND = np.asarray(source[: min(count, len(source))], np.float32)
    copies_ND = np.resize(x_ND, (count, source.dim))
    random = np.random.default_rng(seed)
    copies_ND[len(x_ND) :] += NOISE * x_ND.std() * random.standard_normal((count - len(x_ND), source.dim), np.float32)
    return copies_ND


def _seconds_of(work: Callable[[], Any], device: str) -> tuple[float, Any]:
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


def _say_warnings() -> None:
    """Say the package's warnings, such as that a kernel is not used."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: say(warning=record.getMessage())
    logging.getLogger("qinco").addHandler(handler)
