"""What memory there is."""

import os
from contextlib import suppress
from pathlib import Path


def free_memory() -> int:
    """Bytes that can be had without swapping: what the kernel says, or else what nothing uses at all."""
    with suppress(OSError, StopIteration), Path("/proc/meminfo").open() as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
