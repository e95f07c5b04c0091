"""Makes `small_models` importable from every folder of tests, and gives them devices.

What a processor computes is compared exactly where it can be. A GPU adds in another order: its float32 (without TF32,
as torch comes) is compared within rounding, and of searched codes a few may be others that are as good.
"""

import signal
import threading

import pytest
import torch
import twin_device

from qinco.maths import devices

ELSEWHERE = [twin_device.NAME, pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_configure(config):
    """Hear Ctrl-C, which a shell lets its background jobs ignore: tests of it would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session):
    """Register the twin before any test needs it: the devices of a process's first gradients are all it ever has."""
    callspecs = [item.callspec for item in session.items if hasattr(item, "callspec")]
    if any(twin_device.NAME in (spec.params.get("device"), spec.params.get("elsewhere")) for spec in callspecs):
        twin_device.register()


def find(name: str) -> torch.device:
    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch sees none")
        # Torch would take the twin for the device that memory is page-locked for.
        alone = torch._C._get_privateuse1_backend_name() != twin_device.NAME
        assert alone, "the tests of a GPU need a process without the twin: run pytest -m gpu"
    return torch.device(name)


@pytest.fixture(scope="session", params=["cpu", *ELSEWHERE])
def device(request) -> torch.device:
    """The processor, a device in disguise (see twin_device), and with `pytest -m gpu` the first GPU."""
    return find(request.param)


@pytest.fixture(scope="session", params=ELSEWHERE)
def elsewhere(request) -> torch.device:
    """Each device but the processor, for what is compared with the processor's."""
    return find(request.param)


@pytest.fixture
def named_device(device, monkeypatch) -> str:
    """The device by its name, for calls that take one; outside of these tests they refuse the twin's."""
    monkeypatch.setattr(devices, "DEVICE_TYPES", {*devices.DEVICE_TYPES, twin_device.NAME})
    return str(device)


@pytest.fixture
def no_thread_is_left():
    """What a test starts ends with it."""
    before = set(threading.enumerate())  # one that a test before this one ended may still be on its way out
    yield
    assert set(threading.enumerate()) <= before
