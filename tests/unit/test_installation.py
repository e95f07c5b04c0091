"""What `check_installation` reports of real and made-up machines, and that its self-check can fail."""

import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from qinco import installation
from qinco.cli import main
from qinco.config import ENGINES
from qinco.engines.torch_engine import TorchTensors
from qinco.installation import inspect, installed_version
from qinco.maths.assignment import NearestCentroids
from qinco.native import library
from qinco.version import __version__

REQUIRES = [
    "torch<3,>=2.10",
    "numpy>=1.26",
    'nosuchpackage>=3.1; extra == "hdf5"',
    'pytest>=1; extra == "dev"',
    'qinco[hdf5]; extra == "dev"',
]


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def requires(monkeypatch):
    """The lines of a made-up package's metadata, to be changed by the test."""
    lines = list(REQUIRES)
    monkeypatch.setattr(metadata, "requires", lambda package: lines)
    return lines


def test_json_is_one_object(capsys):
    assert main(["doctor", "json=true"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert err == "" and out.count("\n") == 1
    assert facts["self_check"] == "ok" and isinstance(facts["problems"], list)
    versions = {name: facts["versions"][name] for name in ("qinco", "torch", "numpy")}
    assert versions == {"qinco": __version__, "torch": torch.__version__, "numpy": np.__version__}
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["automatic"]["engine"] in ENGINES
    assert (facts["automatic"]["native_kernels"] in library.LEVELS) == library.is_available()
    here = facts["folders"]["current"]
    assert (here["path"], here["writable"]) == (str(Path.cwd()), True) and here["free_bytes"] > 0


def test_table(capsys, requires):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split(None, 2) for line in out.splitlines()]
    assert err == "" and rows[0] == ["about", "what", "value"] and rows[-1] == ["self", "check", "ok"]
    assert ["versions", "qinco", __version__] in rows
    assert "not installed  nosuchpackage" in out and out.count("pip install 'qinco[hdf5]'") == 1


def test_packages(requires, monkeypatch):
    """Optional ones may be missing, required ones not, nor too old."""
    requires += ["othermissing>=2.0", f"scipy>={metadata.version('scipy')}"]
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    facts, problems = inspect()
    assert facts["not_installed"]["nosuchpackage"] == "pip install 'qinco[hdf5]'"
    assert set(facts["versions"]) == {"qinco", "python", "torch", "numpy", "scipy"}
    assert [next(word for word in ("torch", "othermissing") if word in problem) for problem in problems[:2]] == [
        "torch", "othermissing",
    ]  # fmt: skip
    assert "2.9.1+cpu" in problems[0] and "torch>=2.10" in problems[0], "versions are compared as numbers"
    assert not any(word in " ".join(problems) for word in ("nosuchpackage", "pytest", "numpy", "scipy"))
    assert installed_version("scikit-learn") == metadata.version("scikit-learn")


def test_a_package_that_is_not_installed_itself(monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", missing)
    facts, problems = inspect()
    assert facts["versions"]["qinco"] == __version__
    assert "pip install -e ." in problems[0]


@pytest.mark.parametrize(
    "machine, info, features",
    [
        ("x86_64", "model name\t: Quick: 9\nflags\t\t: fpu avx2\n\nflags: fma\n", {"avx2": True, "fma": False}),
        ("aarch64", "processor : 0\nFeatures : fp asimd i8mm\n", {"neon": True, "bf16": False}),
        ("x86_64", "", {}),
    ],
)
def test_processors(machine, info, features, tmp_path, monkeypatch):
    write(tmp_path / "proc/cpuinfo", info)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    processor = inspect(tmp_path)[0]["processor"]
    assert processor["name"] == "Quick: 9" or "Quick" not in info
    assert {name: processor[name] for name in features} == features
    assert features or set(processor) == {"name", "platform"}


def test_cores_and_memory(tmp_path, monkeypatch):
    facts, _ = inspect(tmp_path)
    assert facts["memory"]["limit_bytes"] is None and facts["memory"]["total_bytes"] > 0
    assert facts["cores"]["physical"] is None and facts["cores"]["quota"] is None
    for cpu, core in enumerate((0, 0, 1, 1)):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(topology / "physical_package_id", "0\n")
        write(topology / "core_id", f"{core}\n")
    write(tmp_path / "proc/meminfo", "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:    512 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "50000 100000\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "1000000\n")
    for threads, is_problem in ((64, True), (1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        facts, problems = inspect(tmp_path)
        assert any(f"{threads} threads" in problem and "threads=1" in problem for problem in problems) == is_problem
    assert (facts["cores"]["physical"], facts["cores"]["quota"]) == (2, 0.5)
    assert (facts["memory"]["available_bytes"], facts["memory"]["limit_bytes"]) == (1 << 19, 1_000_000)


def test_problems_of_torch(tmp_path, monkeypatch):
    """Each is a problem only where its cause is there."""
    write(tmp_path / "dev/nvidiactl")
    write(tmp_path / "proc/cpuinfo", "flags : avx512f avx512_bf16\n")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(installation, "choose_device", lambda name: torch.device("cpu"))
    for is_fine in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_fine=is_fine: is_fine)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda is_fine=is_fine: is_fine)
        monkeypatch.setattr(installation, "multiplies_bf16_fast", lambda device: True)
        problems = " ".join(inspect(tmp_path)[1])
        assert [word in problems for word in ("NVIDIA", "oneDNN")] == [not is_fine] * 2
        monkeypatch.setattr(installation, "multiplies_bf16_fast", lambda device, is_fine=is_fine: is_fine)
        assert ("fast at bf16" in " ".join(inspect(tmp_path)[1])) != is_fine


def test_gpus_are_listed(monkeypatch):
    class Properties:
        name = "Graphics 7"
        total_memory = 3 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    facts, _ = inspect()
    assert list(facts["devices"]) == ["cpu", "cuda:0", "cuda:1"]
    assert facts["devices"]["cuda:1"] == {"name": "Graphics 7", "memory_bytes": 3 << 30, "fast_bf16": True}
    assert facts["automatic"]["device"] == "cuda" and facts["automatic"]["candidates"] == "bf16"


def test_data_sets_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("database1M", "training_set", "queries"):
        write(tmp_path / f"data/contriever/{name}.npy")
    missing = ["data/contriever/ground_truth1M.npy"]
    assert inspect()[0]["data_sets"] == {"contriever1M": {"files": 3, "missing": missing}}


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    folder = inspect()[0]["folders"]["current"]
    assert (folder["path"], folder["writable"]) == (None, False)


# The self-check


def encoder_with(change):
    """`TorchTensors.encode_tensors` with its results changed."""
    encode = TorchTensors.encode_tensors
    return lambda self, *arguments: change(*encode(self, *arguments))


def fails(reason, capsys):
    assert main(["doctor", "json=true"]) == 2
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["self_check"] == "failed"
    assert reason in facts["problems"][-1] and reason in err


def test_self_check_sees_wrong_arithmetic(monkeypatch, capsys):
    monkeypatch.setattr(TorchTensors, "encode_tensors", encoder_with(lambda codes, reached: (codes, reached + 1e-2)))
    fails("decoded vectors differ from the search's by 0.01", capsys)


def test_self_check_sees_bad_codes(monkeypatch, capsys):
    honest, calls = TorchTensors.encode_tensors, []

    def encode(self, *arguments):
        codes, reached = honest(self, *arguments)
        calls.append(self)
        return (codes if len(calls) == 1 else codes.roll(1, 0)), reached

    monkeypatch.setattr(TorchTensors, "encode_tensors", encode)
    fails("times the reference's error", capsys)


def test_self_check_sees_wrong_lists(monkeypatch, capsys):
    zeros = lambda self, x_ND, *_: (None, np.zeros((len(x_ND), 1), np.int64))  # noqa: E731
    monkeypatch.setattr(NearestCentroids, "search", zeros)
    fails("faiss does not find the nearest coarse centroids", capsys)


def test_self_check_reports_what_is_raised(monkeypatch, capsys):
    def broken(self, *arguments):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(TorchTensors, "encode_tensors", broken)
    fails("RuntimeError: illegal instruction", capsys)


@pytest.mark.skipif(not library.is_available(), reason="this installation has no compiled kernels")
def test_self_check_tries_the_native_engine(monkeypatch, capsys):
    encode = library.NativeModel.encode

    def wrong(self, *arguments, **settings):
        codes_NM, reached_ND = encode(self, *arguments, **settings)
        return np.roll(codes_NM, 1, axis=0), reached_ND

    monkeypatch.setattr(library.NativeModel, "encode", wrong)
    fails("engine=native precision=float32 has", capsys)
