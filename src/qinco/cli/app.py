"""The `qinco` command. Neither help nor a mistake imports torch or anything else that is slow."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from importlib import import_module
from textwrap import wrap

from qinco.cli.completion import candidates
from qinco.cli.console import Console, log_record, write_line
from qinco.cli.defaults import Resolved, resolve
from qinco.cli.grammar import DATA_SET, OPTIONS, find_task, list_needed, parse_arguments, split_task, to_text
from qinco.cli.keys import EVERYWHERE, Key, Settings, Task
from qinco.cli.tasks import KEYS, TASKS
from qinco.errors import ConfigError, QincoError, ResourceError
from qinco.interrupts import handling
from qinco.machine import set_num_threads, usable_cores
from qinco.progress import LogStream
from qinco.version import __version__

_USAGE = """\
qinco {version}: neural residual quantization (QINCo, QINCo2), vectors in a few bytes

  qinco TASK key=value ...    (the same as: qinco task=TASK key=value ...)
  qinco TASK --help           the keys of a task (the same as: qinco help TASK)
  qinco TASK ... --cfg        the value of every key and its source; runs nothing
  qinco TASK ... --json-logs  log lines, on standard error, as JSON objects
  qinco --version
"""
_EXAMPLE = """\
Examples:
  qinco index text.parquet:embedding output=docs.qinco bytes=8
  qinco query docs.qinco queries=query.fvecs k=10
  qinco train trainset=train.fvecs model_args=qinco2-S M=8 minutes=10 output=codec.safetensors
  qinco encode model=codec.safetensors db=base.fvecs output=codes.npy
  qinco decode model=codec.safetensors codes=codes.npy output=decoded.fvecs"""
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, what the shell reports for `qinco ... | head`


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, that of this process if `argv` is None, and return its exit code.

    0: done, 1: our bug (with a traceback), 2: a wrong setting, 3: wrong data, 4: no memory or disk space, 130: Ctrl-C,
    141: nobody reads standard output any more.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:2] == ["completion", "words"]:  # asked by a shell while the user types: nothing is a mistake there
        for candidate in candidates(arguments[2:]):
            write_line(candidate, sys.stdout)
        return 0
    options, words = _split_options(arguments)
    fail = partial(_fail, as_json="--json-logs" in options)

    def end(signal_number, frame):
        os._exit(fail("", "interrupted", _EXIT_INTERRUPTED))

    # An exception inside an import may be swallowed there, or come out as another one that looks like a bug, so the
    # process ends at once then; but not if other Python code calls `main`.
    importing = nullcontext()
    if argv is None:
        importing = handling(end, signal.SIGINT, signal.SIGTERM)
        _fill_closed_streams()
    try:
        with handling(signal.default_int_handler, signal.SIGTERM):  # as Ctrl-C, so that a training is saved
            return _run(words, options, importing)
    except QincoError as error:
        _abandon_stdout()
        return fail("error: ", str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        return fail("", ": ".join(filter(None, ("interrupted", str(interrupt)))), _EXIT_INTERRUPTED)
    except BrokenPipeError:
        _abandon_stdout()
        return _EXIT_BROKEN_PIPE
    except Exception as error:
        shortage = _shortage(error)
        if shortage is None and "--json-logs" in options:
            from traceback import format_exc

            return fail("", f"internal error: {error!r}", 1, traceback=format_exc())
        if shortage is None:
            raise
        _abandon_stdout()
        return fail("error: ", shortage, ResourceError.exit_code)


def _split_options(arguments: list[str]) -> tuple[set[str], list[str]]:
    """The options among `arguments`, wherever they stand, and the rest; Hydra's `--cfg job` is `--cfg`."""
    names = {"-h": "--help", "--cfg=job": "--cfg"}
    pairs = zip(["", *arguments], arguments, strict=False)
    words = [names.get(word, word) for before, word in pairs if (before, word) != ("--cfg", "job")]
    return {word for word in words if word in OPTIONS}, [word for word in words if word not in OPTIONS]


def _run(words: list[str], options: set[str], importing: AbstractContextManager) -> int:
    """Do what the command line says; slow modules are imported within `importing`."""
    if "--version" in options and "--help" not in options:
        write_line(f"qinco {__version__}", sys.stdout)
        return 0
    task_name, rest = split_task(words)
    if task_name == "help":
        options, task_name = options | {"--help"}, split_task(rest)[0]
    if "--help" in options or not words:
        write_line(_overview() if task_name is None else _task_help(find_task(task_name)), sys.stdout)
        return 0 if "--help" in options else 2
    settings = parse_arguments(words, complete="--cfg" not in options)
    task = TASKS[settings.task]
    if "--cfg" in options:
        _print_configuration(task, settings)
        return 0
    if not task.is_distributed and os.environ.get("RANK", "0") != "0":
        return 0  # torchrun has started several processes for what one does
    with importing:
        _prepare(task, settings)
    console = Console(verbose=settings["verbose"], json_logs="--json-logs" in options)
    with console.logging():
        task.run(settings, console)
    return 0


def _prepare(task: Task, settings: Settings) -> None:
    """Import what is slow and set the number of threads."""
    threads = settings["threads"] if task.reads("threads") else None
    if threads is not None and threads > (most := max(256, 4 * usable_cores())):
        raise ConfigError(f"threads={threads} is more than can be started: give at most {most}")
    for module in task.imports:
        import_module(module)
    set_num_threads(threads)


def _print_configuration(task: Task, settings: Settings) -> None:
    """Print the value of every key that the task reads, and its source."""
    resolved = resolve(task, settings.given_values)
    if settings["json"]:
        Console().print_result({name: found._asdict() for name, found in resolved.items()}, json=True)
        return
    rows = [
        (
            f"{name}="
            + ("" if found.source.startswith("missing") else to_text(task.key(name) or KEYS[name], found.value)),
            found.source,
        )
        for name, found in resolved.items()
    ]
    write_line("\n".join(_columns(rows)), sys.stdout)


def _overview() -> str:
    tasks = _columns([(task.name, task.help) for task in TASKS.values()], indent=2)
    return "\n".join([_USAGE.format(version=__version__), "Tasks:", *tasks, "", _EXAMPLE])


def _task_help(task: Task) -> str:
    defaults = resolve(task, {})
    rows = [_key_help(key, defaults[key.name]) for key in task.keys]
    if any(names.endswith("|db") and not names.startswith("queries") for names in task.required):
        rows = [(name, DATA_SET if name == "db=" else help) for name, help in rows]
    keys = _columns(rows, indent=2)
    idle = ", ".join(name for name in EVERYWHERE if not task.reads(name))
    needed = wrap(f"Needs {list_needed(task.required)}", 100)
    lines = [f"qinco {task.name}: {task.help}", "", *([*needed, ""] if task.required else [])]
    lines += ["Keys and their defaults:", *keys, "", *wrap(f"Accepted without effect: {idle}", 100)]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, str]], indent: int = 0) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"{'':{indent}}{left:<{width}}  {right}" for left, right in rows]


def _key_help(key: Key, default: Resolved) -> tuple[str, str]:
    """A key with its default, and what it is; then where the default comes from, if not from the key itself."""
    value, source = default
    is_own = source.startswith("default")
    has_text = value is not None or (is_own and key.default is None and key.accepts_null and key.null_value is None)
    is_told = source == "default" or source.startswith("missing") or (is_own and has_text)
    note = "" if is_told else f" ({source.removeprefix('default, ')})"
    return f"{key.name}={to_text(key, value) if has_text else ''}", f"{key.help}{note}"


def _fail(kind: str, message: str, exit_code: int, as_json: bool, **fields) -> int:
    """Write the last line of standard error, with `fields` if it is JSON, and return the exit code."""
    line = log_record("error", message, exit_code=exit_code, **fields) if as_json else f"qinco: {kind}{message}"
    write_line(line, LogStream())  # the exit code says it, too
    return exit_code


def _shortage(error: Exception) -> str | None:
    """What ran out, in one sentence, if `error` is a shortage of memory or disk space."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}: free some, or write elsewhere"
    # torch's own errors, which cannot be imported here: on a GPU by their name, on the CPU by their text
    ran_out = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and ran_out):
        return "out of memory: use smaller blocks (batch=, enc_max_bs=) or fewer vectors (ds.trainset=, ds.db=)"
    return None


def _fill_closed_streams() -> None:
    """Open closed standard streams on nothing, or files of data take their numbers and what C libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one


def _abandon_stdout() -> None:
    """Discard what standard output still holds if it cannot be written, or Python complains about it at exit."""
    try:
        print(end="", flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
