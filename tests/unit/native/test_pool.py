"""The threads that all calls share: forks, many callers, signals, and systems that give no threads."""

import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from native_levels import needs_native

from qinco.native.flat import Flat

pytestmark = [needs_native, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")]
THREADS = 3
SETUP = """
import contextlib, os, signal, threading, time
import numpy as np
from qinco.native.flat import Flat
random = np.random.default_rng(0)
flat, x = (random.standard_normal((count, 16), np.float32) for count in (2000, 3000))
flat = Flat(flat)
def search(threads=3):
    return flat.search(x, 5, threads)[1].tobytes()
def tasks():
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/status") as status:  # it may end meanwhile
            found.append(status.read())
    return found
wanted = search(1)
before = len(tasks())
"""


@pytest.fixture(scope="module")
def search():
    """A call that its threads share, and that the parent has made."""
    random = np.random.default_rng(0)
    vectors, x = (random.standard_normal((count, 16), np.float32) for count in (2000, 3000))
    flat = Flat(vectors)
    flat.search(x, 5, THREADS)
    return lambda: flat.search(x, 5, THREADS)[1].tobytes()


def fork(work) -> tuple[int, int]:
    """Start a child that writes what `work` returns, and the pipe to read it from."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = work()
            while result:
                result = result[os.write(writing, result) :]
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def result(child: int, reading: int) -> bytes:
    """What a child writes; less if it hangs."""
    parts = []
    while select.select([reading], [], [], 60)[0] and (part := os.read(reading, 1 << 20)):
        parts.append(part)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    return b"".join(parts)


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_children_compute_and_their_children(search):
    wanted = search()
    assert result(*fork(search)) == wanted
    assert result(*fork(lambda: result(*fork(search)) + search())) == 2 * wanted
    assert search() == wanted


def test_many_children_at_once(search):
    wanted = search()
    children = [fork(search) for _ in range(20)]
    assert [result(*child) == wanted for child in children] == [True] * 20


def test_a_fork_while_other_threads_compute(search):
    wanted, ends = search(), threading.Event()

    def compute() -> bool:
        right = True
        while not ends.is_set():
            right &= search() == wanted
        return right

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(compute) for _ in range(2)]
        found = [result(*fork(search)) for _ in range(10)]
        ends.set()
        assert all(other.result() for other in others)
    assert found == [wanted] * 10


def test_a_fork_by_a_signal_within_a_call():
    """The child has not what the helpers had taken: it computes that itself."""
    code = """
children = []
signal.signal(signal.SIGUSR1, lambda *_: children.append(os.fork()))
x = np.tile(x, (40, 1))
wanted = search(1)
threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
found = []
while not children:
    found = search()
if children == [0]:
    os._exit(0 if found == wanted else 1)
print(found == wanted, os.waitpid(children[0], 0)[1])
"""
    assert run(code) == "True 0"


def test_many_callers_get_no_more_threads_than_one():
    code = """
from concurrent.futures import ThreadPoolExecutor
def deaf():
    masks = [int(status.split("SigBlk:")[1].split()[0], 16) for status in tasks()]
    return sum(mask >> signal.SIGINT - 1 & 1 for mask in masks)
before = deaf()
with ThreadPoolExecutor(8) as callers:
    found = [callers.submit(search) for _ in range(100)]
    print(all(one.result() == wanted for one in found), end=" ")
for _ in range(200):  # threads that end are deaf, too, for a moment
    if deaf() - before == 2:
        break
    time.sleep(0.01)
print(deaf() - before)
"""
    assert run(code) == "True 2"  # that signals pass by


def test_a_system_without_threads_to_give():
    code = """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (6 << 20),) * 2)  # less than a stack
print(search() == wanted, len(tasks()) - before)
"""
    assert run(code) == "True 0"


@pytest.mark.parametrize("daemons", [0, 2])
def test_the_process_ends_with_threads_that_wait_or_compute(daemons):
    code = f"""
search()
def forever():
    while True:
        search()
for _ in range({daemons}):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
print("end")
"""
    assert run(code) == "end"
