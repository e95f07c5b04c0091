"""What `check_installation` reports of real and made-up machines, and that its self-check can fail."""

import json
import platform
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qinco import installation
from qinco.cli import main
from qinco.config import ENGINES
from qinco.engines.torch_engine import TorchTensors
from qinco.installation import inspect
from qinco.machine import num_threads, using_threads
from qinco.maths import devices
from qinco.maths.assignment import NearestCentroids
from qinco.native import library
from qinco.version import __version__

REQUIRES = ["torch<3,>=2.10", "numpy>=1.26", 'nosuchpackage>=3.1; extra == "hdf5"', "othermissing>=2.0",
            'pytest>=1; extra == "dev"', 'qinco[hdf5]; extra == "dev"',
            'nosuchsuite>=5; extra == "integrations"',
            'nosuchtool; extra == "release"', 'nosuchsite; extra == "docs"']  # fmt: skip


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_json_is_one_object(capsys):
    assert main(["doctor", "json=true"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert err == "" and out.count("\n") == 1
    assert facts["self_check"] == "ok" and isinstance(facts["problems"], list)
    versions = {name: facts["versions"][name] for name in ("qinco", "torch", "numpy")}
    assert versions == {"qinco": __version__, "torch": torch.__version__, "numpy": np.__version__}
    assert facts["threads"]["used"] == num_threads()
    assert facts["automatic"]["engine"] in ENGINES
    assert (facts["automatic"]["native_kernels"] in library.LEVELS) == library.is_available()
    here = facts["folders"]["current"]
    assert (here["path"], here["writable"]) == (str(Path.cwd()), True) and here["free_bytes"] > 0


def test_packages(monkeypatch, capsys):
    """Optional ones may be missing, required ones not, nor too old; versions are compared as numbers."""
    versions = {"torch": "2.9.1+cpu", "numpy": "2.0"}

    def version(package):
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "requires", lambda package: REQUIRES)
    monkeypatch.setattr(metadata, "version", version)
    facts, problems = inspect()
    assert facts["not_installed"] == {
        "nosuchpackage": "pip install 'qinco[hdf5]'", "othermissing": "pip install --upgrade qinco"}  # fmt: skip
    assert facts["versions"] == {"qinco": __version__, "python": platform.python_version()} | versions
    assert "2.9.1+cpu" in problems[0] and "torch>=2.10" in problems[0] and "othermissing" in problems[1]
    assert not any(word in " ".join(problems) for word in ("nosuchpackage", "pytest", "numpy"))
    assert main(["doctor"]) == 0
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["about", "what", "value"] and rows[-1] == ["self", "check", "ok"]
    assert ["versions", "qinco", __version__] in rows
    monkeypatch.setattr(metadata, "requires", version)
    assert "pip install -e ." in inspect()[1][0], "qinco is not installed itself"


@pytest.mark.parametrize("machine, info, features", [
    ("x86_64", "model name\t: Quick: 9\nflags\t\t: fpu avx2\n\nflags: fma\n", {"avx2": True, "fma": False}),
    ("aarch64", "processor : 0\nFeatures : fp asimd i8mm\n", {"neon": True, "bf16": False}), ("x86_64", "", {}),
])  # fmt: skip
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
        with using_threads(threads):
            facts, problems = inspect(tmp_path)
        assert any(f"{threads} threads" in problem and "threads=1" in problem for problem in problems) == is_problem
    assert (facts["cores"]["physical"], facts["cores"]["quota"]) == (2, 0.5)
    assert (facts["memory"]["available_bytes"], facts["memory"]["limit_bytes"]) == (1 << 19, 1_000_000)


@pytest.mark.parametrize("is_fine", [True, False])
def test_problems_of_torch(is_fine, tmp_path, monkeypatch):
    """Each is a problem only where its cause is there."""
    write(tmp_path / "dev/nvidiactl")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(installation, "choose_device", lambda name: "cuda" if is_fine else "cpu")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: is_fine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": is_fine}, raising=False)
    monkeypatch.setattr(installation, "multiplies_bf16_fast", lambda device="cpu": True)
    problems = " ".join(inspect(tmp_path)[1])
    assert [word in problems for word in ("NVIDIA", "oneDNN", "fast at bf16")] == [not is_fine] * 3
    monkeypatch.setattr(installation, "multiplies_bf16_fast", lambda device="cpu": False)
    assert not any(word in " ".join(inspect(tmp_path)[1]) for word in ("oneDNN", "fast at bf16"))


def test_gpus_are_listed(monkeypatch):
    monkeypatch.setattr(devices, "_DRIVERS", [str(Path.cwd())])
    properties = SimpleNamespace(name="Graphics 7", total_memory=3 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    facts, _ = inspect()
    assert list(facts["devices"]) == ["cpu", "cuda:0", "cuda:1"]
    assert facts["devices"]["cuda:1"] == {"name": "Graphics 7", "memory_bytes": 3 << 30, "fast_bf16": True}
    assert facts["automatic"]["device"] == "cuda" and facts["automatic"]["candidates"] == "bf16"


def test_folders(tmp_path, monkeypatch):
    """Data sets below the current folder are listed, and a current folder that has been removed is no error."""
    monkeypatch.chdir(tmp_path)
    for name in ("database1M", "training_set", "queries"):
        write(tmp_path / f"data/contriever/{name}.npy")
    missing = ["data/contriever/ground_truth1M.npy"]
    assert inspect()[0]["data_sets"] == {"contriever1M": {"files": 3, "missing": missing}}
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    folder = inspect()[0]["folders"]["current"]
    assert (folder["path"], folder["writable"]) == (None, False)


def test_the_self_check_sees_what_is_wrong(monkeypatch, capsys):
    def broken(self, *arguments):
        raise RuntimeError("illegal instruction")

    encode, decode = TorchTensors.encode_tensors, TorchTensors.decode_tensors

    def bad_codes(self, *arguments):
        codes, reached = encode(self, *arguments)
        return codes.roll(1, 0), reached

    def wrong_sums(self, *arguments):
        return decode(self, *arguments) + 1e-2

    def wrong_lists(self, x_ND, *_):
        return None, np.zeros((len(x_ND), 1), np.int64)

    native = library.NativeModel.encode

    def wrong_kernels(self, *arguments, **settings):
        codes_NM, reached_ND = native(self, *arguments, **settings)
        return np.roll(codes_NM, 1, axis=0), reached_ND

    for owner, name, wrong, reason in (
        (TorchTensors, "encode_tensors", broken, "RuntimeError: illegal instruction"),
        (TorchTensors, "decode_tensors", wrong_sums, "engine=torch decodes vectors that differ"),
        (TorchTensors, "encode_tensors", bad_codes, "times the least error"),
        (NearestCentroids, "search", wrong_lists, "nearest coarse centroids"),
        (library.NativeModel, "encode", wrong_kernels, "engine=native precision=float32"),
    ):
        if owner is library.NativeModel and not library.is_available():
            continue
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, wrong)
            assert main(["doctor", "json=true"]) == 2
        out, err = capsys.readouterr()
        facts = json.loads(out)
        assert facts["self_check"] == "failed" and reason in facts["problems"][-1] and reason in err
