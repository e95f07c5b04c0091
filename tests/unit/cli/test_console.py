"""Results on standard output, everything else on standard error, and numbers that people can read."""

import errno
import io
import json
import logging
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from qinco import progress
from qinco.cli.console import Console, format_value, result_line, write_line


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests advance: `clock.now += seconds`."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


@pytest.mark.parametrize("value, text", [
    (None, "-"), (True, "true"), (100_000, "100,000"), (20296.4, "20,296"), (999.96, "1,000.0"), (18.9, "18.90"),
    (0.29463, "0.2946"), (8e-4, "0.0008"), (1.234567e-7, "1.235e-07"), (0.0, "0"), (-14282.3, "-14,282"),
    (1e20, "1e+20"), (float("nan"), "nan"), (np.float32(0.25), "0.2500"), (np.int64(4096), "4,096"),
    ({"1": 0.279, "10": 0.7}, "1 0.2790, 10 0.7000"), (np.array([1.5, 2.0]), "1.500, 2.000"),
    ("codes.npy", "codes.npy"),
])  # fmt: skip
def test_values_for_people(value, text):
    assert format_value(value) == text


def test_recall_names_its_rank_and_whole_bytes_have_no_fraction():
    assert result_line("recall", {1: 0.51, 10: 0.935}) == "recall@1: 0.5100, recall@10: 0.9350"
    assert result_line("bytes_per_vector", 8.0) == "bytes_per_vector: 8"
    assert result_line("bytes_per_vector", 12.5) == "bytes_per_vector: 12.50"


def test_streams(capsys):
    console = Console()
    console.info("reading")
    console.warn("13 codewords are dead")
    console.print_result({"mse": 1.5}, json=False)
    assert capsys.readouterr() == ("mse: 1.500\n", "reading\nqinco: warning: 13 codewords are dead\n")
    silenced = Console(verbose=False)
    silenced.info("reading")
    silenced.warn("dead")
    silenced.progress("training", 1, 10, "step")
    assert capsys.readouterr() == ("", "qinco: warning: dead\n")


def test_table(capsys):
    Console().print_table(
        [["RQ", 8, 22650.2, None], ["QINCo2", 16, 0.2946, np.float32(0.5)]], ["", "bytes", "MSE", "R@1"]
    )
    assert capsys.readouterr().out == (
        "        bytes     MSE     R@1\n"
        "------  -----  ------  ------\n"
        "RQ          8  22,650       -\n"
        "QINCo2     16  0.2946  0.5000\n"
    )


def test_json_is_the_last_line_in_full_precision(capsys):
    console = Console()
    console.print_table([[1]], ["a"])
    result = {"mse": 0.1 + 0.2, "recall": {1: np.float64(0.25)}, "steps": np.arange(2), "bad": np.inf, "file": "é\n"}
    console.print_result(result, json=True)
    last = capsys.readouterr().out.splitlines()[-1]
    changed = {"recall": {"1": 0.25}, "steps": [0, 1], "bad": None}
    assert last.isascii() and json.loads(last) == result | changed


def test_what_the_stream_cannot_encode_is_escaped():
    for encoding, written in (("ascii", b"\\xb5s \\udcff\n"), ("utf-8", b"\xc2\xb5s \\udcff\n")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        write_line("µs \udcff", stream)
        assert stream.buffer.getvalue() == written


def test_progress_off_a_terminal_is_a_line_every_half_minute(capsys, clock):
    report = Console().progress
    report("training", 100, 1000, "step")
    for done in range(200, 1001, 100):
        clock.now += 10
        report("training", done, 1000, "step", mse=20000.0 + done)
    assert capsys.readouterr() == (
        "",
        "training: 400/1,000 steps, 10.00 steps/s, 1:00 left, mse 20,400\n"
        "training: 700/1,000 steps, 10.00 steps/s, 0:30 left, mse 20,700\n"
        "training: 1,000/1,000 steps, 10.00 steps/s, 0:00 left, mse 21,000\n",
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_a_bar_that_ends_before_a_result(monkeypatch):
    terminal, stdout = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    console.progress("training [red]", 0, 60, "epoch")
    console.progress("epoch 1", 0, 10, "step")
    console.progress("epoch 1", 5, 10, "step", mse=20396.0)
    console.info("saved [red]x")
    assert "saved [red]x\n" in terminal.getvalue()
    console.print_result({"mse": 1.5}, json=False)
    assert (sys.stdout, stdout.getvalue()) == (stdout, "mse: 1.500\n")
    for text in ("training [red]", "0/60 epochs", "5/10 steps", "mse 20,396"):
        assert text in terminal.getvalue()
    with pytest.raises(KeyError), console.logging():
        console.progress("training", 1, 2, "step")
        raise KeyError
    assert sys.stderr is terminal, "an error under a bar closes it"


def test_messages_of_the_library(capsys):
    logger = logging.getLogger("qinco.codec")
    with Console().logging():
        logger.info("%d vectors", 3)
        logger.debug("nothing")
        logger.warning("few vectors")
    with Console(verbose=False).logging():
        logger.info("%d vectors", 3)
        logger.error("no vectors")
    logger.info("to nobody")
    assert capsys.readouterr() == ("", "3 vectors\nqinco: warning: few vectors\nqinco: warning: no vectors\n")


def test_json_lines(capsys):
    console = Console(json_logs=True)
    console.info("reading é\n")
    console.warn("13 codewords are dead")
    console.print_result({"mse": 1.5}, json=False)
    out, err = capsys.readouterr()
    assert out == "mse: 1.500\n"
    lines = [json.loads(line) for line in err.splitlines()]
    expected = [("info", "reading é\n"), ("warning", "13 codewords are dead")]
    assert [(line["level"], line["message"]) for line in lines] == expected
    for line in lines:
        assert list(line) == ["time", "level", "message"]
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_progress_in_json(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    report = Console(json_logs=True).progress
    report("training", 100, 1000, "step")
    for done in range(200, 501, 100):
        clock.now += 10
        report("training", done, 1000, "step", mse=np.float32(20000.5), lr=float("nan"))
    (line,) = terminal.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("time")
    assert record == {
        "level": "progress", "message": "training: 400/1,000 steps, 10.00 steps/s, 1:00 left, mse 20,000, lr nan",
        "description": "training", "done": 400, "total": 1000, "unit": "step", "rate": 10.0, "seconds_left": 60.0,
        "fields": {"mse": 20000.5, "lr": None},
    }  # fmt: skip


class FullStream(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["none", "closed", "full"])
def test_standard_error_that_takes_nothing_is_no_matter(kind, clock, monkeypatch, capsys):
    stream = None if kind == "none" else FullStream()
    if kind == "closed":
        stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    console = Console()
    console.info("one")
    console.warn("two")
    with progress.reporting(True) as report:
        for told in (report, console.progress):
            told("encoding", 0, 10)
            clock.now += 31
            told("encoding", 10, 10)
    console.close()
    assert capsys.readouterr().out == ""
