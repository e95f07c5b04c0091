"""What the command line says: results on standard output, everything else on standard error."""

import json as json_format
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

SECONDS_BETWEEN_LINES = 30.0


def write_line(line: str, stream) -> None:
    """Write a line; what the stream cannot encode (a stray byte of a file name) is escaped instead of refused."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def log_record(level: str, message: str, **fields) -> str:
    """One line of a log in JSON: `time` (ISO 8601, UTC), `level`, `message`, and the fields.

    level: "info", "warning", "error" or "progress"
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": now, "level": level, "message": message} | _plain(fields, finite=True)
    return json_format.dumps(record, allow_nan=False)


class Progress:
    """How far a loop has come; made by `Console.progress`.

    total, start: units in all, and those that were done before this run
    unit:         in the singular: "step", "epoch", "vector"
    """

    def __init__(self, total: int, unit: str, description: str, start: int):
        self.total, self.start, self.unit, self.description = total, start, unit, description
        self.done = start
        self.report: Callable[[], None] | None = None
        self._fields = {}
        self._started_at = time.monotonic()

    def update(self, done: int, **fields) -> None:
        """`done` units are done, the earlier ones included; `fields` (mse=..., ...) are shown until they change."""
        self.done = done
        self._fields.update(fields)
        if self.report is not None:
            self.report()

    def state(self) -> str:
        """How far, how fast, how long still, and the fields, in one line."""
        parts, rate = [f"{self.done:,}/{self.total:,} {self.unit}s"], self._rate()
        if rate is not None:
            parts.append(f"{format_value(rate)} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}")
            parts.append(f"{format_duration((self.total - self.done) / rate)} left")
        parts += [f"{name} {format_value(value)}" for name, value in self._fields.items()]
        return ", ".join(parts)

    def record(self) -> dict:
        """The same as JSON values: `rate` in units a second, it and `seconds_left` None as long as they are unknown."""
        rate = self._rate()
        return {
            "description": self.description,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": rate,
            "seconds_left": None if rate is None else (self.total - self.done) / rate,
            "fields": dict(self._fields),
        }

    def _rate(self) -> float | None:
        seconds = time.monotonic() - self._started_at
        return (self.done - self.start) / seconds if self.done > self.start and seconds > 0 else None


class Console:
    """Reports to a person, or to a script.

    verbose:   False silences `info` and `progress`; warnings and results are always written
    json_logs: what goes to standard error is one JSON object a line, as `log_record` makes them

    The streams are the ones that `sys` holds at the time of writing, so that a progress bar stays below the text.
    """

    def __init__(self, verbose: bool = True, json_logs: bool = False):
        self.verbose = verbose
        self.json_logs = json_logs
        self._bars = None

    def info(self, line: str) -> None:
        """Write a line to standard error unless the console is silenced."""
        if self.verbose:
            write_line(log_record("info", line) if self.json_logs else line, sys.stderr)

    def warn(self, line: str) -> None:
        """Write a warning to standard error."""
        write_line(log_record("warning", line) if self.json_logs else f"qinco: warning: {line}", sys.stderr)

    def print_table(self, rows: Sequence[Sequence], headers: Sequence[str]) -> None:
        """Write a table to standard output: numbers to the right with sensible digits, text to the left."""
        columns = [[_plain(value) for value in column] for column in zip(*rows, strict=True)]
        aligned = []
        for header, values in zip(headers, columns or [[] for _ in headers], strict=True):
            cells = [header, *map(format_value, values)]
            is_text = any(isinstance(value, str) for value in values)
            width = max(map(len, cells))
            cells.insert(1, "-" * width)
            aligned.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
        for line in zip(*aligned, strict=True):
            write_line("  ".join(line).rstrip(), sys.stdout)

    def print_result(self, result: Mapping, json: bool) -> None:
        """Write a result to standard output: one `name: value` a line, or one line of JSON in full precision.

        The values are Python's or numpy's; NaN and infinity, which JSON has not, become null in it.
        """
        if json:
            write_line(json_format.dumps(_plain(result, finite=True), allow_nan=False), sys.stdout)
            return
        for name, value in result.items():
            write_line(f"{name}: {format_value(value)}", sys.stdout)

    @contextmanager
    def progress(self, total: int, unit: str, description: str, start: int = 0) -> Iterator[Progress]:
        """A `Progress` over `total` units, `start` of which an earlier run has done.

        On a terminal it is a bar, below which others may open; elsewhere and in JSON a line every half minute at most.
        """
        progress = Progress(total, unit, description, start)
        if not self.verbose:
            yield progress
        elif self.json_logs or not _is_live_terminal():
            progress.report = self._line_writer(progress)
            yield progress
        else:
            with self._open_bars() as bars:
                bar = bars.add_task(description, total=total, completed=start, state="")
                progress.report = lambda: bars.update(bar, completed=progress.done, state=progress.state())
                try:
                    yield progress
                finally:
                    bars.remove_task(bar)

    def _line_writer(self, progress: Progress) -> Callable[[], None]:
        last_line_at = time.monotonic()

        def write() -> None:
            nonlocal last_line_at
            if time.monotonic() - last_line_at < SECONDS_BETWEEN_LINES:
                return
            last_line_at = time.monotonic()
            line = f"{progress.description}: {progress.state()}"
            write_line(log_record("progress", line, **progress.record()) if self.json_logs else line, sys.stderr)

        return write

    @contextmanager
    def _open_bars(self):
        """The bars of the terminal, opened by the outermost progress and closed with it."""
        if self._bars is not None:
            yield self._bars
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}")]
        with Bars(columns[0], BarColumn(), columns[1], console=Terminal(stderr=True), transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None


def format_value(value) -> str:
    """`value` for people: four significant digits, thousands apart, `a 1, b 2` for a mapping."""
    value = _plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(element)}" for name, element in value.items())
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return value


def format_duration(seconds: float) -> str:
    """`seconds` as `1:05:09` or `5:09`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _format_float(value: float) -> str:
    if not 1e-3 <= abs(value) < 1e15:  # NaN, infinity and zero are here too
        return f"{value:.4g}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def _plain(value, finite: bool = False):
    """`value` of None, bool, int, float, str, list and dict only; with `finite`, None for NaN and infinity."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) or not finite else None
    if isinstance(value, Mapping):
        return {str(name): _plain(element, finite) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element, finite) for element in value]
    return value if value is None or isinstance(value, int | str) else str(value)


def _is_live_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
