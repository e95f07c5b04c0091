"""How long all of filling a collection still takes, told with the progress of each of its stages."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from qinco.progress import JOB_LEFT, Progress

# Of a vector in each part: microseconds, and how many more for each of its values, until they have been measured.
_COSTS = {"storing": (20, 0.1), "encoding": (20, 1.5), "indexing": (10, 0.2), "evaluating": (5, 0.1)}
# Stages that begin a part; others are of the part that is under way, or after encoding of indexing.
_PARTS = {"storing": "storing", "copying training vectors": "training", "encoding": "encoding",
          "searching exactly": "evaluating"}  # fmt: skip


@dataclass
class _Part:
    """A part of the job: what it is expected to take, and so many units of work, if its reports count them."""

    expected: float
    total: int | None = None
    done: int = 0  # since the first report, by all calls of its stage
    last: int | None = None  # reported
    seconds: float = 0.0

    def hear(self, done: int) -> None:
        if self.last is None and self.total is not None:  # what an earlier run did
            self.total -= done
        elif self.last is not None:
            self.done += done - self.last if done >= self.last else done
        self.last = done

    @property
    def seconds_left(self) -> float:
        if self.total is None or not self.done:
            return max(0.0, self.expected - self.seconds)
        return self.seconds * max(0, self.total - self.done) / self.done


class WholeJob:
    """A `Progress` that passes on what it hears, with the seconds that the whole job still takes in a field.

    Args:
        report: to be told.
        counts: vectors of the parts that the job has, of "storing", "encoding", "indexing" and "evaluating".
        dim: D of the vectors.
        training: seconds of it; 0 for none.
    """

    def __init__(self, report: Progress, counts: Mapping[str, int], dim: int, training: float = 0.0):
        self._report, self._part, self._heard_at = report, "storing", time.monotonic()
        self._parts = {"training": _Part(training)}
        for name, count in counts.items():
            fixed, each = _COSTS[name]
            self._parts[name] = _Part(count * (fixed + dim * each) / 1e6, None if name == "indexing" else count)

    def __call__(self, stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        now = time.monotonic()
        self._parts[self._part].seconds += now - self._heard_at
        self._heard_at = now
        self._part = _PARTS.get(stage, "indexing" if self._part == "encoding" else self._part)
        part = self._parts.setdefault(self._part, _Part(0.0))
        if stage in _PARTS:
            part.hear(done)
        left = sum(one.seconds_left for one in self._parts.values())
        self._report(stage, done, total, unit, **fields, **{JOB_LEFT: round(left, 1)})
