"""`optimize(in_child=True)`: searches and writes of the parent go on, errors and ends of either process are told."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.collection.schema import FILE
from qinco.errors import ConfigError, ResourceError

X, QUERIES, N = vectors(1200), vectors(8, 8), 1200
TRAINING = {"epochs": 2, "num_blocks": 1, "hidden_dim": 8, "batch_size": 128, "num_pairs": 16, "beam_width": 4,
            "device": "cpu"}  # fmt: skip
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(N), X)
        yield docs


def found(docs) -> set:
    hits = docs.search(QUERIES[0], 5 * N, nprobe=100, num_short=5 * N)
    assert len({hit.id for hit in hits}) == len(hits)
    return {hit.id for hit in hits}


def test_it_does_what_the_process_itself_does(docs, tmp_path, caplog):
    docs.snapshot(tmp_path / "other")
    told = []
    with caplog.at_level(logging.INFO, "qinco"), Collection.open(tmp_path / "other") as other:
        done = docs.optimize(in_child=True, progress=lambda *report, **_: told.append(report))
        assert done == other.optimize() == {"trained": False, "encoded": N, "merged_segments": 0}
        assert docs.search(QUERIES, 20) == other.search(QUERIES, 20)
        assert docs.stats()["error"] == pytest.approx(other.stats()["error"])
    assert ("encoding", 0, N, "vector") in told and ("encoding", N, N, "vector") in told
    assert docs.verify() == [] and docs.stats()["fresh"] == 0
    docs.upsert(["after"], X[:1])
    assert docs.optimize()["encoded"] == 1 and len(docs) == N + 1


def test_searches_and_writes_go_on_meanwhile(docs):
    """Between reports, which the child goes on to send; what is written then is not lost."""
    expected, at = set(range(N)), 0

    def change(*_, **__):
        nonlocal at
        at += 1
        docs.delete([at])
        docs.upsert([N - at, 2 * N + at], X[:2])
        expected.discard(at)
        expected.add(2 * N + at)
        assert found(docs) == expected == {record.id for record in docs.get()}

    docs.optimize(in_child=True, progress=change)
    assert at > 3 and docs.verify() == []
    docs.optimize()
    assert found(docs) == expected and docs.verify() == []


def test_it_trains_and_its_log_is_heard(tmp_path, caplog):
    with Collection.create(tmp_path / "c.qinco", bytes=2, exact_below=1000) as docs:
        docs.upsert(range(900), X[:900])
        with caplog.at_level(logging.INFO, "qinco"):
            assert docs.optimize(in_child=True)["trained"] is False
        assert any("exactly until" in record.getMessage() for record in caplog.records)
        docs.upsert(range(900, N), X[900:])
        assert docs.optimize(in_child=True, **TRAINING)["trained"] and docs.verify() == []
        assert docs.stats()["compressed"] == N and docs.stats()["error"] < 1


def test_its_errors_are_raised_here(tmp_path):
    with Collection.create(tmp_path / "c.qinco", bytes=2, exact_below=1000) as docs:
        docs.upsert(range(N), X)
        messages = []
        for in_child in (False, True):
            with pytest.raises(ConfigError) as error:
                docs.optimize(in_child=in_child, epochs=-1)
            messages.append(str(error.value))
        assert messages[0] == messages[1] and "epochs" in messages[0]
        with pytest.raises(ConfigError, match="device"):
            docs.optimize(in_child=True, device=object())
        with pytest.raises(ConfigError, match="in_child"):
            docs.optimize(in_child="yes")
        assert found(docs) == set(range(N))


def test_an_interrupt_ends_it_and_keeps_what_is_done(docs):
    def stop(stage, done, *_, **__):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="kept"):
        docs.optimize(in_child=True, progress=stop)
    assert not children(os.getpid()) and docs.verify() == [] and found(docs) == set(range(N))
    begun = []
    docs.optimize(progress=lambda stage, done, *_, **__: begun.append(done))
    assert 0 not in begun[:1]  # it goes on, or the child had just been done with all
    assert docs.stats()["fresh"] == 0 and found(docs) == set(range(N))


def test_a_kill_of_it_is_told_and_loses_nothing(docs):
    def kill(*_, **__):
        for child in children(os.getpid()):
            os.kill(child, signal.SIGKILL)

    with closing(sqlite3.connect(docs.folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # or the child may be done before it is killed
        with pytest.raises(ResourceError, match=r"signal 9.*goes on"):
            docs.optimize(in_child=True, progress=kill)
    assert docs.verify() == [] and found(docs) == set(range(N))
    assert docs.optimize(in_child=True)["encoded"] == N and found(docs) == set(range(N))


def test_closing_the_collection_ends_it(docs):
    told, going = [], threading.Event()

    def work():
        with pytest.raises(ConfigError, match="closed"):
            docs.optimize(in_child=True, progress=lambda *_, **__: going.set())
        told.append(True)

    docs.upsert(range(N, 6 * N), np.tile(X, (5, 1)))
    thread = threading.Thread(target=work)
    with closing(sqlite3.connect(docs.folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # or the child may be done before the collection is closed
        thread.start()
        assert going.wait(60)
        docs.close()
        thread.join()
    assert told and not children(os.getpid())
    with Collection.open(docs.folder) as again:
        assert again.verify() == [] and len(again) == 6 * N


PARENT = """
import sys
from qinco.collection.collection import Collection
docs = Collection.open(sys.argv[1])

def told(*report, **_):
    print(*report, flush=True)
    sys.stdin.read()  # so that it is there when the signal comes

docs.optimize(in_child=True, progress=told)
"""


@pytest.mark.parametrize(
    "number", ["SIGKILL", *(pytest.param(one, marks=pytest.mark.slow) for one in ("SIGINT", "SIGTERM"))]
)
def test_it_ends_with_its_parent(docs, number):
    docs.upsert(range(N, 6 * N), np.tile(X, (5, 1)))
    docs.close()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PARENT, docs.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=environment, stderr=subprocess.DEVNULL) as parent:  # fmt: skip
        assert parent.stdout.readline()
        (child,) = children(parent.pid)
        parent.send_signal(getattr(signal, number))
        parent.stdout.read()
    with Collection.open(docs.folder) as again:  # the child may still be on its way out
        assert found_all(again) and again.optimize()["encoded"] in (0, 6 * N)
        assert found_all(again) and again.verify() == []
    while is_running(child):
        time.sleep(0.01)


def found_all(docs) -> bool:
    return {record.id for record in docs.get()} == set(range(6 * N))


def children(process: int) -> list[int]:
    """Processes that a process has started and not waited for."""
    listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if line.split()[1] != "ps"]


def is_running(process: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")
