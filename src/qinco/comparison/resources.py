"""What a process uses: threads of its libraries, and memory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qinco.machine import using_threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Let this package, BLAS, faiss and torch compute on one thread within the block."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), using_threads(1):
        yield


def peak_memory() -> int | None:
    """Bytes of memory that this process has held at most; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):  # getrusage also counts what the parent held before this began
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    return None
