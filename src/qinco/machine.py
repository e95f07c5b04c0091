"""What this machine leaves to the process: cores, memory, and the processor's name, limits of containers included.

`root` is the folder that holds /proc and /sys; tests give another one.
"""

import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_COMMON_MEMORY = 1 << 33  # what is free where the system does not say
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a huge number


@dataclass(frozen=True)
class GroupLimits:
    """What the control groups (v1 or v2) of this process allow; None without a limit."""

    cores: float | None
    memory: int | None  # bytes
    free: int | None  # bytes that may still be allocated


def usable_cores(root: Path = _ROOT) -> int:
    """Number of cores this process can keep busy: its affinity mask, capped by its control group's CPU quota."""
    allowed, quota = allowed_cores(), group_limits(root).cores
    return allowed if quota is None else min(allowed, max(1, math.ceil(quota)))


def allowed_cores() -> int:
    """Number of cores in the affinity mask; all where the system has none."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that can be allocated without swapping and without exceeding the control group's limit."""
    free, limit = _pages("SC_AVPHYS_PAGES") or _COMMON_MEMORY, group_limits(root).free
    with suppress(OSError, StopIteration), (root / "proc/meminfo").open() as file:
        free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    return free if limit is None else min(free, limit)


def total_memory() -> int | None:
    """Bytes of memory; None where the system does not say."""
    return _pages("SC_PHYS_PAGES")


def _pages(name: str) -> int | None:
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not all names
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def processor_name(root: Path = _ROOT) -> str:
    """Model name of the processor, or its architecture where the kernel does not report a name."""
    return cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def cpuinfo(root: Path = _ROOT) -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    with suppress(OSError):
        first, _, _ = (root / "proc/cpuinfo").read_text().partition("\n\n")
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def group_limits(root: Path = _ROOT) -> GroupLimits:
    """The tightest limits of this process's control groups and of the groups that contain them."""
    quotas, sizes, free = [], [], []
    for folder in _group_folders(root):
        quota = _integers(folder / "cpu.max")
        quota = quota or _integers(folder / "cpu.cfs_quota_us") + _integers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:
            quotas.append(quota[0] / quota[1])
        limit = _integers(folder / "memory.max") or _integers(folder / "memory.limit_in_bytes")
        if limit and limit[0] < _UNLIMITED:
            sizes.append(limit[0])
            free.append(max(0, limit[0] - _unreclaimable(folder)))
    return GroupLimits(min(quotas, default=None), min(sizes, default=None), min(free, default=None))


def _unreclaimable(folder: Path) -> int:
    """Bytes that a group uses, without file caches that the kernel drops under pressure."""
    used = _integers(folder / "memory.current") or _integers(folder / "memory.usage_in_bytes")
    if not used:
        return 0
    cached = {}
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = {name: int(value) for name, value in lines}
    # v1 counts a group's children under total_*, as its usage does; v2 always does
    return max(0, used[0] - cached.get("total_inactive_file", cached.get("inactive_file", 0)))


def _group_folders(root: Path) -> Iterator[Path]:
    """The folder of each controller's group, and those around it; a container may not see all of them."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):  # v2 has one controller, called ""
                mount = root / "sys/fs/cgroup" / controller
                group = mount / path.lstrip("/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _integers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split() if word != "max"]
    except (OSError, ValueError):
        return []
