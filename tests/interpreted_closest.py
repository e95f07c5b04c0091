"""Run by a test in a process of its own, where Triton interprets kernels: prints a JSON object of what it saw."""

import json
import logging
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before kernels are decorated

import torch
from triton_interpreter import repair

from qinco.maths.closest_kernel import closest_kernel
from qinco.maths.split_products import Centroids, SplitProducts, launch_kernel

torch.set_num_threads(1)
CPU = torch.device("cpu")


def launch(*given):
    return launch_kernel(closest_kernel, *given)


def compare(count, size, dim, programs, seed) -> dict:
    """Shares of vectors that get the nearest centroid by float64, and whose distance is right."""
    generator = torch.Generator().manual_seed(seed)
    x_ND, c_KD = torch.randn(count, dim, generator=generator) + 1, torch.randn(size, dim, generator=generator) + 1
    c_KD[size // 2] = c_KD[3]
    x_ND[0], x_ND[1] = c_KD[3], c_KD[size - 1] + 1e-4
    found_N, distances_N = Centroids(c_KD, SplitProducts(launch, "cpu"), programs).compared(x_ND)
    all_NK = (x_ND[:, None].double() - c_KD).square().sum(2)
    values_N, wanted_N = all_NK.min(1)
    equal_to_float32 = torch.cdist(x_ND, c_KD, compute_mode="donot_use_mm_for_euclid_dist").argmin(1) == found_N
    return {
        "same": (found_N == wanted_N).double().mean().item(),
        "same as float32": equal_to_float32.double().mean().item(),
        "apart": ((distances_N - values_N).abs() / (values_N + 0.1)).max().item(),
    }


def one_off(*given):
    values, numbers = launch(*given)
    return values, numbers + 1


def half(*given):
    """As if only high halves were multiplied."""
    return launch(given[0], torch.zeros_like(given[1]), given[2], torch.zeros_like(given[3]), *given[4:])


def without_last_block(*given):
    norms_K = given[4].clone()
    norms_K[(len(norms_K) - 1) // 128 * 128 :] = torch.inf
    return launch(*given[:4], norms_K, given[5])


def unlaunched(*given):
    raise RuntimeError("out of resource: shared memory")


def defect(broken) -> dict:
    """What happens where a kernel is wrong: a warning, and the nearest centroid all the same."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("qinco").addHandler(handler)
    products = SplitProducts(broken, "cpu")
    works = [products.work_on(CPU), products.work_on(CPU)]
    logging.getLogger("qinco").removeHandler(handler)
    return {"works": works, "lines": lines}


def late_defect() -> dict:
    """A kernel that becomes wrong after the check."""
    broken = []
    products = SplitProducts(lambda *given: (one_off if broken else launch)(*given), "cpu")
    generator = torch.Generator().manual_seed(5)
    x_ND, c_KD = torch.randn(20, 8, generator=generator), torch.randn(200, 8, generator=generator)
    works = products.work_on(CPU)
    broken.append(True)
    found_N, _ = Centroids(c_KD, products)(x_ND)
    same = torch.equal(found_N, (x_ND[:, None] - c_KD).square().sum(2).argmin(1))
    return {"works": [works, products.work_on(CPU)], "same": same}


repair()
logging.getLogger("qinco").propagate = False
json.dump(
    {
        "compared": [compare(*case) for case in ((130, 300, 33, 1, 1), (9, 1000, 96, 4, 2), (5, 257, 1, 99, 3))],
        "whole": defect(launch),
        "defects": [defect(broken) for broken in (one_off, half, without_last_block, unlaunched)],
        "late": late_defect(),
    },
    sys.stdout,
)
