"""The `qinco` command. Asking for help or making a mistake imports neither torch nor anything else that is slow."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from qinco.cli.console import Console, write_line
from qinco.cli.keys import KEYS, TASKS, Key, Task
from qinco.cli.overrides import find_task, parse_arguments, split_task
from qinco.errors import QincoError, ResourceError
from qinco.version import __version__

_USAGE = """\
qinco {version}: neural residual quantization (QINCo, QINCo2), vectors in a few bytes

  qinco TASK key=value ...    (the same as: qinco task=TASK key=value ...)
  qinco TASK --help           the keys of a task
  qinco --version
"""
_EXAMPLE = """\
Example:
  qinco train trainset=train.fvecs model_args=qinco2-S M=8 epochs=10 output=codec.safetensors
  qinco encode model=codec.safetensors db=base.fvecs output=codes.npy
  qinco decode model=codec.safetensors codes=codes.npy output=decoded.fvecs"""
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, what the shell reports for `qinco ... | head`


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own without it) and return its exit code.

    0: done, 1: our bug (with a traceback), 2: a wrong setting, 3: wrong data, 4: no memory or disk space, 130: Ctrl-C
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        with _termination_as_interrupt():
            return _run(arguments)
    except QincoError as error:
        return _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt as interrupt:
        return _fail(": ".join(filter(None, ("interrupted", str(interrupt)))), _EXIT_INTERRUPTED)
    except BrokenPipeError:
        _abandon_stdout()
        return _EXIT_BROKEN_PIPE
    except Exception as error:
        shortage = _shortage(error)
        if shortage is None:
            raise
        _abandon_stdout()
        return _fail(f"error: {shortage}", ResourceError.exit_code)


def _run(arguments: list[str]) -> int:
    if not arguments:
        write_line(_overview(), sys.stdout)
        return 2
    if "--help" in arguments or "-h" in arguments:
        task_name, _ = split_task(arguments)
        write_line(_overview() if task_name is None else _task_help(find_task(task_name)), sys.stdout)
        return 0
    if "--version" in arguments:
        write_line(f"qinco {__version__}", sys.stdout)
        return 0
    settings = parse_arguments(arguments)
    # OpenMP threads that spin while they wait take the cores from whoever they wait for where other programs run too.
    # Two threads, measured: beside one busy program a training step takes 314 us a vector with this and 473 without; on
    # idle cores it costs 11 % of a training step and 21 % of wide encoding. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from qinco.cli import commands

    commands.run(settings, Console(verbose=settings["verbose"]))
    return 0


def _overview() -> str:
    width = max(map(len, TASKS))
    lines = [_USAGE.format(version=__version__), "Tasks:"]
    lines += [f"  {task.name:<{width}}  {task.summary}" for task in TASKS.values() if task.available]
    later = ", ".join(task.name for task in TASKS.values() if not task.available)
    return "\n".join([*lines, f"  Not in this version yet: {later}", "", _EXAMPLE])


def _task_help(task: Task) -> str:
    from textwrap import wrap

    keys = [key for key in KEYS.values() if task.name in key.tasks and key.available]
    required = [name for names in task.required for name in names.split("|")]
    keys.sort(key=lambda key: required.index(key.name) if key.name in required else len(required))
    width = max(len(key.name) + 1 + len(_default_text(key)) for key in keys)
    lines = [f"qinco {task.name}: {task.summary}" + ("" if task.available else " (not in this version yet)"), ""]
    if task.required:
        lines += [f"Needs {', '.join(names.replace('|', '= or ') + '=' for names in task.required)}", ""]
    lines += ["Keys and their defaults:"]
    lines += [f"  {key.name + '=' + _default_text(key):<{width}}  {key.summary}" for key in keys]
    idle = [key.name for key in KEYS.values() if key.everywhere and task.name not in key.tasks]
    return "\n".join([*lines, "", *wrap(f"Accepted without effect: {', '.join(idle)}", 100)])


def _default_text(key: Key) -> str:
    if key.default is None:
        return "" if key.kind in ("path", "paths", "text") or key.null_value is not None else "null"
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that a training is saved; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signal_number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _fail(line: str, exit_code: int) -> int:
    with suppress(OSError):  # nobody reads standard error any more; the exit code still says it
        write_line(f"qinco: {line}", sys.stderr)
    return exit_code


def _shortage(error: Exception) -> str | None:
    """What ran out, in one sentence, if `error` is a shortage of memory or disk space."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"no space is left on the disk{where}: free some, or write elsewhere"
    # torch's own errors, which cannot be imported here: on a GPU by their name, on the CPU by their text
    ran_out = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and ran_out):
        return "memory is exhausted: use smaller blocks (batch=, enc_max_bs=) or fewer vectors (ds.trainset=, ds.db=)"
    return None


def _abandon_stdout() -> None:
    """Send what standard output still holds nowhere if it cannot be written, or Python complains about it at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
