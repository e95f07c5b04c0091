"""Inverted lists on a GPU, scanned there as `Scanner.scan` does on the processor, which checks them.

Shape suffixes: Q queries, D dimension, M codes of a vector, L lists visited, S shortlist, P parts of a query's lists,
C places of a part.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from qinco.forking import new_lock
from qinco.maths.devices import device_type, holds, to_device
from qinco.search.lists import WIDTH, InvertedLists
from qinco.search.parts import IndexParts
from qinco.search.scan import Scanner, Shortlist

MOST_SHORT, MOST_CODES = 2048, 32  # that the kernel takes: its registers hold no more
TABLE_CUTS = {"QUERIES": 32, "ENTRIES": 128, "num_warps": 4}
_QUERIES = 4096  # whose tables are kept at a time
_PROGRAMS, _MERGED = 1024, 1 << 14  # that keep a GPU busy; values of all parts of a query
_FIRST, _CHECKED_EACH = 8, 256  # queries that are checked at first; of so many, one
_ROUNDING = 1e-5  # of values, where the processor's tables are added up in another order
_LOG = logging.getLogger(__name__)


class ScanKernels:
    """Launches the kernels on a device; a test gives others."""

    def tables(self, queries_QD: Tensor, rows_DE: Tensor, factor: float) -> Tensor:
        from qinco.search.scan_kernels import tables_kernel

        (count, dim), entries = queries_QD.shape, rows_DE.shape[1]
        tables_QE = torch.empty((count, entries), device=queries_QD.device)
        grid = (-(-count // TABLE_CUTS["QUERIES"]), -(-entries // TABLE_CUTS["ENTRIES"]))
        self.launch(tables_kernel, grid, queries_QD, rows_DE, tables_QE, count, dim, entries, factor, **TABLE_CUTS)
        return tables_QE

    def scan(self, grid: tuple[int, int], tensors: Sequence[Tensor], numbers: Sequence[int], **constants) -> None:
        from qinco.search.scan_kernels import scan_kernel

        self.launch(scan_kernel, grid, *tensors, *numbers, **constants)

    def launch(self, kernel: Any, grid: tuple[int, int], *arguments, **constants) -> None:
        kernel[grid](*arguments, **constants)


def cuts(num_short: int) -> dict[str, int]:
    """How the scan is cut for shortlists of this length: places of values, vectors of a block, and warps."""
    capacity = max(512, 1 << (2 * num_short - 1).bit_length())
    warps = max(8, capacity // 256)  # with 4 Triton 3.9 spills for sm_89
    return {"CAPACITY": capacity, "BLOCK": max(256, 32 * warps), "num_warps": warps}


class DeviceScan:
    """The lists of an index on a device.

    A few queries are compared with the processor's scan before the first results, and one of every batch of many. Where
    the kernels fail or differ, a warning says so and the processor scans from then on.

    Args:
        scanner: of the index, on the processor.
        segments: inverted lists.
        device: where to scan.
        kernels: what launches the kernels there.
    """

    def __init__(self, scanner: Scanner, segments: Sequence[InvertedLists], device: str, kernels: ScanKernels):
        self._scanner, self._segments, self._device, self._kernels = scanner, segments, device, kernels
        self._is_checked, self._next, self._lock = False, 0, new_lock()
        self.failure: str | None = None
        num_codes, rows = scanner.tables_MKD.shape[0], np.cumsum([0, *map(len, segments)])
        num_bytes = int(rows[-1]) * (num_codes + 9)
        if rows[-1] >= 1 << 31 or num_codes > MOST_CODES or not holds(device, num_bytes):
            self._fail(f"{rows[-1]} vectors of {num_codes} codes do not fit there")
            return
        starts = np.stack([segment.starts + row for segment, row in zip(segments, rows[:-1], strict=True)])
        self._starts, self._num_starts = to_device(starts.ravel(), device), starts.shape[1]
        self._codes = to_device(np.concatenate([segment.codes for segment in segments]), device)
        self._ids = to_device(np.concatenate([segment.ids for segment in segments], dtype=np.int64), device)
        self._rows_DE = to_device(scanner.tables_MKD.reshape(-1, scanner.tables_MKD.shape[2]).T, device)
        self._levels, self._num_codes = to_device(scanner.levels, device), num_codes

    def scan(
        self, queries_QD: np.ndarray, probes_QL: np.ndarray, bases_QL: np.ndarray, segments: Sequence[InvertedLists],
        num_short: int, *, nprobe: int, admitted=None, threads: int = 1,
    ) -> Shortlist:  # fmt: skip
        """What `Scanner.scan` gives of the segments of this index, which are all that may be given.

        Those of a selection, and very long shortlists, are the processor's.
        """
        assert len(segments) == len(self._segments)

        def on_processor(some: slice) -> Shortlist:
            given = queries_QD[some], probes_QL[some], bases_QL[some], segments, num_short
            return self._scanner.scan(*given, nprobe=nprobe, admitted=admitted, threads=threads)

        whole = slice(None)
        if admitted is not None or num_short > MOST_SHORT or self.failure is not None or not len(queries_QD):
            return on_processor(whole)
        try:
            found = self._scan(self._scanner.shifted(queries_QD), probes_QL, bases_QL, num_short, nprobe)
            if (some := self._to_check(len(queries_QD))) is not None:
                _compare(found, on_processor(some), some, np.abs(bases_QL[some]))
                self._is_checked = True
            return found
        except Exception as error:  # of the compiler, the driver or the results: the processor needs none of them
            self._fail(str(error) or type(error).__name__)
            return on_processor(whole)

    def _to_check(self, count: int) -> slice | None:
        """The queries of a batch that are compared with the processor's results."""
        if not self._is_checked:
            return slice(0, min(count, _FIRST))
        if count < _CHECKED_EACH:
            return None
        self._next += 1  # another place each time
        return slice(self._next % count, self._next % count + 1)

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self.failure is None:
                self.failure = reason
                _LOG.warning("%s: lists are scanned by the processor instead: %s", self._device, reason)

    def _scan(self, queries_QD: np.ndarray, probes_QL, bases_QL, num_short: int, nprobe: int) -> Shortlist:
        parts = []
        for start in range(0, len(queries_QD), _QUERIES):
            some = slice(start, start + _QUERIES)
            given = (queries_QD, np.float32), (probes_QL, np.int32), (bases_QL, np.float32)
            sent = [to_device(np.ascontiguousarray(array[some], dtype), self._device) for array, dtype in given]
            parts.append(self._scanned(sent[0], sent[1], sent[2], num_short, nprobe))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return Shortlist(*(column.cpu().numpy() for column in columns))

    def _scanned(self, queries_QD: Tensor, probes_QL: Tensor, bases_QL: Tensor, num_short: int, nprobe: int):
        """The columns of a Shortlist on the device."""
        (count, num_probes), device = probes_QL.shape, probes_QL.device
        most = min(_PROGRAMS // count, _MERGED // num_short) if nprobe >= num_probes else 1
        per_part = -(-num_probes // max(1, most))
        parts = -(-num_probes // per_part)
        shape = cuts(num_short)
        tables_QE = self._kernels.tables(queries_QD, self._rows_DE, -1.0 if self._scanner.inner_product else -2.0)
        values_QPC = torch.empty((count, parts, shape["CAPACITY"]), device=device)
        rows_QPC = torch.empty((count, parts, shape["CAPACITY"]), dtype=torch.int32, device=device)
        counts_QP = torch.empty((count, parts), dtype=torch.int32, device=device)
        scanned_QP = torch.empty_like(counts_QP)
        tensors = tables_QE, self._levels, probes_QL, bases_QL, self._starts, self._codes
        numbers = num_probes, per_part, nprobe, len(self._segments), self._num_starts, num_short
        self._kernels.scan(
            (count, parts), (*tensors, values_QPC, rows_QPC, counts_QP, scanned_QP), numbers, M=self._num_codes,
            **shape,
        )  # fmt: skip
        is_found_QPS = torch.arange(num_short, device=device) < counts_QP[..., None]
        values_QS = torch.where(is_found_QPS, values_QPC[..., :num_short], torch.inf).flatten(1)
        rows_QS = torch.where(is_found_QPS, rows_QPC[..., :num_short], 0).flatten(1)
        values_QS, order_QS = torch.sort(values_QS, dim=1, stable=True)
        values_QS, rows_QS = values_QS[:, :num_short], rows_QS.gather(1, order_QS[:, :num_short]).long()
        return values_QS, *self._vectors(rows_QS, values_QS < torch.inf), scanned_QP.sum(1, dtype=torch.int64)

    def _vectors(self, rows_QS: Tensor, is_found_QS: Tensor) -> tuple[Tensor, ...]:
        """Ids, lists, codes and norm codes of rows of all segments together."""
        if not len(self._ids):
            rows_QS = torch.zeros((*rows_QS.shape, self._num_codes + 1), dtype=torch.uint8, device=rows_QS.device)
            none_QS = torch.full_like(is_found_QS, -1, dtype=torch.int64)
            return none_QS, none_QS.int(), rows_QS[..., :-1].contiguous(), rows_QS[..., -1].contiguous()
        rows_QS = rows_QS.clamp(0, len(self._ids) - 1)  # a wrong kernel's would stop the whole process
        places_QS = torch.searchsorted(self._starts, rows_QS, right=True) - 1
        begin_QS = self._starts[places_QS]
        inside_QS = rows_QS - begin_QS
        block_QS = inside_QS // WIDTH * WIDTH
        widths_QS = (self._starts[places_QS + 1] - begin_QS - block_QS).clamp(max=WIDTH)
        first_QS = (begin_QS + block_QS) * (self._num_codes + 1) + inside_QS - block_QS
        step = torch.arange(self._num_codes + 1, device=rows_QS.device)
        codes_QSM = self._codes[first_QS[..., None] + widths_QS[..., None] * step]
        codes_QSM = torch.where(is_found_QS[..., None], codes_QSM, torch.zeros_like(codes_QSM))
        ids_QS = torch.where(is_found_QS, self._ids[rows_QS], -1)
        lists_QS = torch.where(is_found_QS, places_QS % self._num_starts, -1).int()
        return ids_QS, lists_QS, codes_QSM[..., :-1].contiguous(), codes_QSM[..., -1].contiguous()


def _compare(found: Shortlist, wanted: Shortlist, some: slice, bases_QL: np.ndarray) -> None:
    """Raise ValueError where shortlists differ by more than rounding, which may exchange the last and equal ones."""
    own = Shortlist(*(column[some] for column in vars(found).values()))
    if not np.array_equal(own.lists < 0, wanted.lists < 0) or not np.array_equal(own.scanned, wanted.scanned):
        raise ValueError("its results are wrong: other numbers of vectors were found than by the processor")
    bases_QL = np.where(np.isfinite(bases_QL), bases_QL, 0)
    for query in range(len(wanted.lists)):
        count = int((wanted.lists[query] >= 0).sum())
        if not count:
            continue
        values_N, wanted_N = own.values[query, :count], wanted.values[query, :count]
        rounding = _ROUNDING * max(np.abs(wanted_N).max(), bases_QL[query].max())
        if not (np.abs(values_N - wanted_N) <= rounding).all():
            raise ValueError("its results are wrong: values differ from the processor's by more than rounding")
        facts = [_facts(shortlist, query, count) for shortlist in (own, wanted)]
        last = wanted_N[-1] - rounding
        for one, other in (facts, facts[::-1]):
            for number, (value, vector) in one.items():
                if number in other and vector != other[number][1]:
                    raise ValueError("its results are wrong: a vector has other codes than by the processor")
                if number not in other and value < last:
                    raise ValueError("its results are wrong: other vectors were found than by the processor")


def _facts(shortlist: Shortlist, query: int, count: int) -> dict[int, tuple]:
    """By the ids of a query's vectors their values, and what is stored of them."""
    columns = shortlist.ids, shortlist.values, shortlist.lists, shortlist.norm_codes, shortlist.codes
    rows = zip(*(column[query, :count].tolist() for column in columns), strict=True)
    return {number: (value, stored) for number, value, *stored in rows}


_SCANS: "WeakKeyDictionary[IndexParts, dict[str, DeviceScan]]" = WeakKeyDictionary()
_LOCK = new_lock()


def device_scan(parts: IndexParts, device: str) -> Callable[..., Any] | None:
    """What scans the lists of one state of an index on a device, where they are copied once; None where nothing can."""
    if device_type(device) != "cuda" or find_spec("triton") is None:
        return None
    with _LOCK:
        scans = _SCANS.setdefault(parts, {})
        if device not in scans:
            scans[device] = DeviceScan(parts.tables.scanner, parts.segments, device, _OnDevice(device))
        return scans[device].scan


class _OnDevice(ScanKernels):
    """On one of several GPUs: Triton launches on the current one."""

    def __init__(self, device: str):
        self._device = device

    def launch(self, *given, **constants) -> None:
        with torch.cuda.device(self._device):
            super().launch(*given, **constants)
