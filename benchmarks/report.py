"""What the reports of benchmarks have in common."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from qinco.search.measure.timing import measure_stages


def microseconds(work: Callable[[], object], count: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of `work` for each of `count` queries."""

    def run() -> dict[str, float]:
        begun = clock()
        work()
        return {"total": clock() - begun}

    return measure_stages(run)["total"] / count * 1e6


def commit() -> str:
    """The commit that is measured, and whether files have changed since."""

    def git(*command: str) -> str:
        return subprocess.check_output(["git", *command], cwd=Path(__file__).parent, text=True).strip()

    return git("rev-parse", "--short", "HEAD") + (" and changes since" if git("status", "--porcelain") else "")


def without_folders(words: list[str]) -> list[str]:
    """Words of a command line, `key=path`, with the names of files alone."""
    return [f"{key}{equals}{Path(value).name}" for key, equals, value in (word.partition("=") for word in words)]
