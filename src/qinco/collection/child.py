"""`Collection.optimize(in_child=True)`: a process of its own does the work, with its own memory and a low priority.

The child writes to the same database, whose transactions keep it and the parent apart. It reads a line of JSON from
standard input, and answers by such lines: progress, log records, and at last the result or an error. When standard
input is closed, or its parent is gone, it stops as after Ctrl-C.
"""

import _thread
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from qinco.collection.moments import Moments
from qinco.collection.optimize import Optimizer
from qinco.collection.schema import Database
from qinco.collection.spaces import Space
from qinco.errors import ConfigError, DataError, QincoError, ResourceError
from qinco.progress import Progress

_START = """import json, sys
request = json.loads(sys.stdin.readline())
sys.path[:] = request.pop("path")
from qinco.collection.child import main
main(**request)
"""
_NICENESS = 10
_STOP_SECONDS, _POLL_SECONDS = 10.0, 0.5  # to keep what is done, and between looks at the parent
_ERRORS = {one.__name__: one for one in (ConfigError, DataError, ResourceError, MemoryError)}


class Child:
    """A process that optimizes a collection for this one."""

    def __init__(self, database: Database | Space, device: str, settings: dict):
        folder, number = (
            (database.whole.folder, database.number) if isinstance(database, Space) else (database.folder, 0)
        )
        request = {
            "path": sys.path, "folder": str(folder.absolute()), "number": number, "device": str(device),
            "settings": settings,
            "parent": os.getpid(), "log_level": logging.getLogger("qinco").getEffectiveLevel(),
        }  # fmt: skip
        line = json.dumps(request)
        self._folder, self._is_stopped = folder, False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which stops the child
        )  # fmt: skip
        self._input, self._output = (cast(IO[str], pipe) for pipe in (self._process.stdin, self._process.stdout))
        with suppress(BrokenPipeError):  # it has ended, which `result` tells
            self._input.write(f"{line}\n")
            self._input.flush()

    def result(self, report: Progress) -> dict:
        """Wait for what it returns, or raise its error."""
        try:
            for line in self._output:
                kind, *values = json.loads(line)
                if kind == "progress":
                    report(*values[:-1], **values[-1])
                elif kind == "log":
                    logging.getLogger(values[0]).log(*values[1:])
                elif kind == "error":
                    raise _ERRORS.get(values[0], RuntimeError)(values[1])
                else:
                    return values[0]
        except KeyboardInterrupt as stop:
            stop.args = stop.args or ("what was trained and encoded is kept: the same call goes on",)
            raise
        finally:
            self._end()
        if self._is_stopped:
            raise ConfigError(f"{self._folder} was closed while it was optimized: open it, and call optimize again")
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"status {status}"
        raise ResourceError(f"the process that optimized {self._folder} was ended ({how}), perhaps for want of memory; "
                            "nothing is lost: optimize goes on where it was")  # fmt: skip

    def stop(self) -> None:
        """End it, for another thread than the one that waits for its result."""
        self._is_stopped = True
        self._input.close()
        self._process.wait()

    def _end(self) -> None:
        """Let it keep what is done, and wait until it has ended."""
        self._input.close()
        try:
            for _ in self._output:  # nothing holds it up
                pass
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._output.close()


def main(folder: str, number: int, device: str, settings: dict, parent: int, log_level: int) -> None:
    """The work of the child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output, sending = os.dup(1), threading.Lock()
    os.dup2(2, 1)  # what others print is no message
    with suppress(AttributeError, OSError):  # on Windows
        os.nice(_NICENESS)

    def send(*message) -> None:
        with sending, suppress(OSError):  # the parent is gone
            os.write(output, f"{json.dumps(message, default=lambda value: value.item())}\n".encode())

    def report(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        send("progress", stage, done, total, unit, fields)

    logger = logging.getLogger("qinco")
    logger.addHandler(_Sender(send))
    logger.setLevel(log_level)
    logger.propagate = False
    answer = _answer(Path(folder), number, device, settings, parent, report)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if answer is not None:
        send(*answer)
    sys.stderr.flush()
    os._exit(1 if answer is None else 0)


def _answer(folder: Path, number: int, device: str, settings: dict, parent: int, report: Progress) -> tuple | None:
    """The last message; None where it was stopped."""
    try:
        threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
        database = Database(folder, read_only=False, locked=False)
        try:
            part = Space(database, number) if number else database
            return "done", Optimizer(part, Moments.of(part, device), report).run(settings)
        finally:
            database.close()
    except KeyboardInterrupt:
        return None
    except (QincoError, MemoryError) as error:
        return "error", type(error).__name__, str(error)
    except Exception:
        return "error", "RuntimeError", traceback.format_exc()


class _Sender(logging.Handler):
    """Sends log records to the parent."""

    def __init__(self, send: Callable):
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send("log", record.name, record.levelno, record.getMessage())


def _stop_with(parent: int) -> None:
    """Wait until standard input is closed or the parent is gone; then interrupt the main thread, or end."""
    if os.name == "nt":
        os.read(0, 1)
        _thread.interrupt_main()
    else:
        while os.getppid() == parent:  # whose forked children may keep the pipe open
            if select.select([0], [], [], _POLL_SECONDS)[0]:
                break
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # also wakes it where it waits
    time.sleep(_STOP_SECONDS)
    os._exit(1)
