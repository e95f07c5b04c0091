"""Forked children compute what their parent does, whatever its threads were doing."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import twin_device
from small_models import random_vectors
from torch.utils.data import DataLoader

from qinco import Codec, Index, exhaustive_search
from qinco.codec.centroids import kmeans
from qinco.config import EncodeOptions, ModelConfig
from qinco.forking import new_lock
from qinco.machine import num_threads, set_num_threads, using_threads
from qinco.maths.assignment import NearestCentroids
from qinco.model.qinco import random_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
X = random_vectors(2200, 16)
CALLS = {}


@pytest.fixture(scope="module", autouse=True)
def used_in_the_parent():
    """Calls that the parent has made on two threads."""
    set_num_threads(2)
    codec = Codec(random_model(ModelConfig(16, 3, 64, 1, 16, 24)), EncodeOptions(num_pairs=16, beam_width=4))
    torch_codec = codec.with_options(EncodeOptions(num_pairs=16, beam_width=4, engine="torch"))
    codes, index, centroids = codec.encode(X), Index.build(codec, X, 50), NearestCentroids(X[:200])
    CALLS.update(
        encode=lambda: codec.encode(X).codes, decode=lambda: codec.decode(codes), search=lambda: index.search(X)[1],
        torch=lambda: torch_codec.encode(X[:200]).codes, add=lambda: Index(codec, index.parts).add(X),
        kmeans=lambda: kmeans(X, 20), exhaustive=lambda: exhaustive_search(X[:50], X)[1],
        assign=lambda: centroids.search(X, 1)[1], graph=lambda: centroids.search(X, 1, 16)[1],
    )  # fmt: skip
    if torch._C._get_privateuse1_backend_name() != twin_device.NAME:  # gradients on a device cannot be forked
        small = {"num_steps": 2, "codebook_size": 8, "num_blocks": 1, "epochs": 1}
        CALLS["fit"] = lambda: Codec.fit(X[:500], None, **small).encode(X[:9]).codes
    yield
    set_num_threads(None)


def in_child(work) -> bytes:
    """What `work` returns as bytes in a forked child; empty if it fails or hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, work())
        finally:
            os._exit(0)
    os.close(writing)
    if not select.select([reading], [], [], 100)[0]:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        return file.read()


def results() -> bytes:
    return repr({name: np.asarray(call()).astype(float).sum() for name, call in CALLS.items()}).encode()


def test_every_call_works_in_a_forked_child_and_in_its_child():
    here = results()
    assert in_child(results) == here
    assert in_child(lambda: in_child(results)) == here


def test_a_child_uses_one_thread_until_it_says_otherwise(monkeypatch):
    """Threads of OpenMP, torch's, stay at one: more would wait for those of the parent."""
    for name in ("QINCO_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def numbers() -> list[int]:
        return [num_threads(), torch.get_num_threads()]

    def in_turn() -> bytes:
        found = [numbers()]
        with using_threads(3):
            found.append([*numbers(), CALLS["torch"]().shape[1]])
        os.environ["OMP_NUM_THREADS"] = "5"
        found.append(numbers())
        os.environ["QINCO_NUM_THREADS"] = "4"
        set_num_threads(None)
        return repr([*found, numbers()]).encode()

    assert numbers() == [2, 2] and in_child(in_turn) == b"[[1, 1], [3, 1, 3], [5, 1], [4, 1]]"
    # Also where what counts threads is imported in the child.
    code = """
import os, qinco.forking
child = os.fork()
if child: os.waitpid(child, 0)
else:
    import qinco.machine
    print(qinco.machine.num_threads())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


def test_a_child_of_a_thread_computes():
    found, search = [], lambda: CALLS["search"]().tobytes()[:1000]
    thread = threading.Thread(target=lambda: found.extend([search(), in_child(search)]))
    thread.start()
    thread.join()
    assert found[0] == found[1]


def _search(number):
    return CALLS["search"]()[number]


def test_workers_of_multiprocessing_and_data_loaders_compute():
    here = CALLS["search"]()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.map(_search, range(2)), here[:2])
    dataset = torch.utils.data.StackDataset([0, 1])
    settings = {"num_workers": 1, "multiprocessing_context": "fork", "collate_fn": lambda rows: _search(rows[0][0])}
    assert np.array_equal(list(DataLoader(dataset, **settings)), here[:2])


def test_locks_that_another_thread_holds_are_free_in_a_child():
    lock = new_lock()
    with lock:
        assert in_child(lambda: str(lock.acquire(timeout=50)).encode()) == b"True"
