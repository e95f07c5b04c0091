"""One protocol of progress: who hears it, what a stage knows of itself, and what is shown where."""

import inspect
import io
import logging
import multiprocessing.process
import sys
from types import SimpleNamespace

import pytest

import qinco
from qinco import Codec, ConfigError, Index, progress
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


def test_what_is_no_function_is_refused():
    for given in ("yes", 1, []):
        with pytest.raises(ConfigError, match="progress"), reporting(given):
            pass


def test_nothing_is_shown_where_nobody_watches(monkeypatch, capsys):
    for option in (None, False):
        with reporting(option) as report:
            assert report is silent
            report("encoding", 1, 2)
    assert capsys.readouterr() == ("", "")
    on_terminal(monkeypatch)
    with reporting(False) as report:
        assert report is silent


def test_terminals_and_notebooks_are_watched(monkeypatch, clock):
    terminal = on_terminal(monkeypatch)
    assert is_watched()
    with reporting() as report:
        report("encoding", 0, 20)
        report("encoding", 10, 20)
        clock.seconds = 1
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


def unheard_logger(monkeypatch):
    """The library's logger as where nobody has set up logging; pytest has."""
    logger = logging.getLogger("qinco")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])
    return logger


def test_short_calls_show_nothing_but_warnings(monkeypatch, clock):
    terminal, unheard = on_terminal(monkeypatch), unheard_logger(monkeypatch)
    with reporting() as report:
        report("encoding", 0, 20)
        unheard.info("start: mse 1")
        clock.seconds = 0.9
        report("encoding", 20, 20)
    assert terminal.getvalue() == ""
    with reporting():
        unheard.info("start: mse 1")
        unheard.warning("few vectors")
    assert terminal.getvalue() == "few vectors\n"
    assert (unheard.handlers, unheard.level) == ([], logging.NOTSET)


def test_the_estimate_of_a_long_call_is_shown_before_it(monkeypatch, clock):
    terminal, unheard = on_terminal(monkeypatch), unheard_logger(monkeypatch)
    with reporting():
        unheard.info("training: about 3:00", extra={"seconds": 180.0})
        assert "training: about 3:00" in terminal.getvalue()
        with reporting() as inner:
            assert inner is silent  # a second display would overwrite the first
    with reporting() as report:
        unheard.info("epoch 1/2: mse 1")
        clock.seconds = 2
        report("epoch 2/2", 1, 2, "step")
    assert "epoch 1/2: mse 1" in terminal.getvalue() and "epoch 2/2" in terminal.getvalue()


def test_what_is_heard_elsewhere_is_not_said_twice(monkeypatch, clock, caplog):
    terminal = on_terminal(monkeypatch)
    with reporting():
        logging.getLogger("qinco").warning("few vectors")
    assert caplog.messages == ["few vectors"] and terminal.getvalue() == ""


def test_a_notebook_without_widgets_has_lines(monkeypatch, clock, capsys):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    with reporting() as report:
        for clock.seconds in (0, 2, 40):
            report("encoding", int(clock.seconds), 100)
    assert "encoding: 40/100 vectors" in capsys.readouterr().err


def test_workers_of_a_pool_are_not_watched(monkeypatch):
    on_terminal(monkeypatch)
    assert is_watched()
    monkeypatch.setattr(multiprocessing.process, "_parent_process", object())
    assert not is_watched()


def test_every_long_call_shows_progress_by_default():
    calls = [value for name in qinco.__all__ if callable(value := getattr(qinco, name))]
    calls += [method for kind in (Codec, Index) for method in vars(kind).values()]
    calls = [getattr(call, "__func__", call) for call in calls]
    defaults = [inspect.signature(call).parameters.get("progress") for call in calls if inspect.isfunction(call)]
    assert {default.default for default in defaults if default is not None} == {None}


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
