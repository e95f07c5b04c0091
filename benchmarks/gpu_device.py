"""Measurements of a GPU: times, kernels, utilization, peak rates.

Every function takes the device; on the processor the same calls use its clock, so that they can be tried without a
card. Counts are of vectors, times in seconds.
"""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PASS_SECONDS = 0.1
ROUNDS = 7
_SMI = ("nvidia-smi", "--format=csv,noheader,nounits")


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds from an idle device to the end of the work, by device events; includes delays by the host."""
    synchronize(device)
    if device.type != "cuda":
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def pass_size(work: Callable[[int], object], most: int, device: torch.device) -> int:
    """Number of vectors, at most `most`, for a pass that takes long enough to time. Also warms up."""
    count = min(most, 128)
    while True:
        work(count)
        taken = seconds_of(partial(work, count), device)
        if count == most or taken >= PASS_SECONDS:
            return count
        count = min(most, 4 * count)


def rates(
    cases: dict[Hashable, Callable[[int], object]], most: int, device: torch.device, until: float
) -> dict[Hashable, float | str]:
    """Vectors per second of each case: the median of several passes, with cases interleaved.

    cases: `work(count)` on the first `count` vectors
    until: the monotonic clock after which no further round begins; each case that runs has one pass at least

    A case that fails has the error's text instead.
    """
    counts, passes, failed = {}, {}, {}
    for key, work in cases.items():
        print(f"{time.strftime('%X')} {key}", file=sys.stderr)
        try:
            counts[key] = pass_size(work, most, device)
            passes[key] = []
        except Exception as error:  # a failing engine must not stop the others
            failed[key] = brief(error)
    for number in range(ROUNDS):
        for key, taken in passes.items():
            if number == 0 or time.monotonic() < until:
                taken.append(seconds_of(lambda key=key: cases[key](counts[key]), device))
    return {key: counts[key] / statistics.median(taken) for key, taken in passes.items()} | failed


def brief(error: BaseException) -> str:
    """An error as one line that fits in a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".replace("|", "/")


def kernels(work: Callable[[], object], device: torch.device) -> list[tuple[str, int, float]]:
    """(name, calls, seconds on the device) of every kernel of `work`, longest first; operators for a CPU."""
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_card else [])
    with profile(activities=activities):  # the first use of the profiler is slow
        torch.zeros(1, device=device).add_(1)
        synchronize(device)
    with profile(activities=activities) as found:
        work()
        synchronize(device)
    kind = DeviceType.CUDA if on_card else DeviceType.CPU
    rows = [
        (event.key, event.count, (event.self_device_time_total if on_card else event.self_cpu_time_total) / 1e6)
        for event in found.key_averages()
        if event.device_type == kind and not event.is_user_annotation
    ]
    return sorted(rows, key=lambda row: -row[2])


class BusyShare:
    """A context in which nvidia-smi samples the share of time with a running kernel."""

    def __init__(self, device: torch.device):
        self._command = [*_SMI, "--query-gpu=utilization.gpu", f"--id={device.index or 0}"]
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[int] = []

    def _sample(self) -> None:
        # Each sample covers the last 1/6 to 1 s. Without nvidia-smi there are no samples.
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            while not self._ended.wait(0.5):
                self.samples.append(int(subprocess.check_output(self._command, text=True, timeout=20)))

    def __enter__(self) -> "BusyShare":
        self._sampler.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._sampler.join()

    def __str__(self) -> str:
        if not self.samples:
            return "unknown: nvidia-smi gave no samples"
        return f"{statistics.mean(self.samples):.0f} % of the time (nvidia-smi, {len(self.samples)} samples)"


def card(device: torch.device) -> str:
    """Name of the device and its driver."""
    if device.type != "cuda":
        return "no card: this run only tries the script out, on the processor"
    found = torch.cuda.get_device_properties(device)
    command = [*_SMI, "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu,power.limit"]
    driver = "unknown"
    with suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.check_output([*command, f"--id={device.index or 0}"], text=True, timeout=20).strip()
    return (
        f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors, compute "
        f"capability {found.major}.{found.minor}; driver, SM MHz, memory MHz, °C, W at most: {driver}"
    )


def peak_memory(device: torch.device) -> str:
    """Peak memory that torch has held on the device."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB" if device.type == "cuda" else "not measured"


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of torch's product of two square bf16 matrices of random numbers."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    return 2 * size**3 / _median_seconds(lambda: torch.mm(a, b, out=product), device)


def copy_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written per second by a copy on the device."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_(0, 256)
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        work()
    return statistics.median(seconds_of(work, device) for _ in range(11))
