"""What this machine leaves to the process: cores, memory, and the processor's name, limits of containers included.

`root` is the folder that holds /proc and /sys; tests give another one.
"""

import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import Any

from qinco import forking
from qinco.errors import ConfigError

_ROOT = Path("/")
_threads: tuple[int, int] | None = None  # of set_num_threads, and the generation of the process that called it
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a huge number
# Limits of a group in bytes, of version 2 and of version 1, and what counts towards them; and where version 1 tells the
# least limit of the groups around it, which are not seen in a container.
_MEMORY_LIMITS = {
    "memory.max": ("memory.current", ""),
    "memory.high": ("memory.current", ""),  # beyond it the group is slowed down until it has freed memory
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "hierarchical_memory_limit"),
    "memory.memsw.limit_in_bytes": ("memory.memsw.usage_in_bytes", "hierarchical_memsw_limit"),  # swap included
}


@dataclass(frozen=True)
class GroupLimits:
    """What the control groups (v1 or v2) of this process allow; None without a limit."""

    cores: float | None  # the CPU quota
    processors: int | None  # how many are in the group's set
    memory: int | None  # bytes
    free: int | None  # bytes that may still be allocated


def num_threads() -> int:
    """Threads of a call: those of `set_num_threads`, QINCO_NUM_THREADS or OMP_NUM_THREADS, or as many as usable cores.

    The numbers of torch and faiss are their own. In a forked child, which is often one of many, the default is one, and
    the number that its parent set does not count.
    """
    if _threads is not None and _threads[1] == forking.generation:
        return _threads[0]
    text = os.environ.get("QINCO_NUM_THREADS")
    if text is not None and not (text.isdigit() and int(text) > 0):
        raise ConfigError(f"QINCO_NUM_THREADS={text} is not a number of threads, 1 or more")
    text = text or os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels, the first
    if text.isdigit() and int(text) > 0:
        return int(text)
    return 1 if forking.generation else _cores()


def num_openmp_threads() -> int:
    """Threads of calls into torch and faiss: as many as `num_threads`; one in a forked child, where more would hang."""
    return 1 if forking.generation else num_threads()


def set_num_threads(count: int | None) -> None:
    """Let calls use `count` threads of the processor from now on, torch's too; None: the default of `num_threads`.

    Example:
        >>> qinco.set_num_threads(4)
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, Integral) or count < 1):
        raise ConfigError(f"the number of threads must be an integer of 1 or more, not {count!r}")
    _set(None if count is None else (int(count), forking.generation))


def _set(threads: tuple[int, int] | None) -> None:
    global _threads
    _threads = threads
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):
        torch.set_num_threads(num_openmp_threads())


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let calls within the block use `count` threads, as `set_num_threads` does; None: as many as before."""
    before = _threads
    if count is not None:
        set_num_threads(count)
    try:
        yield
    finally:
        _set(before)


def usable_cores(root: Path = _ROOT) -> int:
    """Number of cores this process can keep busy: its affinity mask, and its control groups' set and CPU quota."""
    limits = group_limits(root)
    quota = allowed_cores() if limits.cores is None else max(1, math.ceil(limits.cores))
    return min(allowed_cores(), quota, limits.processors or quota)


def allowed_cores() -> int:
    """Number of cores that the threads of this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes of memory of the machine; None where the system does not tell."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that can be allocated without swapping and without exceeding the control group's limit."""
    free, limit = (total_memory() or _UNLIMITED) // 2, group_limits(root).free  # a guess where nothing tells
    with suppress(AttributeError, ValueError, OSError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration), (root / "proc/meminfo").open() as file:
        free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    return free if limit is None else min(free, limit)


def processor_name(root: Path = _ROOT) -> str:
    """Model name of the processor, or its architecture where the kernel does not report a name."""
    return cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def cpuinfo(root: Path = _ROOT) -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    with suppress(OSError):
        first, _, _ = (root / "proc/cpuinfo").read_text("utf-8").partition("\n\n")
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def group_limits(root: Path = _ROOT) -> GroupLimits:
    """The tightest limits of this process's control groups and of the groups that contain them."""
    quotas, sets, sizes, free = [], [], [], []
    for folder in _group_folders(root):
        quota = _integers(folder / "cpu.max")
        quota = quota or _integers(folder / "cpu.cfs_quota_us") + _integers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:
            quotas.append(quota[0] / quota[1])
        sets += _set_sizes(folder)
        stat = _statistics(folder)
        for name, (usage, inherited) in _MEMORY_LIMITS.items():
            limit = min([*_integers(folder / name), stat.get(inherited, _UNLIMITED)])
            if limit < _UNLIMITED:
                sizes.append(limit)
                used = next(iter(_integers(folder / usage)), 0)
                # Caches of files are dropped under pressure. v1 counts a group's children under total_*, as its usage
                # does; v2 always does.
                cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
                free.append(max(0, limit - max(0, used - cached)))
    return GroupLimits(
        min(quotas, default=None), min(sets, default=None), min(sizes, default=None), min(free, default=None)
    )


def _statistics(folder: Path) -> dict[str, int]:
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
        return {name: int(value) for name, value in lines}
    return {}


def _set_sizes(folder: Path) -> list[int]:
    """How many cores a group may use, if it says so: the size of a list such as `0-3,8`."""
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        with suppress(OSError, ValueError):
            ranges = [part.split("-") for part in (folder / name).read_text("utf-8").strip().split(",")]
            return [sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)]
    return []


def _group_folders(root: Path) -> Iterator[Path]:
    """The folder of each controller's group, and those around it; a container may not see all of them."""
    mounts = _group_mounts(root)
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            for top, mount in [found for names, *found in mounts if names & {*controllers.split(",")}]:
                # a container may have mounted its own group alone, or see only the path that the host knows
                inner = PurePosixPath(path)
                group = mount / inner.relative_to(top if inner.is_relative_to(top) else "/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _group_mounts(root: Path) -> list[tuple]:
    """Of each mounted hierarchy its controllers (that of v2 is called ""), the group at its top, and its folder."""
    # v1 mounts several controllers together, under all of their names or under each.
    usual = root / "sys/fs/cgroup"
    found: list[tuple] = [({""}, "/", usual), ({""}, "/", usual / "unified")]
    with suppress(OSError):
        found += [({*folder.name.split(",")}, "/", folder) for folder in usual.iterdir() if folder.is_dir()]
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/mountinfo").read_text("utf-8").splitlines():
            before, _, after = line.partition(" - ")
            if (kind := after.split(" ")[0]) in ("cgroup", "cgroup2"):
                top, folder = before.split(" ")[3:5]
                names = {""} if kind == "cgroup2" else {*after.split(" ")[2].split(",")}
                found.append((names, top, root / folder.lstrip("/")))
    return found


def _integers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text("utf-8").split() if word != "max"]
    except (OSError, ValueError):
        return []


_cores = cache(usable_cores)  # searches ask each time
