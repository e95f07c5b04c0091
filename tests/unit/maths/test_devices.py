import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from qinco.errors import ConfigError
from qinco.machine import num_threads
from qinco.maths import devices
from qinco.maths.devices import choose_device, holds, to_device, within_cores


def test_arrays_arrive_whole(device):
    for array in (np.arange(12.0).reshape(3, 4), np.arange(12).reshape(3, 4).T, np.arange(12)[::2], np.zeros((0, 3))):
        read_only = array.copy()
        read_only.flags.writeable = False
        for given in (array, read_only):
            sent = to_device(given, device)
            assert sent.device.type == device.type
            np.testing.assert_array_equal(sent.cpu().numpy(), array)


def test_the_processor_shares_memory():
    array = np.zeros((2, 3), np.float32)
    to_device(array, torch.device("cpu"))[1, 2] = 5
    assert array[1, 2] == 5


def test_a_device_holds_what_fits(device, monkeypatch):
    assert holds(device, 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert holds(torch.device("cuda"), 500) and not holds(torch.device("cuda"), 501)


def test_devices_by_name():
    for name in ("cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
        assert choose_device(name) == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")


def test_gpus_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "_DRIVERS", [os.devnull])
    assert choose_device("auto") == "cuda"
    for name in ("cuda", "cuda:0", "cuda:1"):
        assert choose_device(name) == choose_device(torch.device(name)) == name
    with pytest.raises(ConfigError, match="device=cuda:2 does not exist: this machine has 2 GPUs; device=cpu always"):
        choose_device("cuda:2")


def test_without_a_driver_torch_is_not_imported():
    code = """
import sys
from qinco.maths import devices
devices._DRIVERS = ()
assert [devices.choose_device(name) for name in ("auto", "cpu", "cpu:0")] == ["cpu"] * 3
devices.multiplies_bf16_fast()
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_without_torch_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "_DRIVERS", [os.devnull])
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert choose_device("auto") == "cpu"
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"^device=cuda needs the package torch: pip install 'qinco\[gpu\]'$"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["gpu7", "cuda:99", "meta", "cuda:x", "cuda:-1", "", 7, None, torch.device("meta")])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(ConfigError, match=f"device=.*{device}.*(give auto, cpu, cuda or|device=cpu always works)"):
        choose_device(device)


def test_torch_uses_as_many_threads_as_the_others_and_numpy_one():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        with threadpool_limits(2, "blas"):
            with within_cores():
                assert torch.get_num_threads() == num_threads()
                assert {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"} == {1}
            assert torch.get_num_threads() == 64
            assert {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"} == {2}
    finally:
        torch.set_num_threads(before)
