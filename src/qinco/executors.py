"""Work on many parts that other processes may do: what `qinco.distributed` gives to what encodes and builds."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qinco.errors import DataError
from qinco.progress import Progress

# Maps a function over numbers, in other processes and in any order: yields (number, result, error or None) of each.
Executor = Callable[[Callable[[int], Any], list[int]], Iterator[tuple[int, Any, Exception | None]]]
_MOST_NAMED = 20  # parts that an error names


def in_this_process(function: Callable[[int], Any], numbers: list[int]) -> Iterator[tuple[int, Any, Exception | None]]:
    """An executor that calls the function here; an error ends it."""
    for number in numbers:
        yield number, function(number), None


def run_parts(
    executor: Executor, function: Callable[[int], Any], missing: list[int], parts: Sequence[range], stage: str,
    report: Progress,
) -> None:  # fmt: skip
    """Call a function for parts of rows; a part that fails ends no other.

    Args:
        executor: who calls it.
        function: is given the number of a part.
        missing: numbers of the parts that are to be done.
        parts: rows of all parts, for the progress of `stage`.

    Raises:
        DataError: names the rows that could not be done, and why.
    """
    done, failed = sum(map(len, parts)) - sum(len(parts[number]) for number in missing), []
    total = sum(map(len, parts))
    report(stage, done, total, "vector")
    for number, _, error in executor(function, missing):
        rows = parts[number]
        if error is None:
            done += len(rows)
        else:
            failed.append(f"vectors {rows.start:,} to {rows.stop - 1:,}: {error}")
        report(stage, done, total, "vector")
    if failed:
        what = f"{stage} failed for {len(failed)} of {len(missing)} parts, and the others are kept: resume=true goes on"
        raise DataError(f"{what}. {'; '.join(failed[:_MOST_NAMED])}")
