"""What the process does: help, exit codes, one line for each mistake, and nothing slow imported for any of it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qinco.cli import main
from qinco.cli.tasks import TASKS
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.version import __version__

TRAIN = ["train", "trainset=x", "output=y"]
SLOW = {"torch", "numpy", "rich", "faiss", "accelerate", "safetensors"}


@pytest.fixture
def commands(monkeypatch):
    """Stands for the tasks `train` and `info`; tests set its `run`."""
    stand_in = SimpleNamespace(run=lambda settings, console: None)
    for name in ("train", "info"):
        run = replace(TASKS[name], run=lambda *arguments: stand_in.run(*arguments), imports=())
        monkeypatch.setitem(TASKS, name, run)
    return stand_in


def raising(error):
    def raises(settings, console):
        raise error

    return raises


def run_python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["train", "--help"], ["help", "download"], ["trian"], [], ["train", "lr=x"],
    ["info"], ["info", "--json-logs"], ["train", "--cfg", "db=bigann1M", "recipe=paper", "output=${M}.pt"],
    ["completion", "bash"], ["completion", "words", "download", ""],
    ["completion", "words", "train", "model_args=q"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_nothing_slow_is_imported(arguments):
    script = f"import sys; from qinco.cli import main; main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert "qinco.cli" in imported
    assert not imported & SLOW


def test_no_arguments_print_the_help_and_fail(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"qinco {__version__}\n", "")
    assert main([]) == 2
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    assert all(task in without for task in TASKS)
    assert main(["help"]) == 0
    assert capsys.readouterr().out == without
    main(["encode", "--help"])
    shown = capsys.readouterr().out
    assert main(["help", "encode"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("task", sorted(TASKS))
def test_help_of_a_task_lists_the_keys_that_it_reads(task, capsys):
    assert main([task, "whatever", "-h", "lr=x"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split("=")[0].strip() for line in lines if line.startswith("  ")]
    assert sorted(listed) == sorted(key.name for key in TASKS[task].keys)


def test_help_shows_defaults(capsys):
    main(["train", "--help"])
    shown = capsys.readouterr().out
    for default in ("lr=null", "epochs=60", "seed=0", "wd=0.1", "opq=false", "A=", "C=80", "B=40", "output="):
        assert f"  {default} " in shown
    assert "either trainset= (training vectors) or db= (the name of a data set)" in " ".join(shown.split())
    main(["encode", "--help"])
    assert capsys.readouterr().out.count("(the codec's own)") == 3


@pytest.mark.parametrize("arguments, fact", [
    (["trian"], "Did you mean train?"), (["trian", "--help"], "Did you mean train?"),
    ([*TRAIN, "epoch=3"], "Did you mean epochs?"), ([*TRAIN, "epochs=x"], "'x'"),
    (["build_index", "output=y"], "encoded_db= ("), ([*TRAIN, "--cgf"], "'--cgf'"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, fact, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qinco: error: ") and fact in err
    assert err.count("\n") == 1


def test_settings_and_console_reach_the_commands(commands):
    received = []
    commands.run = lambda settings, console: received.append((settings, console))
    assert main([*TRAIN, "verbose=false", "lr=1e-3"]) == 0
    assert main(["--json-logs", "info", "f"]) == main(["info", "--json-logs", "f"]) == 0
    settings, console = received[0]
    assert (settings.task, settings["lr"], console.verbose) == ("train", 1e-3, False)
    assert [console.json_logs for _, console in received] == [False, True, True]


@pytest.mark.parametrize("error, code, line", [
    (ConfigError("A and C"), 2, "error: A and C"),
    (DataError("row \udcff is NaN"), 3, "error: row \udcff is NaN"),
    (ResourceError("no room"), 4, "error: no room"), (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("resume=true goes on"), 130, "interrupted: resume=true goes on"),
    (MemoryError(), 4, "error: out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "error: out of memory"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 4, "error: out of memory"),
    (OSError(errno.ENOSPC, "full", "a.pt"), 4, "error: no space left on the disk for a.pt"),
])  # fmt: skip
def test_exit_codes(commands, capsys, error, code, line):
    commands.run = raising(error)
    assert main(TRAIN) == code
    err = capsys.readouterr().err
    assert err.startswith(f"qinco: {line}".encode("utf-8", "backslashreplace").decode()) and err.count("\n") == 1
    assert main([*TRAIN, "--json-logs"]) == code
    record = json.loads(capsys.readouterr().err)
    assert (record["level"], record["exit_code"]) == ("error", code)
    assert record["message"].startswith(line.removeprefix("error: "))
    assert datetime.fromisoformat(record["time"]).utcoffset() == timedelta(0)


def test_nobody_reads_the_result(commands, capsys):
    commands.run = raising(BrokenPipeError())
    assert main(TRAIN) == 141
    assert capsys.readouterr().err == ""


def test_our_own_bugs_in_json(commands, capsys):
    commands.run = raising(ValueError("ours"))
    assert main([*TRAIN, "--json-logs"]) == 1
    record = json.loads(capsys.readouterr().err)
    assert "ValueError('ours')" in record["message"] and "in raises\n" in record["traceback"]


@pytest.mark.parametrize("error", [RuntimeError("ours"), OSError(errno.EIO, "disk"), AssertionError()])
def test_our_own_bugs_keep_their_traceback(commands, error):
    commands.run = raising(error)
    with pytest.raises(type(error)):
        main(TRAIN)


def test_termination_is_an_interrupt_and_the_handler_comes_back(commands, capsys):
    def handler(signal_number, frame):
        raise AssertionError("the run left its signal to the caller")

    before = signal.signal(signal.SIGTERM, handler)
    commands.run = lambda settings, console: os.kill(os.getpid(), signal.SIGTERM) or threading.Event().wait(10)
    try:
        assert main(TRAIN) == 130
        assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        commands.run = lambda settings, console: os.kill(os.getpid(), signal.SIGTERM)
        assert main(TRAIN) == 0, "what is ignored stays ignored"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "qinco: interrupted\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("swallowed", ["pass", "raise ImportError('cannot load module more than once per process')"])
def test_interrupted_imports_end_with_a_line(name, swallowed, tmp_path):
    """Whatever the imported module does with the exception that Python makes of the signal."""
    imported = f"""
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
except KeyboardInterrupt:
    {swallowed}
"""
    (tmp_path / "safetensors.py").write_text(imported)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run_python("-m", "qinco", "bench", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "qinco: interrupted\n")
    done = run_python("-m", "qinco", "bench", "--json-logs", env=environment)
    assert (done.returncode, json.loads(done.stderr)["message"]) == (130, "interrupted")


def test_other_threads_leave_signals_alone(commands):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(TRAIN)))
    thread.start()
    thread.join()
    assert codes == [0]


def print_help_to(stdout):
    """The process `qinco --help` with a buffered standard output, as a shell starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "qinco", "--help"]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = print_help_to(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk():
    with Path("/dev/full").open("w") as full:
        done = print_help_to(full)
    assert done.returncode == 4
    assert done.stderr.startswith("qinco: error: standard output") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_closed_and_full_streams_do_not_stop_work(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((100, 4), np.float32))
    options = "ivf_centroids ivf_K=4 trainset=x.npy output=c.npy"
    command = f"{sys.executable} -m qinco {options} <&- >&- 2>/dev/full"
    assert subprocess.run(command, shell=True, cwd=tmp_path, timeout=60).returncode == 0
    assert np.load(tmp_path / "c.npy").shape == (4, 4)
