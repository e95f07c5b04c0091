"""Run by a test in a process of its own, where Triton interprets kernels: prints a JSON object of what it saw."""

import json
import logging
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before kernels are decorated

import numpy as np
import torch
from small_indexes import built, copied, vectors
from small_lists import lists_of
from triton.runtime import interpreter
from triton_interpreter import repair

from qinco.search.device_scan import DeviceScan, ScanKernels
from qinco.search.options import SearchOptions
from qinco.search.scan import Scanner

torch.set_num_threads(1)
COLUMNS = ("values", "ids", "lists", "codes", "norm_codes", "scanned")


def fuse():
    """Round a fused multiply-add once, which the interpreter rounds twice: a product of floats is exact here."""

    def fma(self, x, y, z):
        sums = x.data.astype(np.longdouble) * y.data + z.data
        return interpreter.TensorHandle(sums.astype(np.float32), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = fma


class World:
    """Vectors in lists of uneven lengths, in several segments, many of them equal to others."""

    def __init__(self, counts, num_lists=5, dim=6, num_codes=4, entries=16, inner_product=False, seed=0):
        random = np.random.default_rng(seed)
        centroids_VD = random.normal(0, 1, (num_lists, dim)).astype(np.float32)
        tables_MKD = random.normal(0, 1 / 3, (num_codes, entries, dim)).astype(np.float32)
        levels = np.sort(random.normal(0, 1 / 3, 256)).astype(np.float32)
        self.scanner = Scanner(centroids_VD, tables_MKD, levels, inner_product=inner_product)
        self.segments, first = [], 1 << 33
        for count in counts:
            kinds_NM = random.integers(0, entries, (max(1, count // 3), num_codes + 1), np.uint8)
            kinds_NM = kinds_NM[random.integers(0, len(kinds_NM), count)]
            lists_N = np.minimum(random.integers(0, 2 * num_lists, count), num_lists - 1)
            ids_N = first + random.permutation(count)
            self.segments.append(lists_of(kinds_NM[:, :-1], kinds_NM[:, -1], lists_N, ids_N, num_lists))
            first += count
        self.queries_QD = random.normal(0, 1, (6, dim)).astype(np.float32)

    def found(self, kernels=None, num_short=10, probes=3, nprobe=None):
        """Results of the processor and of the kernels, and the failure that these report."""
        given = self.queries_QD, *self.scanner.probe(self.queries_QD, probes), self.segments, num_short
        limits: dict[str, Any] = {"nprobe": probes if nprobe is None else nprobe}
        scan = DeviceScan(self.scanner, self.segments, "cpu", kernels or ScanKernels())
        return self.scanner.scan(*given, **limits), scan.scan(*given, **limits), scan.failure


def same(world: World, **search) -> dict:
    wanted, found, failure = world.found(**search)
    equal = [name for name in COLUMNS if np.array_equal(getattr(wanted, name), getattr(found, name))]
    types = [name for name in COLUMNS if getattr(wanted, name).dtype == getattr(found, name).dtype]
    ties = int((wanted.values[:, 1:] == wanted.values[:, :-1]).sum())
    return {"equal": equal, "types": types, "failure": failure, "ties": ties}


class _Broken(ScanKernels):
    """Kernels with one defect."""

    def __init__(self, defect: str):
        self.defect = defect

    def tables(self, queries_QD, rows_DE, factor):
        tables_QE = super().tables(queries_QD, rows_DE, factor)
        if self.defect == "table":
            tables_QE[:, : len(tables_QE[0]) // 4] *= 1.01
        return tables_QE

    def scan(self, grid, tensors, numbers, **constants):
        if self.defect == "launch":
            raise RuntimeError("out of resource: shared memory")
        numbers = list(numbers)
        if self.defect == "list":  # the last of a part's lists is not visited
            tensors = [*tensors[:2], tensors[2].clone(), *tensors[3:]]
            tensors[2][:, -1] = -1
        super().scan(grid, tensors, numbers, **constants)
        values, rows = tensors[-4:-2]
        if self.defect == "row":
            rows[:, :, :3] += 1
        if self.defect == "wild row":
            rows[:, :, :3] += 1 << 30
        if self.defect == "lost":  # the nearest, with what is last twice
            place = values[..., :5].argmin(-1, keepdim=True)
            for of in (values, rows):
                of.scatter_(-1, place, of[..., 6:7].clone())


def searched() -> dict:
    """An index's shortlists with the lists scanned by the kernels, and without."""
    index = copied(built())
    index.add(vectors(200, 7))
    scan = DeviceScan(index.tables.scanner, index.segments, "cpu", ScanKernels())
    options = SearchOptions(nprobe=1, num_short=200)
    given = index.tables.metric.prepare(vectors(9, 3) + 0.1), 200, options, index.segments, None, 1, 200
    wanted, found = index.tables.shortlist(*given), index.tables.shortlist(*given, scan_lists=scan.scan)
    equal = [name for name in COLUMNS if np.array_equal(getattr(wanted, name), getattr(found, name))]
    return {"equal": equal, "failure": scan.failure, "segments": len(index.segments)}


def defect(name: str) -> dict:
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("qinco").addHandler(handler)
    wanted, found, _ = World([150]).found(_Broken(name))
    logging.getLogger("qinco").removeHandler(handler)
    return {"right": all(np.array_equal(getattr(wanted, c), getattr(found, c)) for c in COLUMNS), "lines": lines}


if __name__ == "__main__":
    repair()
    fuse()
    logging.getLogger("qinco").propagate = False
    defects = sys.argv[1:]
    cases = {
        "all lists, several segments": same(World([450, 70, 1, 0]), probes=5, num_short=60),
        "inner products": same(World([300], inner_product=True)),
        "long lists": same(World([1800], num_lists=2), probes=2, num_short=150),
        "more than there are": same(World([40]), num_short=99),
        "further lists": same(World([150], num_lists=7), probes=7, nprobe=1, num_short=80),
        "no vectors": same(World([0])),
        "one": same(World([64 * 3]), num_short=1, probes=1),
    }
    json.dump({"cases": cases, "index": searched(), "defects": {name: defect(name) for name in defects}}, sys.stdout)
