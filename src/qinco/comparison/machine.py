"""What a report says of the machine and the code that were measured."""

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from qinco.machine import num_threads, processor_name, total_memory, usable_cores
from qinco.native import library


def describe_machine() -> dict:
    """Processor, cores, memory and versions, as JSON values."""
    faiss = None
    with suppress(metadata.PackageNotFoundError):
        faiss = metadata.version("faiss-cpu")
    return {
        "processor": processor_name(), "cores": usable_cores(), "memory_bytes": total_memory(),
        "level": library.level() if library.is_available() else None, "threads_trained": num_threads(),
        "threads_timed": 1, "python": platform.python_version(), "faiss": faiss,
    }  # fmt: skip


def find_commit() -> str | None:
    """The commit of the code that runs, with a + where files have changed since; None outside a working tree."""
    folder = Path(__file__).parent
    with suppress(OSError, subprocess.SubprocessError):
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=10).stdout.strip() or None
    return None
