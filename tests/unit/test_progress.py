"""One protocol of progress: who hears it, what a stage knows of itself, and what is shown where."""

import io
import sys
from types import SimpleNamespace

import pytest

from qinco import progress
from qinco.progress import counted, format_duration, format_number, is_watched, lines, metered, reporting, silent


@pytest.fixture
def clock(monkeypatch):
    """A clock of `progress` that the test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def on_terminal(monkeypatch) -> io.StringIO:
    """Make standard error a terminal that keeps what is written to it. (A fixture cannot: pytest sets it anew.)"""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_function_is_passed_through():
    heard = []

    def report(*arguments, **fields):
        heard.append((arguments, fields))

    with reporting(report) as inner:
        assert inner is report
        inner("encoding", 1, 2, "vector", mse=3)
    assert heard == [(("encoding", 1, 2, "vector"), {"mse": 3})]


def test_nothing_is_shown_where_nobody_watches(monkeypatch, capsys):
    for option in (None, False):
        with reporting(option) as report:
            assert report is silent
            report("encoding", 1, 2)
    assert capsys.readouterr() == ("", "")
    on_terminal(monkeypatch)
    with reporting(False) as report:
        assert report is silent


def test_terminals_and_notebooks_are_watched(monkeypatch):
    terminal = on_terminal(monkeypatch)
    assert is_watched()
    with reporting() as report:
        report("encoding", 0, 20)
        report("encoding", 10, 20)
        report("encoding", 20, 20)
        report("filling lists", 5, 20)
    assert "filling lists" in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    assert not is_watched()
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_watched()
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert is_watched()


def test_true_writes_lines_where_there_is_no_terminal(clock, capsys):
    with reporting(True) as report:
        report("encoding", 100, 1000)
        clock.seconds = 29
        report("encoding", 400, 1000)
        assert capsys.readouterr().err == ""
        clock.seconds = 30
        report("encoding", 400, 1000, mse=0.25)
        clock.seconds = 45
        report("encoding", 500, 1000)
    # 300 vectors in 30 seconds, and those that an earlier run had done do not count
    assert capsys.readouterr().err == "encoding: 400/1,000 vectors, 10.00 vectors/s, 1:00 left, mse 0.2500\n"


def test_lines_of_two_stages_share_the_interval(clock):
    written = []
    report = lines(lambda line, meter: written.append((line, meter.record())))
    report("training", 0, 10, "step")
    clock.seconds = 31
    report("validating", 0, 4)
    report("training", 1, 10, "step", loss=2.0)
    assert [line for line, _ in written] == ["validating: 0/4 vectors"]
    clock.seconds = 62
    report("training", 2, 10, "step")
    line, record = written[1]
    assert line == "training: 2/10 steps, 31.0 s/step, 4:08 left, loss 2.000"
    assert record == {
        "description": "training", "done": 2, "total": 10, "unit": "step", "rate": 2 / 62,
        "seconds_left": pytest.approx(248), "fields": {"loss": 2.0},
    }  # fmt: skip


def test_a_stage_that_begins_again_has_a_new_meter(clock):
    meters = []
    report = metered(meters.append)
    report("epoch", 3, 5, "step")
    assert meters[0].rate is None and meters[0].seconds_left is None
    clock.seconds = 1
    report("epoch", 4, 5, "step")
    assert meters[1] is meters[0] and meters[0].rate == 1
    report("epoch", 0, 5, "step")
    assert meters[2] is not meters[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.25, "0.2500"), (31050.4, "31,050"), (3.14159, "3.142"), (1e-5, "1e-05"), (0.0, "0"),
     (float("nan"), "nan"), ("cosine", "cosine"), (True, "True"), (999.96, "1,000.0")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert format_number(value) == text


def test_durations():
    assert [format_duration(s) for s in (-1, 9.6, 309, 3909)] == ["0:00", "0:10", "5:09", "1:05:09"]


def test_nouns_agree_with_their_numbers(clock):
    assert [counted(n, "epoch") for n in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
    assert counted(2, "query") == "2 queries"
    seen = []
    metered(lambda meter: seen.append(meter.text()))("measuring", 0, 1, "setting")
    assert seen == ["0/1 setting"]
