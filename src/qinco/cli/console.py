"""What the command line says: results on standard output, everything else on standard error."""

import json as json_format
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from traceback import format_exception

from qinco.errors import ResourceError
from qinco.progress import LogStream, Progress, format_number, is_watched, lines, reporting


def write_line(line: str, stream) -> None:
    """Write a line; characters that the stream cannot encode (stray bytes of a file name) are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResourceError(f"standard output does not take the result ({reason})") from error


def log_record(level: str, message: str, **fields) -> str:
    """One line of a log in JSON: `time` (ISO 8601, UTC), `level` ("info", "warning" ...), `message`, and the fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": now, "level": level, "message": message} | _plain(fields, finite=True)
    return json_format.dumps(record, allow_nan=False)


class Console:
    """Reports to a person, or with `json_logs` to a script; warnings and results even if not `verbose`.

    The streams are looked up in `sys` at the time of writing, so that lines appear above a progress bar.
    """

    def __init__(self, verbose: bool = True, json_logs: bool = False):
        self.verbose = verbose
        self.json_logs = json_logs
        self._bars = ExitStack()
        self._report: Progress | None = None

    def info(self, line: str, **fields) -> None:
        """Write a line to standard error if verbose; `fields` are for scripts."""
        if self.verbose:
            write_line(log_record("info", line, **fields) if self.json_logs else line, LogStream())

    def warn(self, line: str, **fields) -> None:
        """Write a warning to standard error."""
        write_line(log_record("warning", line, **fields) if self.json_logs else f"qinco: warning: {line}", LogStream())

    def progress(self, stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        """A `qinco.progress.Progress`: bars on a terminal, lines every 30 seconds elsewhere, JSON with json_logs."""
        if not self.verbose:
            return
        if self._report is None:
            is_bar = is_watched() and not self.json_logs
            self._report = self._bars.enter_context(reporting(True)) if is_bar else lines(self._write_progress)
        self._report(stage, done, total, unit, **fields)

    def _write_progress(self, line: str, meter) -> None:
        write_line(log_record("progress", line, **meter.record()) if self.json_logs else line, LogStream())

    def close(self) -> None:
        """Remove progress bars. Printing a result does so, too."""
        self._report = None
        self._bars.close()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write what the library logs: `info` as it is, from `warning` on as a warning."""
        logger, handler = logging.getLogger("qinco"), _Handler()
        handler.console = self
        level, propagates = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
            self.close()

    def print_table(self, rows: Sequence[Sequence], headers: Sequence[str]) -> None:
        """Write a table to standard output: numbers to the right with sensible digits, text to the left."""
        self.close()
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

    def print_records(self, records: Iterable[Mapping]) -> None:
        """Write one line of JSON for each record to standard output."""
        self.close()
        for record in records:
            write_line(json_format.dumps(_plain(record, finite=True), allow_nan=False), sys.stdout)

    def print_result(self, result: Mapping, json: bool) -> None:
        """Write a result to standard output: one `name: value` a line, or one line of JSON in full precision."""
        self.close()
        if json:
            return self.print_records([result])
        for name, value in result.items():
            write_line(result_line(name, value), sys.stdout)


class _Handler(logging.Handler):
    console: Console

    def emit(self, record: logging.LogRecord) -> None:
        write = self.console.warn if record.levelno >= logging.WARNING else self.console.info
        line, fields = record.getMessage(), dict(getattr(record, "fields", {}))
        if record.exc_info:  # a bug, in a thread or a request: the process goes on
            trace = "".join(format_exception(*record.exc_info))
            line, fields = (line, fields | {"traceback": trace}) if self.console.json_logs else (f"{line}\n{trace}", {})
        write(line, **fields)


def result_line(name: str, value) -> str:
    """`mse: 12.34`, `bytes_per_vector: 8`, or `recall@1: 0.5100, recall@10: 0.9350` for values by rank."""
    if isinstance(value, Mapping) and value and all(str(rank).isdigit() for rank in value):
        return ", ".join(f"{name}@{rank}: {format_value(element)}" for rank, element in value.items())
    if isinstance(value, float) and value.is_integer() and name.startswith("bytes"):
        value = int(value)
    return f"{name}: {format_value(value)}"


def format_value(value) -> str:
    """`value` for people: four significant digits, thousands apart, `a 1, b 2` for a mapping."""
    value = _plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(element)}" for name, element in value.items())
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return format_number(value)


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
