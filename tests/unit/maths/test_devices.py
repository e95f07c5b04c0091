import numpy as np
import pytest
import torch

from qinco.errors import ConfigError
from qinco.machine import usable_cores
from qinco.maths.devices import choose_device, holds, num_threads, to_device, within_cores


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
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("device", ["gpu7", "cuda:99", "meta"])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(ConfigError, match=device):
        choose_device(device)


def test_no_more_threads_than_a_container_has_cores():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        assert num_threads() == min(64, usable_cores())
        with within_cores():
            assert torch.get_num_threads() == num_threads()
        assert torch.get_num_threads() == 64
    finally:
        torch.set_num_threads(before)
