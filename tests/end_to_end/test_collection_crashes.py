"""Collections whose process is killed at random instants, or ends before any operation on files.

No write that was acknowledged is missing, nothing is half there, and other processes read whole states throughout.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from endings import ends_at
from small_indexes import trained, vectors

from qinco.collection import optimize
from qinco.collection.collection import Collection

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
X = vectors(800, 4)


def planned(step: int) -> dict:
    """What a process does in a step: the same whenever it is asked."""
    generator = np.random.default_rng(step)
    kind = generator.choice(["upsert", "upsert", "delete", "optimize"])
    first, count = int(generator.integers(0, 400)), int(generator.integers(1, 60))
    return {"step": step, "kind": str(kind), "first": first, "count": count}


def do(docs: Collection, plan: dict) -> None:
    ids = range(plan["first"], plan["first"] + plan["count"])
    if plan["kind"] == "upsert":
        x_ND = [X[(id + plan["step"]) % len(X)] for id in ids]
        docs.upsert(ids, x_ND, [{"step": plan["step"]}] * len(ids))
    elif plan["kind"] == "delete":
        docs.delete(ids)
    else:
        docs.optimize(progress=False)


def expected(state: dict, plan: dict) -> dict:
    """The steps by which records were written, by id."""
    ids = range(plan["first"], plan["first"] + plan["count"])
    if plan["kind"] == "upsert":
        return state | dict.fromkeys(ids, plan["step"])
    return {id: step for id, step in state.items() if plan["kind"] != "delete" or id not in ids}


def found(docs: Collection) -> dict:
    """The steps by which the records were written that there are, told by their payloads."""
    return {record.id: record.payload["step"] for record in docs.get()}


def forked(work) -> int:
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def work_on(folder: Path, first: int, output: int) -> None:
    optimize.MAX_SEGMENTS = 3
    with Collection.open(folder) as docs:
        for step in range(first, first + 10_000):
            os.write(output, f"{step}\n".encode())
            do(docs, planned(step))
            os.write(output, f"{step} done\n".encode())


def read_throughout(folder: Path, first: int) -> None:
    """Search and verify until the parent ends this process."""
    with Collection.open(folder, read_only=True) as reader:
        while os.getppid() == first:
            hits = reader.search(X[0], 1000, nprobe=100, num_short=1000)
            assert len({hit.id for hit in hits}) == len(hits)
            assert reader.verify() == []


def kill_often(folder: Path, rounds: int, readers: int, seconds: float) -> None:
    with Collection.create(folder, metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(400), X[:400], [{"step": 0}] * 400)
        docs.optimize(progress=False)
    state, step = dict.fromkeys(range(400), 0), 1
    generator, parent = np.random.default_rng(0), os.getpid()
    children = [forked(lambda: read_throughout(folder, parent)) for _ in range(readers)]
    try:
        for _ in range(rounds):
            reading, writing = os.pipe()
            writer = forked(lambda: work_on(folder, step, writing))  # noqa: B023 (called here)
            os.close(writing)
            time.sleep(generator.uniform(0.02, seconds))
            os.kill(writer, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
            assert status == -signal.SIGKILL
            with os.fdopen(reading) as told:
                lines = told.read().splitlines()
            begun = [int(line) for line in lines if not line.endswith("done")]
            done = [int(line.split()[0]) for line in lines if line.endswith("done")]
            for one in done:
                state = expected(state, planned(one))
            with Collection.open(folder) as docs:
                assert docs.verify() == []
                now, pending = found(docs), [one for one in begun if one not in done]
                possible = [state, *(expected(state, planned(one)) for one in pending)]
                assert now in possible, f"after step {begun[-1:]}: {json.dumps(planned(begun[-1]))}"
                state, step = now, (begun[-1] + 1 if begun else step)
                hits = docs.search(X[1], 1000, nprobe=100, num_short=1000)
                assert {hit.id for hit in hits} == state.keys()
    finally:
        for child in children:
            done = os.waitpid(child, os.WNOHANG)
            assert done == (0, 0), f"a reader ended: {done}"
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_kills_lose_no_acknowledged_write(tmp_path):
    kill_often(tmp_path / "c", rounds=4, readers=1, seconds=0.4)


@pytest.mark.slow
def test_many_kills_lose_no_acknowledged_write(tmp_path):
    kill_often(tmp_path / "c", rounds=800, readers=4, seconds=0.5)


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_optimize_may_end_before_any_operation_on_files(tmp_path, every):
    """Encoding, fitting tables again, and merging."""
    prepared, place = tmp_path / "prepared", tmp_path / "place"
    with Collection.create(prepared, metric="cosine", codec=trained("plain")) as docs:
        docs.upsert(range(60), X[:60], [{"step": 0}] * 60)
        docs.optimize(progress=False)
        docs.upsert(range(50, 600), X[50:600], [{"step": 1}] * 550)
        docs.delete(range(10))
        wanted = found(docs)
    point = 0
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(prepared, place)

        def work():
            with Collection.open(place) as docs:
                docs.optimize(progress=False)

        is_ended = ends_at(point, place, work)
        with Collection.open(place) as docs:
            assert docs.verify() == [] and found(docs) == wanted
            docs.optimize(progress=False)
            assert docs.verify() == [] and found(docs) == wanted and docs.stats()["fresh"] == 0
            assert {hit.id for hit in docs.search(X[0], 1000, nprobe=100, num_short=1000)} == wanted.keys()
        if not is_ended:
            break
        point += every
    assert point >= 26
