"""Cores, memory and processor, on a machine and within the limits of containers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qinco.errors import ConfigError
from qinco.machine import (
    free_memory,
    group_limits,
    num_threads,
    processor_name,
    set_num_threads,
    usable_cores,
    using_threads,
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_groups(root: Path, group: str, files: dict[str, str]) -> None:
    """Which groups the process is in, and files of groups, by their paths below the folder of all."""
    write(root / "proc/meminfo", "MemAvailable: 1000000 kB\n")
    write(root / "proc/self/cgroup", group)
    for path, text in files.items():
        write(root / "sys/fs/cgroup" / path, text)


def cores_and_memory(root: Path) -> tuple:
    limits = group_limits(root)
    return limits.cores, limits.memory


@pytest.fixture
def threads_of_nobody(monkeypatch):
    """No number of threads is set, neither here nor in the environment."""
    for name in ("QINCO_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    with using_threads(None):
        set_num_threads(None)
        yield
    torch.set_num_threads(before)


def test_the_number_of_threads_is_asked_in_order(threads_of_nobody, monkeypatch):
    torch.set_num_threads(7)
    assert num_threads() == usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "41,3")  # one number for each level of nesting
    assert num_threads() == 41
    monkeypatch.setenv("QINCO_NUM_THREADS", "42")
    assert num_threads() == 42
    set_num_threads(np.int64(3))
    assert num_threads() == torch.get_num_threads() == 3
    with using_threads(4):
        assert num_threads() == torch.get_num_threads() == 4
        with using_threads(None):
            assert num_threads() == 4
    assert num_threads() == torch.get_num_threads() == 3
    set_num_threads(None)
    assert num_threads() == torch.get_num_threads() == 42


def test_threads_come_back_after_an_error(threads_of_nobody):
    with pytest.raises(KeyboardInterrupt), using_threads(5):
        raise KeyboardInterrupt
    assert num_threads() == usable_cores()


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "2", np.float64(2)])
def test_numbers_of_threads_that_are_none_are_refused(threads_of_nobody, count):
    with pytest.raises(ConfigError, match=f"must be an integer of 1 or more, not .*{count}"):
        set_num_threads(count)
    assert num_threads() == usable_cores()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "2,3"])
def test_an_environment_that_names_no_number_of_threads(threads_of_nobody, monkeypatch, text):
    """OMP_NUM_THREADS is not ours to judge: OpenMP passes over what it does not understand, too."""
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert num_threads() == (2 if text == "2,3" else usable_cores())
    with monkeypatch.context() as patch:
        patch.setenv("QINCO_NUM_THREADS", text)
        with pytest.raises(ConfigError, match=f"^QINCO_NUM_THREADS={text} is not a number of threads, 1 or more$"):
            num_threads()


def test_free_memory_is_what_the_machine_can_have():
    assert 1 << 20 < free_memory() < 1 << 60


def test_free_memory_is_what_the_kernel_says(tmp_path):
    write(tmp_path / "proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 7 kB\n")
    assert free_memory(tmp_path) == 7 << 10


def test_free_memory_where_the_kernel_does_not_tell(tmp_path):
    write(tmp_path / "proc/meminfo", "MemTotal: 1 kB\n")
    assert 1 << 20 < free_memory(tmp_path) < 1 << 60


def test_a_container_of_version_2_leaves_what_its_group_has_not_used(tmp_path):
    groups = tmp_path / "sys/fs/cgroup"
    write_groups(tmp_path, "0::/\n", {"memory.max": "50000\n"})
    assert free_memory(tmp_path) == 50000
    write(groups / "memory.current", "30000\n")
    assert free_memory(tmp_path) == 20000
    write(groups / "memory.stat", "anon 9\ninactive_file 10000\n")
    assert free_memory(tmp_path) == 30000
    write(groups / "memory.current", "70000\n")
    assert free_memory(tmp_path) == 0


def test_a_container_of_version_1_leaves_what_its_group_has_not_used(tmp_path):
    write_groups(tmp_path, "5:memory:/docker/abc\n", {  # a path that only the host can see
        "memory/memory.limit_in_bytes": "50000\n", "memory/memory.usage_in_bytes": "40000\n",
        "memory/memory.stat": "inactive_file 1000\ntotal_inactive_file 5000\n",
    })  # fmt: skip
    assert free_memory(tmp_path) == 15000


def test_the_processor_has_a_name(tmp_path):
    write(tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: Fast 9000\n\nprocessor\t: 1\n")
    assert processor_name(tmp_path) == "Fast 9000"
    assert processor_name(tmp_path / "nothing")


def test_groups_of_version_2(tmp_path):
    groups, inner = tmp_path / "sys/fs/cgroup", "outer/inner"
    write_groups(tmp_path, f"0::/{inner}\n", {f"{inner}/cpu.max": "max 100000\n", f"{inner}/memory.max": "max\n"})
    assert cores_and_memory(tmp_path) == (None, None)
    write(groups / "outer/cpu.max", "250000 100000\n")
    write(groups / "outer/memory.max", "5000\n")
    assert cores_and_memory(tmp_path) == (2.5, 5000)
    write(groups / "outer/inner/cpu.max", "50000 100000\n")
    write(groups / "memory.max", "4000\n")
    assert cores_and_memory(tmp_path) == (0.5, 4000)
    assert usable_cores(tmp_path) == 1


def test_groups_of_version_1(tmp_path):
    groups = tmp_path / "sys/fs/cgroup"
    write_groups(tmp_path, "5:memory:/box\n4:cpu,cpuacct:/box\n1:name=systemd:/\n0::/\n", {
        "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    })  # fmt: skip
    assert cores_and_memory(tmp_path) == (None, None)
    write(groups / "cpu/cpu.cfs_quota_us", "300000\n")
    write(groups / "memory/box/memory.limit_in_bytes", "7000\n")
    assert cores_and_memory(tmp_path) == (3.0, 7000)


@pytest.mark.parametrize("text", ["", "0::/\n", "nonsense\n"])
def test_groups_that_say_nothing(tmp_path, text):
    write_groups(tmp_path, text, {"cpu.max": "what\n"})
    assert cores_and_memory(tmp_path) == (None, None)
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nothing") >= 1


def test_a_quota_of_many_cores_gives_none_that_are_not_there(tmp_path):
    write_groups(tmp_path, "0::/\n", {"cpu.max": "100000000 100000\n"})
    assert math.isclose(group_limits(tmp_path).cores, 1000)
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nothing")


def test_the_least_limit_of_all_groups_around_a_container_counts(tmp_path):
    groups = tmp_path / "sys/fs/cgroup"
    write_groups(tmp_path, "0::/pods/pod/box\n", {
        "pods/pod/box/memory.max": "60000\n", "pods/pod/memory.high": "50000\n",
        "pods/pod/memory.current": "20000\n", "pods/memory.max": "max\n",
    })  # fmt: skip
    assert (group_limits(tmp_path).memory, free_memory(tmp_path)) == (50000, 30000)
    write(groups / "pods/memory.max", "40000\n")
    write(groups / "pods/memory.current", "35000\n")
    write(groups / "pods/pod/box/memory.swap.max", "9000000\n")  # swap is not planned with
    assert (group_limits(tmp_path).memory, free_memory(tmp_path)) == (40000, 5000)


def test_version_1_tells_the_limits_of_groups_that_are_not_seen_and_of_swap(tmp_path):
    groups, none = tmp_path / "sys/fs/cgroup", "9223372036854771712\n"
    write_groups(tmp_path, "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n", {
        "memory/memory.limit_in_bytes": none, "memory/memory.usage_in_bytes": "10000\n",
        "memory/memory.stat": f"hierarchical_memory_limit 50000\nhierarchical_memsw_limit {none}",
    })  # fmt: skip
    assert (group_limits(tmp_path).memory, free_memory(tmp_path)) == (50000, 40000)
    write(groups / "memory/memory.memsw.limit_in_bytes", "55000\n")
    write(groups / "memory/memory.memsw.usage_in_bytes", "30000\n")
    assert free_memory(tmp_path) == 25000
    write(groups / "cpu,cpuacct/cpu.cfs_quota_us", "150000\n")  # mounted under both names together
    write(groups / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert group_limits(tmp_path).cores == 1.5


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3,8\n", 5), ("\n", None), ("all\n", None)])
def test_a_set_of_processors_is_a_limit(tmp_path, monkeypatch, text, count):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    write_groups(tmp_path, "0::/box\n", {"box/cpuset.cpus.effective": text})
    assert usable_cores(tmp_path) == (count or 64)
    write(tmp_path / "sys/fs/cgroup/cpu.max", "250000 100000\n")
    assert usable_cores(tmp_path) == min(count or 64, 3)


@pytest.mark.parametrize(
    ("groups", "mount", "files"),
    [("0::/docker/abc/job\n", "/docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw", "sys/fs/cgroup/job/memory.max"),
     ("0::/docker/abc/job\n", "/docker /sys/fs/cgroup rw - cgroup2 cgroup rw", "sys/fs/cgroup/abc/memory.max"),
     ("0::/job\n", "/ /groups rw - cgroup2 none rw", "groups/job/memory.max"),
     ("7:memory:/docker/abc/job\n", "/docker/abc /sys/fs/cgroup/memory rw master:7 - cgroup cgroup rw,memory",
      "sys/fs/cgroup/memory/job/memory.limit_in_bytes"),
     ("7:memory,hugetlb:/job\n", "/ /dev/groups rw - cgroup cgroup rw,hugetlb,memory",
      "dev/groups/job/memory.limit_in_bytes")],
)  # fmt: skip
def test_groups_are_where_they_are_mounted(tmp_path, groups, mount, files):
    write(tmp_path / "proc/self/cgroup", groups)
    write(tmp_path / "proc/self/mountinfo", f"22 21 0:20 / /proc rw - proc proc rw\n30 21 0:26 {mount}\n")
    write(tmp_path / files, "5000\n")
    assert cores_and_memory(tmp_path) == (None, 5000)


def test_controllers_of_version_1_are_mounted_under_names_in_any_order(tmp_path):
    write(tmp_path / "proc/self/cgroup", "4:cpuacct,cpu:/box\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "200000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert group_limits(tmp_path).cores == 2
