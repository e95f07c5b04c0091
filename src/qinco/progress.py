"""Progress of long calls: one protocol, and what shows it to a person.

Every long call of the library takes `progress=`:

- None (default): a bar with rate and remaining time where a person watches (a terminal or Jupyter), nothing elsewhere
- False: nothing
- True: a bar on a terminal or in Jupyter, and a line every 30 seconds elsewhere, on standard error
- a function `report(stage, done, total, unit, **fields)`, called after every piece of work
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """A function that hears how far a long call has come.

    Args:
        stage: what is being done, for people: "encoding", "fitting look-up tables".
        done: units that are done. The first report of a stage says how many an earlier run had done.
        total: units in all.
        unit: singular noun: "vector", "step", "setting".
        **fields: values to show until they change (mse=..., lr=...).
    """

    def __call__(self, stage: str, done: int, total: int, unit: str = "vector", **fields) -> None: ...


ProgressOption = bool | Progress | None


def silent(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
    """A `Progress` that shows nothing."""


@contextmanager
def reporting(progress: ProgressOption = None) -> Iterator[Progress]:
    """Turn the `progress=` argument of a long call into a function to report to.

    A function is passed through, so that a long call hands its own on to the calls it is made of.

    Example:
        >>> with reporting(False) as report:
        ...     report("encoding", 10, 100, "vector")
    """
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not is_watched()):
        yield silent
    elif is_watched():
        with _bars() as report:
            yield report
    else:
        yield lines(lambda line, meter: print(line, file=sys.stderr, flush=True))


def is_watched() -> bool:
    """Whether a person watches: standard error is a terminal that can redraw a line, or this is a Jupyter notebook."""
    if is_notebook():
        return True
    stream = sys.stderr
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def is_notebook() -> bool:
    """Whether the process runs a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class Meter:
    """How far one stage has come, how fast, and how long it still takes."""

    def __init__(self, stage: str, start: int, total: int, unit: str):
        self.stage, self.start, self.total, self.unit = stage, start, total, unit
        self.done = start
        self.fields: dict = {}
        self._started_at = time.monotonic()

    def update(self, done: int, total: int, fields: dict) -> None:
        self.done, self.total = done, total
        self.fields.update(fields)

    @property
    def rate(self) -> float | None:
        """Units a second; None as long as nothing is done."""
        seconds = time.monotonic() - self._started_at
        return (self.done - self.start) / seconds if self.done > self.start and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return None if self.rate is None else max(0, self.total - self.done) / self.rate

    def text(self) -> str:
        """How far, how fast, how long still, and the fields, in one line."""
        parts, rate = [f"{self.done:,}/{self.total:,} {self.unit}s"], self.rate
        seconds_left = self.seconds_left
        if rate is not None and seconds_left is not None:
            parts.append(f"{format_number(rate)} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}")
            parts.append(f"{format_duration(seconds_left)} left")
        parts += [f"{name} {format_number(value)}" for name, value in self.fields.items()]
        return ", ".join(parts)

    def record(self) -> dict:
        """The same as JSON values; `rate` and `seconds_left` are None as long as they are unknown."""
        names = ("done", "total", "unit", "rate", "seconds_left")
        return {"description": self.stage} | {name: getattr(self, name) for name in names} | {"fields": self.fields}


class Meters:
    """The meters of all stages that are under way; a stage ends when it is complete."""

    def __init__(self):
        self._meters: dict[str, Meter] = {}
        self._lock = threading.Lock()

    def report(self, stage: str, done: int, total: int, unit: str, fields: dict) -> tuple[Meter, bool]:
        """The meter of a stage after a report, and whether this is the stage's first."""
        with self._lock:
            meter = self._meters.get(stage)
            is_new = False
            if meter is None or done < meter.done:
                is_new, meter = True, Meter(stage, done, total, unit)
                self._meters[stage] = meter
            meter.update(done, total, fields)
            return meter, is_new


def lines(write: Callable[[str, Meter], None], seconds: float = SECONDS_BETWEEN_LINES) -> Progress:
    """A `Progress` that writes a line about each stage at most every so many seconds.

    Args:
        write: called with the line and the stage's meter.
        seconds: least time between two lines.
    """
    meters, last_at = Meters(), time.monotonic()

    def report(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        nonlocal last_at
        meter, _ = meters.report(stage, done, total, unit, fields)
        if time.monotonic() - last_at >= seconds:
            last_at = time.monotonic()
            write(f"{stage}: {meter.text()}", meter)

    return report


@contextmanager
def _bars() -> Iterator[Progress]:
    """Bars, one for each stage that is under way; they vanish when the call ends. Without rich, nothing is shown."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield silent
        return
    columns = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}")]
    console = None if is_notebook() else Console(stderr=True)
    meters, tasks = Meters(), {}
    with Bars(columns[0], BarColumn(), columns[1], console=console, transient=True) as bars:

        def report(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
            meter, is_new = meters.report(stage, done, total, unit, fields)
            if is_new:
                if stage in tasks:
                    bars.remove_task(tasks.pop(stage))
                tasks[stage] = bars.add_task(stage, total=total, completed=done, state="")
            if stage in tasks:
                bars.update(tasks[stage], completed=done, total=total, state=meter.text())
                if done >= total:
                    bars.remove_task(tasks.pop(stage))

        yield report


def format_number(value) -> str:
    """A number for people: four significant digits, thousands apart; other values as they are."""
    value = value.item() if hasattr(value, "item") else value  # numpy's
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not 1e-3 <= abs(value) < 1e15:  # NaN, infinity and zero are here too
        return f"{value:.4g}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def format_duration(seconds: float) -> str:
    """Seconds as `1:05:09` or `5:09`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
