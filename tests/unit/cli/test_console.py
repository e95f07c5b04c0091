"""Results on standard output, everything else on standard error, and numbers that people can read."""

import io
import json
import sys
from datetime import datetime, timedelta

import numpy as np
import pytest

from qinco.cli import console as console_module
from qinco.cli.console import Console, format_duration, format_value, log_record, write_line


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests advance: `clock.now += seconds`."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    return clock


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        (True, "true"),
        (100_000, "100,000"),
        (20296.4, "20,296"),
        (999.96, "1,000.0"),
        (18.9, "18.90"),
        (0.29463, "0.2946"),
        (8e-4, "0.0008"),
        (1.234567e-7, "1.235e-07"),
        (0.0, "0"),
        (-14282.3, "-14,282"),
        (1e20, "1e+20"),
        (float("nan"), "nan"),
        (np.float32(0.25), "0.2500"),
        (np.int64(4096), "4,096"),
        ({"1": 0.279, "10": 0.7}, "1 0.2790, 10 0.7000"),
        (np.array([1.5, 2.0]), "1.500, 2.000"),
        ("codes.npy", "codes.npy"),
    ],
)
def test_values_for_people(value, text):
    assert format_value(value) == text


def test_durations():
    assert [format_duration(seconds) for seconds in (-1, 0.4, 309, 3909)] == ["0:00", "0:00", "5:09", "1:05:09"]


def test_streams(capsys):
    console = Console()
    console.info("reading")
    console.warn("13 codewords are dead")
    console.print_result({"mse": 1.5}, json=False)
    assert capsys.readouterr() == ("mse: 1.500\n", "reading\nqinco: warning: 13 codewords are dead\n")
    silenced = Console(verbose=False)
    silenced.info("reading")
    silenced.warn("dead")
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


def test_table_without_rows(capsys):
    Console().print_table([], ["a", "b"])
    assert capsys.readouterr().out == "a  b\n-  -\n"


def test_json_is_the_last_line_in_full_precision(capsys):
    console = Console()
    console.print_table([[1]], ["a"])
    result = {"mse": 0.1 + 0.2, "recall": {1: np.float64(0.25)}, "steps": np.arange(2), "bad": np.inf, "file": "é\n"}
    console.print_result(result, json=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {
        "mse": 0.1 + 0.2,
        "recall": {"1": 0.25},
        "steps": [0, 1],
        "bad": None,
        "file": "é\n",
    }


def test_what_the_stream_cannot_encode_is_escaped():
    for encoding, written in (("ascii", b"\\xb5s \\udcff\n"), ("utf-8", b"\xc2\xb5s \\udcff\n")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        write_line("µs \udcff", stream)
        assert stream.buffer.getvalue() == written


def test_progress_off_a_terminal_is_a_line_every_half_minute(capsys, clock):
    with Console().progress(1000, "step", "training", start=100) as progress:
        for done in range(200, 1001, 100):
            clock.now += 10
            progress.update(done, mse=20000.0 + done)
    assert capsys.readouterr() == (
        "",
        "training: 400/1,000 steps, 10.00 steps/s, 1:00 left, mse 20,400\n"
        "training: 700/1,000 steps, 10.00 steps/s, 0:30 left, mse 20,700\n"
        "training: 1,000/1,000 steps, 10.00 steps/s, 0:00 left, mse 21,000\n",
    )


def test_slow_units_are_counted_in_seconds(clock):
    with Console(verbose=False).progress(60, "epoch", "training") as progress:
        assert progress.state() == "0/60 epochs"
        clock.now += 156
        progress.update(2)
    assert progress.state() == "2/60 epochs, 78.0 s/epoch, 1:15:24 left"


def test_a_silenced_console_shows_no_progress(capsys, clock):
    with Console(verbose=False).progress(10, "step", "training") as progress:
        clock.now += 100
        progress.update(1)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_a_bar_that_text_does_not_break(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    with (
        console.progress(60, "epoch", "training [red]") as epochs,
        console.progress(10, "step", "epoch 1") as steps,
    ):
        steps.update(5, mse=20396.0)
        epochs.update(1)
        console.info("saved [red]x")
        console._bars.refresh()
    shown = terminal.getvalue()
    for text in ("training [red]", "1/60 epochs", "5/10 steps", "mse 20,396", "saved [red]x\n"):
        assert text in shown
    assert console._bars is None


def test_an_error_under_a_bar_closes_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    with pytest.raises(KeyError), console.progress(2, "step", "training"):
        raise KeyError
    assert console._bars is None
    with console.progress(2, "step", "training") as progress:
        progress.update(2)


def test_json_lines(capsys):
    console = Console(json_logs=True)
    console.info("reading é\n")
    console.warn("13 codewords are dead")
    console.print_result({"mse": 1.5}, json=False)
    out, err = capsys.readouterr()
    assert out == "mse: 1.500\n"
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "reading é\n"),
        ("warning", "13 codewords are dead"),
    ]
    for line in lines:
        assert list(line) == ["time", "level", "message"]
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
    silenced = Console(verbose=False, json_logs=True)
    silenced.info("reading")
    assert capsys.readouterr() == ("", "")


def test_progress_in_json(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Console(json_logs=True).progress(1000, "step", "training", start=100) as progress:
        assert progress.record()["rate"] is None
        for done in range(200, 501, 100):
            clock.now += 10
            progress.update(done, mse=np.float32(20000.5), lr=float("nan"))
    (line,) = terminal.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("time")
    assert record == {
        "level": "progress",
        "message": "training: 400/1,000 steps, 10.00 steps/s, 1:00 left, mse 20,000, lr nan",
        "description": "training",
        "done": 400,
        "total": 1000,
        "unit": "step",
        "rate": 10.0,
        "seconds_left": 60.0,
        "fields": {"mse": 20000.5, "lr": None},
    }


def test_a_silenced_console_shows_no_progress_in_json(capsys, clock):
    with Console(verbose=False, json_logs=True).progress(10, "step", "training") as progress:
        clock.now += 100
        progress.update(1)
    assert capsys.readouterr() == ("", "")


def test_records_are_one_line_of_ascii():
    line = log_record("error", "a\nb \udcff é", exit_code=3)
    assert line.isascii() and "\n" not in line
    assert json.loads(line)["message"] == "a\nb \udcff é"
