"""Progress of long calls: one protocol, and what shows it to a person.

Every long call of the library takes `progress=`:

- None (default): a bar with rate and remaining time on a terminal or in Jupyter once a call has taken a second, with
  what the library logs above it; nothing elsewhere; False: nothing
- True: a bar on a terminal or in Jupyter, and a line every 30 seconds elsewhere, on standard error
- a function `report(stage, done, total, unit, **fields)`, called after every piece of work
"""

import io
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, TextIO, cast

from qinco.errors import ConfigError


class Progress(Protocol):
    """A function that hears how far a long call has come.

    Args:
        stage: what is being done, for people: "encoding", "fitting look-up tables".
        done, total: units that are done (the first report of a stage says how many an earlier run did), and in all.
        unit: singular noun: "vector", "step", "setting".
        **fields: values to show until they change (mse=..., lr=...); `JOB_LEFT`, seconds, where a call has many stages.
    """

    def __call__(self, stage: str, done: int, total: int, unit: str = "vector", **fields) -> None: ...


ProgressOption = bool | Progress | None
JOB_LEFT = "job_seconds_left"
_SHORT_SECONDS = 1.0  # a call that takes no longer shows nothing
_SHOWN = threading.Lock()


def silent(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
    """A `Progress` that shows nothing."""


@contextmanager
def reporting(progress: ProgressOption = None) -> Iterator[Progress]:
    """Turn the `progress=` argument of a long call into a function to report to; a function is passed through."""
    if callable(progress):
        yield progress
    elif progress is not None and not isinstance(progress, bool):
        raise ConfigError(f"progress must be a function, true, false or None, not {progress!r}")
    elif progress is False or (progress is None and not is_watched()):
        yield silent
    elif is_watched():
        if not _SHOWN.acquire(blocking=False):  # by another thread
            yield silent
            return
        try:
            with _Screen(0.0 if progress else _SHORT_SECONDS) as report:
                yield report
        finally:
            _SHOWN.release()
    else:
        yield lines(_print)


def is_watched() -> bool:
    """Whether a person watches: standard error is a terminal that can redraw a line, or this is a Jupyter notebook.

    Nobody watches the workers of a pool, whose bars would overwrite each other.
    """
    if getattr(sys.modules.get("multiprocessing.process"), "parent_process", lambda: None)() is not None:
        return False
    if _is_notebook():
        return True
    with suppress(ValueError):  # it is closed
        return LogStream().isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return False


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class LogStream:
    """Standard error as it is now. What it does not take, closed, full or broken as it may be, is dropped: no line of a
    log is worth the work that it tells of.
    """

    def __init__(self):
        self._stream = sys.stderr or io.StringIO()

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@dataclass
class Meter:
    """How far one stage has come, how fast, how long it still takes, and fields."""

    stage: str
    start: int
    total: int
    unit: str
    started_at: float
    done: int
    fields: dict

    @property
    def rate(self) -> float | None:
        """Units a second; None as long as nothing is done."""
        seconds = time.monotonic() - self.started_at
        return (self.done - self.start) / seconds if self.done > self.start and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return max(0, self.total - self.done) / rate if (rate := self.rate) else None

    def text(self) -> str:
        parts, rate = [f"{self.done:,}/{counted(self.total, self.unit)}"], self.rate
        if rate is not None:
            parts.append(f"{format_number(rate)} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}")
            parts.append(f"{format_duration(self.seconds_left or 0)} left")
        fields = dict(self.fields)
        job_left = fields.pop(JOB_LEFT, None)
        parts += [f"{name} {format_number(value)}" for name, value in fields.items()]
        return ", ".join(parts + ([] if job_left is None else [f"{format_duration(job_left)} left of the whole job"]))

    def record(self) -> dict:
        """The same as JSON values."""
        names = ("done", "total", "unit", "rate", "seconds_left", "fields")
        return {"description": self.stage} | {name: getattr(self, name) for name in names}


def metered(show: Callable[[Meter], None]) -> Progress:
    """A `Progress` that calls `show` with the meter of the stage; a stage that goes back to its start has a new one."""
    meters: dict[str, Meter] = {}

    def report(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        meter = meters.get(stage)
        if meter is None or done < meter.done:
            meter = meters[stage] = Meter(stage, done, total, unit, time.monotonic(), done, {})
        meter.done, meter.total = done, total
        meter.fields.update(fields)
        show(meter)

    return report


def lines(write: Callable[[str, Meter], None]) -> Progress:
    """A `Progress` that calls `write` with a line and the stage's meter every 30 seconds at most."""
    return metered(_in_lines(write))


def _in_lines(write: Callable[[str, Meter], None]) -> Callable[[Meter], None]:
    last_at = time.monotonic()

    def show(meter: Meter) -> None:
        nonlocal last_at
        if time.monotonic() - last_at >= 30:
            last_at = time.monotonic()
            write(f"{meter.stage}: {meter.text()}", meter)

    return show


def _print(line: str, meter: Meter | None = None) -> None:
    print(line, file=LogStream(), flush=True)


class _Screen(logging.Handler):
    """Bars, one for each stage that is under way, and above them what the library logs, unless it is heard elsewhere.

    Nothing is shown of a call that ends within `delay` seconds. Bars vanish when a call ends.
    """

    def __init__(self, delay: float):
        super().__init__(logging.INFO)
        self._delay, self._begun, self._waiting = delay, time.monotonic(), []
        self._draw: Callable[[Meter], None] | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Progress:
        logger = logging.getLogger("qinco")
        if not logger.hasHandlers():
            level = logger.level
            logger.addHandler(self)
            logger.setLevel(logging.INFO)
            self._closing.callback(logger.setLevel, level)
            self._closing.callback(logger.removeHandler, self)
        return metered(self._show)

    def __exit__(self, *error) -> None:
        self._closing.close()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "seconds", 0) >= self._delay:  # an estimate
            self._open()
        if self._draw is not None or record.levelno >= logging.WARNING:
            _print(record.getMessage())
        else:
            self._waiting.append(record.getMessage())

    def _show(self, meter: Meter) -> None:
        if time.monotonic() - self._begun >= self._delay:
            self._open()
        if self._draw is not None:
            self._draw(meter)

    def _open(self) -> None:
        if self._draw is None:
            has_bars = not _is_notebook() or find_spec("ipywidgets") is not None
            self._draw = self._closing.enter_context(_bars()) if has_bars else _in_lines(_print)
            for line in self._waiting:
                _print(line)


@contextmanager
def _bars() -> Iterator[Callable[[Meter], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    name, state = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}"))
    tasks = {}
    with Bars(name, BarColumn(), state, console=Console(file=cast(TextIO, LogStream())), transient=True) as bars:

        def draw(meter: Meter) -> None:
            if meter.stage not in tasks:
                tasks[meter.stage] = bars.add_task(meter.stage, state="")
            shown = {"completed": meter.done, "total": meter.total, "visible": meter.done < meter.total}
            bars.update(tasks[meter.stage], **shown, state=meter.text())

        yield draw


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


def counted(number: int, noun: str) -> str:
    """How many of what, with the noun in the right number: `1 epoch`, `1,000 queries`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def format_duration(seconds: float) -> str:
    """Seconds as `1:05:09` or `5:09`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
