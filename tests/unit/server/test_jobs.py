import threading

import pytest

pytest.importorskip("fastapi")

from qinco.errors import DataError
from qinco.server.envelope import ConflictError
from qinco.server.jobs import Jobs, is_due

STATS = {"exact_below": 20_000, "fresh": 0, "compressed": 0, "version": 7}


class Slow:
    """Optimizes until it is let go."""

    def __init__(self, error=None):
        self.gate, self.error, self.settings = threading.Event(), error, None

    def optimize(self, in_child, progress, **settings):
        self.settings = settings
        progress("training", 3, 10, "epoch", mse=1.0)
        assert in_child and self.gate.wait(10)
        if self.error:
            raise self.error
        return {"encoded": 5}


def test_one_optimization_of_a_collection_at_a_time():
    jobs, docs, seconds = Jobs(), Slow(), []
    jobs.on_end = seconds.append
    assert jobs.state("a") == {"state": "none"} and not jobs.is_running("a")
    assert jobs.start("a", docs, {"minutes": 1})["state"] == "running"
    with pytest.raises(ConflictError):
        jobs.start("a", docs, {})
    jobs.start("b", other := Slow(), {})
    docs.gate.set()
    other.gate.set()
    jobs.wait()
    assert docs.settings == {"minutes": 1} and len(seconds) == 2
    assert jobs.state("a")["state"] == "done" and jobs.state("a")["result"] == {"encoded": 5}
    jobs.close()
    with pytest.raises(ConflictError):
        jobs.start("a", docs, {})


def test_errors_are_told_and_bugs_are_in_the_log_alone(caplog):
    jobs = Jobs()
    for error, shown in ((DataError("two clocks"), "two clocks"), (RuntimeError("secret"), "log")):
        docs = Slow(error)
        docs.gate.set()
        jobs.start("a", docs, {})
        jobs.wait()
        state = jobs.state("a")
        assert state["state"] == "failed" and shown in state["error"] and "secret" not in state["error"]
    assert "secret" in caplog.text


def test_many_fresh_vectors_are_due_when_no_more_come():
    assert not is_due(STATS, 7)
    assert is_due(STATS | {"fresh": 20_000}, 7)
    assert not is_due(STATS | {"fresh": 20_000}, 6)
    assert is_due(STATS | {"fresh": 80_000}, 6)
    assert not is_due(STATS | {"fresh": 20_000, "compressed": 1_000_000}, 7)
    assert is_due(STATS | {"fresh": 100_000, "compressed": 1_000_000}, 7)
    assert not is_due(STATS | {"exact_below": 0, "fresh": 999}, 7)


def test_what_failed_is_not_begun_again_at_once():
    jobs, docs = Jobs(), Slow(DataError("no room"))
    docs.gate.set()
    due = STATS | {"fresh": 50_000}
    jobs.start_if_due("a", docs, due, 6)
    assert jobs.state("a") == {"state": "none"}
    jobs.start_if_due("a", docs, due, 7)
    jobs.wait()
    docs.settings = None
    jobs.start_if_due("a", docs, due, 7)
    assert docs.settings is None and jobs.state("a")["state"] == "failed"
