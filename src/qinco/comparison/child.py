"""A process for each job: its memory is measured, a time limit ends it, and what breaks it breaks nothing else.

The child reads a line of JSON and a pickled job from standard input, and answers by lines of JSON: cells, progress, and
at last whether it is done or why not. When standard input is closed it ends.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from qinco.errors import QincoError
from qinco.machine import num_threads, set_num_threads
from qinco.progress import Progress

_START = """import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from qinco.comparison.child import main
main()
"""
_LAST_CHARACTERS = 300  # of what a process that broke has said


def run_in_child(job, sources, truths, folder: Path, seconds: float, report: Progress) -> tuple[list[dict], str, str]:
    """Do a job; returns its cells, its status ("done", "time limit", "skipped" or "failed") and the reason for it."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which ends the child
        )  # fmt: skip
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        try:
            timer.start()
            with suppress(BrokenPipeError):  # it has ended, which its status tells
                given = cast(IO[bytes], process.stdin)
                given.write(json.dumps(sys.path).encode() + b"\n")
                pickle.dump((job, sources, truths, folder, num_threads()), given)
                given.flush()
            cells, last = _listen(cast(IO[bytes], process.stdout), report)
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    cast(IO[bytes], stream).close()
        if last is not None:
            return cells, *last
        if late.is_set():
            return cells, "time limit", f"it was ended after {seconds:,.0f} seconds"
        said.seek(0)
        words = " ".join(said.read().decode(errors="replace").split())[-_LAST_CHARACTERS:]
        return cells, "failed", f"its process ended, perhaps for want of memory{f': {words}' if words else ''}"


def _listen(output: IO[bytes], report: Progress) -> tuple[list[dict], tuple[str, str] | None]:
    cells: list[dict] = []
    for line in output:
        try:
            kind, *values = json.loads(line)
        except ValueError:  # cut short when it was ended
            break
        if kind == "progress":
            report(*values[:-1], **values[-1])
        elif kind == "cell":
            cells.append(values[0])
        else:
            return cells, (kind, values[0])
    return cells, None


def main() -> None:
    """The work of the child."""
    job, sources, truths, folder, threads = pickle.load(sys.stdin.buffer)
    output = os.dup(1)
    os.dup2(2, 1)  # what others print is no message
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()

    def send(*message) -> None:
        data = f"{json.dumps(message, default=_plain)}\n".encode()
        while data:
            data = data[os.write(output, data) :]

    def report(stage: str, done: int, total: int, unit: str = "vector", **fields) -> None:
        send("progress", stage, done, total, unit, fields)

    send(*_answer(job, sources, truths, folder, threads, send, report))
    sys.stderr.flush()
    os._exit(0)


def _answer(job, sources, truths, folder: Path, threads: int, send: Callable, report: Progress) -> tuple[str, str]:
    from qinco.comparison.ours import TooSlow
    from qinco.comparison.work import run

    set_num_threads(threads)
    try:
        for cell in run(job, sources, truths, folder, report):
            send("cell", cell)
        return "done", ""
    except TooSlow as error:
        return "skipped", str(error)
    except (QincoError, MemoryError) as error:
        return "failed", str(error) or "memory is exhausted"
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"


def _plain(value):
    return value.item() if hasattr(value, "item") else str(value)


def _end_with(given: IO[bytes]) -> None:
    """End this process when its parent has ended or closes the pipe."""
    given.read()
    os._exit(1)
