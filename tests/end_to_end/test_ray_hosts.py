"""A cluster of two hosts, which are network namespaces of this machine with addresses of their own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_indexes import trained, vectors

from qinco.store.codes import Codes

pytest.importorskip("ray")
HEAD, OTHER = "10.197.31.1", "10.197.31.2"
PORT, START_S = 6390, 120
_STORE = str(80 << 20)
SCRIPT = """
import sys, ray, qinco.distributed
codec, source, output, address = sys.argv[1:]
ray.init(address=address, configure_logging=False, log_to_driver=False)
assert len([node for node in ray.nodes() if node["Alive"]]) == 2, ray.nodes()
qinco.distributed.encode(codec, source, output, workers=2, threads=1, shard_rows=250)
"""


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces, joined by a cable."""
    names = tuple(f"qinco{os.getpid()}{end}" for end in "ab")
    ends = tuple(f"q{os.getpid()}{end}" for end in "ab")
    try:
        try:
            for name in names:
                run("ip", "netns", "add", name)
            run("ip", "link", "add", ends[0], "netns", names[0], "type", "veth", "peer", ends[1], "netns", names[1])
            for name, end, address in zip(names, ends, (HEAD, OTHER), strict=True):
                for words in (("addr", "add", f"{address}/24", "dev", end), ("link", "set", end, "up"),
                              ("link", "set", "lo", "up")):  # fmt: skip
                    run("ip", "-n", name, *words)
        except OSError as error:
            pytest.skip(f"this machine makes no network namespaces: {error}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def short_folder() -> Iterator[str]:
    """One whose sockets have names that are short enough."""
    with tempfile.TemporaryDirectory(prefix="qr", ignore_cleanup_errors=True) as folder:
        yield folder


def started(host: str, *words: str) -> subprocess.Popen:
    """A node of Ray in a namespace, in a process group of its own."""
    ray = Path(sys.executable).with_name("ray")
    command = ["ip", "netns", "exec", host, str(ray), "start", "--block", "--num-cpus=1",
               f"--object-store-memory={_STORE}", "--disable-usage-stats", *words]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, env=environment(), **quiet)


def environment() -> dict[str, str]:
    """Without proxies, which the namespaces do not reach, and without tokens of the clusters of this user."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"RAY_AUTH_MODE": "disabled"}


@pytest.mark.slow
def test_two_hosts_encode(hosts, short_folder, tmp_path):
    trained("plain").save(tmp_path / "codec.safetensors")
    np.save(tmp_path / "x.npy", vectors())
    head = ["--head", f"--port={PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false",
            f"--temp-dir={short_folder}"]  # fmt: skip
    nodes = [started(hosts[0], *head)]
    try:
        given = [str(tmp_path / name) for name in ("codec.safetensors", "x.npy", "codes")] + [f"{HEAD}:{PORT}"]
        deadline, done = time.monotonic() + START_S, None
        nodes.append(started(hosts[1], f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}"))
        while done is None or (done.returncode and time.monotonic() < deadline):
            if nodes[1].poll() is not None:  # it came before the head
                nodes[1] = started(hosts[1], f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}")
            time.sleep(2)
            command = ["ip", "netns", "exec", hosts[0], sys.executable, "-c", SCRIPT, *given]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=START_S, env=environment()
            )
        assert done.returncode == 0, done.stderr[-2000:]
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        for host in hosts:  # what a node has started
            found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
            for number in found.stdout.split():
                os.kill(int(number), signal.SIGKILL)
    expected = trained("plain").encode(vectors()).codes
    np.testing.assert_array_equal(Codes.load(tmp_path / "codes", trained("plain")).codes, expected)
