"""Processes that end in the middle of their work: before a certain operation on files, or by a real kill.

After an end as by `kill -9` what is on disk must be whole, and going on must lead where an uninterrupted run does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "fcntl.flock")
OF_INDEXES = (*OPERATIONS, "os.listdir")
UNTOLD = ("fsync", "posix_fallocate")  # functions of `os` without an audit event
_OF_ANY_FILE = ("fcntl.flock", "os.truncate", "test.write")  # audit events that name no path


def forked(work: Callable[[], object]) -> int:
    """The number of a forked process that does some work, and exits with 0, or 1 where it failed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def ends_at(
    point: int,
    folder: Path,
    work: Callable[[], object],
    operations: Collection[str] = OPERATIONS,
    functions: Collection[str] = (),
) -> bool:
    """Work in a forked process that ends before its operation number `point`; whether it came so far.

    operations: audit events about what lies in `folder`, which count
    functions:  of `os`, of which nobody tells: they count before and after
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9), f"the process failed at operation {point}"
        return status == 9
    left = point

    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)

    def hook(event, arguments):
        if event in operations and (event in _OF_ANY_FILE or str(arguments[0]).startswith(str(folder))):
            count()

    def counted(function):
        return lambda *arguments: (count(), function(*arguments), count())[1]

    try:
        for name in functions:
            setattr(os, name, counted(getattr(os, name)))
        sys.addaudithook(hook)
        work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def content(folder: Path) -> dict[str, bytes | bool]:
    """Every file below a folder by its relative path, and folders as False."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def count_points(script: Path, *words, environment: dict | None = None) -> int:
    """What a script prints that ends its work at every point: how many there were."""
    done = subprocess.run([sys.executable, script, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def kill_when(reached: Callable[[], bool], delay: float, command: Sequence[str], environment: dict) -> bool:
    """Run a command and kill it some seconds after it has come far enough; whether it was still at work."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not reached():
            time.sleep(0.0005)
        time.sleep(delay)
        process.kill()
        message = process.stderr.read().decode()
    assert process.returncode in (0, -signal.SIGKILL), message
    return process.returncode != 0
