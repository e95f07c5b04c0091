"""Work on many parts that other processes may do: what `qinco.distributed` gives to what encodes and builds."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qinco.errors import DataError, ResourceError
from qinco.progress import Progress

# Maps a function over numbers, in other processes and in any order: yields (number, result, error or None) of each.
Executor = Callable[[Callable[[int], Any], list[int]], Iterator[tuple[int, Any, Exception | None]]]
_MOST_NAMED = 20  # parts that an error names
_ENOUGH = 8  # failures in a row for want of a disk or folder: others would fail alike


def in_this_process(function: Callable[[int], Any], numbers: list[int]) -> Iterator[tuple[int, Any, Exception | None]]:
    """An executor that calls the function here; an error ends it."""
    for number in numbers:
        yield number, function(number), None


def run_parts(
    executor: Executor, function: Callable[[int], Any], missing: list[int], parts: Sequence[range], stage: str,
    report: Progress, again: str = "resume=true goes on",
) -> None:  # fmt: skip
    """Call a function for parts of rows. A part that fails ends no other, unless nothing can be written or read.

    Args:
        executor: who calls it.
        function: is given the number of a part.
        missing: numbers of the parts that are to be done.
        parts: rows of all parts, for the progress of `stage`.
        again: how one goes on with what is kept.

    Raises:
        DataError: names the rows that could not be done, and why.
        ResourceError: that was so for all that failed: a full disk, a folder that workers do not see. It ends the work
            when so many parts in a row failed by it that the others would, too.
    """
    total = sum(map(len, parts))
    done, failed, in_a_row = total - sum(len(parts[number]) for number in missing), [], 0
    report(stage, done, total, "vector")
    results = executor(function, missing)
    try:
        for number, _, error in results:
            rows = parts[number]
            if error is None:
                done += len(rows)
            else:
                failed.append((f"vectors {rows.start:,} to {rows.stop - 1:,}: {error}", _is_of_machine(error)))
            report(stage, done, total, "vector")
            in_a_row = in_a_row + 1 if _is_of_machine(error) else 0
            if in_a_row == _ENOUGH:
                what = f"{stage} was ended: {in_a_row} parts in a row failed for want of a disk, a folder or memory"
                raise ResourceError(f"{what}. Mend that; what is done is kept: {again}. {failed[-1][0]}")
    finally:
        getattr(results, "close", lambda: None)()  # its workers end now, not when somebody forgets the error
    if failed:
        kind = ResourceError if all(is_of_machine for _, is_of_machine in failed) else DataError
        what = f"{stage} failed for {len(failed)} of {len(missing)} parts, and the others are kept: {again}"
        raise kind(f"{what}. {'; '.join(text for text, _ in failed[:_MOST_NAMED])}")


def _is_of_machine(error: Exception | None) -> bool:
    """Whether it is no fault of the vectors."""
    return isinstance(error, ResourceError | OSError)
