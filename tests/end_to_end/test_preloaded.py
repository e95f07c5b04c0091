"""Servers that fork after they have searched, and children that are spawned."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_indexes import built, vectors

HERE = Path(__file__).parent
NUM_CHILDREN = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preloaded")
    built("plain").save(folder / "index")
    np.save(folder / "queries.npy", vectors(700, 3))
    names = {"INDEX": str(folder / "index"), "QUERIES": str(folder / "queries.npy"), "PYTHONWARNINGS": "default"}
    return os.environ | names


def ask(port: int) -> dict:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120) as answer:
                return json.load(answer)
        except OSError:  # it is not there yet
            time.sleep(0.1)
    raise TimeoutError("the server does not answer")


@pytest.mark.parametrize("with_torch", ["", "1"])
def test_children_of_a_preloaded_server_compute_what_it_does(environment, with_torch):
    pytest.importorskip("gunicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", str(NUM_CHILDREN), "-t", "300", "-b"]
    server = subprocess.Popen(
        [*command, f"127.0.0.1:{port}", "preloaded:app"], cwd=HERE, env=environment | {"WITH_TORCH": with_torch}
    )
    try:
        with ThreadPoolExecutor(NUM_CHILDREN) as pool:
            answers = list(pool.map(ask, [port] * NUM_CHILDREN))
    finally:
        server.terminate()
        server.wait(60)
    assert all(answer["same"] for answer in answers)
    assert {answer["parent"] for answer in answers} == {server.pid} and len({a["pid"] for a in answers}) > 1
    assert answers[0]["heavy"] == (["torch"] if with_torch else [])


def test_children_that_are_spawned_compute_the_same(environment):
    command = [sys.executable, str(HERE / "preloaded.py")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    first, second = (json.loads(child.communicate(timeout=120)[0]) for child in children)
    assert first == second and first["size"] == 1500 + 700
